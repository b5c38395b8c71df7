//! The program `towline`: arguments, log, runtime, exit code.

use std::{process::ExitCode, time::Duration};

use clap::Parser as _;
use towline::cli::{Cli, fail, start_kept_log, start_log};
use towline_tunnel::fault::{Fault, Report};

/// A prompt that nobody answers, or a lock that is waited for, does not hold up the end for longer.
const END_WITHIN: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let start = if cli.keeps_log() { start_kept_log } else { start_log };
    start(cli.level());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return fail(&Report::caused_by(Fault::Internal, "the runtime can't be started", error));
        }
    };
    let code = runtime.block_on(cli.execute());
    runtime.shutdown_timeout(END_WITHIN);
    code
}

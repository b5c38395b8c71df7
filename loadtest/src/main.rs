//! `towline-loadtest`; and, under their names, the programs that it measures.

use std::{env, ffi::OsStr, path::Path, process::ExitCode};

fn main() -> ExitCode {
    // The programs run as processes of their own, so that their CPU and memory can be told apart, and are this very
    // build: no other could be stale.
    let name = env::args_os().next();
    match name.as_deref().map(Path::new).and_then(Path::file_name).and_then(OsStr::to_str) {
        Some("towline-relay") => towline_relay::cli::main(),
        Some("towline-agent") => towline_agent::cli::main(),
        Some("towline") => client(),
        _ => towline_loadtest::cli::main(),
    }
}

fn client() -> ExitCode {
    use clap::Parser as _;
    let cli = towline::cli::Cli::parse();
    towline::cli::start_log(cli.level());
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(cli.execute()),
        Err(error) => {
            eprintln!("error: no runtime can be made: {error}");
            ExitCode::FAILURE
        }
    }
}

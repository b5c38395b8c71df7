//! The relay's WebSocket code against Autobahn|Testsuite. Installing that takes a minute once, which is told: so it has
//! no harness that keeps what is printed to itself.
#![allow(clippy::print_stdout, reason = "it reports as libtest does")]

use std::process::ExitCode;

use anyhow::ensure;
use towline_e2e::{
    autobahn::{self, SECTIONS},
    suite::{self, Check},
};

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let check = Check::new("the_relays_websocket_fails_no_case_of_autobahn_sections_1_to_7_and_10", || {
        let runtime = tokio::runtime::Runtime::new()?;
        let verdicts = runtime.block_on(autobahn::run(SECTIONS, |line| println!("   {line}")))?;
        println!("   {} cases, {} failed", verdicts.cases(), verdicts.failed.len());
        ensure!(verdicts.failed.is_empty(), "{}", verdicts.failed.join("\n"));
        ensure!(verdicts.cases() >= 240, "only {} cases were run", verdicts.cases());
        Ok(())
    });
    match suite::run(Vec::new(), vec![check], |line| println!("{line}")) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

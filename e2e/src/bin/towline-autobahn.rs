//! The program behind `cargo xtask soak autobahn`.

#![allow(clippy::print_stdout, reason = "it tells what it finds")]

use std::process::ExitCode;

use clap::Parser;
use towline_e2e::autobahn::{self, SECTIONS, Verdicts};
use xtask::interrupt;

/// Runs Autobahn|Testsuite against the relay's WebSocket code.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask soak autobahn")]
struct Arguments {
    /// Cases (`6.*`, `7.1.1`); sections 1 to 7 and 10 where none are given
    #[arg(long)]
    case: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    interrupt::end_when_nobody_reads();
    let arguments = Arguments::parse();
    let chosen: Vec<&str> = arguments.case.iter().map(String::as_str).collect();
    let cases = if chosen.is_empty() { SECTIONS } else { &chosen };
    match autobahn::run(cases, |line| println!("{line}")).await {
        Ok(verdicts) => {
            print(&verdicts);
            if verdicts.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print(verdicts: &Verdicts) {
    println!("section  verdict        cases");
    for ((section, verdict), count) in &verdicts.counts {
        println!("{section:<8} {verdict:<14} {count:>5}");
    }
    for case in &verdicts.failed {
        println!("{case}");
    }
    println!("{} cases, {} failed", verdicts.cases(), verdicts.failed.len());
}

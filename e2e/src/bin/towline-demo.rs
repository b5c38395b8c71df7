//! The program behind `cargo xtask demo`.

#![allow(clippy::print_stdout, reason = "it is a show")]

use std::process::ExitCode;

use clap::Parser as _;
use towline_e2e::demo;
use xtask::interrupt;

fn main() -> ExitCode {
    interrupt::end_when_nobody_reads();
    match demo::run(&demo::Arguments::parse(), |line| println!("{line}")) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            println!("-- Something did not do what it should.");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! The model of the mux, and the scheduler's, with as many random scripts as wanted.

use std::{
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::Context as _;
use clap::Args;

/// How much.
#[derive(Args, Debug)]
pub struct SimArguments {
    /// Scripts for each property.
    #[arg(long, default_value_t = 10_000)]
    cases: u32,
}

pub(super) fn run(arguments: &SimArguments) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let status = Command::new("cargo")
        .args(["test", "--quiet", "--package", "towline-tunnel", "--test", "model"])
        .env("TOWLINE_CASES", arguments.cases.to_string())
        .current_dir(crate::root())
        .status()
        .context("cargo can't be run")?;
    let result = if status.success() { "no finding" } else { "FAILED" };
    println!("{} scripts for each property: {result} ({} s)", arguments.cases, begun.elapsed().as_secs());
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

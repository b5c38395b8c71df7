//! The model of the mux with as many random scripts as wanted, and streams that lose their connections.

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

    /// Scripts in which connections are lost again and again
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,

    /// The first of their numbers
    #[arg(long, default_value_t = 0)]
    first_seed: u64,
}

pub(super) fn run(arguments: &SimArguments) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let status = Command::new("cargo")
        .args(["test", "--quiet", "--package", "towline-tunnel", "--test", "model", "--test", "resume"])
        .env("TOWLINE_CASES", arguments.cases.to_string())
        .env("TOWLINE_SEEDS", arguments.seeds.to_string())
        .env("TOWLINE_FIRST_SEED", arguments.first_seed.to_string())
        .current_dir(crate::root())
        .status()
        .context("cargo can't be run")?;
    let result = if status.success() { "no finding" } else { "FAILED" };
    println!(
        "{} scripts for each property, {} with lost connections: {result} ({} s)",
        arguments.cases,
        arguments.seeds,
        begun.elapsed().as_secs()
    );
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

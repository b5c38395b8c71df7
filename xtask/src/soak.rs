//! `cargo xtask soak`: proofs that take longer than a test run. What they proved stands in `docs/proofs.md`.

mod fuzz;
mod sim;

use std::process::ExitCode;

use clap::Subcommand;

/// What to prove.
#[derive(Debug, Subcommand)]
pub enum SoakCommand {
    /// Feed every decoder and state machine millions of inputs (libFuzzer).
    Fuzz(fuzz::FuzzArguments),
    /// Play random scripts against the model of the mux, many more than a test run does.
    Sim(sim::SimArguments),
}

/// Runs it.
///
/// # Errors
/// If it can't be run. What it finds is in the exit code.
pub fn run(command: SoakCommand) -> anyhow::Result<ExitCode> {
    match command {
        SoakCommand::Fuzz(arguments) => fuzz::run(&arguments),
        SoakCommand::Sim(arguments) => sim::run(&arguments),
    }
}

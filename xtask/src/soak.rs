//! `cargo xtask soak`: proofs that take longer than a test run. What they proved stands in `docs/proofs.md`.

mod fuzz;
mod mutants;
mod sim;

use std::process::ExitCode;

use clap::Subcommand;

/// What to prove.
#[derive(Debug, Subcommand)]
pub enum SoakCommand {
    /// The relay's WebSocket code against Autobahn|Testsuite, with a table of its verdicts.
    #[command(disable_help_flag = true)]
    Autobahn {
        /// Passed on; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Look at healthy ways again and again: doctor and preflight raise no alarm.
    Doctor {
        /// How many times, in each place.
        #[arg(long, default_value_t = 100)]
        runs: u32,
    },
    /// Feed every decoder and state machine millions of inputs (libFuzzer).
    Fuzz(fuzz::FuzzArguments),
    /// Kill a random program with -9 under load, again and again: nothing hangs, nothing cut looks whole, nothing is left.
    #[command(disable_help_flag = true)]
    Kill {
        /// Passed on; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Change the code that says who somebody is, one place at a time: a test has to notice (cargo-mutants).
    Mutants(mutants::MutantsArguments),
    /// Play random scripts against the model of the mux, many more than a test run does.
    Sim(sim::SimArguments),
}

/// Runs it.
///
/// # Errors
/// If it can't be run. What it finds is in the exit code.
pub fn run(command: SoakCommand) -> anyhow::Result<ExitCode> {
    match command {
        SoakCommand::Autobahn { rest } => crate::journey::autobahn(&rest),
        SoakCommand::Doctor { runs } => crate::doctor::soak(runs),
        SoakCommand::Fuzz(arguments) => fuzz::run(&arguments),
        SoakCommand::Kill { rest } => crate::journey::kill(&rest),
        SoakCommand::Mutants(arguments) => mutants::run(&arguments),
        SoakCommand::Sim(arguments) => sim::run(&arguments),
    }
}

//! The command line of `towline-loadtest`.

use std::process::ExitCode;

use anyhow::bail;
use clap::{Parser, Subcommand};
use tokio::time::timeout;

use crate::{
    baseline, compare, cut, fairness,
    figure::{Figure, LOAD},
    fleet, goodput, hold, keystroke, latency, memory, opens, procfs, report, storm,
    terms::Terms,
    told::Told,
};

/// What towline costs, measured on loopback, beside the direct way and beside its peers. Build it with --release.
#[derive(Debug, Parser)]
#[command(name = "towline-loadtest", version)]
struct Cli {
    #[command(flatten)]
    terms: Terms,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bytes a second: the relay alone, the whole journey, and long lines; the relay's CPU for each GB
    Goodput(goodput::Arguments),
    /// What a small GET takes longer through towline, open-loop
    Latency(latency::Arguments),
    /// How long a typed character takes to come back while bulk transfers run
    Keystroke(keystroke::Arguments),
    /// Whether equal streams get equal shares, and what a stalled reader costs the others
    Fairness(fairness::Arguments),
    /// Streams opened and ended, a second and core of the relay
    Opens(opens::Arguments),
    /// What an idle agent and an idle stream cost
    Memory(memory::Arguments),
    /// Many agents at once: joining, staying
    Fleet(fleet::Arguments),
    /// A carrier cut again and again under a transfer and under typing
    Cut(cut::Arguments),
    /// Requests while certificates renew, the relay drains and authorities change: none may fail
    Hold(hold::Arguments),
    /// All agents come back after a relay restart
    Storm(storm::Arguments),
    /// The whole journey beside haproxy, rathole, OpenSSH and remotedialer
    Compare(compare::Arguments),
    /// Makes a page with plots, and the table in docs/performance.md, of what the other commands kept
    Report(report::Arguments),
    /// Against a real cluster that is made for it: what kubectl's requests cost
    Baseline(baseline::Arguments),
}

impl Command {
    fn name(&self) -> &'static str {
        match self {
            Self::Goodput(_) => "goodput",
            Self::Latency(_) => "latency",
            Self::Keystroke(_) => "keystroke",
            Self::Fairness(_) => "fairness",
            Self::Opens(_) => "opens",
            Self::Memory(_) => "memory",
            Self::Fleet(_) => "fleet",
            Self::Cut(_) => "cut",
            Self::Hold(_) => "hold",
            Self::Storm(_) => "storm",
            Self::Compare(_) => "compare",
            Self::Report(_) => "report",
            Self::Baseline(_) => "baseline",
        }
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no runtime can be made: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let Cli { terms, command } = cli;
    // What `report` reads is not what it writes.
    let kept = (!matches!(command, Command::Report(_))).then_some(terms.results.as_path());
    let mut told = Told::new(terms.json, kept, command.name())?;
    if kept.is_some() {
        // Figures from a machine that was busy with something else are worth less; whoever reads them is to know.
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        told.note(Figure::once(LOAD, "", procfs::load_average()?, cores));
    }
    let (terms, told) = (&terms, &mut told);
    let measured = async {
        match command {
            Command::Goodput(arguments) => goodput::run(arguments, terms, told).await,
            Command::Latency(arguments) => latency::run(arguments, terms, told).await,
            Command::Keystroke(arguments) => keystroke::run(arguments, terms, told).await,
            Command::Fairness(arguments) => fairness::run(arguments, terms, told).await,
            Command::Opens(arguments) => opens::run(arguments, terms, told).await,
            Command::Memory(arguments) => memory::run(arguments, terms, told).await,
            Command::Fleet(arguments) => fleet::run(arguments, terms, told).await,
            Command::Cut(arguments) => cut::run(arguments, terms, told).await,
            Command::Hold(arguments) => hold::run(arguments, terms, told).await,
            Command::Storm(arguments) => storm::run(arguments, terms, told).await,
            Command::Compare(arguments) => compare::run(arguments, terms, told).await,
            Command::Report(arguments) => report::run(arguments, terms),
            Command::Baseline(arguments) => baseline::run(arguments, terms, told).await,
        }
    };
    match timeout(terms.deadline(), measured).await {
        Ok(measured) => measured,
        Err(_elapsed) => bail!("not done within {:?} (--within)", terms.deadline()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}

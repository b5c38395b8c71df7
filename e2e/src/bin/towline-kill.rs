//! The program behind `cargo xtask soak kill`.

#![allow(clippy::print_stdout, reason = "it tells what it finds")]

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use towline_e2e::{kill, programs::Programs, stage::Stage, table};
use xtask::{
    cluster::{Cluster, Options},
    interrupt,
};

/// Kills a random program with -9 under load, again and again.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask soak kill")]
struct Arguments {
    /// How often
    #[arg(long, default_value_t = 100)]
    rounds: u32,
    /// Chooses victims and moments; the same seed chooses the same ones
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    interrupt::end_when_nobody_reads();
    match run(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let folder = tempfile::Builder::new().prefix("towline-kill-").tempdir()?;
    let programs = Programs::build()?.copied_to(folder.path())?;
    let options =
        Options { name: format!("kill-{}", std::process::id()), node: true, apiserver_arguments: Vec::new() };
    let cluster = Cluster::up(&options)?;
    let stage = match table::grant(&cluster) {
        Ok(()) => Stage::set(cluster.clone(), programs).await,
        Err(error) => Err(error),
    };
    let findings = match stage {
        Ok(mut stage) => tokio::task::spawn_blocking(move || {
            kill::run(&mut stage, arguments.rounds, arguments.seed, true, |line| println!("{line}"))
        })
        .await
        .context("a round panicked")?,
        Err(error) => Err(error),
    };
    cluster.down()?;
    let findings = findings?;
    println!(
        "{} rounds (seed {}): {} commands cut, {} whole, {} survived; the slowest end of a cut one after {:.1} s, the slowest return after {:.1} s",
        findings.rounds,
        arguments.seed,
        findings.cut,
        findings.whole,
        findings.survived,
        findings.slowest_end.as_secs_f64(),
        findings.slowest_return.as_secs_f64()
    );
    for fault in &findings.faults {
        println!("FAULT {fault}");
    }
    println!("{} faults", findings.faults.len());
    Ok(if findings.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

//! `towline-loadtest`: what towline costs, on loopback, beside the direct way.

#![allow(clippy::print_stdout, reason = "figures are what it is run for")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use towline_e2e::programs::Programs;
use towline_loadtest::baseline::{self, Amount};
use xtask::cluster::{Cluster, Options};

/// Measures towline beside the direct way. Build it with --release: then the programs are, too.
#[derive(Debug, Parser)]
#[command(name = "towline-loadtest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Latency, connections, goodput and memory, against a real cluster that is made for it
    Baseline {
        /// Pairs (direct, through) of each measurement
        #[arg(long, default_value_t = 10)]
        pairs: usize,
        /// One JSON object a line instead of a table
        #[arg(long)]
        json: bool,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let Command::Baseline { pairs, json } = cli.command;
    let programs = Programs::build()?;
    let options =
        Options { name: format!("load-{}", std::process::id()), node: true, apiserver_arguments: Vec::new() };
    let cluster = Cluster::up(&options)?;
    if !json {
        println!("{:<34} {:>10} {:>10} {:<8} ratio (95 %)", "", "direct", "through", "");
    }
    let amount = Amount { pairs, requests: 300, opens: 50, copy: 100_000_000, agents: 500 };
    let measured = baseline::run(&cluster, programs, amount, |figure| {
        println!("{}", if json { figure.json() } else { figure.line() });
    })
    .await;
    cluster.down()?;
    measured.map(|_| ())
}

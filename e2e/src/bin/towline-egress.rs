//! `cargo xtask egress`: a table of networks, and what comes of each.
#![allow(clippy::print_stdout, reason = "the table is what it is run for")]

use std::{process::ExitCode, time::Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use towline_e2e::{
    egress::{self, ROWS, Row},
    programs::Programs,
    stage::Stage,
    table,
};
use xtask::{
    cluster::{Cluster, Options},
    interrupt,
};

/// Takes agent and client out of every kind of network, to a real cluster, and tries seven of kubectl's verbs in each.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask egress")]
struct Arguments {
    /// Print the table (it is printed anyway)
    #[arg(long)]
    table: bool,
    /// Only the networks whose names contain one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only what is quick, and in every run of all tests
    #[arg(long)]
    quick: bool,
    /// Only connections that are cut at 20 s, and a copy of 1 GB meanwhile (6 minutes)
    #[arg(long)]
    cuts: bool,
    /// Use the cluster of this name, if it is up, and leave it; otherwise one is made and removed
    #[arg(long)]
    cluster: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    interrupt::end_when_nobody_reads();
    match run().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<bool> {
    let arguments = Arguments::parse();
    let found = arguments.cluster.as_deref().map(Cluster::find).transpose()?.flatten();
    let keep = found.is_some();
    let name = arguments.cluster.clone().unwrap_or_else(|| format!("egress-{}", std::process::id()));
    let cluster = match found {
        Some(cluster) => cluster,
        None => Cluster::up(&Options { name, node: true, apiserver_arguments: Vec::new() })?,
    };
    let passed = all(&cluster, arguments).await;
    if !keep {
        cluster.down()?;
    }
    passed
}

async fn all(cluster: &Cluster, arguments: Arguments) -> anyhow::Result<bool> {
    table::grant(cluster)?;
    let mut stage = Stage::set(cluster.clone(), Programs::build()?).await?;
    let runtime = tokio::runtime::Handle::current();
    let made = tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        println!("{}", Row::head());
        let chosen = |row: &egress::Planned| {
            (!arguments.quick || row.quick)
                && (!arguments.cuts || row.name == "cuts")
                && (arguments.only.is_empty()
                    || arguments.only.iter().any(|only| row.name.contains(only.as_str())))
        };
        let rows =
            egress::run(&mut stage, &runtime, arguments.cuts, chosen, |row| println!("{}", row.print()))?;
        println!("\n{} of {} networks, {} s", rows.len(), ROWS.len(), begun.elapsed().as_secs());
        anyhow::Ok(rows)
    });
    let rows = made.await.context("the table panicked")??;
    ensure!(!rows.is_empty(), "no network has such a name");
    let wrong = rows.iter().filter(|row| !row.is_as_expected()).count();
    println!("{} as expected, {wrong} not", rows.len() - wrong);
    Ok(wrong == 0)
}

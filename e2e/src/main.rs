//! `cargo xtask e2e`: the direct-or-through table.

#![allow(clippy::print_stdout, reason = "the table is what it is run for")]

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use towline_e2e::{
    programs::Programs,
    stage::Stage,
    table::{self, Selection},
};
use xtask::cluster::{Cluster, Options};

/// Runs every case directly and through towline, on a real cluster, and prints whether the two are equal.
#[derive(Debug, Parser)]
struct Arguments {
    /// Print the table (it is printed anyway)
    #[arg(long)]
    table: bool,
    /// Only the cases whose names contain this
    #[arg(long)]
    only: Option<String>,
    /// Neither SPDY nor other kubectls
    #[arg(long)]
    plain: bool,
    /// Only directly, to try the cases themselves
    #[arg(long)]
    direct: bool,
    /// Take what comes out directly as what is expected, into `cases/*.out`
    #[arg(long)]
    bless: bool,
    /// Use the cluster of this name, if it is up, and leave it; otherwise one is made and removed
    #[arg(long)]
    cluster: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let found = arguments.cluster.as_deref().map(Cluster::find).transpose()?.flatten();
    let keep = found.is_some();
    let cluster = match found {
        Some(cluster) => cluster,
        None => Cluster::up(&Options {
            name: arguments.cluster.clone().unwrap_or_else(|| "e2e".into()),
            node: true,
            apiserver_arguments: Vec::new(),
        })?,
    };
    let selection = Selection {
        only: arguments.only,
        plain: arguments.plain,
        direct: arguments.direct,
        bless: arguments.bless,
    };
    let stage = match selection.direct {
        true => None,
        false => Some(Stage::set(cluster.clone(), Programs::build()?).await?),
    };
    let table_cluster = cluster.clone();
    let rows = tokio::task::spawn_blocking(move || {
        table::run(&table_cluster, stage.as_ref(), &selection, |row| {
            println!("{}", row.print());
        })
    })
    .await
    .context("the table panicked")?;
    if !keep {
        cluster.down()?;
    }
    let rows = rows?;
    let different = rows.iter().filter(|row| !row.is_equal()).count();
    let wrong = rows.iter().filter(|row| !row.is_expected()).count();
    println!("{} cases, {different} different, {wrong} not as expected", rows.len());
    Ok(if different + wrong == 0 && !rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

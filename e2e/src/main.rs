//! `cargo xtask e2e`: the direct-or-through table, and beneath it a row for each login, kind of token, role and end of a right.

#![allow(clippy::print_stdout, reason = "the table is what it is run for")]

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use towline_e2e::{
    case::Case,
    identity,
    programs::Programs,
    stage::Stage,
    table::{self, Selection},
};
use xtask::cluster::{Cluster, Options};

/// Runs every case directly and through towline, on a real cluster, and prints whether the two are equal; then every login, kind of
/// token, role and end of a right.
#[derive(Debug, Parser)]
struct Arguments {
    /// Print the table (it is printed anyway)
    #[arg(long)]
    table: bool,
    /// Only the cases and rows whose names contain this
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
    let runtime = tokio::runtime::Handle::current();
    let table_cluster = cluster.clone();
    let ran = tokio::task::spawn_blocking(move || all(&table_cluster, stage.as_ref(), &selection, &runtime))
        .await
        .context("the table panicked")?;
    if !keep {
        cluster.down()?;
    }
    Ok(if ran? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints both tables; whether all is as it must be.
fn all(
    cluster: &Cluster,
    stage: Option<&Stage>,
    selection: &Selection,
    runtime: &tokio::runtime::Handle,
) -> anyhow::Result<bool> {
    let only = selection.only.as_deref();
    let is_asked_for = |case: &Case| only.is_none_or(|only| case.name.contains(only));
    let rows = match Case::all()?.iter().any(is_asked_for) {
        true => table::run(cluster, stage, selection, |row| println!("{}", row.print()))?,
        false => Vec::new(),
    };
    let different = rows.iter().filter(|row| !row.is_equal()).count();
    let wrong = rows.iter().filter(|row| !row.is_expected()).count();
    println!("{} cases, {different} different, {wrong} not as expected", rows.len());
    let mut all = rows.len();
    let mut failed = different + wrong;
    if let Some(stage) = stage.filter(|_| identity::is_asked_for(only)) {
        let rows = identity::run(cluster, &stage.programs, runtime, only, |row| println!("{}", row.print()))?;
        let faults = rows.iter().filter(|row| row.result.is_err()).count();
        println!("{} ways to be somebody, {faults} not as they must be", rows.len());
        all += rows.len();
        failed += faults;
    }
    Ok(failed == 0 && all > 0)
}

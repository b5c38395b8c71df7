//! How long a typed character takes to come back while bulk transfers run beside it.

mod lines;

use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use hdrhistogram::Histogram;
use tokio::task::spawn_blocking;
use towline_tunnel::mux::MAX_LINES;

use crate::{
    figure::Figure,
    latency::percentiles,
    openloop::{self, Pace},
    path::Path,
    rig::{
        Rig,
        paths::Simulated,
        programs::{Lines, Programs},
    },
    terms::Terms,
    told::Told,
    transfer::{Direction, Running},
};

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Keys a second
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2000))]
    rate: u32,
    /// Bulk streams beside it, downwards
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    bulk: u16,
    /// Instead: the programs with so many lines for bulk, and with none, in turns
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_LINES)))]
    bulk_lines: Option<u32>,
}

/// Measures it.
///
/// # Errors
/// If something can't be set up, or fails.
pub async fn run(arguments: Arguments, terms: &Terms, told: &mut Told) -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    if let Some(bulk_lines) = arguments.bulk_lines {
        return lines::run(&rig, bulk_lines, &arguments, terms, told).await;
    }
    let simulated: Arc<dyn Path> = Arc::new(Simulated::end_to_end(&rig).await?);
    beside_bulk(simulated, &arguments, terms, told).await?;
    let programs: Arc<dyn Path> = Arc::new(Programs::start(&rig, "journey", Lines::default())?);
    beside_bulk(programs, &arguments, terms, told).await
}

/// Types over a path, alone and beside bulk over the same path, and tells it.
///
/// # Errors
/// If a stream fails.
pub async fn beside_bulk(
    path: Arc<dyn Path>,
    arguments: &Arguments,
    terms: &Terms,
    told: &mut Told,
) -> anyhow::Result<()> {
    let pace = Pace { rate: arguments.rate.into(), warm_up: terms.warm_up(), window: terms.window() };
    let bar = told.begin(&format!("typing over {}", path.name()), 2 * terms.runs());
    let (mut alone, mut beside, mut bulk) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..terms.runs() {
        alone.push(typing(Arc::clone(&path), pace).await?);
        bar.inc(1);
        let mut running = Running::start(&*path, Direction::Down, arguments.bulk.into()).await?;
        running.go_on(terms.warm_up()).await?;
        let (begun, before) = (std::time::Instant::now(), running.all());
        beside.push(typing(Arc::clone(&path), pace).await?);
        bulk.push((running.all() - before) as f64 * 8e-9 / begun.elapsed().as_secs_f64());
        bar.inc(1);
    }
    percentiles(told, &format!("keystroke echo, {}, nothing beside it", path.name()), alone.iter())?;
    let name = format!("keystroke echo, {}, beside {} bulk streams", path.name(), arguments.bulk);
    percentiles(told, &name, beside.iter())?;
    told.note(Figure::of_runs(format!("{name}, bulk meanwhile"), "Gb/s", &bulk));
    Ok(())
}

/// A person has a program of their own: the typing has a thread and a runtime of its own, so that it does not wait in
/// the same queue as the tasks that take the bulk.
async fn typing(path: Arc<dyn Path>, pace: Pace) -> anyhow::Result<Histogram<u64>> {
    let task = spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(openloop::echoes(&*path, pace))
    });
    task.await.context("the typing thread ended")?
}

//! Whether equal streams get equal shares, and what a stalled reader costs the others.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use tokio::time::sleep;

use crate::{
    far::Verb,
    figure::Figure,
    fleet::settled,
    near,
    path::Path,
    rig::{
        Rig,
        paths::Simulated,
        programs::{Lines, Programs},
    },
    stats::jain,
    terms::Terms,
    told::Told,
    transfer::{self, Direction, Load, Running},
};

/// What waits for the reader that stalls.
const WAITING: u64 = 1 << 30;
/// How many stall, so that what each costs can be told.
const STALLED: usize = 32;
/// What a relay promises each stream beyond its ledger, both ways (KiB).
const FLOORS: f64 = 32.0;
/// Until it has got what its window allows.
const STALLED_WITHIN: Duration = Duration::from_secs(2);

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Equal bulk streams
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=1000))]
    streams: u16,
    /// Streams beside the one whose reader stalls
    #[arg(long, default_value_t = 999, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    others: u16,
}

/// Measures it.
///
/// # Errors
/// If something can't be set up, or fails.
pub async fn run(arguments: Arguments, terms: &Terms, told: &mut Told) -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let load = Load::down(arguments.streams.into(), terms);
    let simulated = Simulated::end_to_end(&rig).await?;
    let programs = Programs::start(&rig, "journey", Lines::default())?;
    for path in [&simulated as &dyn Path, &programs] {
        equal_shares(&rig, path, load, terms, told).await?;
    }
    drop((simulated, programs));
    // A relay whose heap has no room left over from bulk: what it grows by is what it holds.
    let rig = Rig::start(&[]).await?;
    let path = Simulated::end_to_end(&rig).await?;
    what_is_held(&rig, &path, told).await?;
    beside_a_stalled_reader(Arc::new(path), arguments.others.into(), terms, told).await
}

async fn equal_shares(
    rig: &Rig,
    path: &dyn Path,
    load: Load,
    terms: &Terms,
    told: &mut Told,
) -> anyhow::Result<()> {
    let what = format!("{} equal bulk streams, {}", load.streams, path.name());
    let bar = told.begin(&what, terms.runs());
    let mut indices = Vec::new();
    for _ in 0..terms.runs() {
        indices.push(jain(&transfer::run(path, rig.far.far(), load).await?.each));
        bar.inc(1);
    }
    told.note(Figure::of_runs(format!("{what}, Jain's index"), "", &indices));
    Ok(())
}

/// What one stalled reader makes others hold: that of several, shared out, because a process's memory comes in larger
/// pieces than a window.
async fn what_is_held(rig: &Rig, path: &Simulated, told: &mut Told) -> anyhow::Result<()> {
    let promised = "towline_relay_buffered_bytes";
    let before = (settled(rig.relay.pid()).await?.private, rig.relay.metric(promised).await?);
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        stalled.push(near::raw(path, Verb::Source(Some(WAITING))).await?);
    }
    sleep(STALLED_WITHIN).await;
    let after = (settled(rig.relay.pid()).await?.private, rig.relay.metric(promised).await?);
    let each = |bytes: f64| bytes / 1024.0 / STALLED as f64;
    let what = |what: &str| format!("a stalled reader, 1 GiB waiting, {what}");
    let grown = each(after.0.saturating_sub(before.0) as f64);
    let allowance = each(after.1 - before.1) + FLOORS;
    told.note(Figure::of_pairs(what("relay holds"), "KiB", "its allowance", &[(grown, allowance)]));
    for (end, connection) in [("client", path.client().connection()), ("agent", path.agent().connection())] {
        let held = each(connection.held() as f64);
        told.note(Figure::once(what(&format!("{end}'s end holds")), "KiB", held, STALLED));
    }
    drop(stalled);
    Ok(())
}

async fn beside_a_stalled_reader(
    path: Arc<Simulated>,
    others: usize,
    terms: &Terms,
    told: &mut Told,
) -> anyhow::Result<()> {
    let running = Running::start(&*path, Direction::Down, others).await?;
    let running = tokio::sync::Mutex::new(running);
    let speed = async || {
        let mut running = running.lock().await;
        running.go_on(terms.warm_up()).await?;
        let (begun, before) = (Instant::now(), running.all());
        running.go_on(terms.window()).await?;
        anyhow::Ok((running.all() - before) as f64 * 8e-9 / begun.elapsed().as_secs_f64())
    };
    let beside_a_stalled_one = async || {
        let stalled = near::raw(&*path, Verb::Source(Some(WAITING))).await?;
        sleep(terms.warm_up()).await;
        let speed = speed().await;
        drop(stalled);
        speed
    };
    let what = format!("{others} streams beside a stalled one");
    let pairs = told.in_turns(&what, terms.runs(), beside_a_stalled_one, async || speed().await).await?;
    let name = format!("{others} bulk streams beside a stalled reader");
    told.note(Figure::of_pairs(name, "Gb/s", "without it", &pairs));
    Ok(())
}

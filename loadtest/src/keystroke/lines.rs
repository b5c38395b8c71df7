//! The same with lines for bulk and without, in turns: on loopback, and with the agent on a long line.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::{Arguments, typing};
use crate::{
    figure::Figure,
    latency::percentiles,
    line::{Line, Nature},
    openloop::Pace,
    path::Path,
    rig::{
        Rig,
        programs::{Lines, Programs},
    },
    stats::millis,
    terms::Terms,
    told::Told,
    transfer::{self, Direction, Load, Running},
};

/// Round trip and rate (bits a second) of the long line.
const LONG: (Duration, f64) = (Duration::from_millis(50), 100e6);

pub(super) async fn run(
    rig: &Rig,
    bulk_lines: u32,
    arguments: &Arguments,
    terms: &Terms,
    told: &mut Told,
) -> anyhow::Result<()> {
    both(rig, "loopback", Lines::default(), bulk_lines, arguments, terms, told).await?;
    let nature = Nature::new(LONG.0, Some(LONG.1));
    let line = Line::to(rig.relay.address(), nature).await?;
    let lines = Lines { agent: Some(line.address()), proxy: None };
    let name = format!("{} ms × {:.0} Mb/s", LONG.0.as_millis(), LONG.1 / 1e6);
    both(rig, &name, lines, bulk_lines, arguments, terms, told).await
}

async fn both(
    rig: &Rig,
    place: &str,
    lines: Lines,
    bulk_lines: u32,
    arguments: &Arguments,
    terms: &Terms,
    told: &mut Told,
) -> anyhow::Result<()> {
    let name = |n: u32| format!("lines-{n}-{}", if lines.agent.is_some() { "long" } else { "loopback" });
    let with: Arc<dyn Path> =
        Arc::new(Programs::with_bulk_lines(rig, &name(bulk_lines), lines, Some(bulk_lines))?);
    let without: Arc<dyn Path> = Arc::new(Programs::with_bulk_lines(rig, &name(0), lines, Some(0))?);
    let seen = told
        .in_turns(
            &format!("typing beside bulk, {place}"),
            terms.runs(),
            async || beside(&with, arguments, terms).await,
            async || beside(&without, arguments, terms).await,
        )
        .await?;
    let what = format!("keystroke echo beside {} bulk streams, {place}", arguments.bulk);
    for (path, pick) in [(&with, 0), (&without, 1)] {
        let runs = seen.iter().map(|(ours, theirs)| if pick == 0 { &ours.0 } else { &theirs.0 });
        percentiles(told, &format!("{what}, {}", path.name()), runs)?;
    }
    for (quantile, label) in [(0.5, "p50"), (0.99, "p99")] {
        let pairs: Vec<(f64, f64)> = seen
            .iter()
            .map(|(ours, theirs)| (millis(&ours.0, quantile), millis(&theirs.0, quantile)))
            .collect();
        told.note(Figure::of_pairs(format!("{what}, {label} in turns"), "ms", without.name(), &pairs));
    }
    let bulk: Vec<(f64, f64)> = seen.iter().map(|(ours, theirs)| (ours.1, theirs.1)).collect();
    told.note(Figure::of_pairs(format!("{what}, bulk meanwhile"), "Gb/s", without.name(), &bulk));
    let far = rig.far.far();
    let moved = told
        .in_turns(
            &format!("one stream, {place}"),
            terms.runs(),
            async || transfer::run(&*with, far, Load::down(1, terms)).await,
            async || transfer::run(&*without, far, Load::down(1, terms)).await,
        )
        .await?;
    let speeds: Vec<(f64, f64)> =
        moved.iter().map(|(ours, theirs)| (ours.gigabits(), theirs.gigabits())).collect();
    let name = format!("goodput of 1 stream, {place}, {}", with.name());
    told.note(Figure::of_pairs(name, "Gb/s", without.name(), &speeds));
    Ok(())
}

/// Typing beside bulk, and the bulk's rate meanwhile.
async fn beside(
    path: &Arc<dyn Path>,
    arguments: &Arguments,
    terms: &Terms,
) -> anyhow::Result<(Histogram<u64>, f64)> {
    let pace = Pace { rate: arguments.rate.into(), warm_up: terms.warm_up(), window: terms.window() };
    let mut running = Running::start(&**path, Direction::Down, arguments.bulk.into()).await?;
    running.go_on(terms.warm_up()).await?;
    let (begun, before) = (Instant::now(), running.all());
    let typed = typing(Arc::clone(path), pace).await?;
    Ok((typed, (running.all() - before) as f64 * 8e-9 / begun.elapsed().as_secs_f64()))
}

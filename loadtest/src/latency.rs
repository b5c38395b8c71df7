//! What a small GET takes longer, asked for at a fixed rate, over connections that are kept.

use clap::Args;
use hdrhistogram::Histogram;

use crate::{
    direct::Direct,
    figure::Figure,
    openloop::{self, Pace},
    path::Path,
    rig::{
        Rig,
        programs::{Lines, Programs},
    },
    stats::{histogram, median, millis},
    terms::Terms,
    told::Told,
};

/// Percentiles that are told.
const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// GETs a second
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
    /// Connections that are kept
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
}

/// Measures it.
///
/// # Errors
/// If something can't be set up, or fails.
pub async fn run(arguments: Arguments, terms: &Terms, told: &mut Told) -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let programs = Programs::start(&rig, "journey", Lines::default())?;
    pairs(&programs, &Direct::tls(&rig.far), &arguments, terms, told).await
}

/// Measures a path and the direct way in turns, and tells it: percentiles of both, and how much longer the path takes.
///
/// # Errors
/// If one of them fails.
pub async fn pairs(
    path: &dyn Path,
    direct: &dyn Path,
    arguments: &Arguments,
    terms: &Terms,
    told: &mut Told,
) -> anyhow::Result<()> {
    let pace = Pace { rate: arguments.rate.into(), warm_up: terms.warm_up(), window: terms.window() };
    let connections = arguments.connections.into();
    let what = format!("small GETs, {} and {}", path.name(), direct.name());
    let seen = told
        .in_turns(
            &what,
            terms.runs(),
            async || openloop::gets(path, connections, pace).await,
            async || openloop::gets(direct, connections, pace).await,
        )
        .await?;
    percentiles(told, &format!("small GET, {}", path.name()), seen.iter().map(|pair| &pair.0))?;
    percentiles(told, &format!("small GET, {}", direct.name()), seen.iter().map(|pair| &pair.1))?;
    let added = |quantile: f64| -> Vec<f64> {
        seen.iter().map(|(ours, theirs)| millis(ours, quantile) - millis(theirs, quantile)).collect()
    };
    let (p50, p99) = (added(0.5), added(0.99));
    told.note(Figure::of_runs(format!("small GET, added by {}, p50", path.name()), "ms", &p50));
    let own: Vec<(f64, f64)> = p99.iter().zip(&p50).map(|(p99, p50)| (*p99, *p50)).collect();
    told.note(Figure::of_pairs(
        format!("small GET, added by {}, p99", path.name()),
        "ms",
        "its own p50",
        &own,
    ));
    let against: Vec<(f64, f64)> =
        seen.iter().map(|(ours, theirs)| (millis(ours, 0.5), millis(theirs, 0.5))).collect();
    told.note(Figure::of_pairs(
        format!("small GET, {}, p50 in turns", path.name()),
        "ms",
        direct.name(),
        &against,
    ));
    Ok(())
}

/// Tells the percentiles of all runs together, with the interval of the runs' own.
///
/// # Errors
/// Never: all histograms have the same bounds.
pub fn percentiles<'a>(
    told: &mut Told,
    name: &str,
    runs: impl Iterator<Item = &'a Histogram<u64>> + Clone,
) -> anyhow::Result<()> {
    let mut all = histogram();
    for run in runs.clone() {
        all.add(run)?;
    }
    for (quantile, at) in QUANTILES {
        let each: Vec<f64> = runs.clone().map(|run| millis(run, at)).collect();
        let interval = crate::stats::interval(&each);
        debug_assert!(median(&each).is_finite());
        let figure = Figure::once(format!("{name}, {quantile}"), "ms", millis(&all, at), all.len() as usize);
        told.note(Figure { ci95: interval, ..figure });
    }
    Ok(())
}

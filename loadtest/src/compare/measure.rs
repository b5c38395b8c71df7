//! Two ways measured in turns.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use tokio::time::timeout;

use crate::{
    figure::Figure,
    goodput,
    near::{Http, SMALL},
    openloop::{self, Pace},
    path::Path,
    rig::Rig,
    stats::{histogram, millis},
    terms::Terms,
    told::Told,
    transfer::Load,
};

/// Connections that are opened at once.
const AT_ONCE: usize = 16;
/// Whatever takes longer is broken.
const LONGEST: Duration = Duration::from_secs(30);

/// How much.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size<'a> {
    /// Small GETs a second.
    pub(super) rate: f64,
    /// Connections that they go over.
    pub(super) connections: usize,
    pub(super) terms: &'a Terms,
}

/// towline's way and a peer's, and what both are compared to.
pub(super) struct Compared<'a> {
    pub(super) ours: &'a dyn Path,
    pub(super) theirs: &'a dyn Path,
    pub(super) direct: &'a dyn Path,
    pub(super) rig: &'a Rig,
    pub(super) size: Size<'a>,
}

impl Compared<'_> {
    /// Bytes a second, and the CPU of all processes between the ends.
    pub(super) async fn goodput(&self, streams: usize, told: &mut Told) -> anyhow::Result<()> {
        let load = Load::down(streams, self.size.terms);
        let moved = goodput::pairs(self.rig, self.ours, self.theirs, load, self.size.terms, told).await?;
        let cpu: Vec<(f64, f64)> = moved
            .iter()
            .map(|(ours, theirs)| (ours.core_seconds_per_gigabyte(), theirs.core_seconds_per_gigabyte()))
            .collect();
        let name = format!("CPU, {}, {streams} at once", self.ours.name());
        told.note(Figure::of_pairs(name, "core s/GB", self.theirs.name(), &cpu));
        Ok(())
    }

    /// Small GETs at a fixed rate over connections that are kept: what each way takes, and what it adds to the direct way.
    pub(super) async fn latency(&self, told: &mut Told) -> anyhow::Result<()> {
        let terms = self.size.terms;
        let pace = Pace { rate: self.size.rate, warm_up: terms.warm_up(), window: terms.window() };
        let (ours, theirs) = (self.ours.name(), self.theirs.name());
        let bar = told.begin(&format!("small GETs, {ours} and {theirs}"), terms.runs());
        let gets = async |path: &dyn Path| openloop::gets(path, self.size.connections, pace).await;
        let mut runs: Vec<[Histogram<u64>; 3]> = Vec::new();
        for run in 0..terms.runs() {
            // The direct way is between the two, so that both have the same neighbour.
            let seen = if run % 2 == 0 {
                let first = gets(self.ours).await?;
                let between = gets(self.direct).await?;
                [first, gets(self.theirs).await?, between]
            } else {
                let first = gets(self.theirs).await?;
                let between = gets(self.direct).await?;
                [gets(self.ours).await?, first, between]
            };
            runs.push(seen);
            bar.inc(1);
        }
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
            let pairs: Vec<(f64, f64)> = runs
                .iter()
                .map(|[ours, theirs, _]| (millis(ours, quantile), millis(theirs, quantile)))
                .collect();
            told.note(Figure::of_pairs(format!("small GET, {ours}, {name}"), "ms", theirs, &pairs));
        }
        let added = |way: &Histogram<u64>, direct: &Histogram<u64>| millis(way, 0.5) - millis(direct, 0.5);
        let pairs: Vec<(f64, f64)> =
            runs.iter().map(|[ours, theirs, direct]| (added(ours, direct), added(theirs, direct))).collect();
        told.note(Figure::of_pairs(format!("small GET, added, {ours}, p50"), "ms", theirs, &pairs));
        Ok(())
    }

    /// A new connection and its first answer: how long one takes, and how many a second where several are opened at once.
    pub(super) async fn opens(&self, told: &mut Told) -> anyhow::Result<()> {
        let terms = self.size.terms;
        let (ours, theirs) = (self.ours.name(), self.theirs.name());
        for (at_once, what) in [(1, "one by one"), (AT_ONCE, "16 at a time")] {
            let seen = told
                .in_turns(
                    &format!("new connections {what}, {ours} and {theirs}"),
                    terms.runs(),
                    async || opens(self.ours, at_once, terms).await,
                    async || opens(self.theirs, at_once, terms).await,
                )
                .await?;
            let name = format!("new connection and a GET, {ours}, {what}");
            let pairs: Vec<(f64, f64)> = seen
                .iter()
                .map(|(ours, theirs)| match at_once {
                    1 => (millis(&ours.times, 0.5), millis(&theirs.times, 0.5)),
                    _ => (ours.a_second, theirs.a_second),
                })
                .collect();
            told.note(Figure::of_pairs(name, if at_once == 1 { "ms" } else { "/s" }, theirs, &pairs));
        }
        Ok(())
    }
}

/// What one run of [`opens`] saw.
pub(super) struct Opened {
    times: Histogram<u64>,
    a_second: f64,
}

/// So many at once, each anew once the last had its answer.
pub(super) async fn opens(path: &dyn Path, at_once: usize, terms: &Terms) -> anyhow::Result<Opened> {
    let begun = Instant::now();
    let (counted_from, until) = (begun + terms.warm_up(), begun + terms.warm_up() + terms.window());
    let one = async || -> anyhow::Result<Histogram<u64>> {
        let mut times = histogram();
        while Instant::now() < until {
            let wanted = Instant::now();
            let answered = async { Http::dial(path).await?.get(SMALL).await };
            timeout(LONGEST, answered).await.context("no answer").flatten()?;
            if wanted >= counted_from {
                times.record(u64::try_from(wanted.elapsed().as_micros())?)?;
            }
        }
        Ok(times)
    };
    let mut all = histogram();
    for times in try_join_all((0..at_once).map(|_| one())).await? {
        all.add(times)?;
    }
    anyhow::ensure!(!all.is_empty(), "{}: none was opened in {:?}", path.name(), terms.window());
    Ok(Opened { a_second: all.len() as f64 / terms.window().as_secs_f64(), times: all })
}

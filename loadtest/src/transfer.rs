//! Bulk over a path: bytes a second, each stream's share, and the CPU that it took.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    far::{Far, Verb},
    near::{self, Raw},
    path::Path,
    pattern::{PIECE, Pattern},
    procfs,
    terms::Terms,
};

/// A path that carries nothing for so long is broken.
const SILENCE: Duration = Duration::from_secs(20);
/// What is read at once.
const BLOCK: usize = 64 * 1024;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the far end: `logs`, `cp` from a pod.
    Down,
    /// To the far end: `cp` to a pod.
    Up,
}

/// What goes over a path.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Which way.
    pub direction: Direction,
    /// How many streams at once.
    pub streams: usize,
    /// Before counting begins.
    pub warm_up: Duration,
    /// While it counts.
    pub window: Duration,
}

impl Load {
    /// Downwards, for as long as the flags say.
    pub fn down(streams: usize, terms: &Terms) -> Self {
        Self { direction: Direction::Down, streams, warm_up: terms.warm_up(), window: terms.window() }
    }
}

/// What a window saw.
#[derive(Clone, Debug)]
pub struct Moved {
    /// Of all streams, at the end that receives.
    pub bytes: u64,
    /// Of each stream, at the near end.
    pub each: Vec<f64>,
    /// How long it was, as the clock says.
    pub took: Duration,
    /// CPU of the path's processes.
    pub cpu: Duration,
}

impl Moved {
    /// Gigabits a second.
    pub fn gigabits(&self) -> f64 {
        self.bytes as f64 * 8e-9 / self.took.as_secs_f64()
    }

    /// Core seconds of the path's processes for each GB (10⁹ bytes).
    pub fn core_seconds_per_gigabyte(&self) -> f64 {
        self.cpu.as_secs_f64() / (self.bytes as f64 * 1e-9)
    }
}

/// Streams that run; dropping it cuts them.
#[derive(Debug)]
pub struct Running {
    counters: Vec<Arc<AtomicU64>>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Running {
    /// Starts so many streams, each over a connection of its own.
    ///
    /// # Errors
    /// If one can't be had.
    pub async fn start(path: &dyn Path, direction: Direction, streams: usize) -> anyhow::Result<Self> {
        let pattern = Arc::new(Pattern::default());
        let (mut counters, mut tasks) = (Vec::new(), JoinSet::new());
        for number in 0..streams {
            let verb = match direction {
                Direction::Down => Verb::Source(None),
                Direction::Up => Verb::Sink,
            };
            let raw = timeout(SILENCE, near::raw(path, verb)).await;
            let raw = raw.context("no answer").flatten().with_context(|| format!("stream {number}"))?;
            let counter = Arc::new(AtomicU64::new(0));
            counters.push(Arc::clone(&counter));
            let pattern = Arc::clone(&pattern);
            tasks.spawn(async move {
                match direction {
                    Direction::Down => take(raw, &counter).await,
                    Direction::Up => give(raw, &counter, &pattern).await,
                }
            });
        }
        Ok(Self { counters, tasks })
    }

    /// Bytes of each stream so far.
    pub fn each(&self) -> Vec<u64> {
        self.counters.iter().map(|counter| counter.load(Ordering::Relaxed)).collect()
    }

    /// Bytes of all streams so far.
    pub fn all(&self) -> u64 {
        self.each().iter().sum()
    }

    /// Waits; fails if a stream ends meanwhile, as none should.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn go_on(&mut self, time: Duration) -> anyhow::Result<()> {
        match timeout(time, self.tasks.join_next()).await {
            Err(_elapsed) => Ok(()),
            Ok(Some(ended)) => ended?.and_then(|()| bail!("a stream ended that has no end")),
            Ok(None) => {
                sleep(time).await;
                Ok(())
            }
        }
    }
}

async fn take(mut raw: Raw, counter: &AtomicU64) -> anyhow::Result<()> {
    let mut block = vec![0; BLOCK];
    loop {
        let n = raw.read(&mut block).await?;
        if n == 0 {
            return Ok(());
        }
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
}

async fn give(mut raw: Raw, counter: &AtomicU64, pattern: &Pattern) -> anyhow::Result<()> {
    let mut sent = 0;
    loop {
        let n = raw.write(&pattern.at(sent)[..PIECE]).await? as u64;
        sent += n;
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// Puts the load on a path, waits for the warm-up, and counts.
///
/// # Errors
/// If a stream can't be had, or ends, or nothing moves.
pub async fn run(path: &dyn Path, far: &Far, load: Load) -> anyhow::Result<Moved> {
    let mut running = Running::start(path, load.direction, load.streams).await?;
    let pids = path.processes();
    running.go_on(load.warm_up).await?;
    let received = |running: &Running| match load.direction {
        Direction::Down => running.all(),
        Direction::Up => far.sunk(),
    };
    let (begun, cpu) = (Instant::now(), procfs::cpu_of(&pids)?);
    let (each, all) = (running.each(), received(&running));
    running.go_on(load.window).await?;
    let bytes = received(&running) - all;
    let each = running.each().iter().zip(each).map(|(after, before)| (after - before) as f64).collect();
    let moved = Moved { bytes, each, took: begun.elapsed(), cpu: procfs::cpu_of(&pids)? - cpu };
    if bytes == 0 {
        bail!("{}: nothing arrived in {:?}", path.name(), load.window);
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{certificates::Certificates, direct::Direct, far::FarEnd};

    #[tokio::test]
    async fn both_directions_are_counted_where_bytes_arrive() {
        let folder = tempfile::tempdir().unwrap();
        let end = FarEnd::start(Certificates::make(folder.path()).unwrap()).await.unwrap();
        for direction in [Direction::Down, Direction::Up] {
            let load =
                Load { direction, streams: 2, warm_up: Duration::ZERO, window: Duration::from_millis(100) };
            let moved = run(&Direct::tls(&end), end.far(), load).await.unwrap();
            assert_eq!(moved.each.len(), 2);
            assert!(moved.gigabits() > 0.0 && moved.took >= load.window, "{direction:?}: {moved:?}");
        }
    }
}

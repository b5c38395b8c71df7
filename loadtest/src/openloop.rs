//! Latency as somebody meets it who does not wait for the last answer before wanting the next.
//!
//! Each request has a time at which it is wanted, fixed beforehand; its latency counts from then, and not from when it
//! could be sent: a pause that holds up a hundred requests counts a hundred times (no coordinated omission).

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{Mutex, mpsc},
    task::JoinSet,
    time::timeout,
};

use crate::{
    far::Verb,
    near::{self, Http, SMALL},
    path::Path,
    stats::histogram,
};

/// Whatever takes longer is broken.
const LONGEST: Duration = Duration::from_secs(30);

/// How many, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How many a second.
    pub rate: f64,
    /// For how long they don't count.
    pub warm_up: Duration,
    /// For how long they do.
    pub window: Duration,
}

impl Pace {
    /// The number of the first that counts, and how many there are in all.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let number = |time: Duration| (self.rate * time.as_secs_f64()).ceil() as usize;
        (number(self.warm_up), number(self.warm_up) + number(self.window).max(1))
    }

    /// A thread that says when each is wanted: the runtime's own timers have whole milliseconds, and would be late
    /// where the runtime is. It ends by itself, or when nobody hears it.
    pub(crate) fn wanted(self) -> mpsc::Receiver<(usize, Instant)> {
        let (_, all) = self.counts();
        let (sender, receiver) = mpsc::channel(all.max(1));
        let begun = Instant::now() + Duration::from_millis(5);
        let speak = move || {
            for number in 0..all {
                let wanted = begun + Duration::from_secs_f64(number as f64 / self.rate);
                while let Some(left) =
                    wanted.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
                {
                    thread::park_timeout(left);
                }
                // There is room for all of them.
                if sender.try_send((number, wanted)).is_err() {
                    return;
                }
            }
        };
        // Whoever hears nothing says so.
        let _speaking = thread::Builder::new().name("wanted".into()).spawn(speak);
        receiver
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// So many connections of a path, on each of which something was asked for.
pub(crate) async fn dial_all(path: &dyn Path, connections: usize) -> anyhow::Result<Vec<Http>> {
    let mut idle = Vec::new();
    for _ in 0..connections {
        let mut http = Http::dial(path).await?;
        http.get(SMALL).await?;
        idle.push(http);
    }
    Ok(idle)
}

/// Small GETs over so many connections of a path that are kept.
///
/// # Errors
/// If one of them fails.
pub async fn gets(path: &dyn Path, connections: usize, pace: Pace) -> anyhow::Result<Histogram<u64>> {
    let (skipped, all) = pace.counts();
    let idle = dial_all(path, connections).await?;
    let wanted = Arc::new(Mutex::new(pace.wanted()));
    let mut workers = JoinSet::new();
    for mut http in idle {
        let wanted = Arc::clone(&wanted);
        workers.spawn(async move {
            let mut seen = histogram();
            loop {
                let next = wanted.lock().await.recv().await;
                let Some((number, since)) = next else { return anyhow::Ok(seen) };
                timeout(LONGEST, http.get(SMALL)).await.context("no answer")??;
                if number >= skipped {
                    seen.saturating_record(micros(since));
                }
            }
        });
    }
    let mut seen = histogram();
    while let Some(worker) = workers.join_next().await {
        seen.add(worker??)?;
    }
    if seen.len() as usize != all - skipped {
        bail!("{}: {} of {} answers", path.name(), seen.len(), all - skipped);
    }
    Ok(seen)
}

/// Keystrokes on one raw stream of a path, each of which comes back.
///
/// # Errors
/// If one doesn't.
pub async fn echoes(path: &dyn Path, pace: Pace) -> anyhow::Result<Histogram<u64>> {
    let (skipped, all) = pace.counts();
    let raw = near::raw(path, Verb::Echo).await?;
    let (mut reader, mut writer) = tokio::io::split(raw);
    let mut wanted = pace.wanted();
    let (sender, mut typed) = mpsc::channel(all.max(1));
    let write = async move {
        while let Some((number, since)) = wanted.recv().await {
            writer.write_all(&key(number)).await?;
            writer.flush().await?;
            sender.send((number, since)).await?;
        }
        anyhow::Ok(writer)
    };
    let read = async {
        let mut seen = histogram();
        while let Some((number, since)) = typed.recv().await {
            let mut got = [0; 1];
            timeout(LONGEST, reader.read_exact(&mut got)).await.context("no echo")??;
            anyhow::ensure!(got == key(number), "{}: echo {number} is not what was typed", path.name());
            if number >= skipped {
                seen.saturating_record(micros(since));
            }
        }
        anyhow::Ok(seen)
    };
    let (_writer, seen) = tokio::try_join!(write, read)?;
    Ok(seen)
}

fn key(number: usize) -> [u8; 1] {
    [number.to_le_bytes()[0]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        certificates::Certificates,
        direct::Direct,
        far::FarEnd,
        line::{Line, Nature},
        path::{Dialling, Io},
        stats::millis,
    };

    const PACE: Pace =
        Pace { rate: 200.0, warm_up: Duration::from_millis(50), window: Duration::from_millis(500) };

    #[tokio::test]
    async fn a_delay_is_seen_by_gets_and_echoes() {
        let folder = tempfile::tempdir().unwrap();
        let end = FarEnd::start(Certificates::make(folder.path()).unwrap()).await.unwrap();
        let line = Line::to(end.tls(), Nature::new(Duration::from_millis(40), None)).await.unwrap();
        let path = Direct::to("line", line.address(), Some(end.certificates().clone()));
        for seen in [gets(&path, 16, PACE).await.unwrap(), echoes(&path, PACE).await.unwrap()] {
            assert_eq!(seen.len(), 100);
            assert!(millis(&seen, 0.01) >= 40.0, "{}", millis(&seen, 0.01));
        }
    }

    /// The far end answers each request 20 ms late, one at a time: at 100 a second the queue grows by half of it, and
    /// that is seen. Somebody who waited for each answer would see 20 ms.
    #[tokio::test]
    async fn requests_that_could_not_be_sent_in_time_count_from_when_they_were_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let end = FarEnd::start(Certificates::make(folder.path()).unwrap()).await.unwrap();
        let line = Line::to(end.tls(), Nature::new(Duration::from_millis(20), None)).await.unwrap();
        let path = Direct::to("line", line.address(), Some(end.certificates().clone()));
        let pace = Pace { rate: 100.0, warm_up: Duration::ZERO, window: Duration::from_millis(500) };
        let seen = gets(&path, 1, pace).await.unwrap();
        assert!(millis(&seen, 1.0) >= 400.0, "{}", millis(&seen, 1.0));
    }

    #[tokio::test]
    async fn a_path_that_can_not_be_dialled_says_which_it_is() {
        struct Closed;
        impl Path for Closed {
            fn name(&self) -> &str {
                "closed"
            }
            fn dial(&self) -> Dialling<'_> {
                Box::pin(async { Err::<Io, _>(anyhow::anyhow!("refused")) })
            }
        }
        let error = gets(&Closed, 1, PACE).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "closed: refused");
    }
}

//! Requests at a fixed rate while what carries them is replaced below them: certificates renew, the relay drains and its successor starts, files
//! of authorities are exchanged. None may fail.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};

use crate::{
    certificates::Certificates,
    figure::Figure,
    near::{Http, SMALL},
    openloop::{Pace, dial_all},
    path::Path,
    rig::{
        Rig,
        programs::{Lines, Programs},
    },
    stats::{histogram, millis},
    terms::Terms,
    told::Told,
};

/// A request that has no answer after this has failed: longer than a proxy holds one while the relay is away.
const LONGEST: Duration = Duration::from_secs(30);
/// An agent has a spare session after this.
const SPARE_WITHIN: Duration = Duration::from_secs(45);
/// What a relay that drains may take to end.
const DRAINED_WITHIN: Duration = Duration::from_secs(30);
/// Failures that are told one by one.
const TOLD: usize = 5;

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// GETs a second
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
    /// Connections to the proxy
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// Seconds of it
    #[arg(long, default_value_t = 90.0, value_name = "S")]
    hold_for: f64,
    /// Seconds between changes: now the agent's file of authorities, now the relay
    #[arg(long, default_value_t = 15.0, value_name = "S")]
    every: f64,
    /// Seconds that an agent's certificate lasts; it renews after two thirds
    #[arg(long, default_value_t = 30, value_name = "S")]
    certificate_life: u32,
    /// Begin before the agent has a spare session
    #[arg(long)]
    at_once: bool,
}

/// What became of the requests.
struct Seen {
    micros: Histogram<u64>,
    failures: Vec<String>,
    failed: usize,
}

/// What was changed below them.
#[derive(Debug, Default)]
struct Changed {
    drains: usize,
    authorities: usize,
}

/// Measures it.
///
/// # Errors
/// If something can't be set up, or a request fails.
pub async fn run(arguments: Arguments, terms: &Terms, told: &mut Told) -> anyhow::Result<()> {
    ensure!(
        arguments.every >= 0.5 && arguments.hold_for >= 1.0,
        "--every is at least 0.5, --hold-for at least 1"
    );
    let life = format!("{}s", arguments.certificate_life);
    let mut rig = Rig::start(&["--certificate-life", &life]).await?;
    let authorities = rig.folder().join("agents-authorities.pem");
    fs::copy(rig.relay.authority(), &authorities)?;
    let flags = ["--relay-ca-file".to_owned(), authorities.display().to_string()];
    let programs = Programs::with_agent_flags(&rig, "hold", Lines::default(), &flags)?;
    if !arguments.at_once {
        spare(&rig).await?;
    }
    let hold_for = Duration::from_secs_f64(arguments.hold_for);
    let pace = Pace { rate: arguments.rate.into(), warm_up: terms.warm_up(), window: hold_for };
    let _bar = told.begin("small GETs while all is replaced", 1);
    let mut changed = Changed::default();
    let seen = {
        let requests = requests(&programs, arguments.connections.into(), pace);
        let changing = change(&mut rig, &authorities, &arguments, &mut changed);
        tokio::pin!(requests, changing);
        tokio::select! {
            seen = &mut requests => seen?,
            changed = &mut changing => { changed?; requests.await? }
        }
    };
    let log = programs.agent_log();
    let count = |words: &str| log.lines().filter(|line| line.contains(words)).count();
    let requests = seen.micros.len() as usize + seen.failed;
    told.note(Figure::once("small GETs while all is replaced, failed", "", seen.failed as f64, requests));
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        let name = format!("small GETs while all is replaced, {name}");
        told.note(Figure::once(name, "ms", millis(&seen.micros, quantile), seen.micros.len() as usize));
    }
    for (name, value) in [
        ("relay drained and started again", changed.drains),
        ("files of authorities exchanged", changed.authorities),
        ("certificates renewed", count("the certificate was renewed")),
        ("sessions replaced by a successor", count("a session is replaced")),
        ("sessions that carried", count("streams begin on this session")),
    ] {
        told.note(Figure::once(format!("while requests went on, {name}"), "", value as f64, 1));
    }
    ensure!(seen.failed == 0, "{} of {requests} failed: {}", seen.failed, seen.failures.join("; "));
    Ok(())
}

/// Waits until the agent has two sessions.
async fn spare(rig: &Rig) -> anyhow::Result<()> {
    let deadline = Instant::now() + SPARE_WITHIN;
    while rig.relay.metric("towline_relay_sessions{kind=\"agent\"}").await? < 2.0 {
        ensure!(Instant::now() < deadline, "the agent has no spare session within {SPARE_WITHIN:?}");
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Changes something now and then, until there is no time for another.
async fn change(
    rig: &mut Rig,
    authorities: &std::path::Path,
    arguments: &Arguments,
    changed: &mut Changed,
) -> anyhow::Result<()> {
    let begun = tokio::time::Instant::now();
    let own = fs::read_to_string(rig.relay.authority())?;
    let other = rig.folder().join("other-authority");
    fs::create_dir_all(&other)?;
    let other = fs::read_to_string(Certificates::make(&other)?.authority())?;
    for turn in 1_u32.. {
        let at = f64::from(turn) * arguments.every;
        // What is changed last has an interval to show its effect.
        if at + arguments.every > arguments.hold_for {
            return Ok(());
        }
        sleep_until(begun + Duration::from_secs_f64(at)).await;
        if !turn.is_multiple_of(2) {
            let both = changed.authorities.is_multiple_of(2);
            let fresh = authorities.with_extension("new");
            fs::write(&fresh, if both { format!("{own}{other}") } else { own.clone() })?;
            fs::rename(&fresh, authorities)?;
            changed.authorities += 1;
        } else {
            rig.relay.terminate(DRAINED_WITHIN)?;
            rig.relay.start_again()?;
            changed.drains += 1;
        }
    }
    Ok(())
}

/// Small GETs over so many connections, each of which is made again where one fails on it.
async fn requests(path: &dyn Path, connections: usize, pace: Pace) -> anyhow::Result<Seen> {
    let (skipped, _) = pace.counts();
    let idle = dial_all(path, connections).await?;
    let wanted = Arc::new(Mutex::new(pace.wanted()));
    // Whoever loses a connection waits for another here; only this task knows the path.
    let (lost, mut asked) =
        mpsc::channel::<tokio::sync::oneshot::Sender<anyhow::Result<Http>>>(connections.max(1));
    let mut workers = JoinSet::new();
    for mut http in idle {
        let (wanted, lost) = (Arc::clone(&wanted), lost.clone());
        workers.spawn(async move {
            let mut seen = Seen { micros: histogram(), failures: Vec::new(), failed: 0 };
            loop {
                let next = wanted.lock().await.recv().await;
                let Some((number, since)) = next else { return anyhow::Ok(seen) };
                let answer = timeout(LONGEST, http.get(SMALL)).await;
                match answer.map_err(|_| anyhow::anyhow!("no answer within {LONGEST:?}")).flatten() {
                    Ok(_) if number >= skipped => {
                        let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
                        seen.micros.saturating_record(micros);
                    }
                    Ok(_) => {}
                    Err(error) => {
                        seen.failed += 1;
                        if seen.failures.len() < TOLD {
                            seen.failures.push(format!("request {number}: {error:#}"));
                        }
                        let (sender, fresh) = tokio::sync::oneshot::channel();
                        lost.send(sender).await.context("nobody dials")?;
                        http = fresh.await.context("nobody dials")??;
                    }
                }
            }
        });
    }
    drop(lost);
    let mut all = Seen { micros: histogram(), failures: Vec::new(), failed: 0 };
    loop {
        tokio::select! {
            Some(asks) = asked.recv() => {
                let _gone = asks.send(Http::dial(path).await);
            }
            worker = workers.join_next() => match worker {
                Some(worker) => {
                    let seen = worker??;
                    all.micros.add(seen.micros)?;
                    all.failed += seen.failed;
                    all.failures.extend(seen.failures);
                    all.failures.truncate(TOLD);
                }
                None => return Ok(all),
            }
        }
    }
}

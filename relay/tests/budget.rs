//! A burst of peers beyond the accept budget, at a real relay.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::{Bench, SOON, limits};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use towline_relay::limits::Limits;
use towline_tunnel::{fault::Fault, ids::InstanceId, keys::SigningKey, session::Identify};

const SECOND: Duration = Duration::from_secs(1);

/// As `--accept-rate` and `--accept-burst`: what flows is the difference.
const RATE: u32 = 20;
const BURST: u32 = 10;
const FLOW: f64 = (RATE - BURST) as f64;
/// Who may wait: a second's sessions.
const ROOM: usize = RATE as usize;
const COMERS: usize = 60;

/// What the relay counted at some time between two.
struct Sample {
    after: Instant,
    before: Instant,
    accepted: u64,
}

async fn sample(bench: &Bench) -> Sample {
    let after = Instant::now();
    let accepted = bench.metric("towline_relay_accepts_total{kind=\"new\"}").await;
    Sample { after, before: Instant::now(), accepted }
}

/// Times here only bound from the side on which a slow machine does no harm: never more than the budget allows by then.
#[tokio::test(flavor = "multi_thread")]
async fn t37_a_burst_beyond_the_budget_is_let_in_at_its_rate_and_the_rest_is_told_when() {
    let scarce = Limits { accept_rate: RATE, accept_burst: BURST, ..limits() };
    let bench = Arc::new(Bench::new(scarce).await);
    let begun = Instant::now();
    let samples = AbortOnDropHandle::new(tokio::spawn({
        let bench = Arc::clone(&bench);
        async move {
            let mut samples = vec![sample(&bench).await];
            while samples.last().is_none_or(|last| last.accepted < COMERS as u64) {
                sleep(SECOND / 20).await;
                samples.push(sample(&bench).await);
            }
            samples
        }
    }));
    let mut comers = JoinSet::new();
    for _ in 0..COMERS {
        let bench = Arc::clone(&bench);
        comers.spawn(async move {
            let (token, run_key) = (bench.token("alice", &[]), SigningKey::generate());
            for refused in 0.. {
                let identify = Identify::Client { token: &token, run_key: &run_key, line: false };
                match bench.session(identify, InstanceId::random()).await {
                    Ok(session) => return (refused, session),
                    Err(report) => {
                        assert_eq!(report.fault, Fault::RelayLimit, "{report}");
                        assert!(report.delay() >= SECOND, "it is told when to come back");
                        // Exactly then: what a dialler adds by chance is for those that were not told apart.
                        sleep(report.delay()).await;
                    }
                }
            }
            unreachable!("a number of attempts has no end")
        });
    }
    let sessions = timeout(6 * SOON, comers.join_all()).await.expect("somebody is left out");
    let took = begun.elapsed();
    let samples = timeout(SOON, samples).await.unwrap().unwrap();

    assert!(
        took.as_secs_f64() >= (COMERS as f64 - f64::from(BURST)) / FLOW,
        "{took:?}: faster than the budget"
    );
    let at_once = sessions.iter().filter(|(refused, _)| *refused == 0).count();
    assert!(at_once >= BURST as usize + ROOM, "{at_once}: those that pass, and those that wait");
    assert!(at_once < COMERS, "nobody was refused: they came too slowly to be a burst");
    let attempts: u32 = sessions.iter().map(|(refused, _)| refused + 1).sum();
    assert!(attempts <= 3 * COMERS as u32, "{attempts} attempts: who came when told was sent away again");
    for (n, first) in samples.iter().enumerate() {
        for last in &samples[n..] {
            let (between, came) = (last.before - first.after, last.accepted - first.accepted);
            let most = if between <= SECOND {
                f64::from(RATE)
            } else {
                f64::from(BURST) + FLOW * between.as_secs_f64()
            };
            assert!(came as f64 <= most, "{came} within {between:?}");
        }
    }
}

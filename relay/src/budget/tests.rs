//! The budget under a paused clock.

use std::sync::Arc;

use tokio::{task::JoinSet, time::advance};
use tokio_util::task::AbortOnDropHandle;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn budget(rate: u32, burst: u32) -> Arc<AcceptBudget> {
    let limits = Limits { accept_rate: rate, accept_burst: burst, ..Limits::default() };
    Arc::new(AcceptBudget::new(&limits))
}

/// One whose tokens are handed out for as long as the handle is kept.
fn paced(rate: u32, burst: u32) -> (Arc<AcceptBudget>, AbortOnDropHandle<()>) {
    let budget = budget(rate, burst);
    let pacing = Arc::clone(&budget);
    (budget, AbortOnDropHandle::new(tokio::spawn(async move { pacing.run().await })))
}

/// Comes at `at`, and again when it is told to, until it is let in; says when that was, and how often it came.
async fn come(budget: Arc<AcceptBudget>, errand: Errand, at: Duration) -> (Instant, u32) {
    sleep(at).await;
    for times in 1.. {
        match budget.enter(errand).await {
            Ok(turn) => return (turn, times),
            Err(wait) => sleep(wait).await,
        }
    }
    unreachable!("a number of attempts has no end")
}

async fn all(comers: JoinSet<(Instant, u32)>) -> Vec<(Instant, u32)> {
    let mut all = comers.join_all().await;
    all.sort();
    all
}

fn busiest(times: &[(Instant, u32)]) -> usize {
    let until = |from: Instant| times.partition_point(|time| time.0 < from + SECOND);
    times.iter().enumerate().map(|(first, time)| until(time.0) - first).max().unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn t37_no_second_sees_more_than_the_rate_and_nobody_is_left_out() {
    let (budget, _pacing) = paced(1000, 100);
    let begun = Instant::now();
    let mut comers = JoinSet::new();
    for number in 0..8000 {
        comers.spawn(come(Arc::clone(&budget), Errand::Begin, Duration::from_micros(100 * number)));
    }
    let back = all(comers).await;
    assert_eq!(back.len(), 8000);
    assert!(busiest(&back) <= 1000, "{} in a second", busiest(&back));
    let took = back[7999].0 - begun;
    // 100 at once, then 900 a second.
    assert!(took >= 8 * SECOND && took <= 11 * SECOND, "{took:?}");
    let attempts: u32 = back.iter().map(|back| back.1).sum();
    assert!(attempts <= 3 * 8000, "{attempts} attempts: who was sent away came at its time");
}

#[tokio::test(start_paused = true)]
async fn those_whose_streams_wait_come_first_and_starve_nobody() {
    let (budget, _pacing) = paced(100, 10);
    let begun = Instant::now();
    let (mut ordinary, mut liars) = (JoinSet::new(), JoinSet::new());
    for _ in 0..200 {
        ordinary.spawn(come(Arc::clone(&budget), Errand::Begin, Duration::ZERO));
    }
    for _ in 0..2000 {
        liars.spawn(come(Arc::clone(&budget), Errand::GoOn, Duration::ZERO));
    }
    // However many say that their streams wait, every other token is for those that do not.
    let ordinary = all(ordinary).await;
    assert!(ordinary[199].0 - begun <= 8 * SECOND, "{:?}", ordinary[199].0 - begun);
    let mut late = JoinSet::new();
    late.spawn(come(Arc::clone(&budget), Errand::Begin, Duration::ZERO));
    let late = all(late).await;
    assert!(late[0].0 - ordinary[199].0 <= SECOND, "one more is let in beside them");
    drop(liars);
}

#[tokio::test(start_paused = true)]
async fn one_whose_streams_wait_passes_a_queue_of_others() {
    let (budget, _pacing) = paced(100, 10);
    let mut others = JoinSet::new();
    for _ in 0..110 {
        others.spawn(come(Arc::clone(&budget), Errand::Begin, Duration::ZERO));
    }
    tokio::task::yield_now().await;
    advance(Duration::from_millis(20)).await;
    let begun = Instant::now();
    let (first, _) = come(Arc::clone(&budget), Errand::GoOn, Duration::ZERO).await;
    assert!(first - begun < Duration::from_millis(50), "{:?}", first - begun);
}

#[tokio::test(start_paused = true)]
async fn who_has_gone_takes_no_token_and_appointments_are_not_endless() {
    let budget = budget(10, 1);
    let mut gone = Vec::new();
    assert_eq!(budget.enter(Errand::Begin).await, Ok(Instant::now()));
    for _ in 0..10 {
        let waits = budget.enter(Errand::Begin);
        gone.push(tokio::time::timeout(Duration::from_millis(1), waits).await.is_err());
    }
    assert!(gone.iter().all(|gone| *gone), "they waited");
    let mut last = Duration::ZERO;
    for _ in 0..1000 {
        let hint = budget.enter(Errand::Begin).await.unwrap_err();
        assert!(hint >= last && hint <= FARTHEST);
        last = hint;
    }
    assert_eq!(last, FARTHEST);
    advance(SECOND).await;
    assert!(budget.hand_out().is_none(), "nobody is there any more");
    assert_eq!(budget.enter(Errand::Begin).await, Ok(Instant::now()), "and the token is still there");
}

#[tokio::test(start_paused = true)]
async fn spare_tokens_are_those_that_nobody_else_needs() {
    let (budget, _pacing) = paced(100, 10);
    let spare = (0..20).filter(|_| budget.spare().is_ok()).count();
    assert_eq!(spare, 6, "the other half of the burst is left");
    for _ in 0..4 {
        assert_eq!(
            tokio::time::timeout(Duration::ZERO, budget.enter(Errand::Begin)).await,
            Ok(Ok(Instant::now()))
        );
    }
    let others: Vec<_> =
        (0..50).map(|_| tokio::spawn(come(Arc::clone(&budget), Errand::Begin, Duration::ZERO))).collect();
    tokio::task::yield_now().await;
    let mut last = Duration::ZERO;
    while !others.iter().all(|other| other.is_finished()) {
        let hint = budget.spare().expect_err("somebody waits");
        assert!(!hint.is_zero() && hint <= FARTHEST);
        last = last.max(hint);
        sleep(Duration::from_millis(5)).await;
    }
    sleep(last).await;
    assert_eq!(budget.spare(), Ok(Instant::now()), "and it is not sent away for ever");
    // Where the burst is one token, that one is spare while nobody waits.
    let (smallest, _pacing) = paced(1, 1);
    assert_eq!(smallest.spare(), Ok(Instant::now()));
}

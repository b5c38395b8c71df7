//! How many sessions may begin in a second: a token for each, taken at the upgrade, before the session's handshake.
//!
//! Whoever finds none waits shortly, in one of two queues of which neither can starve the other: those whose streams wait
//! to go on, and everybody else. Where a queue is full the peer is told when its turn would be (ADR 12).

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep},
};
use towline_tunnel::carrier::dial::Errand;

use crate::limits::Limits;

/// A queue holds no more than what the whole rate serves in this time; a half of the rate, which each is sure of, in
/// twice that: well within the time that peers give the upgrade.
const QUEUE_FOR: Duration = Duration::from_secs(1);
/// The farthest appointment. Refusals move it away, and whoever makes many must not send others away for long.
const FARTHEST: Duration = Duration::from_secs(20);
/// What the timer can tell apart; a wait that is rounded to nothing would never see a token come.
const TICK: Duration = Duration::from_millis(1);
/// The row of appointments for those that get what nobody else needs.
const SPARE: usize = 2;
/// What is said where the relay ends before a turn came.
const ENDING: Duration = Duration::from_secs(1);

/// The budget of one relay.
#[derive(Debug)]
pub struct AcceptBudget {
    /// Tokens a second that come, beside the burst.
    rate: f64,
    burst: f64,
    /// Places in each queue.
    room: [usize; 2],
    state: Mutex<State>,
    waits: Notify,
}

#[derive(Debug)]
struct State {
    tokens: f64,
    counted: Instant,
    queues: [VecDeque<oneshot::Sender<Instant>>; 2],
    /// Whose turn it is while both wait.
    turn: usize,
    /// Up to when turns were promised to peers that were sent away: of each queue, and spare ones.
    booked: [Instant; 3],
}

fn queue(errand: Errand) -> usize {
    match errand {
        Errand::GoOn => 0,
        Errand::Begin => 1,
    }
}

impl State {
    fn count(&mut self, now: Instant, rate: f64, burst: f64) {
        let since = now.saturating_duration_since(self.counted);
        self.tokens = (self.tokens + since.as_secs_f64() * rate).min(burst);
        self.counted = now;
    }

    fn next(&mut self) -> Option<oneshot::Sender<Instant>> {
        let first = self.turn;
        let which = [first, 1 - first].into_iter().find(|which| !self.queues[*which].is_empty())?;
        self.turn = 1 - which;
        self.queues[which].pop_front()
    }

    fn is_idle(&self) -> bool {
        self.queues.iter().all(VecDeque::is_empty)
    }
}

impl AcceptBudget {
    /// So many that no second, wherever it begins, sees more than `--accept-rate`: the burst is a part of it. Full.
    pub fn new(limits: &Limits) -> Self {
        let all = f64::from(limits.accept_rate);
        let burst = f64::from(limits.accept_burst).min(all / 2.0).max(1.0);
        let rate = (all - burst).max(0.5);
        let most = (all * QUEUE_FOR.as_secs_f64()) as usize;
        // The rest of the handshakes' places is for those that are at TLS.
        let places = limits.max_handshakes as usize;
        let room = [most.min(places / 4).max(1), most.min(places / 2).max(1)];
        let now = Instant::now();
        let state = State {
            tokens: burst,
            counted: now,
            queues: [VecDeque::new(), VecDeque::new()],
            turn: 0,
            booked: [now; 3],
        };
        Self { rate, burst, room, state: Mutex::new(state), waits: Notify::new() }
    }

    /// How long it takes to let so many in.
    pub fn time_for(&self, sessions: usize) -> Duration {
        Duration::from_secs_f64(sessions as f64 / self.rate)
    }

    /// Waits for a token, for a second or two at most while [`run`](Self::run) runs. Says when it was taken: where cores
    /// are short, tasks that were let in one after the other run together.
    ///
    /// # Errors
    /// When to come back, where too many wait already.
    pub async fn enter(&self, errand: Errand) -> Result<Instant, Duration> {
        let turn = {
            let mut state = self.lock();
            let now = Instant::now();
            state.count(now, self.rate, self.burst);
            if state.is_idle() && state.tokens >= 1.0 {
                state.tokens -= 1.0;
                return Ok(now);
            }
            let which = queue(errand);
            let waiting = state.queues[which].len();
            if waiting >= self.room[which] {
                let alone = state.queues[1 - which].is_empty();
                let each = self.time_for(if alone { 1 } else { 2 });
                return Err(appoint(&mut state.booked[which], now, waiting, each));
            }
            let (sender, turn) = oneshot::channel();
            state.queues[which].push_back(sender);
            turn
        };
        self.waits.notify_one();
        turn.await.map_err(|_ended| ENDING)
    }

    /// A token that nobody else needs: nobody waits, and half of the burst is left for whoever comes next. At once or not at all; says when.
    ///
    /// # Errors
    /// When to come back.
    pub fn spare(&self) -> Result<Instant, Duration> {
        let mut state = self.lock();
        let now = Instant::now();
        state.count(now, self.rate, self.burst);
        if state.is_idle() && state.tokens >= (self.burst / 2.0).max(1.0) {
            state.tokens -= 1.0;
            return Ok(now);
        }
        let waiting = state.queues.iter().map(VecDeque::len).sum();
        Err(appoint(&mut state.booked[SPARE], now, waiting, self.time_for(1)))
    }

    /// Hands out tokens as they come; never returns.
    pub async fn run(&self) {
        loop {
            let next = self.hand_out();
            match next {
                None => self.waits.notified().await,
                Some(next) => sleep(next).await,
            }
        }
    }

    /// When the next token comes, if somebody waits for it.
    fn hand_out(&self) -> Option<Duration> {
        let mut state = self.lock();
        let now = Instant::now();
        state.count(now, self.rate, self.burst);
        while state.tokens >= 1.0 {
            // Who has gone meanwhile takes none.
            if state.next()?.send(now).is_ok() {
                state.tokens -= 1.0;
            }
        }
        let missing = (1.0 - state.tokens) / self.rate;
        (!state.is_idle()).then(|| Duration::from_secs_f64(missing).max(TICK))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next turn that nobody was promised, behind those that are `waiting`: refused peers come back one after the other,
/// and not all at once again.
fn appoint(booked: &mut Instant, now: Instant, waiting: usize, each: Duration) -> Duration {
    let served = now + each * u32::try_from(waiting).unwrap_or(u32::MAX);
    *booked = ((*booked).max(served) + each).min(now + FARTHEST);
    *booked - now
}

#[cfg(test)]
mod tests;

//! What a connection itself has to say and to watch, whoever drives its streams: PING and PONG, GOAWAY, CONTROL,
//! which streams have control frames to send, and whether the peer is alive.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};

use super::{
    CloseReason,
    frame::{self, Frame, StreamId},
    tuning::Tally,
};

/// A PING goes out after this long without inbound bytes (jittered by up to a quarter, so that a fleet's don't align).
pub const PING_AFTER: Duration = Duration::from_secs(5);
/// A peer is dead after this long with neither inbound bytes nor outbound progress, counted from the PING.
pub const DEAD_AFTER: Duration = Duration::from_secs(5);
/// CONTROL messages that may wait in either direction.
pub const MAX_CONTROL: usize = 64;

/// The connection is at an end: what to tell the peer, and what to tell people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", reason.text())]
pub struct Violation {
    /// The reason that GOAWAY carries.
    pub reason: CloseReason,
    /// What was seen.
    pub detail: String,
}

impl Violation {
    /// A violation with a few words about it.
    pub fn new(reason: CloseReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

impl From<frame::FrameError> for Violation {
    fn from(error: frame::FrameError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

/// What the peer said in GOAWAY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoAway {
    /// The highest of our streams that the peer still serves.
    pub last: StreamId,
    /// Why.
    pub reason: CloseReason,
    /// How long to wait before dialling again.
    pub delay: Duration,
    /// A few words more.
    pub detail: String,
}

/// The state of one connection beside its streams.
#[derive(Debug)]
pub struct Link {
    pong: Option<u64>,
    goaway: Option<Frame>,
    goaway_sent: Option<CloseReason>,
    control: VecDeque<Bytes>,
    dirty: VecDeque<StreamId>,
    ping_after: Duration,
    last_inbound: Instant,
    /// How long bytes were waited for, in all.
    waited: Duration,
    /// Bytes of streams that came, in all.
    brought: u64,
    last_progress: Instant,
    pinged: Option<Instant>,
    ping_waits: bool,
    pings: u64,
}

impl Link {
    /// A connection that was established at `now`; `jitter` in 0..=255 spreads the pings of a fleet.
    pub fn new(now: Instant, jitter: u8) -> Self {
        Self {
            pong: None,
            goaway: None,
            goaway_sent: None,
            control: VecDeque::new(),
            dirty: VecDeque::new(),
            ping_after: PING_AFTER - PING_AFTER / 4 * u32::from(jitter) / 255,
            last_inbound: now,
            waited: Duration::ZERO,
            brought: 0,
            last_progress: now,
            pinged: None,
            ping_waits: false,
            pings: 0,
        }
    }

    /// Bytes came that were `waited` for since the last ones came, or all the time since.
    pub fn inbound(&mut self, now: Instant, waited: Option<Duration>) {
        self.waited += waited.unwrap_or_else(|| now.saturating_duration_since(self.last_inbound));
        self.last_inbound = now;
        self.pinged = None;
    }

    /// DATA came with so many bytes.
    pub fn brought(&mut self, bytes: usize) {
        self.brought += bytes as u64;
    }

    /// When bytes came last.
    pub fn last_inbound(&self) -> Instant {
        self.last_inbound
    }

    /// How the reader has spent its time, and what it got for that, as of the last bytes.
    pub fn tally(&self) -> Tally {
        Tally { at: self.last_inbound, waited: self.waited, brought: self.brought }
    }

    /// A batch with stream bytes was taken by the kernel, which keeps little unsent: the peer's TCP is alive.
    pub fn progress(&mut self, now: Instant) {
        self.last_progress = now;
    }

    /// When [`Link::tick`] must be called next.
    pub fn deadline(&self) -> Instant {
        match self.pinged {
            Some(at) => at.max(self.last_progress) + DEAD_AFTER,
            None => self.last_inbound + self.ping_after,
        }
    }

    /// Sends a PING when it is time, or finds the peer dead.
    ///
    /// # Errors
    /// If the peer gave no sign of life for too long.
    pub fn tick(&mut self, now: Instant) -> Result<(), Violation> {
        if now < self.deadline() {
            return Ok(());
        }
        if self.pinged.is_some() {
            return Err(Violation::new(CloseReason::PeerDead, "no answer to PING"));
        }
        self.pinged = Some(now);
        self.ping_waits = true;
        Ok(())
    }

    /// Answers PING; a later one replaces an earlier one that is not yet answered.
    pub fn ping(&mut self, token: u64) {
        self.pong = Some(token);
    }

    /// Queues a CONTROL message; false where too many wait.
    pub fn control(&mut self, payload: Bytes) -> bool {
        let room = self.control.len() < MAX_CONTROL;
        if room {
            self.control.push_back(payload);
        }
        room
    }

    /// Says GOAWAY, once for each reason in a row: a connection that drains may still break a rule.
    pub fn goaway(&mut self, last: StreamId, reason: CloseReason, delay: Duration, detail: &str) {
        if self.goaway_sent != Some(reason) {
            let delay_ms = u32::try_from(delay.as_millis()).unwrap_or(u32::MAX);
            self.goaway = Some(Frame::GoAway { last, reason, delay_ms, detail: detail.to_owned() });
        }
    }

    /// Whether GOAWAY was said or is about to be.
    pub fn is_going(&self) -> bool {
        self.goaway_sent.is_some() || self.goaway.is_some()
    }

    /// `stream` has control frames to send. The caller keeps it from being told twice.
    pub fn mark(&mut self, stream: StreamId) {
        self.dirty.push_back(stream);
    }

    /// The next stream with control frames to send.
    pub fn next_dirty(&mut self) -> Option<StreamId> {
        self.dirty.pop_front()
    }

    /// Whether something other than stream bytes waits to be sent.
    pub fn has_output(&self) -> bool {
        self.pong.is_some()
            || self.ping_waits
            || self.goaway.is_some()
            || !self.control.is_empty()
            || !self.dirty.is_empty()
    }

    /// Appends the connection's own frames.
    pub fn emit(&mut self, out: &mut BytesMut) {
        if let Some(token) = self.pong.take() {
            frame::encode(out, &Frame::Pong { token });
        }
        if std::mem::take(&mut self.ping_waits) {
            self.pings += 1;
            frame::encode(out, &Frame::Ping { token: self.pings });
        }
        if let Some(goaway) = self.goaway.take() {
            if let Frame::GoAway { reason, .. } = &goaway {
                self.goaway_sent = Some(*reason);
            }
            frame::encode(out, &goaway);
        }
        while let Some(payload) = self.control.pop_front() {
            frame::encode(out, &Frame::Control { payload });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_peer_is_pinged_and_then_dead_within_ten_seconds() {
        let start = Instant::now();
        let mut link = Link::new(start, 0);
        assert_eq!(link.deadline(), start + PING_AFTER);
        link.tick(start + PING_AFTER).unwrap();
        assert!(link.has_output());
        let dead = start + PING_AFTER + DEAD_AFTER;
        assert_eq!(link.deadline(), dead);
        assert_eq!(link.tick(dead).unwrap_err().reason, CloseReason::PeerDead);
        assert!(dead - start <= Duration::from_secs(10));
    }

    #[test]
    fn a_peer_behind_bulk_is_not_mistaken_for_dead() {
        let start = Instant::now();
        let mut link = Link::new(start, 0);
        link.tick(start + PING_AFTER).unwrap();
        link.progress(start + PING_AFTER + DEAD_AFTER / 2);
        link.tick(start + PING_AFTER + DEAD_AFTER).unwrap();
        link.inbound(start + PING_AFTER + DEAD_AFTER, None);
        assert_eq!(link.deadline(), start + PING_AFTER + DEAD_AFTER + PING_AFTER);
    }

    #[test]
    fn what_breaks_a_draining_connection_is_told_too() {
        let mut link = Link::new(Instant::now(), 0);
        let mut said = |reason| {
            let mut out = BytesMut::new();
            link.goaway(0, reason, Duration::ZERO, "");
            link.emit(&mut out);
            !out.is_empty()
        };
        assert!(said(CloseReason::Draining));
        assert!(!said(CloseReason::Draining));
        assert!(said(CloseReason::FrameMalformed));
    }

    #[test]
    fn a_flood_of_pings_is_answered_once_a_batch() {
        let mut link = Link::new(Instant::now(), 255);
        for token in 0..1_000 {
            link.ping(token);
        }
        let mut out = BytesMut::new();
        link.emit(&mut out);
        assert_eq!(frame::decode(&mut out), Ok(Some(Frame::Pong { token: 999 })));
        assert!(out.is_empty() && !link.has_output());
    }
}

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
/// The longest silence that a peer may ask for while no stream is open. A NAT must allow more (RFC 5382: 2 h 4 min), load balancers of clouds
/// forget after 4 to 6 minutes, and a dead peer holds its place for so long.
pub const LONGEST_SILENCE: Duration = Duration::from_secs(300);
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
    /// Of a quarter of the silence before a PING, how many 255ths are left out.
    jitter: u8,
    /// The silence before a PING while no stream is open; never longer than [`PING_AFTER`] while one is.
    silence: Duration,
    /// The longest silence that a PING ended and an answer came after.
    outlived: Duration,
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
            jitter,
            silence: PING_AFTER,
            outlived: Duration::ZERO,
            last_inbound: now,
            waited: Duration::ZERO,
            brought: 0,
            last_progress: now,
            pinged: None,
            ping_waits: false,
            pings: 0,
        }
    }

    /// From now on a PING goes out after this long without inbound bytes while no stream is open.
    pub fn keep_silent(&mut self, silence: Duration) {
        self.silence = silence;
        self.outlived = Duration::ZERO;
    }

    /// The longest silence since it was last asked for one that a PING ended, and that the connection outlived.
    pub fn outlived(&self) -> Duration {
        self.outlived
    }

    /// Asks for a sign of life now, if none is waited for already.
    pub fn check(&mut self, now: Instant) {
        if self.pinged.is_none() {
            self.pinged = Some(now);
            self.ping_waits = true;
        }
    }

    /// Bytes came that were `waited` for since the last ones came, or all the time since.
    pub fn inbound(&mut self, now: Instant, waited: Option<Duration>) {
        if let Some(pinged) = self.pinged {
            self.outlived = self.outlived.max(pinged.saturating_duration_since(self.last_inbound));
        }
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

    /// When [`Link::tick`] must be called next; `busy` while there are streams, for which a dead peer must be found soon.
    pub fn deadline(&self, busy: bool) -> Instant {
        match self.pinged {
            Some(at) => at.max(self.last_progress) + DEAD_AFTER,
            None => {
                let silence = if busy { self.silence.min(PING_AFTER) } else { self.silence };
                self.last_inbound + silence - silence / 4 * u32::from(self.jitter) / 255
            }
        }
    }

    /// Sends a PING when it is time, or finds the peer dead.
    ///
    /// # Errors
    /// If the peer gave no sign of life for too long.
    pub fn tick(&mut self, now: Instant, busy: bool) -> Result<(), Violation> {
        if now < self.deadline(busy) {
            return Ok(());
        }
        if self.pinged.is_some() {
            return Err(Violation::new(CloseReason::PeerDead, "no answer to PING"));
        }
        self.check(now);
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
        assert_eq!(link.deadline(true), start + PING_AFTER);
        link.tick(start + PING_AFTER, true).unwrap();
        assert!(link.has_output());
        let dead = start + PING_AFTER + DEAD_AFTER;
        assert_eq!(link.deadline(true), dead);
        assert_eq!(link.tick(dead, true).unwrap_err().reason, CloseReason::PeerDead);
        assert!(dead - start <= Duration::from_secs(10));
    }

    #[test]
    fn silence_is_as_long_as_was_asked_for_until_a_stream_begins() {
        let start = Instant::now();
        let mut link = Link::new(start, 0);
        link.keep_silent(Duration::from_secs(60));
        assert_eq!(link.deadline(false), start + Duration::from_secs(60));
        link.tick(start + Duration::from_secs(59), false).unwrap();
        assert!(!link.has_output());
        // A stream began: whether somebody is there is asked at once, and known in five seconds.
        let begun = start + Duration::from_secs(30);
        assert!(link.deadline(true) < begun);
        link.tick(begun, true).unwrap();
        assert!(link.has_output());
        assert_eq!(link.deadline(true), begun + DEAD_AFTER);
        assert_eq!(link.outlived(), Duration::ZERO, "not answered yet");
        link.inbound(begun + Duration::from_secs(1), None);
        assert_eq!(link.outlived(), Duration::from_secs(30));
        // What comes by itself proves nothing about silence.
        link.inbound(begun + Duration::from_secs(50), None);
        assert_eq!(link.outlived(), Duration::from_secs(30));
        let next = begun + Duration::from_secs(50);
        assert_eq!(link.deadline(true), next + PING_AFTER);
        link.keep_silent(Duration::from_secs(2));
        assert_eq!(link.deadline(true), next + Duration::from_secs(2), "shorter is so with streams as well");
    }

    #[test]
    fn a_sign_of_life_can_be_asked_for_at_any_time() {
        let start = Instant::now();
        let mut link = Link::new(start, 0);
        link.keep_silent(Duration::from_secs(60));
        let asked = start + Duration::from_secs(10);
        link.check(asked);
        link.check(asked + Duration::from_secs(1));
        assert!(link.has_output());
        assert_eq!(link.deadline(false), asked + DEAD_AFTER);
        assert_eq!(link.tick(asked + DEAD_AFTER, false).unwrap_err().reason, CloseReason::PeerDead);
    }

    #[test]
    fn a_peer_behind_bulk_is_not_mistaken_for_dead() {
        let start = Instant::now();
        let mut link = Link::new(start, 0);
        link.tick(start + PING_AFTER, true).unwrap();
        link.progress(start + PING_AFTER + DEAD_AFTER / 2);
        link.tick(start + PING_AFTER + DEAD_AFTER, true).unwrap();
        link.inbound(start + PING_AFTER + DEAD_AFTER, None);
        assert_eq!(link.deadline(true), start + PING_AFTER + DEAD_AFTER + PING_AFTER);
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

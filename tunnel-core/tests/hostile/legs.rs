//! Peers of a relay that break the protocol: at most their own stream, here and at its far end, is touched.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use towline_tunnel::{
    ids::InstanceId,
    mux::{CloseReason, EndpointConfig, Ledger, Side},
    proto::{
        Frame, Opened, StreamId,
        endpoint::Endpoint,
        frame::decode,
        leg::{Leg, LegConfig, LegEvent},
        send::FLOOR,
    },
};

use super::{data, open, request};

/// The client's leg is 0, the agent's 1.
pub(super) type Hop = (usize, StreamId);

pub(super) struct Relay {
    pub(super) legs: [Leg<Hop>; 2],
    pub(super) now: Instant,
}

impl Relay {
    pub(super) fn new(max_streams: usize, ledger: u64) -> Self {
        let now = Instant::now();
        let ledger = Ledger::new(ledger);
        let leg = || {
            Leg::new(LegConfig { side: Side::Acceptor, max_streams, ledger: ledger.clone(), jitter: 0 }, now)
        };
        Self { legs: [leg(), leg()], now }
    }

    /// A frame arrives on a leg, and what it means is carried to the other.
    pub(super) fn takes(&mut self, on: usize, frame: Frame) -> Result<(), CloseReason> {
        let event = self.legs[on].on_frame(frame, self.now).map_err(|violation| violation.reason)?;
        match event {
            Some(LegEvent::Open { stream, request }) => match self.legs[1 - on].open(request, (on, stream)) {
                Ok(id) => self.legs[on].bind(stream, (1 - on, id), 0),
                Err(reason) => self.legs[on].reset(stream, reason, ""),
            },
            Some(LegEvent::Opened { to, opened }) => self.legs[to.0].opened(to.1, opened),
            Some(LegEvent::Data { to, payload, fin, blocked }) => {
                self.legs[to.0].forward(to.1, payload, fin, blocked);
            }
            Some(LegEvent::Credit { to, received, limit }) => self.legs[to.0].credit(to.1, received, limit),
            Some(LegEvent::Detached { to }) => self.legs[to.0].detach(to.1),
            Some(LegEvent::Reset { to, reason, detail }) => self.legs[to.0].reset(to.1, reason, &detail),
            Some(LegEvent::Resume { stream, request }) => {
                match self.legs[1 - on].resume(request, (on, stream)) {
                    Ok(id) => self.legs[on].bind(stream, (1 - on, id), 0),
                    Err(reason) => self.legs[on].reset(stream, reason, ""),
                }
            }
            Some(LegEvent::Resumed { to, resumed }) => self.legs[to.0].resumed(to.1, resumed),
            Some(LegEvent::Control(_) | LegEvent::GoAway(_)) | None => {}
        }
        Ok(())
    }

    /// All that a leg has to say.
    pub(super) fn says(&mut self, on: usize) -> Vec<Frame> {
        let (mut frames, mut progress) = (Vec::new(), Vec::new());
        while self.legs[on].has_output() {
            let mut out = BytesMut::new();
            let payload = self.legs[on].fill(&mut out, &mut progress);
            self.legs[on].on_written(payload, self.now);
            while let Some(frame) = decode(&mut out).unwrap() {
                frames.push(frame);
            }
            for step in progress.drain(..) {
                self.legs[step.to.0].passed(step.to.1, step.written);
            }
        }
        frames
    }
}

/// Stream 1 of the client breaks a rule on leg `on`: it is reset on both legs, and stream 3 still carries bytes.
fn resets(on: usize, frames: Vec<Frame>, expected: CloseReason) {
    let mut relay = Relay::new(10, 1 << 20);
    relay.takes(0, open(1)).unwrap();
    relay.takes(0, open(3)).unwrap();
    relay.says(1);
    for frame in frames {
        relay.takes(on, frame).unwrap();
    }
    for (leg, id) in [(0, 1), (1, 2)] {
        let said = relay.says(leg);
        let reason = said.iter().find_map(|frame| match frame {
            Frame::Reset { stream, reason, .. } if *stream == id => Some(*reason),
            _ => None,
        });
        assert_eq!(reason, Some(expected), "leg {leg}: {said:?}");
    }
    relay.takes(0, data(3, "alive", true)).unwrap();
    assert_eq!(relay.says(1), [data(4, "alive", true)]);
    assert_eq!(relay.legs[0].stream_count() + relay.legs[1].stream_count(), 2);
}

#[test]
fn a_stream_that_breaks_a_rule_is_reset_on_both_legs_and_its_neighbour_is_not() {
    use CloseReason::{CreditExceeded, DataAfterFin, FrameMalformed};
    // The client's leg: no more than the floor was advertised before the agent answered.
    let floor = || data(1, vec![0; FLOOR as usize - 1_000], false);
    resets(0, vec![floor(), data(1, vec![0; 1_001], false)], CreditExceeded);
    resets(0, vec![data(1, "x", true), data(1, "y", false)], DataAfterFin);
    resets(0, vec![Frame::Credit { stream: 1, received: 1, limit: FLOOR }], FrameMalformed);
    resets(0, vec![Frame::Resumed { stream: 1, payload: Bytes::new() }], FrameMalformed);
    let answer = Opened { instance: InstanceId::random(), limit: 1 }.encode();
    resets(0, vec![Frame::Opened { stream: 1, payload: answer }], FrameMalformed);
    // The agent's.
    let floor = || data(2, vec![0; FLOOR as usize - 1_000], false);
    resets(1, vec![floor(), data(2, vec![0; 1_001], false)], CreditExceeded);
    resets(1, vec![data(2, "x", true), data(2, "", true)], DataAfterFin);
    resets(1, vec![Frame::Credit { stream: 2, received: u64::MAX, limit: u64::MAX }], FrameMalformed);
    resets(1, vec![Frame::Opened { stream: 2, payload: Bytes::from_static(b"?") }], FrameMalformed);
}

#[test]
fn a_peer_that_breaks_the_connections_rules_is_told_so() {
    use CloseReason::{LimitReached, StreamIdInvalid};
    for (frames, reason) in [
        (vec![data(7, "x", false)], StreamIdInvalid),
        (vec![open(2)], StreamIdInvalid),
        (vec![open(5), open(3)], StreamIdInvalid),
        (vec![Frame::Credit { stream: 2, received: 0, limit: 0 }], StreamIdInvalid),
        ((0..21).map(|n| open(1 + 2 * n)).collect(), LimitReached),
    ] {
        let mut relay = Relay::new(10, 1 << 20);
        let mut ended = None;
        for frame in frames {
            ended = ended.or(relay.takes(0, frame).err());
        }
        assert_eq!(ended, Some(reason));
    }
}

#[test]
fn bytes_written_at_once_follow_open_without_a_round_trip() {
    let config = EndpointConfig {
        side: Side::Dialler,
        max_streams: 10,
        ledger: Ledger::new(1 << 20),
        instance: InstanceId::random(),
        jitter: 0,
    };
    let mut client: Endpoint<()> = Endpoint::new(config, Instant::now());
    let id = client.open(request()).unwrap();
    client.write(id, b"hello").unwrap();
    let mut relay = Relay::new(10, 1 << 20);
    let mut out = BytesMut::new();
    client.fill(&mut out);
    while let Some(frame) = decode(&mut out).unwrap() {
        relay.takes(0, frame).unwrap();
    }
    let said = relay.says(1);
    assert!(matches!(&said[..], [Frame::Open { stream: 2, .. }, Frame::Data { stream: 2, .. }]), "{said:?}");
}

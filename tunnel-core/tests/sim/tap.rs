//! Reads what one side of a line sends, and holds it to the rules of the wire.

use std::collections::HashMap;

use bytes::BytesMut;
use towline_tunnel::proto::{
    Arrived, CloseReason, OpenRequest, Opened, ResumeRequest, Resumed,
    frame::{Frame, StreamId, decode},
    send::FLOOR,
};

/// What one side said about one stream.
#[derive(Debug, Default)]
struct Said {
    sent: u64,
    fin: bool,
    reset: bool,
    limit: u64,
    received: u64,
    /// It was taken up: the floor counts from the stream's begin.
    resumed: bool,
}

/// What both sides of one line said.
#[derive(Debug, Default)]
pub(super) struct Tap {
    said: [HashMap<StreamId, Said>; 2],
    highest: [StreamId; 2],
}

impl Tap {
    /// `side` (0 dialled) sends these bytes, which must be whole frames.
    pub(super) fn sends(&mut self, side: usize, bytes: &[u8]) {
        let mut bytes = BytesMut::from(bytes);
        while let Some(frame) = decode(&mut bytes).expect("what is sent can be read") {
            self.frame(side, &frame);
        }
        assert!(bytes.is_empty(), "a batch is whole frames");
    }

    fn frame(&mut self, side: usize, frame: &Frame) {
        match frame {
            Frame::Open { stream, payload } => {
                assert!(
                    *stream > self.highest[side] && *stream as usize % 2 != side,
                    "ids rise and keep parity"
                );
                self.highest[side] = *stream;
                let request = OpenRequest::decode(payload).expect("a request that was just written");
                self.limit(side, *stream, request.limit);
            }
            Frame::Opened { stream, payload } => {
                let opened = Opened::decode(payload).expect("an answer that was just written");
                self.limit(side, *stream, opened.limit);
            }
            Frame::Data { stream, payload, fin, .. } => {
                let other = self.said[1 - side].get(stream);
                let floor = if other.is_some_and(|said| said.resumed) { 0 } else { FLOOR };
                let limit = other.map_or(0, |said| said.limit).max(floor);
                let said = self.said[side].entry(*stream).or_default();
                assert!(!said.fin && !said.reset, "stream {stream}: nothing follows the end");
                said.sent += payload.len() as u64;
                said.fin = *fin;
                assert!(said.sent <= limit, "stream {stream}: {} of {limit} sent", said.sent);
            }
            Frame::Credit { stream, received, limit } => {
                let sent = self.said[1 - side].get(stream).map_or(0, |said| said.sent + u64::from(said.fin));
                assert!(*received <= sent, "stream {stream}: received {received} of {sent}");
                let said = self.limit(side, *stream, *limit);
                assert!(*received >= said.received, "stream {stream}: received never falls");
                said.received = *received;
            }
            Frame::Reset { stream, reason, .. } => {
                use CloseReason as R;
                assert!(
                    matches!(
                        reason,
                        R::Cancelled
                            | R::Draining
                            | R::LimitReached
                            | R::Detached
                            | R::AgentOffline
                            | R::Lost
                    ),
                    "stream {stream}: no honest peer is reset for {reason:?}"
                );
                let said = self.said[side].entry(*stream).or_default();
                assert!(!said.reset, "stream {stream}: one reset is enough");
                said.reset = true;
            }
            Frame::Resume { stream, payload } => {
                assert!(
                    *stream > self.highest[side] && *stream as usize % 2 != side,
                    "ids rise and keep parity"
                );
                self.highest[side] = *stream;
                let request = ResumeRequest::decode(payload).expect("a request that was just written");
                self.taken_up(side, *stream, request.arrived, request.limit);
            }
            Frame::Resumed { stream, payload } => {
                let resumed = Resumed::decode(payload).expect("an answer that was just written");
                self.taken_up(side, *stream, resumed.arrived, resumed.limit);
            }
            Frame::Ignored => panic!("{frame:?} is never sent"),
            Frame::Detached { stream } => {
                let said = self.said[side].entry(*stream).or_default();
                assert!(!said.reset, "stream {stream}: nothing follows a reset");
                said.reset = true;
            }
            Frame::Ping { .. } | Frame::Pong { .. } => {}
            Frame::GoAway { .. } | Frame::Control { .. } => {}
        }
    }

    /// `side` has so much of the other's direction, which goes on from there.
    fn taken_up(&mut self, side: usize, stream: StreamId, arrived: Arrived, limit: u64) {
        let said = self.said[side].entry(stream).or_default();
        (said.received, said.limit, said.resumed) = (arrived.with_fin(), limit, true);
        let other = self.said[1 - side].entry(stream).or_default();
        (other.sent, other.fin) = (arrived.bytes, arrived.fin);
    }

    fn limit(&mut self, side: usize, stream: StreamId, limit: u64) -> &mut Said {
        let said = self.said[side].entry(stream).or_default();
        assert!(!said.reset, "stream {stream}: nothing follows a reset");
        assert!(
            limit >= said.limit.max(if said.resumed { 0 } else { FLOOR }),
            "stream {stream}: the limit falls from {} to {limit}",
            said.limit
        );
        said.limit = limit;
        said
    }
}

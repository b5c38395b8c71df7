//! One end of a connection, whose peer and whose application are hostile.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use towline_tunnel::{
    ids::{ClusterId, InstanceId, StreamKey},
    proto::{
        CloseReason, OpenRequest,
        endpoint::{Endpoint, EndpointConfig, Read, SEND_QUEUE, Side},
        frame::{StreamId, decode},
        ledger::Ledger,
        send::FLOOR,
        window::MAX_WINDOW,
    },
};

use super::{
    super::script::Script,
    MAX_STREAMS,
    frames::{arrive, reason, request, size, sound, stream},
};

pub(super) struct End {
    endpoint: Endpoint<()>,
    ledger: Ledger,
    bytes: BytesMut,
    now: Instant,
    closed: bool,
    /// Streams that the application was given.
    known: Vec<StreamId>,
}

impl End {
    pub(super) fn new(side: Side, ledger: Ledger) -> Self {
        let now = Instant::now();
        let config = EndpointConfig {
            side,
            max_streams: MAX_STREAMS,
            ledger: ledger.clone(),
            instance: InstanceId::from_bytes([9; 16]),
            jitter: 0,
        };
        let endpoint = Endpoint::new(config, now);
        Self { endpoint, ledger, bytes: BytesMut::new(), now, closed: false, known: Vec::new() }
    }

    pub(super) fn play(mut self, script: &mut Script<'_>) {
        while !script.is_over() {
            self.step(script);
            let streams = self.endpoint.stream_count() as u64;
            assert!(streams <= 2 * MAX_STREAMS as u64);
            let bound = self.ledger.promised() + streams * (FLOOR + SEND_QUEUE + MAX_WINDOW);
            assert!(self.endpoint.held() <= bound, "{} held", self.endpoint.held());
        }
        self.settle();
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 16 {
            0..=5 => {
                arrive(script, &mut self.bytes);
                self.take();
            }
            6 => {
                self.known.extend(self.endpoint.open(request(script)));
            }
            7 => {
                let bytes = vec![5; size(script) * 9];
                let _taken = self.endpoint.write(stream(script), &bytes);
            }
            8 => {
                let _queued = self.endpoint.finish(stream(script));
            }
            9 => {
                let mut room = vec![0; size(script) * 9];
                let read = self.endpoint.read(stream(script), &mut room);
                assert!(!matches!(read, Ok(Read::Bytes(n)) if n > room.len() || n == 0));
            }
            10 => self.endpoint.reset(stream(script), reason(script), "why"),
            11 => self.endpoint.release(stream(script)),
            12 => {
                self.known.extend(self.endpoint.accept().map(|(id, _)| id));
            }
            13 => self.fill(),
            14 => {
                self.now += Duration::from_millis(script.short().into());
                if self.endpoint.tick(self.now).is_err() {
                    self.close(CloseReason::PeerDead);
                } else {
                    assert!(
                        self.closed || self.endpoint.deadline() > self.now,
                        "time is never asked for again at once"
                    );
                }
            }
            _ => match script.byte() % 8 {
                0 => self.close(reason(script)),
                1 => self.endpoint.go_away(reason(script), Duration::ZERO, ""),
                2 => {
                    let _queued = self.endpoint.control(Bytes::from_static(b"?"));
                }
                _ => while self.endpoint.next_control().is_some() {},
            },
        }
    }

    fn take(&mut self) {
        while !self.closed {
            let taken = match decode(&mut self.bytes) {
                Ok(Some(frame)) => self.endpoint.on_frame(frame, self.now),
                Ok(None) => return,
                Err(error) => Err(error.into()),
            };
            if let Err(violation) = taken {
                self.close(violation.reason);
            }
        }
    }

    fn close(&mut self, reason: CloseReason) {
        self.endpoint.close(reason, "");
        self.closed = true;
        let request = OpenRequest::new(StreamKey::from_bytes([0; 16]), ClusterId::from_bytes([0; 32]));
        assert!(self.endpoint.open(request).is_err());
    }

    fn fill(&mut self) {
        let mut out = BytesMut::new();
        let payload = self.endpoint.fill(&mut out);
        assert!(payload <= out.len());
        self.endpoint.on_written(payload, self.now);
        sound(out);
    }

    /// All that can be sent is sent, and every stream is let go of.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 10_000, "output never ends");
            if !self.endpoint.has_output() {
                break;
            }
            self.fill();
        }
        self.close(CloseReason::Detached);
        for id in std::mem::take(&mut self.known) {
            self.endpoint.release(id);
        }
        assert_eq!(
            self.endpoint.stream_count(),
            0,
            "a closed connection keeps only what somebody still reads"
        );
    }
}

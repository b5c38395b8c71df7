//! The mux's state machines against a peer, and an application, that do anything.
//!
//! The input is a script: frames with valid and hostile values, raw bytes, calls of the API, and time. Whatever
//! comes, nothing panics, what goes out is sound frames, what is held stays within what was promised, and once all
//! is let go of nothing is left.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use towline_tunnel::{
    ids::{ClusterId, InstanceId, StreamKey},
    proto::{
        CloseReason, OpenRequest, Opened,
        endpoint::{Endpoint, EndpointConfig, Read, SEND_QUEUE, Side},
        frame::{Frame, MAX_PAYLOAD, StreamId, decode, encode},
        ledger::Ledger,
        leg::{Leg, LegConfig, LegEvent},
        send::FLOOR,
        window::MAX_WINDOW,
    },
};

use super::script::Script;

const MAX_STREAMS: usize = 6;

/// The first byte says what the script is for.
pub fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let first = script.byte();
    let side = if first & 2 == 0 { Side::Dialler } else { Side::Acceptor };
    let ledger = Ledger::new(if first & 4 == 0 { 1 << 20 } else { 100_000 });
    if first & 1 == 0 {
        End::new(side, ledger.clone()).play(&mut script);
    } else {
        Relay::new(ledger.clone()).play(&mut script);
    }
    assert_eq!(ledger.promised(), 0, "what was promised is given back");
}

/// Ids that are likely to be used, and any other.
fn stream(script: &mut Script<'_>) -> StreamId {
    match script.byte() {
        byte @ 0..=239 => u32::from(byte % 14),
        _ => script.long() as u32,
    }
}

fn offset(script: &mut Script<'_>) -> u64 {
    match script.byte() % 8 {
        0 => 0,
        1 => FLOOR,
        2 => u64::from(script.byte()),
        3 => u64::from(script.short()),
        4 => FLOOR + u64::from(script.short()),
        5 => 1 << 20,
        6 => u64::MAX - u64::from(script.byte()),
        _ => script.long(),
    }
}

fn size(script: &mut Script<'_>) -> usize {
    match script.byte() % 8 {
        0 => 0,
        1 => 1,
        2 => 1023 + usize::from(script.byte() % 3),
        3 => MAX_PAYLOAD,
        4 => usize::from(script.byte()),
        _ => usize::from(script.short()) % (MAX_PAYLOAD + 1),
    }
}

fn reason(script: &mut Script<'_>) -> CloseReason {
    CloseReason::from_code(script.byte().into())
}

fn request(script: &mut Script<'_>) -> OpenRequest {
    let mut request =
        OpenRequest::new(StreamKey::from_bytes([script.byte(); 16]), ClusterId::from_bytes([0; 32]));
    request.limit = offset(script);
    request.share = u64::from(script.byte() % 3);
    request
}

fn frame(script: &mut Script<'_>) -> Frame {
    let stream = stream(script);
    match script.byte() % 16 {
        0 => Frame::Open { stream, payload: Bytes::copy_from_slice(script.bytes(20)) },
        1 | 2 => Frame::Open { stream, payload: request(script).encode() },
        3 => Frame::Opened {
            stream,
            payload: Opened { instance: InstanceId::from_bytes([1; 16]), limit: offset(script) }.encode(),
        },
        4 => Frame::Opened { stream, payload: Bytes::copy_from_slice(script.bytes(20)) },
        5..=7 => {
            let flags = script.byte();
            let payload = vec![flags; size(script)].into();
            Frame::Data { stream, payload, fin: flags & 3 == 3, blocked: flags & 4 != 0 }
        }
        8 | 9 => Frame::Credit { stream, received: offset(script), limit: offset(script) },
        10 => Frame::Reset { stream, reason: reason(script), detail: String::new() },
        11 => match script.byte() % 4 {
            0 => Frame::Resume { stream, payload: Bytes::new() },
            1 => Frame::Resumed { stream, payload: Bytes::new() },
            _ => Frame::Detached { stream },
        },
        12 => Frame::Ping { token: 7 },
        13 => Frame::Pong { token: 7 },
        14 => Frame::GoAway { last: stream, reason: reason(script), delay_ms: 1, detail: String::new() },
        _ => Frame::Control { payload: Bytes::from_static(b"?") },
    }
}

/// Bytes that came: some as sound frames, some as they are.
fn arrive(script: &mut Script<'_>, bytes: &mut BytesMut) {
    if script.byte().is_multiple_of(8) {
        let length = script.byte().into();
        bytes.extend_from_slice(script.bytes(length));
    } else {
        encode(bytes, &frame(script));
    }
}

/// What was sent must be whole, sound frames.
fn sound(mut out: BytesMut) {
    while let Some(frame) = decode(&mut out).expect("what is sent can be read") {
        assert_ne!(frame, Frame::Ignored);
    }
    assert!(out.is_empty(), "what is sent is whole");
}

struct End {
    endpoint: Endpoint<()>,
    ledger: Ledger,
    bytes: BytesMut,
    now: Instant,
    closed: bool,
    /// Streams that the application was given.
    known: Vec<StreamId>,
}

impl End {
    fn new(side: Side, ledger: Ledger) -> Self {
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

    fn play(mut self, script: &mut Script<'_>) {
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

/// Two legs, both peers hostile.
struct Relay {
    legs: [Option<Leg<(usize, StreamId)>>; 2],
    bytes: [BytesMut; 2],
    ledger: Ledger,
    now: Instant,
}

impl Relay {
    fn new(ledger: Ledger) -> Self {
        let now = Instant::now();
        let leg = || {
            let config = LegConfig {
                side: Side::Acceptor,
                max_streams: MAX_STREAMS,
                ledger: ledger.clone(),
                jitter: 0,
            };
            Some(Leg::new(config, now))
        };
        Self { legs: [leg(), leg()], bytes: [BytesMut::new(), BytesMut::new()], ledger, now }
    }

    fn play(mut self, script: &mut Script<'_>) {
        while !script.is_over() {
            let which = usize::from(script.byte() & 1);
            match script.byte() % 16 {
                0..=9 => {
                    arrive(script, &mut self.bytes[which]);
                    self.take(which, usize::from(script.byte().is_multiple_of(8)));
                }
                10..=12 => self.fill(which),
                13 => self.tick(which, script.short()),
                14 => match script.byte() % 4 {
                    0 => self.with(which, |leg| leg.go_away(CloseReason::Draining, Duration::ZERO, "")),
                    1 => self.with(which, |leg| {
                        assert!(leg.control(Bytes::from_static(b"!")) || leg.has_output())
                    }),
                    _ => self.withdraw(which, stream(script), reason(script)),
                },
                _ => {
                    if script.byte().is_multiple_of(16) {
                        self.close(which);
                    }
                }
            }
            self.check();
        }
        for which in [0, 1] {
            for round in 0.. {
                assert!(round < 10_000, "output never ends");
                if !self.legs[which].as_ref().is_some_and(Leg::has_output) {
                    break;
                }
                self.fill(which);
            }
        }
        for which in [0, 1] {
            self.close(which);
        }
    }

    fn with(&mut self, which: usize, change: impl FnOnce(&mut Leg<(usize, StreamId)>)) {
        if let Some(leg) = &mut self.legs[which] {
            change(leg);
        }
    }

    /// The relay itself ends a stream, on both legs.
    fn withdraw(&mut self, which: usize, id: StreamId, reason: CloseReason) {
        let Some(leg) = &mut self.legs[which] else { return };
        let route = leg.routes().find(|(stream, _)| *stream == id).map(|(_, route)| *route);
        leg.reset(id, reason, "why");
        if let Some((other, id)) = route {
            self.with(other, |leg| leg.reset(id, reason, "why"));
        }
    }

    fn check(&self) {
        let (mut held, mut streams) = (0, 0);
        for leg in self.legs.iter().flatten() {
            held += leg.held();
            streams += leg.stream_count() as u64;
            assert!(leg.stream_count() <= 2 * MAX_STREAMS);
        }
        let bound = self.ledger.promised() + streams * FLOOR;
        assert!(held <= bound, "{held} bytes are held, {bound} were promised");
    }

    fn take(&mut self, which: usize, refuse: usize) {
        while let Some(leg) = &mut self.legs[which] {
            let event = match decode(&mut self.bytes[which]) {
                Ok(Some(frame)) => leg.on_frame(frame, self.now),
                Ok(None) => return,
                Err(error) => Err(error.into()),
            };
            match event {
                Ok(Some(event)) => self.carry(which, event, refuse),
                Ok(None) => {}
                Err(_violation) => self.close(which),
            }
        }
    }

    fn carry(&mut self, from: usize, event: LegEvent<(usize, StreamId)>, refuse: usize) {
        match event {
            LegEvent::Open { stream, request } => {
                let share = request.share;
                let opened = match &mut self.legs[1 - from] {
                    Some(leg) if refuse == 0 => leg.open(request, (from, stream)),
                    _ => Err(CloseReason::AgentOffline),
                };
                let Some(leg) = &mut self.legs[from] else { return };
                match opened {
                    Ok(id) => leg.bind(stream, (1 - from, id), share),
                    Err(reason) => leg.reset(stream, reason, ""),
                }
            }
            LegEvent::Resume { stream, request } => {
                let resumed = match &mut self.legs[1 - from] {
                    Some(leg) if refuse == 0 => leg.resume(request, (from, stream)),
                    _ => Err(CloseReason::AgentOffline),
                };
                let Some(leg) = &mut self.legs[from] else { return };
                match resumed {
                    Ok(id) => leg.bind(stream, (1 - from, id), 0),
                    Err(reason) => leg.reset(stream, reason, ""),
                }
            }
            LegEvent::Resumed { to, resumed } => self.with(to.0, |leg| leg.resumed(to.1, resumed)),
            LegEvent::Opened { to, opened } => self.with(to.0, |leg| leg.opened(to.1, opened)),
            LegEvent::Data { to, payload, fin, blocked } => {
                self.with(to.0, |leg| leg.forward(to.1, payload, fin, blocked));
            }
            LegEvent::Credit { to, received, limit } => {
                self.with(to.0, |leg| leg.credit(to.1, received, limit));
            }
            LegEvent::Detached { to } => self.with(to.0, |leg| leg.detach(to.1)),
            LegEvent::Reset { to, reason, detail } => {
                self.with(to.0, |leg| leg.reset(to.1, reason, &detail));
            }
            LegEvent::Control(_) | LegEvent::GoAway(_) => {}
        }
    }

    fn fill(&mut self, which: usize) {
        let Some(leg) = &mut self.legs[which] else { return };
        let (mut out, mut progress) = (BytesMut::new(), Vec::new());
        let payload = leg.fill(&mut out, &mut progress);
        leg.on_written(payload, self.now);
        sound(out);
        for step in progress {
            self.with(step.to.0, |leg| leg.passed(step.to.1, step.written));
        }
    }

    fn tick(&mut self, which: usize, ms: u16) {
        self.now += Duration::from_millis(ms.into());
        let Some(leg) = &mut self.legs[which] else { return };
        if leg.tick(self.now).is_err() {
            self.close(which);
        } else {
            assert!(leg.deadline() > self.now, "time is never asked for again at once");
        }
    }

    fn close(&mut self, which: usize) {
        let Some(mut leg) = self.legs[which].take() else { return };
        for (other, id) in leg.close() {
            self.with(other, |leg| leg.detach(id));
        }
    }
}

/// Scripts in which streams open, carry bytes, are credited and end.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for first in 0..8u8 {
        // Two OPENs, DATA with and without an end, CREDIT, OPENED, RESET, a little of the API and of time.
        let mut seed = vec![first];
        for step in 0..60u8 {
            seed.extend_from_slice(&[
                step,
                step.wrapping_mul(29) | 1,
                step % 7,
                step.wrapping_mul(11),
                first,
                3,
            ]);
        }
        seeds.push(seed);
    }
    seeds
}

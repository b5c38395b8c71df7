//! One end of a connection, whose peer and whose application are hostile.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use towline_tunnel::{
    ids::{ClusterId, StreamKey},
    proto::{
        CloseReason, OpenRequest, ResumeRequest,
        endpoint::{Endpoint, EndpointConfig, Event, Read, SEND_QUEUE, Side},
        frame::{StreamId, decode},
        ledger::Ledger,
        resume::Claim,
        send::FLOOR,
        window::MAX_WINDOW,
    },
};

use super::{
    super::script::Script,
    MAX_STREAMS,
    frames::{INSTANCE, arrive, claim, key, offset, reason, request, size, sound, stream},
};

pub(super) struct End {
    endpoint: Endpoint<()>,
    ledger: Ledger,
    bytes: BytesMut,
    now: Instant,
    closed: bool,
    /// Streams that the application was given.
    known: Vec<StreamId>,
    /// Those among them that are kept, as a keeper has them.
    kept: HashMap<StreamKey, (StreamId, Claim)>,
    /// RESUMEs that were sent.
    asked: Vec<(StreamId, ResumeRequest)>,
}

impl End {
    pub(super) fn new(side: Side, ledger: Ledger) -> Self {
        let now = Instant::now();
        let config = EndpointConfig {
            side,
            max_streams: MAX_STREAMS,
            ledger: ledger.clone(),
            instance: INSTANCE,
            jitter: 0,
        };
        let endpoint = Endpoint::new(config, now);
        Self {
            endpoint,
            ledger,
            bytes: BytesMut::new(),
            now,
            closed: false,
            known: Vec::new(),
            kept: HashMap::new(),
            asked: Vec::new(),
        }
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
                arrive(script, &mut self.bytes, &self.asked);
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
            _ => match script.byte() % 16 {
                0 => self.close(reason(script)),
                1 => self.endpoint.go_away(reason(script), Duration::ZERO, ""),
                2 => {
                    let _queued = self.endpoint.control(Bytes::from_static(b"?"));
                }
                3..=6 => self.keep(key(script), script.byte()),
                7..=10 => self.move_on(key(script), script.byte() & 1 == 0),
                11 => self.give_up(key(script)),
                12 => self.endpoint.tell_bulk(stream(script), offset(script)),
                13 if script.byte() & 3 == 0 => self.park_all(reason(script)),
                _ => while self.endpoint.next_control().is_some() {},
            },
        }
        self.forget();
    }

    /// One of the application's streams is kept under this name from now on, if the name is free.
    fn keep(&mut self, key: StreamKey, which: u8) {
        let id = self.known.get(usize::from(which) % self.known.len().max(1)).copied();
        if let Some(id) = id
            && !self.kept.contains_key(&key)
            && self.kept.values().all(|(kept, _)| *kept != id)
            && self.endpoint.keep(id, key)
        {
            self.kept.insert(key, (id, claim(key)));
        }
    }

    /// As a client does: a stream that waits, or leaves, is asked for.
    fn move_on(&mut self, key: StreamKey, leaves: bool) {
        let Some((id, claim)) = self.kept.get_mut(&key) else { return };
        let before = *id;
        let moving = match (self.endpoint.is_parked(before), leaves) {
            (true, _) => self.endpoint.detach(before),
            (false, true) => self.endpoint.leave(before),
            (false, false) => None,
        };
        if let Some(moving) = moving {
            *id = self.endpoint.resume(moving, claim).unwrap_or_else(|parked| parked);
            renumber(&mut self.known, before, *id);
        }
    }

    /// As a keeper does when a stream's time is over.
    fn give_up(&mut self, key: StreamKey) {
        if let Some((id, _)) = self.kept.get(&key)
            && self.endpoint.give_up(*id, CloseReason::Detached, "its time is over")
        {
            self.kept.remove(&key);
        }
    }

    fn park_all(&mut self, reason: CloseReason) {
        self.endpoint.close_and_park(reason, "");
        self.closed = true;
    }

    /// What a keeper does with an endpoint's news.
    fn forget(&mut self) {
        for key in self.endpoint.take_over() {
            self.kept.remove(&key);
        }
        for parked in self.endpoint.take_parked() {
            assert!(self.kept.contains_key(&parked.key), "only what is kept is parked");
        }
        drop(self.endpoint.take_bulk());
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Resume { stream, request } => {
                let Some((id, claim)) = self.kept.get_mut(&request.key) else {
                    return self.endpoint.refuse_resume(stream, CloseReason::Lost, "");
                };
                if let Err(reason) = claim.accept(&request) {
                    return self.endpoint.refuse_resume(stream, reason, "");
                }
                let Some(moving) = self.endpoint.detach(*id) else {
                    return self.endpoint.refuse_resume(stream, CloseReason::Lost, "");
                };
                let _fits = self.endpoint.accept_resume(stream, moving, claim, &request);
                renumber(&mut self.known, *id, stream);
                *id = stream;
            }
            Event::Resumed { stream, key, resumed } => {
                let kept = self.kept.get_mut(&key).filter(|(id, _)| *id == stream);
                if kept.is_some_and(|(_, claim)| claim.is_answer(&resumed)) {
                    let _fits = self.endpoint.resumed(stream, &resumed);
                } else {
                    self.endpoint.reset(stream, CloseReason::Lost, "not the agent's answer");
                }
            }
        }
    }

    fn take(&mut self) {
        while !self.closed {
            let taken = match decode(&mut self.bytes) {
                Ok(Some(frame)) => self.endpoint.on_frame(frame, self.now),
                Ok(None) => return,
                Err(error) => Err(error.into()),
            };
            match taken {
                Ok(event) => event.into_iter().for_each(|event| self.on_event(event)),
                Err(violation) => self.close(violation.reason),
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
        sound(out, &mut self.asked);
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
        for key in self.kept.keys().copied().collect::<Vec<_>>() {
            self.give_up(key);
        }
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

/// The application's handle leads to another number from now on.
fn renumber(known: &mut [StreamId], before: StreamId, after: StreamId) {
    known.iter_mut().filter(|id| **id == before).for_each(|id| *id = after);
}

//! A relay's two legs, whose peers are both hostile.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use towline_tunnel::proto::{
    CloseReason, ResumeRequest,
    endpoint::Side,
    frame::{StreamId, decode},
    ledger::Ledger,
    leg::{Leg, LegConfig, LegEvent},
    send::FLOOR,
};

use super::{
    super::script::Script,
    MAX_STREAMS,
    frames::{arrive, reason, sound, stream},
};

/// Two legs.
pub(super) struct Relay {
    legs: [Option<Leg<(usize, StreamId)>>; 2],
    bytes: [BytesMut; 2],
    /// RESUMEs that were sent to each peer.
    asked: [Vec<(StreamId, ResumeRequest)>; 2],
    ledger: Ledger,
    now: Instant,
}

impl Relay {
    pub(super) fn new(ledger: Ledger) -> Self {
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
        Self { legs: [leg(), leg()], bytes: Default::default(), asked: Default::default(), ledger, now }
    }

    pub(super) fn play(mut self, script: &mut Script<'_>) {
        while !script.is_over() {
            let which = usize::from(script.byte() & 1);
            match script.byte() % 16 {
                0..=9 => {
                    arrive(script, &mut self.bytes[which], &self.asked[which]);
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
        sound(out, &mut self.asked[which]);
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

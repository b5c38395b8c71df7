//! How bytes and events move: batches into kernels, kernels to the other side, frames into machines, and at the
//! relay from leg to leg.

use std::time::Duration;

use bytes::BytesMut;
use towline_tunnel::proto::{
    CloseReason,
    endpoint::Endpoint,
    frame::Frame,
    leg::{Leg, LegEvent},
};

use super::{
    line::Port,
    world::{Hop, World},
};

impl World {
    /// `side` makes a batch if its last one is in the kernel, and gives the kernel what it takes.
    pub(super) fn send(&mut self, l: usize, side: usize) -> bool {
        let line = &mut self.lines[l];
        if !line.alive {
            return false;
        }
        let port = line.ports[side];
        if line.wires[side].batch.is_empty() {
            let mut out = BytesMut::new();
            let mut progress = Vec::new();
            let payload = match port {
                Port::End(end) => self.ends[end].fill(&mut out),
                Port::Leg(leg) => self.legs[leg].as_mut().map_or(0, |leg| leg.fill(&mut out, &mut progress)),
            };
            for step in progress {
                self.leg(step.to.0, |leg| leg.passed(step.to.1, step.written));
            }
            let line = &mut self.lines[l];
            line.tap.sends(side, &out);
            line.wires[side].batch = out;
            line.wires[side].payload = payload;
        }
        let line = &mut self.lines[l];
        let before = line.wires[side].batch.len();
        if before > 0 && line.write(side) {
            let payload = line.wires[side].payload;
            match port {
                Port::End(end) => self.ends[end].on_written(payload, self.now),
                Port::Leg(leg) => {
                    let now = self.now;
                    self.leg(leg, |leg| leg.on_written(payload, now));
                }
            }
        }
        self.lines[l].wires[side].batch.len() < before
    }

    /// Bytes from `side` arrive and are read.
    pub(super) fn deliver(&mut self, l: usize, side: usize, bytes: usize) -> bool {
        if !self.lines[l].alive {
            return false;
        }
        let moved = self.lines[l].arrive(side, bytes, self.now);
        if moved > 0 {
            let now = self.now;
            match self.lines[l].ports[1 - side] {
                Port::End(end) => self.ends[end].inbound(now, None),
                Port::Leg(leg) => self.leg(leg, |leg| leg.inbound(now, None)),
            }
        }
        while let Some(frame) = self.lines[l].frame(side) {
            match self.lines[l].ports[1 - side] {
                Port::End(end) => {
                    let event =
                        self.ends[end].on_frame(frame, self.now).expect("an honest peer breaks no rule");
                    self.accept(end);
                    if let Some(event) = event {
                        self.on_event(end, event);
                    }
                }
                Port::Leg(leg) => self.on_leg_frame(leg, frame),
            }
        }
        moved > 0
    }

    fn accept(&mut self, end: usize) {
        self.keep_opened(end);
        while self.ends[end].next_control().is_some() {}
        while let Some((id, request)) = self.ends[end].accept() {
            let stream = &mut self.streams[self.by_key[&request.key]];
            assert!(stream.handles[1].is_none(), "a stream arrives once");
            stream.handles[1] = Some((end, id));
            stream.places[1] = end;
            if stream.wants_keeping {
                stream.kept[1] = self.ends[end].keep(id, request.key);
            }
        }
    }

    fn leg(&mut self, leg: usize, change: impl FnOnce(&mut Leg<Hop>)) {
        if let Some(leg) = &mut self.legs[leg] {
            change(leg);
        }
    }

    fn on_leg_frame(&mut self, from: usize, frame: Frame) {
        let now = self.now;
        let Some(leg) = &mut self.legs[from] else { return };
        let event = leg.on_frame(frame, now).expect("an honest peer breaks no rule");
        match event {
            None | Some(LegEvent::Control(_) | LegEvent::GoAway(_)) => {}
            Some(LegEvent::Open { stream, request }) => {
                let target = self.role_legs[usize::from(request.cluster.as_bytes()[0])];
                let share = request.share;
                let opened = match &mut self.legs[target] {
                    Some(leg) => leg.open(request, (from, stream)),
                    None => Err(CloseReason::AgentOffline),
                };
                self.leg(from, |leg| match opened {
                    Ok(id) => leg.bind(stream, (target, id), share),
                    Err(reason) => leg.reset(stream, reason, ""),
                });
            }
            Some(LegEvent::Resume { stream, request }) => {
                let target = self.role_legs[usize::from(request.cluster.as_bytes()[0])];
                let resumed = match &mut self.legs[target] {
                    Some(leg) => leg.resume(request, (from, stream)),
                    None => Err(CloseReason::AgentOffline),
                };
                self.leg(from, |leg| match resumed {
                    Ok(id) => leg.bind(stream, (target, id), 0),
                    Err(reason) => leg.reset(stream, reason, ""),
                });
            }
            Some(LegEvent::Resumed { to, resumed }) => self.leg(to.0, |leg| leg.resumed(to.1, resumed)),
            Some(LegEvent::Opened { to, opened }) => self.leg(to.0, |leg| leg.opened(to.1, opened)),
            Some(LegEvent::Data { to, payload, fin, blocked }) => {
                self.leg(to.0, |leg| leg.forward(to.1, payload, fin, blocked));
            }
            Some(LegEvent::Credit { to, received, limit }) => {
                self.leg(to.0, |leg| leg.credit(to.1, received, limit));
            }
            Some(LegEvent::Detached { to }) => self.leg(to.0, |leg| leg.detach(to.1)),
            Some(LegEvent::Reset { to, reason, detail }) => {
                self.leg(to.0, |leg| leg.reset(to.1, reason, &detail));
            }
        }
    }

    /// Everything that isn't stalled moves once; eager readers (or all) read, writers write.
    pub(super) fn pump(&mut self, all: bool) -> bool {
        let mut moved = false;
        for line in 0..self.lines.len() {
            for side in [0, 1] {
                if all || !self.lines[line].wires[side].stalled {
                    moved |= self.send(line, side);
                    moved |= self.deliver(line, side, usize::MAX);
                }
            }
        }
        for s in 0..self.streams.len() {
            for dir in [0, 1] {
                moved |= self.write(s, dir);
                if all || self.streams[s].flows[dir].eager {
                    moved |= self.read(s, dir, u64::MAX);
                }
            }
        }
        moved
    }

    fn port_deadline(&self, port: Port) -> Option<std::time::Instant> {
        match port {
            Port::End(end) => Some(self.ends[end].deadline()),
            Port::Leg(leg) => self.legs[leg].as_ref().map(Leg::deadline),
        }
    }

    /// When a machine wants to be called next.
    pub(super) fn deadline(&self) -> Option<std::time::Instant> {
        let alive = self.lines.iter().filter(|line| line.alive);
        alive.flat_map(|line| line.ports).filter_map(|port| self.port_deadline(port)).min()
    }

    /// Time passes; every machine is called when it asked for it.
    pub(super) fn advance(&mut self, by: Duration) {
        let until = self.now + by;
        while let Some(next) = self.deadline().filter(|next| *next <= until) {
            self.now = self.now.max(next);
            for line in 0..self.lines.len() {
                self.tick(line);
            }
        }
        self.now = until;
    }

    fn tick(&mut self, l: usize) {
        for side in [0, 1] {
            if !self.lines[l].alive {
                return;
            }
            let port = self.lines[l].ports[side];
            let ticked = match port {
                Port::End(end) => self.ends[end].tick(self.now),
                Port::Leg(leg) => self.legs[leg].as_mut().map_or(Ok(()), |leg| leg.tick(self.now)),
            };
            match ticked {
                Ok(()) => {
                    let next = self.port_deadline(port);
                    assert!(next.is_none_or(|next| next > self.now), "time is never asked for again at once");
                }
                Err(violation) => {
                    let silent = self.now - self.lines[l].inbound[side];
                    assert_eq!(violation.reason, CloseReason::PeerDead);
                    assert!(silent >= Duration::from_millis(8_700), "taken for dead after {silent:?}");
                    self.cut(l, false);
                }
            }
        }
    }

    /// Whether a machine on a line that is alive still has something to say.
    pub(super) fn has_output(&self) -> bool {
        let alive = self.lines.iter().filter(|line| line.alive);
        alive.flat_map(|line| line.ports).any(|port| match port {
            Port::End(end) => self.ends[end].has_output(),
            Port::Leg(leg) => self.legs[leg].as_ref().is_some_and(Leg::has_output),
        })
    }

    /// Streams in all tables, and bytes that are held for them.
    pub(super) fn left(&self) -> (usize, u64) {
        let ends = self.ends.iter().map(|end: &Endpoint<()>| (end.stream_count(), end.held()));
        let legs = self.legs.iter().flatten().map(|leg| (leg.stream_count(), leg.held()));
        ends.chain(legs).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }
}

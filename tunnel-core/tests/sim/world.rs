//! The world that a script plays in.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use towline_tunnel::{
    ids::{ClusterId, InstanceId, StreamKey},
    proto::{
        CloseReason, OpenRequest, StreamId,
        endpoint::{Endpoint, EndpointConfig, Read, SEND_QUEUE, Side},
        ledger::Ledger,
        leg::{Leg, LegConfig},
        resume::{Claim, ResumeKey},
    },
};

use super::{
    line::{Line, Port},
    model::{Flow, Op, Stream},
};

/// Bytes that an application reads or writes at once.
const CHUNK: u64 = 64 * 1024;

/// What the world is made of.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Clients and agents with a relay between them, or no relay: one of each, joined directly.
    pub(crate) relay: Option<(u8, u8)>,
    /// What each end's process promises at most beyond the floors.
    pub(crate) end_ledger: u64,
    /// What the relay promises at most beyond the floors.
    pub(crate) relay_ledger: u64,
    /// Bytes that kernels hold in each direction of a line.
    pub(crate) wire: usize,
    /// Spreads pings.
    pub(crate) jitter: u8,
    /// Streams that may be opened in all.
    pub(crate) streams: usize,
    /// A fault that is planted, so that the rules can be seen to catch it.
    pub(crate) planted: Option<Planted>,
}

/// Faults of the kind that resuming could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    /// The agent goes on one byte too late.
    SkipsAByte,
    /// The agent goes on one byte too early.
    RepeatsAByte,
    /// The relay makes an end of a line that was lost.
    ForgesAnEnd,
}

/// A stream at the relay: the leg and the id there.
pub(super) type Hop = (usize, StreamId);

pub(crate) struct World {
    pub(super) config: Config,
    pub(super) now: Instant,
    pub(super) ends: Vec<Endpoint<()>>,
    pub(super) end_lines: Vec<usize>,
    pub(super) end_roles: Vec<usize>,
    pub(super) legs: Vec<Option<Leg<Hop>>>,
    pub(super) lines: Vec<Line>,
    /// The newest end of each participant: clients, then agents.
    pub(super) roles: Vec<usize>,
    /// The newest leg of each participant.
    pub(super) role_legs: Vec<usize>,
    pub(super) ledgers: Vec<Ledger>,
    pub(super) relay_ledger: Ledger,
    pub(super) streams: Vec<Stream>,
    pub(super) by_key: HashMap<StreamKey, usize>,
    /// How often a stream left a line that stood.
    pub(super) moved: usize,
    /// What applications read into.
    buffer: Vec<u8>,
}

impl World {
    /// Plays the script and lets everything come to its end.
    /// Returns how often a stream left a line that stood.
    pub(crate) fn run(config: Config, script: &[Op]) -> usize {
        let mut world = Self::new(config);
        for op in script {
            world.play(op);
            world.check();
        }
        world.settle();
        world.moved
    }

    pub(crate) fn new(config: Config) -> Self {
        let roles = config.relay.map_or(2, |(clients, agents)| usize::from(clients) + usize::from(agents));
        let mut world = Self {
            now: Instant::now(),
            ends: Vec::new(),
            end_lines: Vec::new(),
            end_roles: Vec::new(),
            legs: Vec::new(),
            lines: Vec::new(),
            roles: vec![0; roles],
            role_legs: vec![0; roles],
            ledgers: (0..roles).map(|_| Ledger::new(config.end_ledger)).collect(),
            relay_ledger: Ledger::new(config.relay_ledger),
            streams: Vec::new(),
            by_key: HashMap::new(),
            moved: 0,
            buffer: vec![0; CHUNK as usize],
            config,
        };
        for role in 0..roles {
            if world.config.relay.is_some() || role == 0 {
                world.dial(role);
            }
        }
        world
    }

    fn end(&mut self, role: usize, side: Side) -> usize {
        let config = EndpointConfig {
            side,
            max_streams: 2 * self.config.streams + 40,
            ledger: self.ledgers[role].clone(),
            instance: InstanceId::from_bytes([role as u8; 16]),
            jitter: self.config.jitter,
        };
        self.ends.push(Endpoint::new(config, self.now));
        self.end_lines.push(self.lines.len());
        self.end_roles.push(role);
        self.roles[role] = self.ends.len() - 1;
        self.ends.len() - 1
    }

    /// A new line for a participant; without a relay, for both.
    pub(super) fn dial(&mut self, role: usize) {
        let ports = if self.config.relay.is_some() {
            let end = self.end(role, Side::Dialler);
            let config = LegConfig {
                side: Side::Acceptor,
                max_streams: 2 * self.config.streams + 40,
                ledger: self.relay_ledger.clone(),
                jitter: self.config.jitter,
            };
            self.legs.push(Some(Leg::new(config, self.now)));
            self.role_legs[role] = self.legs.len() - 1;
            [Port::End(end), Port::Leg(self.legs.len() - 1)]
        } else {
            [Port::End(self.end(0, Side::Dialler)), Port::End(self.end(1, Side::Acceptor))]
        };
        self.lines.push(Line::new(ports, self.config.wire, self.now));
    }

    pub(super) fn ready(&mut self, role: usize) {
        let line = &self.lines[self.end_lines[self.roles[role]]];
        if !line.alive || line.going {
            self.dial(role);
        }
    }

    pub(super) fn play(&mut self, op: &Op) {
        let lines = self.lines.len();
        let line = |line: u8| lines - 1 - usize::from(line) % lines;
        let stream =
            |stream: u8| (!self.streams.is_empty()).then(|| usize::from(stream) % self.streams.len());
        match *op {
            Op::Open { from, to, share, eager } => self.open(from, to, share, eager),
            Op::Write { stream: s, dir, bytes } => {
                if let Some(s) = stream(s) {
                    if !self.streams[s].flows[usize::from(dir)].wants_finish {
                        self.streams[s].flows[usize::from(dir)].goal += u64::from(bytes);
                    }
                    self.write(s, dir.into());
                }
            }
            Op::Finish { stream: s, dir } => {
                if let Some(s) = stream(s) {
                    self.streams[s].flows[usize::from(dir)].wants_finish = true;
                    self.write(s, dir.into());
                }
            }
            Op::Read { stream: s, dir, bytes } => {
                if let Some(s) = stream(s) {
                    self.read(s, dir.into(), bytes.into());
                }
            }
            Op::Reset { stream: s, side } => {
                if let Some(s) = stream(s) {
                    self.reset(s, side.into());
                }
            }
            Op::Release { stream: s, side } => {
                if let Some(s) = stream(s) {
                    self.release(s, side.into());
                }
            }
            Op::Send { line: l, side } => {
                self.send(line(l), side.into());
            }
            Op::Deliver { line: l, side, bytes } => {
                self.deliver(line(l), side.into(), bytes.into());
            }
            Op::Stall { line: l, side, on } => self.lines[line(l)].wires[usize::from(side)].stalled = on,
            Op::Pump { times } => {
                for _ in 0..times {
                    self.pump(false);
                }
            }
            Op::Advance { ms } => self.advance(Duration::from_millis(ms.into())),
            Op::Cut { line: l, arrive } => self.cut(line(l), arrive),
            Op::GoAway { line: l, side } => self.go_away(line(l), side.into()),
            Op::Restart => self.restart(),
            Op::Resume { stream: s } => {
                if let Some(s) = stream(s) {
                    self.resume(s);
                }
            }
            Op::Move { stream: s, fresh } => {
                if let Some(s) = stream(s) {
                    self.move_elsewhere(s, fresh);
                }
            }
            Op::Expire { stream: s, side } => {
                if let Some(s) = stream(s) {
                    self.expire(s, side.into());
                }
            }
            Op::Control { line: l, side } => self.control(line(l), side.into()),
        }
    }

    /// At every step: the relay holds no more than it promised.
    pub(super) fn check(&self) {
        let legs = || self.legs.iter().flatten();
        let held: u64 = legs().map(Leg::held).sum();
        let streams: usize = legs().map(Leg::stream_count).sum();
        let bound = self.relay_ledger.promised() + streams as u64 * towline_tunnel::proto::send::FLOOR;
        assert!(held <= bound, "the relay holds {held} bytes and promised {bound}");
        assert!(self.relay_ledger.promised() <= self.config.relay_ledger);
        assert!(self.ledgers.iter().all(|ledger| ledger.promised() <= self.config.end_ledger));
    }

    fn open(&mut self, from: u8, to: u8, share: u8, eager: u8) {
        if self.streams.len() >= self.config.streams {
            return;
        }
        let (from, to) = match self.config.relay {
            Some((clients, agents)) => (usize::from(from % clients), usize::from(clients + to % agents)),
            None => (usize::from(from % 2), usize::from(1 - from % 2)),
        };
        self.ready(from);
        self.ready(to);
        let number = self.streams.len() as u64 + 1;
        let mut key = [number as u8; 16];
        key[8..].copy_from_slice(&number.to_be_bytes());
        let key = StreamKey::from_bytes(key);
        let mut request = OpenRequest::new(key, ClusterId::from_bytes([to as u8; 32]));
        request.share = u64::from(share % 3);
        let places = [self.roles[from], self.roles[to]];
        let cluster = ClusterId::from_bytes([to as u8; 32]);
        let claim = Claim::new(
            key,
            cluster,
            InstanceId::from_bytes([to as u8; 16]),
            ResumeKey::new(&[number as u8; 32]),
        );
        let id = self.ends[places[0]].open(request).expect("a line that is alive takes streams");
        let flow = |bit| Flow { eager: eager & bit != 0, ..Flow::default() };
        self.by_key.insert(key, self.streams.len());
        self.streams.push(Stream {
            key,
            places,
            handles: [Some((places[0], id)), None],
            released: [false; 2],
            flows: [flow(1), flow(2)],
            broken: false,
            claims: [claim.clone(), claim],
            wants_keeping: share & 4 == 0,
            kept: [false; 2],
        });
    }

    /// Writes as much of what the application wants to write as there is room for.
    pub(super) fn write(&mut self, s: usize, dir: usize) -> bool {
        let stream = &self.streams[s];
        let flow = &stream.flows[dir];
        let Some((end, id)) = stream.handles[dir] else { return false };
        if stream.released[dir] || flow.write_error.is_some() || flow.finished {
            return false;
        }
        let mut moved = false;
        let result = if flow.written < flow.goal {
            // At least a byte, so that an error is met where there is no room.
            let room = SEND_QUEUE.saturating_sub(self.ends[end].unsent(id)).clamp(1, CHUNK);
            let to = flow.goal.min(flow.written + room);
            let bytes: Vec<u8> = (flow.written..to).map(|offset| stream.byte(dir, offset)).collect();
            self.ends[end].write(id, &bytes).map(|taken| {
                moved = taken > 0;
                self.streams[s].flows[dir].written += taken as u64;
            })
        } else if flow.wants_finish {
            self.ends[end].finish(id).map(|()| {
                moved = true;
                self.streams[s].flows[dir].finished = true;
            })
        } else {
            return false;
        };
        if let Err(error) = result {
            let stream = &mut self.streams[s];
            assert!(stream.may_fail(dir), "stream {:?} can't be written to: {error}", stream.key);
            stream.flows[dir].write_error = Some(error);
            moved = true;
        }
        moved
    }

    /// Reads at most so many bytes, and compares.
    pub(super) fn read(&mut self, s: usize, dir: usize, bytes: u64) -> bool {
        let stream = &mut self.streams[s];
        let Some((end, id)) = stream.handles[1 - dir] else { return false };
        if stream.released[1 - dir] || stream.flows[dir].ended || stream.flows[dir].read_error.is_some() {
            return false;
        }
        let buffer = &mut self.buffer[..bytes.clamp(1, CHUNK) as usize];
        match self.ends[end].read(id, buffer) {
            Ok(Read::Bytes(n)) => {
                let from = stream.flows[dir].read;
                let right =
                    (from..).zip(&buffer[..n]).all(|(offset, byte)| *byte == stream.byte(dir, offset));
                assert!(n > 0 && right, "stream {:?} reads other bytes than were written", stream.key);
                stream.flows[dir].read += n as u64;
                assert!(stream.flows[dir].read <= stream.flows[dir].written);
            }
            Ok(Read::End) => {
                let flow = &mut stream.flows[dir];
                assert!(flow.finished && flow.read == flow.written, "a cut stream looks finished: {flow:?}");
                flow.ended = true;
            }
            Ok(Read::Wait) => return false,
            Err(error) => {
                assert!(stream.broken, "stream {:?} can't be read: {error}", stream.key);
                stream.flows[dir].read_error = Some(error);
            }
        }
        true
    }

    fn reset(&mut self, s: usize, side: usize) {
        let stream = &mut self.streams[s];
        if let (Some((end, id)), false) = (stream.handles[side], stream.released[side]) {
            stream.broken = true;
            self.ends[end].reset(id, CloseReason::Cancelled, "by the script");
        }
    }

    pub(super) fn release(&mut self, s: usize, side: usize) {
        let stream = &mut self.streams[s];
        if let (Some((end, id)), false) = (stream.handles[side], stream.released[side]) {
            stream.released[side] = true;
            // What was finished must still arrive; what wasn't can't.
            stream.broken |= !stream.flows[side].finished;
            self.ends[end].release(id);
        }
    }

    fn control(&mut self, line: usize, side: usize) {
        let message = Bytes::from_static(b"a question");
        let _queued = match self.lines[line].ports[side] {
            Port::End(end) => self.ends[end].control(message),
            Port::Leg(leg) => self.legs[leg].as_mut().is_some_and(|leg| leg.control(message)),
        };
    }

    fn go_away(&mut self, line: usize, side: usize) {
        self.lines[line].going = true;
        match self.lines[line].ports[side] {
            Port::End(end) => self.ends[end].go_away(CloseReason::Draining, Duration::ZERO, "soon"),
            Port::Leg(leg) => {
                if let Some(leg) = &mut self.legs[leg] {
                    leg.go_away(CloseReason::Draining, Duration::ZERO, "soon");
                }
            }
        }
        // Whoever was not yet told OPENED may be refused.
        for s in self.on_line(line) {
            let opened =
                self.streams[s].handles[0].is_some_and(|(end, id)| self.ends[end].opened(id).is_some());
            self.streams[s].broken |= !opened;
        }
    }

    /// Streams whose way leads over a line.
    fn on_line(&self, line: usize) -> Vec<usize> {
        let leads = |stream: &Stream| stream.places.iter().any(|end| self.end_lines[*end] == line);
        (0..self.streams.len()).filter(|s| leads(&self.streams[*s])).collect()
    }

    pub(super) fn cut(&mut self, line: usize, arrive: bool) {
        if !self.lines[line].alive {
            return;
        }
        if arrive {
            for side in [0, 1] {
                self.deliver(line, side, usize::MAX);
            }
        }
        for s in self.on_line(line) {
            self.streams[s].broken |= !self.streams[s].kept[0];
        }
        self.lines[line].alive = false;
        for port in self.lines[line].ports {
            match port {
                Port::End(end) => self.ends[end].close_and_park(CloseReason::Detached, "the line was cut"),
                Port::Leg(leg) => {
                    let hops = self.legs[leg].take().map(|mut leg| leg.close()).unwrap_or_default();
                    for (leg, id) in hops {
                        if let Some(leg) = &mut self.legs[leg] {
                            if self.config.planted == Some(Planted::ForgesAnEnd) {
                                leg.forward(id, Bytes::new(), true, false);
                            } else {
                                leg.detach(id);
                            }
                        }
                    }
                }
            }
        }
    }
}

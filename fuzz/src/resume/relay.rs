//! The relay: what it passes on and makes up, and what it must not achieve by it.

use std::collections::VecDeque;

use bytes::Bytes;
use towline_tunnel::{
    ids::{ClusterId, InstanceId},
    proto::{CloseReason, Frame, OpenRequest, ResumeRequest, Resumed, StreamId},
};

use super::world::{AGENT, BAD_TICKET, CLIENT, STREAMS, World, key};

/// How a RESUME or RESUMED is changed on the way.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tamper {
    Nothing,
    Proof(u8),
    Epoch(u8),
    Arrived(u16),
    Fin,
    Instance,
    Cluster,
    Ticket,
    Key(u8),
}

/// A stream's way through the relay: a number on a connection of each side.
#[derive(Default)]
struct Route {
    /// Which one the agent has there.
    stream: usize,
    ends: [Option<(usize, StreamId)>; 2],
    /// What came from each side and waits to be passed on.
    waiting: [VecDeque<Frame>; 2],
    /// The client's RESUME; none if it began with OPEN, or the relay made it up.
    asked: Option<ResumeRequest>,
    /// What the agent was shown of it.
    shown: Option<ResumeRequest>,
    /// The client was given the agent's answer.
    answered: bool,
    /// The agent has taken the stream up here.
    taken: bool,
}

#[derive(Default)]
pub(super) struct Relay {
    routes: Vec<Route>,
    /// Every RESUME that the client made, in order.
    issued: Vec<ResumeRequest>,
    /// Every answer of the agent, and to which stream's.
    answers: Vec<(usize, Resumed)>,
    /// For each stream: the last epoch that the agent took, and the route on which it is bound there.
    epochs: [u64; STREAMS],
    bound: [usize; STREAMS],
    /// The same when the ends last had nothing more to say: frames of different connections have no order before that.
    settled: [usize; STREAMS],
    pub(super) taken_up: usize,
}

impl Tamper {
    fn request(self, mut request: ResumeRequest) -> ResumeRequest {
        match self {
            Self::Nothing => {}
            Self::Proof(byte) => request.proof[usize::from(byte) % 32] ^= 1 << (byte % 8),
            Self::Epoch(epoch) => {
                request.epoch = request.epoch.wrapping_add(u64::from(epoch)).wrapping_sub(2)
            }
            Self::Arrived(by) => {
                request.arrived.bytes = request.arrived.bytes.wrapping_add(u64::from(by)) >> 1
            }
            Self::Fin => request.arrived.fin ^= true,
            Self::Instance => request.instance = InstanceId::from_bytes([7; 16]),
            Self::Cluster => request.cluster = ClusterId::from_bytes([7; 32]),
            Self::Ticket => request.ticket = Some(Bytes::from_static(BAD_TICKET)),
            Self::Key(to) => request.key = key(usize::from(to) % (STREAMS + 1)),
        }
        request
    }

    fn answer(self, mut answer: Resumed) -> Resumed {
        match self {
            Self::Proof(byte) => answer.proof[usize::from(byte) % 32] ^= 1 << (byte % 8),
            Self::Epoch(epoch) => answer.epoch = answer.epoch.wrapping_add(u64::from(epoch)).wrapping_sub(2),
            Self::Arrived(by) => answer.arrived.bytes = answer.arrived.bytes.wrapping_add(u64::from(by)) >> 1,
            Self::Fin => answer.arrived.fin ^= true,
            _ => {}
        }
        answer
    }
}

/// Whether a RESUME is another one in all that its proof is over.
fn is_same(one: &ResumeRequest, other: &ResumeRequest) -> bool {
    let covered = |request: &ResumeRequest| {
        (request.key, request.cluster, request.instance, request.epoch, request.arrived, request.proof)
    };
    covered(one) == covered(other)
}

impl Relay {
    fn route(&self, side: usize, link: usize, id: StreamId) -> Option<usize> {
        self.routes.iter().position(|route| route.ends[side] == Some((link, id)))
    }

    pub(super) fn settle(&mut self) {
        self.settled = self.bound;
    }

    /// A connection is lost: the other halves of its streams are detached.
    pub(super) fn lost(&mut self, side: usize, link: usize) {
        for route in &mut self.routes {
            if route.ends[side].is_some_and(|(at, _)| at == link) {
                route.waiting[side].push_back(Frame::Detached { stream: 0 });
            }
        }
    }

    /// The agent says that it takes the stream up on this route.
    fn taken(&mut self, at: usize, resumed: Resumed) {
        let route = &mut self.routes[at];
        let shown = route.shown.as_ref().expect("RESUMED without RESUME");
        assert!(
            self.issued.iter().any(|issued| is_same(issued, shown)),
            "the agent took up what the client did not ask for"
        );
        assert_ne!(
            shown.ticket.as_deref(),
            Some(BAD_TICKET),
            "the agent took up what its ticket does not allow"
        );
        let epoch = &mut self.epochs[route.stream];
        assert!(shown.epoch > *epoch && resumed.epoch == shown.epoch, "an old epoch came back");
        *epoch = shown.epoch;
        route.taken = true;
        self.answers.push((route.stream, resumed));
        self.bound[route.stream] = at;
    }

    /// Whether this is the agent's answer to what the client asked on this route.
    fn is_answer(&self, at: usize, resumed: &Resumed) -> bool {
        let Some(asked) = &self.routes[at].asked else { return false };
        asked.epoch == resumed.epoch
            && self.answers.iter().any(|(stream, answer)| {
                key(*stream) == asked.key
                    && (answer.epoch, answer.arrived, answer.proof)
                        == (resumed.epoch, resumed.arrived, resumed.proof)
            })
    }
}

impl World {
    /// An end sent this.
    pub(super) fn came(&mut self, side: usize, link: usize, frame: Frame) {
        let relay = &mut self.relay;
        match &frame {
            Frame::Ping { token } => return self.links[side][link].send(&Frame::Pong { token: *token }),
            Frame::Open { stream, payload } => {
                let key = OpenRequest::decode(payload).expect("a sound OPEN").key;
                let number = usize::from(key.as_bytes()[0]);
                relay.bound[number] = relay.routes.len();
                let mut route = Route { stream: number, answered: true, taken: true, ..Route::default() };
                route.ends[side] = Some((link, *stream));
                route.waiting[side].push_back(frame);
                return relay.routes.push(route);
            }
            Frame::Resume { stream, payload } => {
                let request = ResumeRequest::decode(payload).expect("a sound RESUME");
                let number = usize::from(request.key.as_bytes()[0]);
                let before = relay.issued.iter().filter(|issued| issued.key == request.key);
                assert!(
                    before.into_iter().all(|issued| issued.epoch < request.epoch),
                    "an epoch is used twice"
                );
                relay.issued.push(request.clone());
                let mut route = Route { stream: number, asked: Some(request), ..Route::default() };
                route.ends[side] = Some((link, *stream));
                route.waiting[side].push_back(frame);
                return relay.routes.push(route);
            }
            _ => {}
        }
        let Some(id) = frame.stream() else { return };
        let Some(at) = relay.route(side, link, id) else { return };
        if let (AGENT, Frame::Resumed { payload, .. }) = (side, &frame) {
            relay.taken(at, Resumed::decode(payload).expect("a sound RESUMED"));
        }
        let route = &mut relay.routes[at];
        if matches!(frame, Frame::Data { .. } | Frame::Credit { .. }) {
            match side {
                CLIENT => assert!(route.answered, "the client went on without the agent's answer"),
                _ => {
                    assert!(route.taken, "the agent went on without RESUMED");
                    let is_bound = [relay.bound, relay.settled].iter().any(|bound| bound[route.stream] == at);
                    assert!(is_bound, "what was unbound is still used");
                }
            }
        }
        if route.ends[1 - side].is_some() || side == CLIENT {
            route.waiting[side].push_back(frame);
        }
    }

    /// Passes on the oldest frame that waits on one route.
    pub(super) fn forward(&mut self, which: usize, side: usize, link: usize, tamper: Tamper) {
        let routes = &mut self.relay.routes;
        let waits: Vec<usize> =
            (0..routes.len()).filter(|at| !routes[*at].waiting[side].is_empty()).collect();
        let Some(at) = waits.get(which % waits.len().max(1)).copied() else { return };
        let Some(frame) = routes[at].waiting[side].pop_front() else { return };
        match frame {
            Frame::Resume { .. } => {
                if let Some(asked) = routes[at].asked.clone() {
                    self.show(at, link, tamper.request(asked));
                }
            }
            Frame::Open { payload, .. } => {
                let id = self.links[AGENT][0].next;
                self.links[AGENT][0].next += 2;
                self.relay.routes[at].ends[AGENT] = Some((0, id));
                self.links[AGENT][0].send(&Frame::Open { stream: id, payload });
            }
            Frame::Resumed { payload, .. } => {
                let resumed = Resumed::decode(&payload).expect("a sound RESUMED");
                self.answer(at, &tamper.answer(resumed));
            }
            frame => {
                if let Some((link, id)) = self.relay.routes[at].ends[1 - side] {
                    self.links[1 - side][link].send(&renumbered(frame, id));
                }
            }
        }
    }

    /// Passes on all that waits, RESUMEs to the newest or another of the agent's connections.
    pub(super) fn forward_all(&mut self, link: usize) {
        for side in [CLIENT, AGENT] {
            while self.relay.routes.iter().any(|route| !route.waiting[side].is_empty()) {
                self.forward(0, side, link, Tamper::Nothing);
            }
        }
    }

    /// The agent sees a RESUME.
    fn show(&mut self, at: usize, link: usize, request: ResumeRequest) {
        let standing: Vec<usize> =
            (0..self.links[AGENT].len()).rev().filter(|link| self.links[AGENT][*link].stands()).collect();
        let Some(link) = standing.get(link % standing.len().max(1)).copied() else { return };
        let to = &mut self.links[AGENT][link];
        let (id, payload) = (to.next, request.encode());
        to.next += 2;
        to.send(&Frame::Resume { stream: id, payload });
        let route = &mut self.relay.routes[at];
        route.ends[AGENT] = Some((link, id));
        route.stream = usize::from(request.key.as_bytes()[0]).min(STREAMS - 1);
        route.shown = Some(request);
    }

    /// The client sees an answer.
    fn answer(&mut self, at: usize, resumed: &Resumed) {
        let genuine = self.relay.is_answer(at, resumed);
        let route = &mut self.relay.routes[at];
        if let Some((link, stream)) = route.ends[CLIENT] {
            self.relay.taken_up += usize::from(genuine && !route.answered);
            route.answered |= genuine;
            self.links[CLIENT][link].send(&Frame::Resumed { stream, payload: resumed.encode() });
        }
    }

    /// Shows the agent a RESUME once more, from whatever time it is.
    pub(super) fn repeat_resume(&mut self, which: usize, link: usize, tamper: Tamper) {
        let issued = &self.relay.issued;
        let Some(request) = issued.get(which % issued.len().max(1)).cloned() else { return };
        self.relay.routes.push(Route::default());
        self.show(self.relay.routes.len() - 1, link, tamper.request(request));
    }

    /// Shows the client an answer once more, on any of its streams.
    pub(super) fn repeat_answer(&mut self, which: usize, route: usize, tamper: Tamper) {
        let answers = &self.relay.answers;
        let Some((_, resumed)) = answers.get(which % answers.len().max(1)) else { return };
        let resumed = tamper.answer(*resumed);
        self.answer(self.relay.routes.len() - 1 - route % self.relay.routes.len(), &resumed);
    }

    pub(super) fn say_detached(&mut self, which: usize, side: usize) {
        self.say(which, side, |stream| Frame::Detached { stream });
    }

    pub(super) fn say_reset(&mut self, which: usize, side: usize, code: u8) {
        let reason = CloseReason::from_code(code.into());
        self.say(which, side, |stream| Frame::Reset { stream, reason, detail: String::new() });
    }

    pub(super) fn say_credit(&mut self, which: usize, side: usize, received: u64, limit: u64) {
        self.say(which, side, |stream| Frame::Credit { stream, received, limit });
    }

    pub(super) fn say_goaway(&mut self, which: usize, side: usize) {
        let links = &mut self.links[side];
        let at = links.len() - 1 - which % links.len();
        let reason = CloseReason::Draining;
        links[at].send(&Frame::GoAway { last: u32::MAX, reason, delay_ms: 0, detail: String::new() });
    }

    /// Says something on any route, whatever it was last used for.
    fn say(&mut self, which: usize, side: usize, frame: impl FnOnce(StreamId) -> Frame) {
        let routes = &self.relay.routes;
        if let Some((link, id)) = routes[routes.len() - 1 - which % routes.len()].ends[side] {
            self.links[side][link].send(&frame(id));
        }
    }
}

fn renumbered(frame: Frame, id: StreamId) -> Frame {
    match frame {
        Frame::Opened { payload, .. } => Frame::Opened { stream: id, payload },
        Frame::Data { payload, fin, blocked, .. } => Frame::Data { stream: id, payload, fin, blocked },
        Frame::Credit { received, limit, .. } => Frame::Credit { stream: id, received, limit },
        Frame::Reset { reason, detail, .. } => Frame::Reset { stream: id, reason, detail },
        Frame::Detached { .. } => Frame::Detached { stream: id },
        other => other,
    }
}

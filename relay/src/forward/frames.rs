//! What comes from a connection's peer: each frame is taken under this connection's lock, and carried on under the other's.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;
use towline_tunnel::{
    mux::Machine,
    proto::{
        CloseReason,
        frame::{self, StreamId},
        leg::{LegEvent, Progress},
        link::Violation,
    },
};
use tracing::{debug, info};

use super::{RelayConn, Route, Wanted};
use crate::metrics::Stage;

impl RelayConn {
    /// Takes frames until there is none, or one that must be answered before the next.
    fn take(
        &self,
        bytes: &mut BytesMut,
        events: &mut Vec<LegEvent<Route>>,
        now: Instant,
        waited: &mut Option<Duration>,
    ) -> Result<bool, Violation> {
        let mut state = self.lock();
        state.leg.inbound(now, waited.take());
        let more = loop {
            let Some(frame) = frame::decode(bytes)? else { break false };
            let stream = frame.stream();
            if let Some(event) = state.leg.on_frame(frame, now)? {
                if matches!(event, LegEvent::Reset { .. } | LegEvent::Detached { .. })
                    && let Some(stream) = stream
                {
                    // Whoever no longer wants a stream waits for no answer.
                    state.opening.remove(&stream);
                }
                if let LegEvent::Data { to, payload, .. } = &event
                    && let (Some(account), Some(agent)) = (&mut state.account, to.conn.agent())
                {
                    account.carried(agent.cluster.id, payload.len() as u64, 0);
                }
                let stop = matches!(event, LegEvent::Open { .. } | LegEvent::Resume { .. });
                events.push(event);
                if stop {
                    break true;
                }
            }
        };
        self.count_streams(&mut state);
        let output = state.leg.has_output();
        drop(state);
        if output {
            self.output.notify_one();
        }
        Ok(more)
    }

    fn carry(&self, event: LegEvent<Route>, now: Instant) {
        let metrics = self.metrics();
        let passed_to = match event {
            LegEvent::Open { stream, request } => {
                return self.on_wanted(stream, Wanted::Open(request), now);
            }
            LegEvent::Resume { stream, request } => {
                return self.on_wanted(stream, Wanted::Resume(request), now);
            }
            LegEvent::Control(payload) => return self.on_control(&payload),
            LegEvent::GoAway(goaway) => {
                debug!(channel = %self.channel(), reason = goaway.reason.text(), "the peer takes no new streams");
                self.going.store(true, Ordering::Relaxed);
                return;
            }
            LegEvent::Opened { to, opened } => {
                to.conn.answered(to.stream, now);
                to.conn.lock().leg.opened(to.stream, opened);
                to
            }
            LegEvent::Resumed { to, resumed } => {
                to.conn.answered(to.stream, now);
                to.conn.lock().leg.resumed(to.stream, resumed);
                to
            }
            LegEvent::Data { to, payload, fin, blocked } => {
                let bytes = payload.len() as u64;
                let direction = if self.is_own() || to.conn.is_own() {
                    &metrics.issuer_bytes
                } else if self.client().is_some() {
                    &metrics.bytes_to_agents
                } else {
                    &metrics.bytes_to_clients
                };
                direction.inc_by(bytes);
                let mut state = to.conn.lock();
                if let (Some(account), Some(agent)) = (&mut state.account, self.agent()) {
                    account.carried(agent.cluster.id, 0, bytes);
                }
                state.leg.forward(to.stream, payload, fin, blocked);
                drop(state);
                to
            }
            LegEvent::Credit { to, received, limit } => {
                to.conn.lock().leg.credit(to.stream, received, limit);
                to
            }
            LegEvent::Detached { to } => {
                to.conn.answered(to.stream, now);
                to.conn.lock().leg.detach(to.stream);
                to
            }
            LegEvent::Reset { to, reason, detail } => {
                to.conn.answered(to.stream, now);
                to.conn.lock().leg.reset(to.stream, reason, &detail);
                to
            }
        };
        passed_to.conn.output.notify_one();
    }

    fn on_wanted(&self, stream: StreamId, wanted: Wanted, now: Instant) {
        let (key, cluster) = (wanted.key(), wanted.cluster());
        let Some(client) = self.client() else { return self.on_agents(stream, wanted) };
        if self.is_line() && matches!(wanted, Wanted::Open(_)) {
            return self.reset(stream, CloseReason::Forbidden, "no stream begins on a line");
        }
        let Some(me) = self.me.upgrade() else { return };
        let resumes = matches!(wanted, Wanted::Resume(_));
        // Before the agent hears of it: its answer may be here before this thread goes on.
        self.lock().opening.insert(stream, now);
        match self.switchboard.connect(
            client,
            self.channel(),
            wanted,
            Route { conn: me, stream, key, documents: None },
        ) {
            Ok(route) => {
                let documents = route.documents.clone();
                let mut state = self.lock();
                if let Some(account) = &mut state.account {
                    account.allowed(cluster, resumes, || self.switchboard.why(client, cluster));
                }
                state.leg.bind(stream, route, 0);
                drop(state);
                self.metrics().opens.inc();
                info!(channel = %self.channel(), stream = %key, %cluster, resumes, "a stream was opened");
                // The role may have gone between the decision and now, when nobody knew of the stream.
                if let Err((reason, _)) = self.switchboard.allowed(client, cluster) {
                    self.refuse_route(stream, reason);
                }
                if !documents.is_none_or(|documents| self.switchboard.stand(&documents)) {
                    self.refuse_route(stream, CloseReason::RoleEnded);
                }
            }
            Err((reason, detail)) => {
                self.metrics().refused(Stage::Stream, reason);
                if let Some(account) = &mut self.lock().account {
                    account.refused(cluster, reason, || {
                        (self.switchboard.why(client, cluster).0, detail.to_string())
                    });
                }
                info!(
                    channel = %self.channel(), stream = %key, %cluster, principal = client.caller.principal, reason = reason.text(),
                    detail = &*detail, "a stream was refused"
                );
                self.reset(stream, reason, &detail);
            }
        }
    }

    /// An agent opens a stream to an identity provider, and no other; the relay's own end opens none.
    fn on_agents(&self, stream: StreamId, wanted: Wanted) {
        let (Some(agent), Wanted::Open(request)) = (self.agent(), wanted) else {
            return self.reset(stream, CloseReason::Forbidden, "agents take up no streams");
        };
        if self.is_line() {
            return self.reset(stream, CloseReason::Forbidden, "no stream begins on a line");
        }
        let Some(me) = self.me.upgrade() else { return };
        let key = request.key;
        let from = Route { conn: me, stream, key, documents: None };
        match self.switchboard.issuers().open(agent, self.channel(), request, from) {
            Ok(route) => self.lock().leg.bind(stream, route, 0),
            Err((reason, detail)) => {
                self.metrics().refused(Stage::Stream, reason);
                info!(
                    channel = %self.channel(), stream = %key, cluster = %agent.cluster.id, reason = reason.text(),
                    detail = &*detail, "a way to an identity provider was refused"
                );
                self.reset(stream, reason, &detail);
            }
        }
    }

    /// The agent answered an OPEN, or refused it.
    fn answered(&self, stream: StreamId, now: Instant) {
        let opened = self.lock().opening.remove(&stream);
        if let Some(opened) = opened {
            self.metrics().open_seconds.observe(now.saturating_duration_since(opened).as_secs_f64());
        }
    }

    fn on_control(&self, payload: &Bytes) {
        let Some(peer) = &self.peer else { return };
        if self.on_said(payload) {
            return;
        }
        let later = |question| self.questions.try_send(question).is_ok();
        let answer = self.switchboard.answer(peer, payload, later);
        if let Some(answer) = answer
            && !self.control(answer)
        {
            debug!(channel = %self.channel(), "an answer was dropped: too many wait");
        }
    }
}

impl Machine for RelayConn {
    fn on_bytes(&self, bytes: &mut BytesMut, now: Instant, waited: Duration) -> Result<(), Violation> {
        let mut events = Vec::new();
        let mut waited = Some(waited);
        loop {
            let more = self.take(bytes, &mut events, now, &mut waited);
            // What came before a violation was sound: it is carried.
            for event in events.drain(..) {
                self.carry(event, now);
            }
            if !more? {
                return Ok(());
            }
        }
    }

    fn fill(&self, out: &mut BytesMut) -> usize {
        let mut progress: Vec<Progress<Route>> = Vec::new();
        let mut state = self.lock();
        let payload = state.leg.fill(out, &mut progress);
        self.count_streams(&mut state);
        drop(state);
        for Progress { to, written } in progress {
            to.conn.lock().leg.passed(to.stream, written);
            to.conn.output.notify_one();
        }
        payload
    }

    fn on_written(&self, payload: usize, now: Instant) {
        self.lock().leg.on_written(payload, now);
    }

    fn deadline(&self) -> Instant {
        let state = self.lock();
        let link = state.leg.deadline();
        state.opening.values().next().map_or(link, |opened| link.min(*opened + self.open_timeout))
    }

    fn tick(&self, now: Instant) -> Result<(), Violation> {
        let mut late = Vec::new();
        let mut state = self.lock();
        while let Some(first) = state.opening.first_entry()
            && now >= *first.get() + self.open_timeout
        {
            late.push(first.remove_entry().0);
        }
        let ticked = state.leg.tick(now);
        drop(state);
        for stream in late {
            self.metrics().refused(Stage::Stream, CloseReason::Timeout);
            self.time_out(stream);
        }
        ticked
    }

    fn output(&self) -> &Notify {
        &self.output
    }

    fn last_words(&self, reason: CloseReason, detail: &str) {
        // Whoever stopped the connection may have queued a better reason.
        if reason == CloseReason::Draining && !self.takes_streams() {
            return;
        }
        self.lock().leg.go_away(reason, Duration::ZERO, detail);
    }
}

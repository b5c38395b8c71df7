//! Streams that lose their connections and are taken up elsewhere.

use towline_tunnel::proto::{CloseReason, endpoint::Event};

use super::{
    model::Stream,
    world::{Planted, World},
};

impl World {
    /// Streams whose OPENED came are kept from now on.
    pub(super) fn keep_opened(&mut self, end: usize) {
        for stream in &mut self.streams {
            if stream.wants_keeping
                && !stream.kept[0]
                && let Some((at, id)) = stream.handles[0]
                && at == end
                && self.ends[end].opened(id).is_some()
            {
                stream.kept[0] = self.ends[end].keep(id, stream.key);
            }
        }
    }

    pub(super) fn restart(&mut self) {
        for line in 0..self.lines.len() {
            self.cut(line, false);
        }
    }

    fn is_parked(&self, s: usize, side: usize) -> bool {
        self.streams[s].handles[side].is_some_and(|(end, id)| self.ends[end].is_parked(id))
    }

    /// The client's side asks for the stream, on the newest line.
    pub(super) fn resume(&mut self, s: usize) -> bool {
        if !self.is_parked(s, 0) {
            return false;
        }
        let Some((from, id)) = self.streams[s].handles[0] else { return false };
        let role = self.end_roles[from];
        self.ready(role);
        let to = self.roles[role];
        let Some(moving) = self.ends[from].detach(id) else { return false };
        let stream = &mut self.streams[s];
        let id = match self.ends[to].resume(moving, &mut stream.claims[0]) {
            Ok(id) | Err(id) => id,
        };
        stream.handles[0] = Some((to, id));
        stream.places[0] = to;
        true
    }

    /// The client's side moves the stream to another line while its own stands.
    pub(super) fn move_elsewhere(&mut self, s: usize, fresh: u8) {
        let Some((from, id)) = self.streams[s].handles[0] else { return };
        if self.is_parked(s, 0) || self.is_resuming(s) {
            return;
        }
        let (near, far) = (self.end_roles[from], self.end_roles[self.streams[s].places[1]]);
        if fresh & 1 != 0 || self.roles[near] == from {
            self.dial(near);
        }
        // The relay leads to an agent's newest line; whoever is on the way there is known to be on the one before.
        let on_their_way =
            |stream: &Stream| stream.handles[1].is_none() && self.end_roles[stream.places[1]] == far;
        if fresh & 2 != 0 && self.config.relay.is_some() && !self.streams.iter().any(on_their_way) {
            self.dial(far);
        }
        self.ready(near);
        let Some(moving) = self.ends[from].leave(id) else { return };
        let to = self.roles[near];
        let stream = &mut self.streams[s];
        let id = match self.ends[to].resume(moving, &mut stream.claims[0]) {
            Ok(id) | Err(id) => id,
        };
        stream.handles[0] = Some((to, id));
        stream.places[0] = to;
        self.moved += 1;
    }

    pub(super) fn expire(&mut self, s: usize, side: usize) {
        if self.is_parked(s, side)
            && let Some((end, id)) = self.streams[s].handles[side]
        {
            self.streams[s].broken = true;
            self.ends[end].give_up(id, CloseReason::Detached, "its time is over");
        }
    }

    /// What an end asks of whoever keeps its streams.
    pub(super) fn on_event(&mut self, end: usize, event: Event) {
        match event {
            Event::Resume { stream: id, mut request } => {
                let s = self.by_key[&request.key];
                let stream = &mut self.streams[s];
                stream.claims[1].accept(&request).expect("an honest client's proof fits");
                let moving = stream.handles[1].and_then(|(from, old)| self.ends[from].detach(old));
                let Some(moving) = moving else {
                    assert!(
                        stream.broken || stream.released[1],
                        "a stream that is kept is not lost: {stream:?}"
                    );
                    stream.broken = true;
                    return self.ends[end].refuse_resume(id, CloseReason::Lost, "");
                };
                match self.config.planted {
                    Some(Planted::SkipsAByte) => request.arrived.bytes += 1,
                    Some(Planted::RepeatsAByte) => {
                        request.arrived.bytes = request.arrived.bytes.saturating_sub(1);
                    }
                    _ => {}
                }
                let fits = self.ends[end].accept_resume(id, moving, &stream.claims[1], &request);
                assert!(fits, "nothing was forgotten that is needed: {stream:?}");
                stream.handles[1] = Some((end, id));
                stream.places[1] = end;
            }
            Event::Resumed { stream: id, key, resumed } => {
                let stream = &mut self.streams[self.by_key[&key]];
                assert!(stream.claims[0].is_answer(&resumed), "an honest agent's proof fits");
                assert!(
                    self.ends[end].resumed(id, &resumed),
                    "nothing was forgotten that is needed: {stream:?}"
                );
            }
        }
    }

    /// Every stream that waits is taken up; those whose client gave up end.
    pub(super) fn take_up_all(&mut self) -> bool {
        let mut moved = false;
        for s in 0..self.streams.len() {
            if self.is_parked(s, 0) {
                let to = self.end_roles[self.streams[s].places[1]];
                self.ready(to);
                moved |= self.resume(s);
            } else if self.is_parked(s, 1) && !self.is_resuming(s) {
                self.expire(s, 1);
                moved = true;
            }
        }
        moved
    }

    fn is_resuming(&self, s: usize) -> bool {
        self.streams[s].handles[0].is_some_and(|(end, id)| self.ends[end].is_resuming(id))
    }
}

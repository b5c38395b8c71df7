//! Streams that the relay ends of its own accord: nobody may have them open any more, or nobody answers.

use towline_tunnel::{
    ids::ClusterId,
    proto::{CloseReason, frame::StreamId},
    role::DocumentId,
};
use tracing::info;

use super::{RelayConn, Route};

impl RelayConn {
    /// Ends those streams of a client that it may no longer have open, each for the reason that `why` gives.
    pub fn end_streams(&self, why: impl Fn(ClusterId) -> Option<(CloseReason, &'static str)>) {
        self.end_where(|route| why(route.conn.agent()?.cluster.id));
    }

    /// Ends those streams of a client whose role documents no longer stand: their agents hold them to be there.
    pub fn end_streams_without(&self, stand: impl Fn(&[DocumentId]) -> bool) {
        const GONE: (CloseReason, &str) =
            (CloseReason::RoleEnded, "the organisation's role was removed or has ended");
        self.end_where(|route| (!stand(route.documents.as_deref()?)).then_some(GONE));
    }

    fn end_where(&self, why: impl Fn(&Route) -> Option<(CloseReason, &'static str)>) {
        let mut state = self.lock();
        let ended: Vec<_> = state
            .leg
            .routes()
            .filter_map(|(stream, route)| Some((stream, route.clone(), why(route)?)))
            .collect();
        if ended.is_empty() {
            return;
        }
        for (stream, _, (reason, detail)) in &ended {
            state.opening.remove(stream);
            state.leg.reset(*stream, *reason, detail);
        }
        drop(state);
        self.output.notify_one();
        for (_, route, (reason, detail)) in ended {
            info!(channel = %self.channel(), stream = %route.key, reason = reason.text(), detail, "a stream was ended");
            route.conn.reset(route.stream, reason, "");
        }
    }

    /// The agent did not answer in time. What it then holds of the stream may still be taken up.
    pub(super) fn time_out(&self, stream: StreamId) {
        if let Some(route) = self.reset_half(stream, CloseReason::Timeout) {
            route.conn.detach(route.stream);
        }
    }

    /// Ends both halves.
    pub(super) fn refuse_route(&self, stream: StreamId, reason: CloseReason) {
        if let Some(route) = self.reset_half(stream, reason) {
            route.conn.reset(route.stream, reason, "");
        }
    }

    /// Ends this half, and says where the other one is.
    fn reset_half(&self, stream: StreamId, reason: CloseReason) -> Option<Route> {
        let mut state = self.lock();
        state.opening.remove(&stream);
        let route = state.leg.routes().find(|(id, _)| *id == stream).map(|(_, route)| route.clone());
        state.leg.reset(stream, reason, "");
        drop(state);
        self.output.notify_one();
        route
    }
}

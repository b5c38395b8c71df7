//! Sessions on carriers that are HTTP requests: they run beside the connection that carries them.

use std::{future::pending, net::SocketAddr, sync::Arc, time::Duration};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use towline_tunnel::{
    carrier::{rung::Rung, websocket::WebSocketCarrier},
    session::Exporter,
};

use super::{
    Arrived, log_panic,
    pairs::{Attached, Pair, PairGuard},
    requests::{Found, Requests, Streamed},
    run, session,
};
use crate::{
    app::Relay,
    handshakes::{Handshake, Turn},
    metrics::Stage,
};

/// A connection whose last session ended has so long to write what is left.
const LEAVE_WITHIN: Duration = Duration::from_secs(3);
/// Sessions of a connection that ended have so long to say how.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// A connection on which requests are carriers, or parts of some.
pub(super) struct Beside {
    pub(super) requests: Requests,
    pub(super) first: Found,
    /// Of its TLS.
    pub(super) exporter: Option<Exporter>,
    /// Of its own handshake.
    pub(super) deadline: Instant,
    pub(super) handshake: Handshake,
}

impl Beside {
    /// Serves it until its last session ended, and no longer: it has a place only with those.
    pub(super) async fn serve(self, from: SocketAddr, relay: &Arc<Relay>) {
        let Self { mut requests, first, exporter, deadline, handshake } = self;
        let places = handshake.places();
        let mut place = Some(handshake);
        let mut sessions = JoinSet::new();
        let mut breakers = Vec::new();
        let mut posts = Posts::default();
        let mut next = Some(first);
        let ended = loop {
            let mut seat = || {
                let (turn, deadline) = match place.take() {
                    Some(place) => (Some(Turn::Now(place)), deadline),
                    // Another one on a connection that a proxy shares.
                    None => (places.enter(from.ip()), Instant::now() + relay.limits().handshake_timeout),
                };
                Seat { turn, deadline, from, relay: Arc::clone(relay) }
            };
            match next.take() {
                Some(Found::Carrier(streamed)) => {
                    breakers.extend(streamed.pair.as_ref().map(|pair| pair.breaker()));
                    sessions.spawn(streamed_one(*streamed, exporter, seat()));
                }
                Some(Found::Tunnel { on, watched, turn }) => {
                    sessions.spawn(tunnelled(on, watched, turn, exporter, seat()));
                }
                Some(Found::Post(pair)) => posts.are_of(pair),
                // After other requests nobody waits for it.
                Some(Found::Upgrade { .. }) | None => {}
            }
            if sessions.is_empty() {
                breakers.clear();
                if place.is_none() && posts.pair.is_none() {
                    break false;
                }
            }
            let has_place = place.is_some();
            tokio::select! {
                _ended = requests.http.as_mut() => break true,
                Some(found) = requests.finds.recv() => next = Some(found),
                Some(ended) = sessions.join_next(), if !sessions.is_empty() => log_panic(ended),
                () = posts.ended() => posts = Posts::default(),
                () = posts.established(), if has_place => {
                    if posts.attach() {
                        place = None;
                    }
                }
                late = overdue(place.as_ref(), deadline) => {
                    relay.metrics().refused(Stage::Connection, late);
                    break false;
                }
            }
        };
        if !ended {
            requests.leave.cancel();
            let _late = timeout(LEAVE_WITHIN, requests.http.as_mut()).await;
        }
        breakers.iter().for_each(towline_tunnel::carrier::pipe::Breaker::break_off);
        let telling = async {
            while let Some(ended) = sessions.join_next().await {
                log_panic(ended);
            }
        };
        let _late = timeout(LAST_WORDS, telling).await;
    }
}

/// Why a place is lost that its connection made nothing of; never where there is none.
async fn overdue(place: Option<&Handshake>, deadline: Instant) -> towline_tunnel::proto::CloseReason {
    let Some(place) = place else { return pending().await };
    match place.step(deadline, pending()).await {
        Ok(never) => never,
        Err(late) => late,
    }
}

/// The pair whose POSTs a connection carries; the newest where a proxy shares it.
#[derive(Default)]
struct Posts {
    pair: Option<Arc<Pair>>,
    attached: Option<Attached>,
    /// The pair has as many connections as it may.
    too_many: bool,
}

impl Posts {
    fn are_of(&mut self, pair: Arc<Pair>) {
        if !self.pair.as_ref().is_some_and(|known| Arc::ptr_eq(known, &pair)) {
            // It stays with those that it carried for, until their session ends.
            *self = Self { attached: pair.attach(), pair: Some(pair), too_many: false };
        }
    }

    async fn ended(&self) {
        match &self.pair {
            Some(pair) => pair.ended().await,
            None => pending().await,
        }
    }

    async fn established(&self) {
        match &self.pair {
            Some(pair) if !self.too_many => pair.established().await,
            _ => pending().await,
        }
    }

    /// Whether it is one of the pair's.
    fn attach(&mut self) -> bool {
        self.too_many = self.attached.is_none();
        !self.too_many
    }
}

/// Where a session begins, and until when.
struct Seat {
    /// None where there is no place.
    turn: Option<Turn>,
    deadline: Instant,
    from: SocketAddr,
    relay: Arc<Relay>,
}

/// A session on a carrier that is requests.
async fn streamed_one(streamed: Streamed, exporter: Option<Exporter>, seat: Seat) {
    let Streamed { carrier, rung, watched, turn, pair } = streamed;
    // The halves of a pair are two connections, which have no exporter in common.
    let exporter = exporter.filter(|_| pair.is_none());
    one(Arrived { carrier, exporter, rung, watched, turn }, pair.as_ref(), seat).await;
}

/// A session on a websocket that is a stream of the connection.
async fn tunnelled(on: OnUpgrade, watched: bool, turn: Instant, exporter: Option<Exporter>, seat: Seat) {
    let Ok(Ok(upgraded)) = timeout_at(seat.deadline, on).await else { return };
    let carrier = WebSocketCarrier::server(TokioIo::new(upgraded));
    one(Arrived { carrier, exporter, rung: Rung::Http2, watched, turn }, None, seat).await;
}

/// One session, from its carrier's beginning to its end.
async fn one<C>(arrived: Arrived<C>, pair: Option<&PairGuard>, seat: Seat)
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Seat { turn, deadline, from, relay } = seat;
    let Some(turn) = turn else { return };
    let Ok(Some(handshake)) = timeout_at(deadline, turn.come()).await else { return };
    let begun = Box::pin(session(arrived, from, deadline, handshake, &relay)).await;
    let Some(begun) = begun else { return };
    if let Some(pair) = pair {
        pair.establish();
    }
    run(begun, from, &relay).await;
}

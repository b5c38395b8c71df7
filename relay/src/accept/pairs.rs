//! Carriers that are pairs of HTTP requests: which GET a POST belongs to.
//!
//! A pair's id is its dialler's secret. It opens nothing: whoever knows it can only end the pair, because all that travels in it is
//! session TLS to the relay's identity key.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex as StdMutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::{io::AsyncWriteExt as _, sync::Mutex, time::timeout};
use tokio_util::sync::CancellationToken;
use towline_tunnel::carrier::{
    pair::{MAX_POST, PairId},
    pipe::{Breaker, PipeReader, PipeWriter, pipe},
};

/// A POST is read and passed on within this time.
const POST_WITHIN: Duration = Duration::from_secs(10);
/// Connections at once that carry POSTs of one pair: a dialler has one, and a successor where a proxy ended it.
const CONNECTIONS: usize = 4;

/// The pairs whose GET is being answered.
#[derive(Clone, Debug)]
pub struct Pairs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: usize,
    open: StdMutex<HashMap<PairId, Arc<Pair>>>,
}

impl Pairs {
    /// At most so many at once.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Inner { most, open: StdMutex::default() }))
    }

    /// A pair begins with its GET, and ends when the guard is dropped. None where there is one of that id, or too many.
    pub fn begin(&self, id: PairId) -> Option<(PairGuard, PipeReader)> {
        let mut open = self.lock();
        if open.len() >= self.0.most || open.contains_key(&id) {
            return None;
        }
        let (writer, reader) = pipe(MAX_POST);
        let pair = Arc::new(Pair {
            up: Mutex::new(Up { writer, next: 0 }),
            breaker: reader.breaker(),
            established: CancellationToken::new(),
            ended: CancellationToken::new(),
            connections: AtomicUsize::new(0),
        });
        open.insert(id, Arc::clone(&pair));
        Some((PairGuard { pairs: self.clone(), id, pair }, reader))
    }

    /// The pair with this id.
    pub fn of(&self, id: PairId) -> Option<Arc<Pair>> {
        self.lock().get(&id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PairId, Arc<Pair>>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What comes up of one pair.
#[derive(Debug)]
pub struct Pair {
    up: Mutex<Up>,
    breaker: Breaker,
    established: CancellationToken,
    ended: CancellationToken,
    connections: AtomicUsize,
}

#[derive(Debug)]
struct Up {
    writer: PipeWriter,
    next: u64,
}

impl Pair {
    /// Takes a POST; done once all of it was passed on. What goes wrong ends the pair: nothing is sent twice.
    ///
    /// # Errors
    /// What its dialler is answered.
    pub async fn take(&self, number: u64, body: Incoming) -> Result<(), StatusCode> {
        // Also where its connection ends meanwhile, and this is dropped.
        let unfinished = Unfinished(Some(&self.breaker));
        let mut up = self.up.try_lock().map_err(|_at_once| StatusCode::CONFLICT)?;
        if up.next != number {
            return Err(StatusCode::CONFLICT);
        }
        timeout(POST_WITHIN, up.pass_on(body)).await.map_err(|_late| StatusCode::REQUEST_TIMEOUT)??;
        up.next += 1;
        unfinished.done();
        Ok(())
    }

    /// Waits until a session stands on it.
    pub async fn established(&self) {
        self.established.cancelled().await;
    }

    /// Waits until it has ended.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// A connection that carries its POSTs; none where it has too many.
    pub fn attach(self: &Arc<Self>) -> Option<Attached> {
        let room = self.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |connections| {
            (connections < CONNECTIONS).then_some(connections + 1)
        });
        room.ok().map(|_| Attached(Arc::clone(self)))
    }
}

impl Up {
    async fn pass_on(&mut self, mut body: Incoming) -> Result<(), StatusCode> {
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let data = frame.map_err(|_cut| StatusCode::BAD_REQUEST)?.into_data().unwrap_or_default();
            length += data.len();
            if length > MAX_POST {
                return Err(StatusCode::PAYLOAD_TOO_LARGE);
            }
            self.writer.write_all(&data).await.map_err(|_ended| StatusCode::GONE)?;
        }
        if length == 0 {
            self.writer.shutdown().await.map_err(|_ended| StatusCode::GONE)?;
        }
        Ok(())
    }
}

/// Breaks the pair unless it is told that all went well.
struct Unfinished<'a>(Option<&'a Breaker>);

impl Unfinished<'_> {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(breaker) = self.0 {
            breaker.break_off();
        }
    }
}

/// One of a pair's connections, until this is dropped.
#[derive(Debug)]
pub struct Attached(Arc<Pair>);

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A pair that is known; dropping it ends it.
#[derive(Debug)]
pub struct PairGuard {
    pairs: Pairs,
    id: PairId,
    pair: Arc<Pair>,
}

impl PairGuard {
    /// A session stands on it: its connections are no handshakes any more.
    pub fn establish(&self) {
        self.pair.established.cancel();
    }

    /// Ends what comes up.
    pub fn breaker(&self) -> Breaker {
        self.pair.breaker.clone()
    }
}

impl Drop for PairGuard {
    fn drop(&mut self) {
        self.pairs.lock().remove(&self.id);
        self.pair.ended.cancel();
        self.pair.breaker.break_off();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_known_while_its_get_is_answered_and_there_are_so_many() {
        let pairs = Pairs::new(2);
        let (one, other) = (PairId::random(), PairId::random());
        let (guard, _up) = pairs.begin(one).unwrap();
        assert!(pairs.begin(one).is_none(), "one GET a pair");
        let _second = pairs.begin(other).unwrap();
        assert!(pairs.begin(PairId::random()).is_none(), "there is no room");
        let pair = pairs.of(one).unwrap();
        drop(guard);
        assert!(pairs.of(one).is_none() && pair.ended.is_cancelled());
        assert!(pairs.begin(PairId::random()).is_some());
    }

    #[test]
    fn t33_a_pair_has_a_few_connections_at_once() {
        let (_guard, _up) = Pairs::new(1).begin(PairId::random()).unwrap();
        let pair = Arc::clone(&_guard.pair);
        let attached: Vec<_> = std::iter::from_fn(|| pair.attach()).take(100).collect();
        assert_eq!(attached.len(), CONNECTIONS);
        drop(attached);
        assert!(pair.attach().is_some());
    }
}

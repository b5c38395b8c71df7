//! One end's handle on a connection.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::Waker,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

use super::{
    driver::{Closed, Machine, drive, now},
    keeper::Keeper,
    stream::MuxStream,
};
use crate::proto::{
    CloseReason, OpenRequest,
    endpoint::{Endpoint, EndpointConfig, Event, Signal, StreamError},
    frame,
    link::{GoAway, Violation},
};

/// The wakers of one stream's reader and writer.
#[derive(Debug, Default)]
pub(super) struct Wakers {
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

impl Signal for Wakers {
    fn readable(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn writable(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    endpoint: Mutex<Endpoint<Wakers>>,
    output: Notify,
    /// Streams to accept, a CONTROL message, GOAWAY or the end.
    news: Notify,
    stop: CancellationToken,
    /// It ends because another took its place: its streams may go on there.
    left: AtomicBool,
    ended: CancellationToken,
    keeper: Option<Keeper>,
    me: Weak<Shared>,
}

impl Shared {
    /// The state machine never panics half-way through a change, so a poisoned lock still holds a whole state.
    pub(super) fn endpoint(&self) -> MutexGuard<'_, Endpoint<Wakers>> {
        self.endpoint.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change`, wakes the writer if there is something to send, and tells the keeper what became of its streams.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut Endpoint<Wakers>) -> T) -> T {
        let mut endpoint = self.endpoint();
        let result = change(&mut endpoint);
        let output = endpoint.has_output();
        let (over, parked, bulk) = (endpoint.take_over(), endpoint.take_parked(), endpoint.take_bulk());
        drop(endpoint);
        if output {
            self.output.notify_one();
        }
        if let Some(keeper) = &self.keeper {
            keeper.note(&over, &parked);
            keeper.note_bulk(bulk);
        }
        result
    }

    pub(super) fn keeper(&self) -> Option<&Keeper> {
        self.keeper.as_ref()
    }

    fn close(&self, reason: CloseReason, detail: &str, park: bool) {
        self.with(|endpoint| {
            if park {
                endpoint.close_and_park(reason, detail);
            } else {
                endpoint.close(reason, detail);
            }
        });
        self.ended.cancel();
        self.news.notify_waiters();
    }

    fn on_event(&self, event: Event) {
        let (Some(me), keeper) = (self.me.upgrade(), self.keeper()) else { return };
        match (event, keeper) {
            (Event::Resume { stream, request }, Some(keeper)) => keeper.take_up(&me, stream, &request),
            (Event::Resume { stream, .. }, None) => {
                self.with(|endpoint| endpoint.refuse_resume(stream, CloseReason::Lost, ""));
            }
            (Event::Resumed { stream, key, resumed }, Some(keeper)) => {
                keeper.resumed(&me, stream, key, &resumed);
            }
            // Without a keeper nothing is ever asked for.
            (Event::Resumed { .. }, None) => {}
        }
    }
}

/// One end of a connection with streams. Cheap to clone; all clones are the same connection.
///
/// The connection lives as long as its [`Driver`] runs.
#[derive(Clone, Debug)]
pub struct Connection(pub(super) Arc<Shared>);

/// The future that moves a connection's bytes; whoever runs it owns the connection. Dropping it ends the connection.
#[must_use = "a connection stands still unless its driver runs"]
pub struct Driver<IO> {
    io: IO,
    early: BytesMut,
    shared: Arc<Shared>,
}

/// Tells streams that the connection is gone, also when the driver is dropped half-way.
struct CloseOnDrop(Arc<Shared>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close(CloseReason::Detached, "the connection was dropped", true);
    }
}

impl<IO: AsyncRead + AsyncWrite + Send> Driver<IO> {
    /// Runs the connection to its end.
    pub async fn run(self) -> Closed {
        let guard = CloseOnDrop(Arc::clone(&self.shared));
        let closed = drive(self.io, &*self.shared, self.early, self.shared.stop.clone()).await;
        let (reason, detail) = closed.reason();
        let park = !matches!(closed, Closed::Stopped) || self.shared.left.load(Ordering::Acquire);
        self.shared.close(reason, &detail, park);
        drop(guard);
        closed
    }
}

impl Connection {
    /// A connection over `io`; `early` holds bytes that were read before the mux began.
    pub fn new<IO>(io: IO, early: BytesMut, config: EndpointConfig) -> (Self, Driver<IO>) {
        Self::build(io, early, config, None)
    }

    /// The same, whose streams may go on with `keeper` when it ends.
    pub fn kept<IO>(io: IO, early: BytesMut, config: EndpointConfig, keeper: Keeper) -> (Self, Driver<IO>) {
        Self::build(io, early, config, Some(keeper))
    }

    fn build<IO>(
        io: IO,
        early: BytesMut,
        config: EndpointConfig,
        keeper: Option<Keeper>,
    ) -> (Self, Driver<IO>) {
        let shared = Arc::new_cyclic(|me| Shared {
            keeper,
            me: Weak::clone(me),
            endpoint: Mutex::new(Endpoint::new(config, now())),
            output: Notify::new(),
            news: Notify::new(),
            stop: CancellationToken::new(),
            left: AtomicBool::new(false),
            ended: CancellationToken::new(),
        });
        (Self(Arc::clone(&shared)), Driver { io, early, shared })
    }

    /// Opens a stream. Bytes may be written at once; a refusal shows when reading.
    ///
    /// # Errors
    /// If the connection is closed, going away, or has too many streams.
    pub fn open(&self, request: OpenRequest) -> Result<MuxStream, StreamError> {
        let key = request.key;
        let id = self.0.with(|endpoint| endpoint.open(request))?;
        Ok(MuxStream::new(Arc::clone(&self.0), id, key))
    }

    /// The next stream that the peer opens.
    ///
    /// # Errors
    /// Once the connection is closed.
    pub async fn accept(&self) -> Result<(OpenRequest, MuxStream), StreamError> {
        let (id, request) = self.wait(Endpoint::accept).await?;
        let stream = MuxStream::new(Arc::clone(&self.0), id, request.key);
        Ok((request, stream))
    }

    /// The next CONTROL message.
    ///
    /// # Errors
    /// Once the connection is closed.
    pub async fn next_control(&self) -> Result<Bytes, StreamError> {
        self.wait(Endpoint::next_control).await
    }

    /// What the peer says in GOAWAY, once it does.
    ///
    /// # Errors
    /// Once the connection is closed.
    pub async fn going_away(&self) -> Result<GoAway, StreamError> {
        self.wait(|endpoint| endpoint.peer_goaway().cloned()).await
    }

    async fn wait<T>(&self, take: impl Fn(&mut Endpoint<Wakers>) -> Option<T>) -> Result<T, StreamError> {
        loop {
            let news = self.0.news.notified();
            tokio::pin!(news);
            // Registered before looking, so that news in between is not missed.
            news.as_mut().enable();
            {
                let mut endpoint = self.0.endpoint();
                if let Some(found) = take(&mut endpoint) {
                    return Ok(found);
                }
                if let Some(closed) = endpoint.closed() {
                    return Err(closed.clone());
                }
            }
            news.await;
        }
    }

    /// Sends a CONTROL message; false where too many wait or the connection is closed.
    pub fn control(&self, payload: Bytes) -> bool {
        self.0.with(|endpoint| endpoint.closed().is_none() && endpoint.control(payload))
    }

    /// Takes no new streams from the peer and says so; those that are open go on.
    pub fn go_away(&self, reason: CloseReason, delay: Duration, detail: &str) {
        self.0.with(|endpoint| endpoint.go_away(reason, delay, detail));
    }

    /// Whether new streams can be opened.
    pub fn is_open(&self) -> bool {
        let endpoint = self.0.endpoint();
        endpoint.closed().is_none() && endpoint.peer_goaway().is_none()
    }

    /// Whether it is gone.
    pub fn is_closed(&self) -> bool {
        self.0.endpoint().closed().is_some()
    }

    /// What the peer said in GOAWAY, if it did.
    pub fn goaway(&self) -> Option<GoAway> {
        self.0.endpoint().peer_goaway().cloned()
    }

    /// From now on this side asks for a sign of life after so long without one while no stream is open;
    /// while one is, after 5 s, as before. The peer must be asked to keep silent as well: KEEP_SILENT of [`crate::session::control`].
    pub fn keep_silent(&self, silence: Duration) {
        self.0.endpoint().keep_silent(silence);
        self.0.output.notify_one();
    }

    /// Asks for a sign of life now: a peer that gives none is dead 5 s later.
    pub fn check(&self) {
        self.0.endpoint().check(now());
        self.0.output.notify_one();
    }

    /// How long nothing has come.
    pub fn silent_for(&self) -> Duration {
        now().saturating_duration_since(self.0.endpoint().last_inbound())
    }

    /// The longest silence, since [`keep_silent`](Self::keep_silent) was called last, that was ended by asking for a sign of life, and that
    /// one came after.
    pub fn outlived(&self) -> Duration {
        self.0.endpoint().outlived()
    }

    /// Ends the connection: GOAWAY, then the carrier's own end.
    pub fn close(&self) {
        self.0.stop.cancel();
    }

    /// The same, while its streams go on elsewhere: those that can be kept are parked, as if the connection were lost.
    pub fn leave(&self) {
        self.0.left.store(true, Ordering::Release);
        self.0.stop.cancel();
    }

    /// Waits until the connection is closed; says why.
    pub async fn closed(&self) -> StreamError {
        self.0.ended.cancelled().await;
        let endpoint = self.0.endpoint();
        endpoint
            .closed()
            .cloned()
            .unwrap_or_else(|| StreamError { reason: CloseReason::Detached, detail: String::new() })
    }

    /// Streams that are open or not yet forgotten.
    pub fn stream_count(&self) -> usize {
        self.0.endpoint().stream_count()
    }

    /// Bytes held for all streams.
    pub fn held(&self) -> u64 {
        self.0.endpoint().held()
    }
}

impl Machine for Shared {
    fn on_bytes(&self, bytes: &mut BytesMut, now: Instant, waited: Duration) -> Result<(), Violation> {
        let mut waited = Some(waited);
        let result = loop {
            let taken = self.with(|endpoint| {
                endpoint.inbound(now, waited.take());
                while let Some(frame) = frame::decode(bytes)? {
                    let event = endpoint.on_frame(frame, now)?;
                    if event.is_some() {
                        return Ok(event);
                    }
                }
                Ok(None)
            });
            match taken {
                Ok(Some(event)) => self.on_event(event),
                Ok(None) => break Ok(()),
                Err(violation) => break Err(violation),
            }
        };
        self.news.notify_waiters();
        result
    }

    fn fill(&self, out: &mut BytesMut) -> usize {
        let mut endpoint = self.endpoint();
        let payload = endpoint.fill(out);
        let (over, bulk) = (endpoint.take_over(), endpoint.take_bulk());
        drop(endpoint);
        if let Some(keeper) = &self.keeper {
            keeper.note(&over, &[]);
            keeper.note_bulk(bulk);
        }
        payload
    }

    fn on_written(&self, payload: usize, now: Instant) {
        self.endpoint().on_written(payload, now);
    }

    fn deadline(&self) -> Instant {
        self.endpoint().deadline()
    }

    fn tick(&self, now: Instant) -> Result<(), Violation> {
        self.endpoint().tick(now)
    }

    fn output(&self) -> &Notify {
        &self.output
    }

    fn last_words(&self, reason: CloseReason, detail: &str) {
        self.endpoint().go_away(reason, Duration::ZERO, detail);
    }
}

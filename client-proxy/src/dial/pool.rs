//! Inner connections to one cluster: TLS 1.3 end to end, HTTP/1.1 inside, one request at a time on each.

use std::{
    collections::VecDeque,
    error::Error,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, interval_at, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use towline_tunnel::{
    backoff::{self, Backoff},
    fault::{Fault, Report},
    ids::{ChannelId, ClusterId, StreamKey},
    inner::InnerConnector,
    keys::SigningKey,
    mux::{Connection, EXPORTER_LABEL, OpenRequest, ResumeKey, StreamView},
    session::message::Secret,
};

use super::{Link, Session, report_of};

/// Idle connections that are kept; more than one person's programs use at once.
const MAX_IDLE: usize = 16;
/// Shorter than what an agent lets a connection be idle, so that it is we who end it.
const IDLE_FOR: Duration = Duration::from_secs(50);
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// From OPEN to the end of the inner handshake.
const INNER_WITHIN: Duration = Duration::from_secs(10);
/// While streams are refused because something is being replaced, opening is tried again for this long.
const HOLD: Duration = Duration::from_secs(10);
/// A connection that has answered becomes ready as soon as its task runs.
const READY_WITHIN: Duration = Duration::from_millis(200);

/// What requests to the agent carry.
pub type RequestBody = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// One inner connection. Dropping it resets its stream.
pub struct InnerConnection {
    sender: http1::SendRequest<RequestBody>,
    /// The session below it: one that is going away should carry nothing new.
    session: Connection,
    view: StreamView,
    /// Moves its bytes; ends with this value.
    _task: AbortOnDropHandle<()>,
    _counted: Arc<()>,
    /// The stream that carries it.
    pub stream: StreamKey,
    /// The session that carries the stream.
    pub channel: ChannelId,
    /// It has carried a request before: the agent may have ended it meanwhile.
    pub reused: bool,
}

impl fmt::Debug for InnerConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InnerConnection").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl InnerConnection {
    fn is_usable(&self) -> bool {
        // One that waits to be taken up again is no place for a new request, nor is one among bulk.
        self.session.is_open()
            && !self.sender.is_closed()
            && !self.view.is_waiting()
            && !self.view.has_moved()
    }

    /// Sends one request.
    ///
    /// # Errors
    /// If the connection fails; the request comes back if nothing of it was sent.
    pub async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        self.sender.try_send_request(request).await
    }
}

/// Whether the cluster's agent was there when a stream was opened last.
#[derive(Clone, Copy, Debug)]
enum Presence {
    /// Nobody asked yet: nothing is known to be coming back.
    Unknown,
    There,
    /// It was there before, until about then.
    AwaySince(Instant),
}

/// The inner connections to one cluster.
pub struct Pool {
    cluster: ClusterId,
    connector: InnerConnector,
    link: Arc<Link>,
    idle: Mutex<VecDeque<(Instant, InnerConnection)>>,
    presence: Mutex<Presence>,
    /// Makes the next connection before it is asked for.
    prewarming: Mutex<Option<AbortOnDropHandle<()>>>,
    /// Each connection has one.
    counted: Arc<()>,
    /// The last token that the agent has judged, and not refused.
    told: Mutex<Option<Secret>>,
    _sweeper: AbortOnDropHandle<()>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Pool {
    /// No connection yet.
    ///
    /// # Errors
    /// If inner TLS can't be set up.
    pub fn new(cluster: ClusterId, run_key: &SigningKey, link: Arc<Link>) -> Result<Arc<Self>, Report> {
        let connector = InnerConnector::new(cluster, run_key)?;
        Ok(Arc::new_cyclic(|pool| Self {
            cluster,
            connector,
            link,
            idle: Mutex::new(VecDeque::new()),
            presence: Mutex::new(Presence::Unknown),
            prewarming: Mutex::new(None),
            counted: Arc::default(),
            told: Mutex::default(),
            _sweeper: AbortOnDropHandle::new(tokio::spawn(sweep(Weak::clone(pool)))),
        }))
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<(Instant, InnerConnection)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Idle connections.
    pub fn idle_count(&self) -> usize {
        self.idle().len()
    }

    /// Whether anybody has a connection: a request that runs, or what was upgraded.
    pub fn is_busy(&self) -> bool {
        // Idle ones first: one that is put back meanwhile counts for busy, and never the other way round.
        let idle = self.idle_count();
        Arc::strong_count(&self.counted) - 1 > idle
    }

    /// The agent took this token.
    pub fn note_told(&self, token: &Secret) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.as_ref() != Some(token) {
            *told = Some(token.clone());
        }
    }

    /// Whether the agent has taken this token before any other.
    pub fn has_told(&self, token: &Secret) -> bool {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(token)
    }

    /// A connection that is ready for a request: an idle one, or a new one. Then the next is made ahead of need.
    ///
    /// # Errors
    /// If there is no session, or the agent can't be reached.
    pub async fn take(self: &Arc<Self>) -> Result<InnerConnection, Report> {
        let connection = match self.take_idle().await {
            Some(connection) => connection,
            None => self.dial().await?,
        };
        self.prewarm();
        Ok(connection)
    }

    async fn take_idle(&self) -> Option<InnerConnection> {
        loop {
            // The one that was used last: the others may become old.
            let (since, mut connection) = self.idle().pop_back()?;
            if since.elapsed() < IDLE_FOR
                && connection.is_usable()
                && matches!(timeout(READY_WITHIN, connection.sender.ready()).await, Ok(Ok(())))
            {
                return Some(connection);
            }
        }
    }

    /// Takes a connection back whose request was sent and answered in full.
    pub fn put_back(&self, mut connection: InnerConnection) {
        if !connection.is_usable() {
            return;
        }
        connection.reused = true;
        let mut idle = self.idle();
        if idle.len() >= MAX_IDLE {
            idle.pop_front();
        }
        idle.push_back((Instant::now(), connection));
    }

    /// A new connection. While relay or agent are being replaced, tries again.
    ///
    /// # Errors
    /// If there is no session, or the agent can't be reached.
    pub async fn dial(&self) -> Result<InnerConnection, Report> {
        let begun = Instant::now();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        loop {
            let session = self.link.session().await?;
            let report = match timeout(INNER_WITHIN, self.open(&session)).await {
                Ok(Ok(connection)) => {
                    *self.presence() = Presence::There;
                    return Ok(connection);
                }
                Ok(Err(report)) => report,
                Err(_elapsed) => Report::new(Fault::AgentTimeout, "the inner handshake is not answered"),
            };
            let replaced = match report.fault {
                Fault::CarrierLost | Fault::RelayDraining | Fault::AgentDraining => true,
                Fault::AgentOffline => self.may_just_be_away(),
                _ => false,
            };
            if !replaced || begun.elapsed() >= HOLD {
                return Err(report);
            }
            tracing::debug!(%report, cluster = %self.cluster, "the stream was refused; trying again");
            sleep(backoff.after_failure(Duration::ZERO, backoff::random())).await;
        }
    }

    fn presence(&self) -> MutexGuard<'_, Presence> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an agent that is not connected was so a moment ago: it may be on its way back, or its successor is.
    fn may_just_be_away(&self) -> bool {
        let mut presence = self.presence();
        match *presence {
            Presence::Unknown => false,
            Presence::There => {
                *presence = Presence::AwaySince(Instant::now());
                true
            }
            Presence::AwaySince(since) => since.elapsed() < HOLD,
        }
    }

    async fn open(&self, session: &Session) -> Result<InnerConnection, Report> {
        let key = StreamKey::random();
        let stream = session.connection.open(OpenRequest::new(key, self.cluster))?;
        tracing::debug!(channel = %session.channel, stream = %key, cluster = %self.cluster, "stream opened");
        let view = stream.view();
        let tls = self.connector.connect(stream).await?;
        if let Ok(exported) = tls.exporter(EXPORTER_LABEL) {
            tls.carrier().keep(self.cluster, ResumeKey::new(&exported), None);
        }
        let (sender, connection) =
            http1::Builder::new().handshake(TokioIo::new(tls)).await.map_err(|error| report_of(&error))?;
        let task = async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(stream = %key, report = %report_of(&error), "inner connection ended");
            }
        };
        Ok(InnerConnection {
            sender,
            session: session.connection.clone(),
            view,
            _task: AbortOnDropHandle::new(tokio::spawn(task)),
            _counted: Arc::clone(&self.counted),
            stream: key,
            channel: session.channel,
            reused: false,
        })
    }

    fn prewarm(self: &Arc<Self>) {
        let mut prewarming = self.prewarming.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = prewarming.as_ref().is_some_and(|task| !task.is_finished());
        if busy || !self.idle().is_empty() {
            return;
        }
        // Weak: the pool owns the task, not the other way round.
        let pool = Arc::downgrade(self);
        let task = async move {
            let Some(pool) = pool.upgrade() else { return };
            match pool.dial().await {
                Ok(connection) => pool.put_fresh(connection),
                Err(report) => tracing::debug!(%report, "no connection made ahead of need"),
            }
        };
        *prewarming = Some(AbortOnDropHandle::new(tokio::spawn(task)));
    }

    fn put_fresh(&self, connection: InnerConnection) {
        let mut idle = self.idle();
        if idle.len() < MAX_IDLE {
            idle.push_front((Instant::now(), connection));
        }
    }
}

/// Ends connections that were idle for too long.
async fn sweep(pool: Weak<Pool>) {
    // Not at once: the pool that starts this is not whole yet.
    let mut ticks = interval_at(Instant::now() + SWEEP_EVERY, SWEEP_EVERY);
    loop {
        ticks.tick().await;
        let Some(pool) = pool.upgrade() else { return };
        pool.idle().retain(|(since, connection)| since.elapsed() < IDLE_FOR && connection.is_usable());
    }
}

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
use tokio::time::{Instant, interval_at, sleep, timeout, timeout_at};
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
/// Whoever asks for a connection is answered within this time, whatever is slow: a session may take 13 s, and the inner handshake 10 s.
const DIAL_WITHIN: Duration = Duration::from_secs(14);
/// A connection that has answered becomes ready as soon as its task runs.
const READY_WITHIN: Duration = Duration::from_millis(200);

/// What requests to the agent carry.
pub type RequestBody = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// A stream, as every hop's log names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamAt {
    /// The session that carries it, between here and the relay.
    pub channel: ChannelId,
    /// Its own name, the same from here to the agent.
    pub stream: StreamKey,
}

/// Why there is no connection.
#[derive(Debug)]
pub struct Unopened {
    /// The fault.
    pub report: Report,
    /// The stream that was tried last, if it came to that.
    pub at: Option<StreamAt>,
}

impl From<Report> for Unopened {
    fn from(report: Report) -> Self {
        Self { report, at: None }
    }
}

impl From<Unopened> for Report {
    fn from(unopened: Unopened) -> Self {
        unopened.report
    }
}

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
    pub at: StreamAt,
    /// It has carried a request before: the agent may have ended it meanwhile.
    pub reused: bool,
}

impl fmt::Debug for InnerConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InnerConnection").field("stream", &self.at.stream).finish_non_exhaustive()
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
    pub async fn take(self: &Arc<Self>) -> Result<InnerConnection, Unopened> {
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

    /// A new connection, or why there is none, within 14 s. While relay or agent are being replaced, tries again.
    ///
    /// # Errors
    /// If there is no session, or the agent can't be reached.
    pub async fn dial(&self) -> Result<InnerConnection, Unopened> {
        let connection = held(|| self.attempt(), |report| self.is_replaced(report)).await?;
        *self.presence() = Presence::There;
        Ok(connection)
    }

    async fn attempt(&self) -> Result<InnerConnection, Unopened> {
        let session = self.link.session().await?;
        let at = StreamAt { channel: session.channel, stream: StreamKey::random() };
        let silent = |_elapsed| Report::new(Fault::AgentTimeout, "the inner handshake is not answered");
        let opened = timeout(INNER_WITHIN, self.open(&session, at)).await.map_err(silent).flatten();
        opened.map_err(|report| Unopened { report, at: Some(at) })
    }

    /// Whether what refused a stream may be back in a moment.
    fn is_replaced(&self, report: &Report) -> bool {
        match report.fault {
            Fault::CarrierLost | Fault::RelayDraining | Fault::AgentDraining => true,
            Fault::AgentOffline => self.may_just_be_away(),
            _ => false,
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

    async fn open(&self, session: &Session, at: StreamAt) -> Result<InnerConnection, Report> {
        let key = at.stream;
        let stream = session.connection.open(OpenRequest::new(key, self.cluster))?;
        tracing::info!(channel = %at.channel, stream = %key, cluster = %self.cluster, "stream opened");
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
            at,
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
                Err(Unopened { report, .. }) => tracing::debug!(%report, "no connection made ahead of need"),
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

/// Tries until it works, until trying again does not help, or until the time is up: then the last fault is told.
async fn held<T, A: Future<Output = Result<T, Unopened>>>(
    mut attempt: impl FnMut() -> A,
    mut helps: impl FnMut(&Report) -> bool,
) -> Result<T, Unopened> {
    let begun = Instant::now();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
    let mut last = None;
    loop {
        let unopened = match timeout_at(begun + DIAL_WITHIN, attempt()).await {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(unopened)) => unopened,
            Err(_elapsed) => {
                let silent =
                    || Report::new(Fault::AgentTimeout, "there is no connection to it in time").into();
                return Err(last.unwrap_or_else(silent));
            }
        };
        if !helps(&unopened.report) || begun.elapsed() >= HOLD {
            return Err(unopened);
        }
        let stream = unopened.at.map(|at| tracing::field::display(at.stream));
        tracing::debug!(report = %unopened.report, stream, "the stream was refused; trying again");
        last = Some(unopened);
        sleep(backoff.after_failure(Duration::ZERO, backoff::random())).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn lost() -> Unopened {
        Report::from(Fault::CarrierLost).into()
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_is_slow_whoever_asks_is_answered_within_15_seconds() {
        // Each takes as long as it may: the session, and then the inner handshake.
        for (first, then) in [(0, 3600), (9, 3600), (9, 23), (13, 10), (23, 23)] {
            let begun = Instant::now();
            let mut tries = 0;
            let attempt = || {
                tries += 1;
                let takes = Duration::from_secs(if tries == 1 { first } else { then });
                async move {
                    sleep(takes).await;
                    Err::<(), _>(lost())
                }
            };
            let unopened = held(attempt, |_| true).await.unwrap_err();
            assert!(begun.elapsed() < Duration::from_secs(15), "{first}, {then}: {:?}", begun.elapsed());
            let told = if first > 14 { Fault::AgentTimeout } else { Fault::CarrierLost };
            assert_eq!(unopened.report.fault, told, "{first}, {then}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_being_replaced_is_tried_again_and_nothing_else_is() {
        let mut tries = 0;
        let attempt = || {
            tries += 1;
            std::future::ready(if tries < 4 { Err(lost()) } else { Ok(tries) })
        };
        assert_eq!(held(attempt, |report| report.fault == Fault::CarrierLost).await.unwrap(), 4);
        let begun = Instant::now();
        assert!(held(|| std::future::ready(Err::<(), _>(lost())), |_| false).await.is_err());
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}

//! One inner connection: requests in, each one for a verified user, answers back as they come.
//!
//! A request's phases, in order: its head was checked by the guard ahead of hyper; who is calling; what is asked for; the
//! head built afresh; sent; answered. Bodies stream both ways. Whatever ends before its end breaks the stream, so that
//! nothing that was cut short can be taken for whole.

mod body;
mod doctor;
mod service_account;
mod tunnel;
mod watch;
mod who;

use std::{
    convert::Infallible,
    fmt,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Either, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use towline_identity::Verifier;
use towline_tunnel::{
    audit::AuditLog,
    fault::{Fault, Report, is_read_raw},
    head::{Answering, Flight, GuardHandle, HeadGuard, MAX_HEAD, MAX_HEADERS, Patience, Steady},
    ids::{ChannelId, KeyHash, StreamKey},
    inner::{DOCTOR_PATH, RENEW_PATH},
    mux::CloseReason,
};
use tracing::info;

use crate::{
    as_user::Reviews,
    audit::{self, Named},
    authority::{Authorities, Authority},
    dial::{Account, Apiserver, Outgoing, no_body},
    headers,
    impersonate::AuditId,
    metrics::Metrics,
    preflight::SelfLook,
    stream::ResetReason,
};
use body::{Answer, Sent, Streamed};
use service_account::ClusterIssuer;
use tunnel::Tunnel;
use who::Admitted;
pub use who::{Access, Mode};

/// A head that dribbles is answered and ended after 10 s. A proxy keeps connections ready for longer than that.
const PATIENCE: Patience = Patience { head: Duration::from_secs(10), idle: Duration::from_secs(300) };

/// What should end ends by itself within this, or is cut.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// The agent's own words, or kube-apiserver's.
type AnswerBody = Either<Full<Bytes>, Streamed>;

/// Tells the time: the system's, or a test's.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self::new(SystemTime::now)
    }

    /// Any other.
    pub fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time now.
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// Whose stream it is, as ticket and inner TLS have proven.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Issuer and subject, which every request's token must name too.
    pub principal: String,
    /// The key of the client's run, which inner TLS has proven.
    pub run_key: KeyHash,
    /// The client's session at the relay.
    pub channel: Option<ChannelId>,
    /// The stream.
    pub stream: StreamKey,
}

/// How work ends when its session or the agent does.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// No further request is taken; those that run go on.
    pub going: CancellationToken,
    /// The deadline: watches end as if kube-apiserver had ended them, everything else is cut with a reason.
    pub cut: CancellationToken,
}

/// Why something ends that would go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// The agent's time to end is over.
    Draining,
    /// The token that it hangs on is.
    AuthorityEnded,
}

impl Cut {
    /// What a caller is told who has no answer yet.
    fn report(self) -> Report {
        let fault = match self {
            Self::Draining => Fault::AgentDraining,
            Self::AuthorityEnded => Fault::ClusterTokenExpired,
        };
        Report::new(fault, "before kube-apiserver answered")
    }

    /// What the caller is told.
    fn reason(self) -> (CloseReason, &'static str) {
        match self {
            Self::Draining => (CloseReason::Draining, "the agent is shutting down"),
            Self::AuthorityEnded => (
                CloseReason::AuthorityEnded,
                "the token that this was opened with is over, and no newer one came",
            ),
        }
    }
}

/// Waits until what hangs on this authority must end.
async fn cut(draining: CancellationToken, authority: Arc<Authority>) -> Cut {
    tokio::select! {
        () = draining.cancelled() => Cut::Draining,
        () = authority.ended() => Cut::AuthorityEnded,
    }
}

/// A request whose bodies are still on their way: the connection remembers until when they may be.
struct Hanging(tokio::sync::watch::Sender<Option<Arc<Authority>>>);

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

/// Passes verified requests on to kube-apiserver.
#[derive(Debug)]
pub struct Forwarder {
    verifier: Verifier,
    apiserver: Apiserver,
    access: Access,
    reviews: Reviews,
    cluster_issuer: ClusterIssuer,
    authorities: Authorities,
    audit: AuditLog,
    look: Option<SelfLook>,
    metrics: Metrics,
    clock: Clock,
}

impl Forwarder {
    /// Callers are who the verifier says.
    pub fn new(
        verifier: Verifier,
        apiserver: Apiserver,
        access: Access,
        metrics: Metrics,
        clock: Clock,
    ) -> Self {
        let (reviews, cluster_issuer) = (Reviews::default(), ClusterIssuer::default());
        let authorities = Authorities::new(clock.clone());
        let audit = AuditLog::none();
        let look = None;
        Self {
            verifier,
            apiserver,
            access,
            reviews,
            cluster_issuer,
            authorities,
            audit,
            look,
            metrics,
            clock,
        }
    }

    /// Records each request there.
    #[must_use]
    pub fn with_audit(self, audit: AuditLog) -> Self {
        Self { audit, ..self }
    }

    /// The verifier, so that somebody can own keeping its keys fresh.
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// The apiserver, so that somebody can own keeping its pool small.
    pub fn apiserver(&self) -> &Apiserver {
        &self.apiserver
    }

    /// Serves one inner connection to its end: what came out of inner TLS.
    pub async fn serve<IO>(&self, inner: IO, caller: &Caller, reset: &ResetReason, ending: &Ending)
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (io, guard) = HeadGuard::new(inner, PATIENCE);
        let (io, flight) = Steady::new(io);
        let hanging = tokio::sync::watch::Sender::new(None);
        let exchange = Exchange {
            forwarder: self,
            caller,
            guard,
            flight,
            reset,
            ending,
            hanging,
            after: Mutex::default(),
        };
        let service = service_fn(|request: Request<Incoming>| {
            // Not in the future: hyper reads on before it polls that for the first time.
            let (reading, answering) = exchange.flight.begin();
            let request =
                request.map(|body| Sent::new(body, self.metrics.bytes_to_apiserver.clone(), reading));
            exchange.answer(request, answering)
        });
        {
            // The guard is the one that loses patience; hyper would lose it with idle connections, too.
            let connection = http1::Builder::new()
                .header_read_timeout(None)
                .max_headers(MAX_HEADERS)
                .max_buf_size(2 * MAX_HEAD)
                .serve_connection(TokioIo::new(io), service)
                .with_upgrades();
            let mut connection = pin!(connection);
            let served = async {
                tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = ending.going.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                }
            };
            tokio::select! {
                ended = served => if let Err(error) = ended {
                    tracing::debug!(%error, "an inner connection broke");
                },
                () = exchange.overdue() => {
                    info!(stream = %caller.stream, "a connection was cut whose caller neither read nor ended");
                    return;
                }
            }
        }
        match exchange.after() {
            None => {}
            Some(After::Switched(tunnel)) => tunnel.run(self, reset, ending).await,
            Some(After::Refused(connection)) => tunnel::end(connection).await,
        }
    }
}

/// One connection's requests.
struct Exchange<'a> {
    forwarder: &'a Forwarder,
    caller: &'a Caller,
    guard: GuardHandle,
    flight: Flight,
    reset: &'a ResetReason,
    ending: &'a Ending,
    /// What the request that runs hangs on.
    hanging: tokio::sync::watch::Sender<Option<Arc<Authority>>>,
    /// Left here by a request that asked for an upgrade, which is a connection's last.
    after: Mutex<Option<After>>,
}

/// What becomes of a connection behind a request that asked for an upgrade.
enum After {
    /// It was granted.
    Switched(Tunnel),
    /// It was not: hyper hands the connection out all the same, and does not end it.
    Refused(OnUpgrade),
}

impl Exchange<'_> {
    fn after(&self) -> Option<After> {
        self.after.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Remembers what the request that begins hangs on, until both its bodies are done.
    fn hangs(&self, authority: &Arc<Authority>) -> Arc<Hanging> {
        self.hanging.send_replace(Some(Arc::clone(authority)));
        Arc::new(Hanging(self.hanging.clone()))
    }

    /// Waits for a request that should have ended a while ago. One whose answer is read ends by itself; who does not read, or sends on and
    /// on, keeps hyper from asking.
    async fn overdue(&self) {
        let mut hanging = self.hanging.subscribe();
        loop {
            let authority = hanging.borrow_and_update().clone();
            let over = async {
                match authority {
                    Some(authority) => authority.ended().await,
                    None => std::future::pending().await,
                }
                sleep(ENDS_WITHIN).await;
            };
            tokio::select! {
                // Its sender is this exchange's own.
                _next = hanging.changed() => {}
                () = over => {
                    let (reason, detail) = Cut::AuthorityEnded.reason();
                    return self.reset.set(reason, detail);
                }
            }
        }
    }

    fn set_after(&self, after: After) {
        *self.after.lock().unwrap_or_else(PoisonError::into_inner) = Some(after);
    }

    async fn answer(
        &self,
        request: Request<Sent>,
        answering: Answering,
    ) -> Result<Response<Answer>, Infallible> {
        let answer = match self.guard.refusal(request.headers()) {
            Some(error) => {
                let channel = self.caller.channel.map(tracing::field::display);
                info!(channel, stream = %self.caller.stream, %error, "a request's head was refused");
                self.refuse(&Report::from(error), true, false)
            }
            None => self.judge(request).await,
        };
        Ok(answer.map(|body| Answer::new(body, answering)))
    }

    async fn judge(&self, mut request: Request<Sent>) -> Response<AnswerBody> {
        let (begun, came) = (Instant::now(), self.forwarder.clock.now());
        let audit_id = AuditId::random();
        let target =
            self.forwarder.audit.is_kept().then(|| audit::Target::of(request.method(), request.uri()));
        let mut named = Named::default();
        let asked = Asked {
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            // Whatever becomes of it, nothing but the upgrade itself may follow on this connection (THREATS T9).
            last: request.headers().contains_key(header::UPGRADE),
            read_raw: is_read_raw(request.uri().path(), request.headers()),
        };
        if asked.last {
            self.set_after(After::Refused(hyper::upgrade::on(&mut request)));
        }
        let answer = if asked.path == RENEW_PATH {
            self.renew(&request, audit_id).await
        } else if asked.path == DOCTOR_PATH {
            self.look(&request, audit_id, &mut named).await
        } else {
            self.pass_on(request, audit_id, asked.last, &mut named).await
        };
        let status = answer.as_ref().map_or_else(Report::http_status, |answer| answer.status().as_u16());
        let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.forwarder.metrics.answered(status);
        self.forwarder.metrics.answer_seconds.observe(begun.elapsed().as_secs_f64());
        if let Some(target) = &target {
            let fault = answer.as_ref().err().map(|report| report.fault.code());
            let outcome = audit::Outcome { code: status, fault, after: begun.elapsed() };
            self.forwarder.audit.record(&audit::line(
                came,
                &audit_id.to_string(),
                self.caller,
                &named,
                target,
                &outcome,
            ));
        }
        let channel = self.caller.channel.map(tracing::field::display);
        let stream = self.caller.stream;
        match &answer {
            Ok(_) => info!(
                channel, %stream, %audit_id, status, millis, method = asked.method, path = asked.path, "request"
            ),
            Err(report) => info!(
                channel, %stream, %audit_id, status, millis, method = asked.method, path = asked.path,
                fault = report.fault.code(), %report, cause = cause(report), "request refused"
            ),
        }
        answer.unwrap_or_else(|report| self.refuse(&report, asked.last, asked.read_raw))
    }

    /// A newer token for what is open; nothing of it goes on.
    async fn renew(
        &self,
        request: &Request<Sent>,
        audit_id: AuditId,
    ) -> Result<Response<AnswerBody>, Report> {
        let until = self.forwarder.renew(request.headers(), self.caller, audit_id).await?;
        let left = until.duration_since(self.forwarder.clock.now()).unwrap_or_default();
        tracing::debug!(stream = %self.caller.stream, ?left, "what is open may go on");
        let mut response = Response::new(Either::Left(Full::default()));
        *response.status_mut() = StatusCode::NO_CONTENT;
        Ok(response)
    }

    async fn pass_on(
        &self,
        request: Request<Sent>,
        audit_id: AuditId,
        last: bool,
        named: &mut Named,
    ) -> Result<Response<AnswerBody>, Report> {
        let mut who = HeaderMap::new();
        let Admitted { account, mut authority, unjudged } =
            self.forwarder.admit(request.headers(), self.caller, &mut who, audit_id, named).await?;
        let is_ours = account == Account::Impersonator;
        let upgrade = headers::upgrade(request.headers())?;
        let mut out = headers::outgoing(request.headers(), upgrade);
        out.extend(who);

        let (parts, mut body) = request.into_parts();
        let hanging = self.hangs(&authority);
        body.hang(Arc::clone(&hanging));
        let target = parts.uri.path_and_query().cloned();
        let is_watch = target.as_ref().is_some_and(watch::is_watch);
        let outgoing = Outgoing {
            method: parts.method,
            target: target.ok_or_else(|| Report::new(Fault::RequestHeadRefused, "there is no path"))?,
            headers: out,
            body: match upgrade {
                Some(_) => no_body(),
                None => body.boxed_unsync(),
            },
            upgrade: upgrade.is_some(),
            account,
        };
        let mut response = tokio::select! {
            response = self.forwarder.apiserver.forward(outgoing) => response?,
            why = cut(self.ending.cut.clone(), Arc::clone(&authority)) => return Err(why.report()),
        };
        if let Some(account) = &unjudged
            && response.status() != StatusCode::UNAUTHORIZED
        {
            authority = self.forwarder.judged(self.caller, account, &authority);
            self.hanging.send_replace(Some(Arc::clone(&authority)));
        }
        if response.status() == StatusCode::UNAUTHORIZED && is_ours {
            // Of kube-apiserver itself it means that the agent's own credential is no longer good.
            self.forwarder.apiserver.doubt_credential().await;
        }

        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let answered = response.headers().get(header::UPGRADE).map(HeaderValue::as_bytes);
            let is_asked = upgrade.is_some_and(|asked| {
                answered.is_some_and(|to| to.eq_ignore_ascii_case(asked.name().as_bytes()))
            });
            let inner = match is_asked.then(|| self.after()).flatten() {
                Some(After::Refused(inner)) => inner,
                _ => {
                    let what = "it switched to a protocol that was not asked for";
                    return Err(Report::new(Fault::ApiserverCut, what));
                }
            };
            headers::incoming(response.headers_mut(), true);
            let upstream = hyper::upgrade::on(&mut response);
            let (head, body) = response.into_parts();
            self.set_after(After::Switched(Tunnel::new(inner, upstream, body, authority)));
            self.guard.answered_upgrade(true);
            return Ok(Response::from_parts(head, Either::Left(Full::default())));
        }
        headers::incoming(response.headers_mut(), false);
        if last {
            close_after(&mut response);
        }
        let framing = is_watch.then(|| watch::framing(response.headers())).flatten();
        let got = self.forwarder.metrics.bytes_to_callers.clone();
        let (caller, reset) = (self.caller.clone(), self.reset.clone());
        Ok(response.map(|body| {
            let cut = cut(self.ending.cut.clone(), authority);
            let cut = async move {
                let _held = hanging;
                cut.await
            };
            Either::Right(Streamed::new(body, framing, got, cut, reset, caller, audit_id))
        }))
    }

    /// The agent's own answer.
    fn refuse(&self, report: &Report, last: bool, read_raw: bool) -> Response<AnswerBody> {
        self.forwarder.metrics.refused(report.fault);
        let answer = report.answer(read_raw);
        let mut response = Response::new(Either::Left(Full::from(answer.body)));
        *response.status_mut() =
            StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
        if last {
            close_after(&mut response);
        }
        response
    }
}

/// What a request asked for, for the log.
struct Asked {
    method: String,
    path: String,
    last: bool,
    read_raw: bool,
}

fn close_after<B>(response: &mut Response<B>) {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// What is behind a report, for the log: the whole chain, the last of which says most.
fn cause(report: &Report) -> Option<String> {
    let mut next = std::error::Error::source(report);
    let mut text = String::new();
    while let Some(error) = next {
        let separator = if text.is_empty() { "" } else { ": " };
        text = format!("{text}{separator}{error}");
        next = error.source();
    }
    (!text.is_empty()).then_some(text)
}

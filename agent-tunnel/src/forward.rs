//! One inner connection: requests in, each one for a verified user, answers back as they come.
//!
//! A request's phases, in order: its head was checked by the guard ahead of hyper; who is calling; what is asked for; the
//! head built afresh; sent; answered. Bodies stream both ways. Whatever ends before its end breaks the stream, so that
//! nothing that was cut short can be taken for whole.

mod body;
mod doctor;
mod record;
mod service_account;
mod tunnel;
mod watch;
mod who;

use std::{
    convert::Infallible,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Either, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use towline_identity::Verifier;
use towline_tunnel::{
    audit::AuditLog,
    clock::Clock,
    fault::{Fault, Report, is_read_raw},
    head::{Answering, Flight, GuardHandle, HeadGuard, MAX_HEAD, MAX_HEADERS, Patience, Steady},
    ids::{ChannelId, KeyHash, StreamKey},
    inner::{DOCTOR_PATH, RENEW_PATH},
    mux::CloseReason,
};
use tracing::info;

use crate::{
    as_user::Reviews,
    audit::Named,
    authority::{Authorities, Ended, Hold},
    dial::{Account, Apiserver, Outgoing, no_body},
    headers,
    impersonate::AuditId,
    metrics::Metrics,
    preflight::SelfLook,
    roles::{Offered, Roles},
    stream::ResetReason,
};
use body::{Answer, Sent, Streamed};
use record::Record;
use service_account::ClusterIssuer;
pub use service_account::is_of_account;
use tunnel::Tunnel;
use who::Admitted;
pub use who::{Access, Mode};

/// A head that dribbles is answered and ended after 10 s. A proxy keeps connections ready for longer than that.
const PATIENCE: Patience = Patience { head: Duration::from_secs(10), idle: Duration::from_secs(300) };

/// What should end ends by itself within this, or is cut.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// The agent's own words, or kube-apiserver's.
type AnswerBody = Either<Full<Bytes>, Streamed>;

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
    /// The role documents that came with it and count.
    pub offered: Option<Arc<Offered>>,
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
    /// The identity provider no longer stands by the user.
    AccountEnded,
    /// The role that it hangs on is.
    RoleEnded,
}

impl Cut {
    /// What a caller is told who has no answer yet.
    fn report(self) -> Report {
        let fault = match self {
            Self::Draining => Fault::AgentDraining,
            Self::AuthorityEnded => Fault::ClusterTokenExpired,
            Self::AccountEnded => Fault::AccountEnded,
            Self::RoleEnded => Fault::RoleEnded,
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
            Self::AccountEnded => (
                CloseReason::AuthorityEnded,
                "the identity provider says that the account or its token is no longer good (TL-IDN-026)",
            ),
            Self::RoleEnded => (CloseReason::RoleEnded, "the role that this was opened with is over"),
        }
    }
}

impl From<Ended> for Cut {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Authority => Self::AuthorityEnded,
            Ended::Account => Self::AccountEnded,
            Ended::Role => Self::RoleEnded,
        }
    }
}

/// Waits until what hangs on this must end.
async fn cut(draining: CancellationToken, hold: Hold) -> Cut {
    tokio::select! {
        () = draining.cancelled() => Cut::Draining,
        ended = hold.ended() => ended.into(),
    }
}

/// A request whose bodies are still on their way: the connection remembers until when they may be.
struct Hanging(tokio::sync::watch::Sender<Option<Hold>>);

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

/// Passes verified requests on to kube-apiserver.
#[derive(Debug)]
pub struct Forwarder {
    verifier: Arc<Verifier>,
    apiserver: Apiserver,
    access: Access,
    reviews: Reviews,
    cluster_issuer: ClusterIssuer,
    authorities: Authorities,
    roles: Option<Arc<Roles>>,
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
            verifier: Arc::new(verifier),
            apiserver,
            access,
            reviews,
            cluster_issuer,
            authorities,
            roles: None,
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

    /// Takes roles that the organisation signs.
    #[must_use]
    pub fn with_roles(self, roles: Option<Arc<Roles>>) -> Self {
        Self { roles, ..self }
    }

    /// Who judges roles, where they are on.
    pub fn roles(&self) -> Option<&Arc<Roles>> {
        self.roles.as_ref()
    }

    /// Waits until what the relay vouched for when a connection began is too old for new requests, where roles are on: the caller comes
    /// back on another one, with what the relay says then.
    async fn stale(&self) {
        match &self.roles {
            Some(roles) => sleep(roles.fresh_for()).await,
            None => std::future::pending().await,
        }
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
                    ended = connection.as_mut() => return ended,
                    () = ending.going.cancelled() => {}
                    () = self.stale() => {}
                }
                connection.as_mut().graceful_shutdown();
                connection.await
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
    hanging: tokio::sync::watch::Sender<Option<Hold>>,
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
    fn hangs(&self, hold: &Hold) -> Arc<Hanging> {
        self.hanging.send_replace(Some(hold.clone()));
        Arc::new(Hanging(self.hanging.clone()))
    }

    /// Waits for a request that should have ended a while ago. One whose answer is read ends by itself; who does not read, or sends on and
    /// on, keeps hyper from asking.
    async fn overdue(&self) {
        let mut hanging = self.hanging.subscribe();
        loop {
            let hold = hanging.borrow_and_update().clone();
            let over = async {
                let ended = match hold {
                    Some(hold) => hold.ended().await,
                    None => std::future::pending().await,
                };
                sleep(ENDS_WITHIN).await;
                Cut::from(ended)
            };
            tokio::select! {
                // Its sender is this exchange's own.
                _next = hanging.changed() => {}
                why = over => {
                    let (reason, detail) = why.reason();
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
        let mut record = Record::begin(self.forwarder, self.caller, &request);
        let audit_id = record.audit_id;
        // Whatever becomes of it, nothing but the upgrade itself may follow on this connection (THREATS T9).
        let last = request.headers().contains_key(header::UPGRADE);
        let read_raw = is_read_raw(request.uri().path(), request.headers());
        if last {
            self.set_after(After::Refused(hyper::upgrade::on(&mut request)));
        }
        let answer = if record.path == RENEW_PATH {
            self.renew(&request, audit_id).await
        } else if record.path == DOCTOR_PATH {
            self.look(&request, audit_id, &mut record.named).await
        } else {
            self.pass_on(request, audit_id, last, &mut record.named).await
        };
        let status = answer.as_ref().map_or_else(Report::http_status, |answer| answer.status().as_u16());
        record.answered(status, answer.as_ref().err().map(|report| report.fault.code()));
        let (after, method, path) = (record.after(), &record.method, &record.path);
        let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        self.forwarder.metrics.answered(status);
        self.forwarder.metrics.answer_seconds.observe(after.as_secs_f64());
        let channel = self.caller.channel.map(tracing::field::display);
        let stream = self.caller.stream;
        match &answer {
            Ok(_) => info!(
                channel, %stream, %audit_id, status, millis, method, path, "request"
            ),
            Err(report) => info!(
                channel, %stream, %audit_id, status, millis, method, path,
                fault = report.fault.code(), %report, cause = cause(report), "request refused"
            ),
        }
        answer.unwrap_or_else(|report| self.refuse(&report, last, read_raw))
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
        let Admitted { account, mut hold, unjudged, warning } =
            self.forwarder.admit(request.headers(), self.caller, &mut who, audit_id, named).await?;
        let is_ours = account == Account::Impersonator;
        let upgrade = headers::upgrade(request.headers())?;
        let mut out = headers::outgoing(request.headers(), upgrade);
        out.extend(who);

        let (parts, mut body) = request.into_parts();
        let hanging = self.hangs(&hold);
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
            why = cut(self.ending.cut.clone(), hold.clone()) => return Err(why.report()),
        };
        if let Some(account) = &unjudged
            && response.status() != StatusCode::UNAUTHORIZED
        {
            hold = Hold::new(self.forwarder.judged(self.caller, account, hold.authority()), None);
            self.hanging.send_replace(Some(hold.clone()));
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
            self.set_after(After::Switched(Tunnel::new(inner, upstream, body, hold)));
            self.guard.answered_upgrade(true);
            return Ok(Response::from_parts(head, Either::Left(Full::default())));
        }
        headers::incoming(response.headers_mut(), false);
        if let Some(warning) = warning
            && response.status() == StatusCode::FORBIDDEN
        {
            response.headers_mut().append(header::WARNING, warning);
        }
        if last {
            close_after(&mut response);
        }
        let framing = is_watch.then(|| watch::framing(response.headers())).flatten();
        let got = self.forwarder.metrics.bytes_to_callers.clone();
        let (caller, reset) = (self.caller.clone(), self.reset.clone());
        Ok(response.map(|body| {
            let cut = cut(self.ending.cut.clone(), hold);
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

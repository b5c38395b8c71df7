//! One request of a Kubernetes client, carried to its cluster on one inner connection.
//!
//! The cluster token says who asks; whoever brings a token of their own is refused. Bodies stream both ways. An answer
//! that is cut short never looks whole: its error goes on to the client as a reset stream or a broken connection.

mod body;
mod discovery;
mod renew;
mod small;
mod upgrade;

use std::{collections::HashMap, error::Error, sync::Arc, time::SystemTime};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{
        AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, EXPECT, HOST, PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
    request::Parts,
    uri::PathAndQuery,
};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::Incoming;
use towline_tunnel::{
    fault::{Fault, Report},
    ids::ClusterId,
    session::message::Secret,
};
use tracing::field::display;

pub use body::ResponseBody;
pub use upgrade::UpgradedCopy;

use crate::{
    dial::{InnerConnection, Pool, RequestBody, StreamAt, Unopened, report_of},
    token::Tokens,
};
use body::{Download, Upload};
use discovery::{Asked, Discovery};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Takes requests to their clusters.
#[derive(Debug)]
pub struct Forwarder {
    clusters: HashMap<ClusterId, Arc<Pool>>,
    discoveries: HashMap<ClusterId, Arc<Discovery>>,
    tokens: Arc<Tokens>,
}

/// A request that has passed the endpoint's rules.
#[derive(Debug)]
pub struct Arrival {
    /// Where it goes.
    pub cluster: ClusterId,
    /// Path and query there, byte for byte.
    pub path: PathAndQuery,
    /// Method, headers, extensions.
    pub parts: Parts,
    /// Its body.
    pub body: Incoming,
}

type Answered = (Response<ResponseBody>, Option<UpgradedCopy>);

impl Forwarder {
    /// To these clusters, with this person's tokens.
    pub fn new(clusters: HashMap<ClusterId, Arc<Pool>>, tokens: Arc<Tokens>) -> Self {
        let discoveries = clusters.keys().map(|cluster| (*cluster, Arc::default())).collect();
        Self { clusters, discoveries, tokens }
    }

    fn pool(&self, cluster: ClusterId) -> Result<&Arc<Pool>, Report> {
        self.clusters.get(&cluster).ok_or_else(|| {
            Report::new(Fault::ClusterUnknown, format!("{cluster} is not served by this proxy"))
        })
    }

    /// Carries one request, and says what came back. Where the answer is an upgrade, the bytes that follow are
    /// copied by the future that comes with it.
    ///
    /// # Errors
    /// If there was no answer.
    pub async fn forward(&self, mut arrival: Arrival) -> Result<Answered, Unanswered> {
        let (cluster, asked) = (arrival.cluster, Asked::of(&arrival));
        let Some((asked, discovery)) = asked.zip(self.discoveries.get(&cluster)) else {
            return self.carry(arrival).await;
        };
        discovery.ask_for_all(&asked, &mut arrival.parts.headers);
        match self.carry(arrival).await {
            Ok((response, copy)) if !discovery::is_refused(response.status()) => {
                Ok((discovery.keep(asked, response), copy))
            }
            refused => match discovery.last(&asked) {
                Some(last) => {
                    let report = refused.as_ref().err().map(|unanswered| display(&unanswered.report));
                    tracing::info!(%cluster, report, "discovery is answered as the cluster did last");
                    Ok((last, None))
                }
                None => refused,
            },
        }
    }

    async fn carry(&self, arrival: Arrival) -> Result<Answered, Unanswered> {
        let pool = self.pool(arrival.cluster)?;
        if arrival.parts.headers.contains_key(AUTHORIZATION) {
            return Err(Report::from(Fault::OwnTokenGiven).into());
        }
        let token = self.token()?;
        if is_upgrade(&arrival.parts.headers) {
            return upgrade::forward(pool, arrival, &token).await;
        }
        let (method, uri) = (arrival.parts.method, Uri::from(arrival.path));
        let headers = onward(arrival.parts.headers, arrival.cluster, authorization(&token)?)?;
        let (upload, sent) = Upload::new(arrival.body);
        // What may be asked again if an idle connection turns out to be gone: nothing has changed anything.
        let again = (sent.is_whole() && matches!(method, Method::GET | Method::HEAD))
            .then(|| (method.clone(), uri.clone(), headers.clone()));
        let first = build(method, uri, headers, upload.boxed_unsync());
        let (connection, response) = match (exchange(pool, first).await, again) {
            (Err(Unanswered { reused: true, .. }), Some((method, uri, headers))) => {
                exchange_on(pool.dial().await?, build(method, uri, headers, nothing())).await
            }
            (other, _) => other,
        }?;
        note_told(pool, &token, &response);
        let (mut parts, body) = response.into_parts();
        drop_hop_by_hop(&mut parts.headers);
        tracing::debug!(cluster = %arrival.cluster, channel = %connection.at.channel, stream = %connection.at.stream,
            status = parts.status.as_u16(), "answered");
        let download = Download::new(body, connection, Arc::clone(pool), sent);
        Ok((Response::from_parts(parts, download.boxed_unsync()), None))
    }

    /// Asks a cluster for `/version`: whether everything between here and its apiserver works.
    ///
    /// # Errors
    /// What does not.
    pub async fn probe(&self, cluster: ClusterId) -> Result<(), Report> {
        let pool = self.pool(cluster)?;
        let (status, body) = ask(cluster, pool, Method::GET, "/version", &self.token()?).await?;
        match told(&body) {
            Some(report) => Err(report),
            None if status.is_server_error() => {
                Err(Report::new(Fault::ApiserverUnreachable, format!("/version answered {status}")))
            }
            // Even a refusal is the apiserver's own: the way there works.
            None => Ok(()),
        }
    }

    fn token(&self) -> Result<Secret, Report> {
        self.tokens.for_cluster(SystemTime::now())
    }
}

fn authorization(token: &Secret) -> Result<HeaderValue, Report> {
    let mut value = HeaderValue::from_bytes(&[b"Bearer ", token.reveal()].concat())
        .map_err(|_| Report::new(Fault::TokenFileUnusable, "the cluster token is not printable text"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Whoever answers has judged the token first.
fn note_told(pool: &Pool, token: &Secret, response: &Response<Incoming>) {
    if response.status() != StatusCode::UNAUTHORIZED {
        pool.note_told(token);
    }
}

/// A small request of our own, and its small answer.
async fn ask(
    cluster: ClusterId,
    pool: &Arc<Pool>,
    method: Method,
    path: &'static str,
    token: &Secret,
) -> Result<(StatusCode, Bytes), Report> {
    let headers = onward(HeaderMap::new(), cluster, authorization(token)?)?;
    let request = build(method, Uri::from_static(path), headers, nothing());
    let (connection, response) = exchange(pool, request).await?;
    note_told(pool, token, &response);
    let status = response.status();
    let body = Limited::new(response.into_body(), 64 * 1024).collect().await;
    let body = body.map_err(|error| report_of(error.as_ref()))?.to_bytes();
    pool.put_back(connection);
    Ok((status, body))
}

/// The fault that one of our programs named in a `Status`.
fn told(body: &[u8]) -> Option<Report> {
    let status: serde_json::Value = serde_json::from_slice(body).ok()?;
    let code = status["details"]["causes"][0]["reason"].as_str()?;
    let fault = *Fault::ALL.iter().find(|fault| fault.code() == code)?;
    let message = status["message"].as_str().unwrap_or_default();
    // The message is a report already; what it saw stands in its first parentheses.
    let head = message.split(&format!(" [{code}]")).next().unwrap_or_default();
    let detail = head.split_once(fault.title()).map_or("", |(_, rest)| rest.trim());
    let detail = detail.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).unwrap_or(detail);
    Some(Report::new(fault, detail))
}

/// The answer to a request that failed, which kubectl prints as one line (`towline_tunnel::fault::is_read_raw`).
pub fn refusal(report: &Report, read_raw: bool) -> Response<ResponseBody> {
    let answer = report.answer(read_raw);
    let body = Full::new(Bytes::from(answer.body)).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn nothing() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn build(method: Method, uri: Uri, headers: HeaderMap, body: RequestBody) -> Request<RequestBody> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    request
}

/// Why there is no answer.
#[derive(Debug)]
pub struct Unanswered {
    /// The fault.
    pub report: Report,
    /// The stream that the request was on, or was to be on.
    pub at: Option<StreamAt>,
    /// The connection had carried other requests before: the agent may have ended it.
    reused: bool,
}

impl From<Report> for Unanswered {
    fn from(report: Report) -> Self {
        Self { report, at: None, reused: false }
    }
}

impl From<Unopened> for Unanswered {
    fn from(Unopened { report, at }: Unopened) -> Self {
        Self { report, at, reused: false }
    }
}

impl From<Unanswered> for Report {
    fn from(unanswered: Unanswered) -> Self {
        unanswered.report
    }
}

type Exchanged = Result<(InnerConnection, Response<Incoming>), Unanswered>;

/// Sends a request on the next connection that takes it; one that was not sent at all goes to another connection.
async fn exchange(pool: &Arc<Pool>, mut request: Request<RequestBody>) -> Exchanged {
    loop {
        let mut connection = pool.take().await?;
        match connection.send(request).await {
            Ok(response) => return Ok((connection, response)),
            Err(mut error) => match error.take_message() {
                Some(unsent) if connection.reused => request = unsent,
                _ => {
                    return Err(connection.broke(&error.into_error()));
                }
            },
        }
    }
}

async fn exchange_on(mut connection: InnerConnection, request: Request<RequestBody>) -> Exchanged {
    match connection.send(request).await {
        Ok(response) => Ok((connection, response)),
        Err(error) => Err(connection.broke(&error.into_error())),
    }
}

impl InnerConnection {
    fn broke(&self, error: &hyper::Error) -> Unanswered {
        Unanswered { report: report_of(error), at: Some(self.at), reused: self.reused }
    }
}

/// Whether this asks to leave HTTP (RFC 9110, section 7.8).
fn is_upgrade(headers: &HeaderMap) -> bool {
    let listed = |value: &HeaderValue| {
        value
            .to_str()
            .is_ok_and(|list| list.split(',').any(|name| name.trim().eq_ignore_ascii_case("upgrade")))
    };
    headers.contains_key(UPGRADE) && headers.get_all(CONNECTION).iter().any(listed)
}

/// The headers that go on: the client's, without what is this hop's, and with who asks.
fn onward(mut headers: HeaderMap, cluster: ClusterId, token: HeaderValue) -> Result<HeaderMap, Report> {
    drop_hop_by_hop(&mut headers);
    // Answered here: hyper sends 100 Continue when the body is asked for.
    headers.remove(EXPECT);
    headers.insert(AUTHORIZATION, token);
    let host = HeaderValue::try_from(format!("{cluster}.towline.internal"))
        .map_err(|error| Report::caused_by(Fault::Internal, "", error))?;
    headers.insert(HOST, host);
    Ok(headers)
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let of_this_hop = [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    for name in of_this_hop {
        headers.remove(name);
    }
}

/// An error of a body, as bodies carry it.
type BodyError = Box<dyn Error + Send + Sync>;

#[cfg(test)]
mod tests {
    use hyper::body::Body as _;

    use super::*;

    #[test]
    fn this_hops_headers_go_and_who_asks_is_said_once() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer theirs"),
            ("connection", "keep-alive"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("host", "127.0.0.1:47011"),
            ("impersonate-user", "root"),
            ("accept", "application/json"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers.append(AUTHORIZATION, HeaderValue::from_static("Basic more"));
        let id = ClusterId::of_spki(b"k");
        let onward = onward(headers, id, HeaderValue::from_static("Bearer ours")).unwrap();
        let mut left: Vec<(&str, &str)> =
            onward.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        left.sort_unstable();
        let host = format!("{id}.towline.internal");
        // What asks for somebody else's rights goes on: it is the agent's to refuse, and never dropped in silence.
        assert_eq!(
            left,
            [
                ("accept", "application/json"),
                ("authorization", "Bearer ours"),
                ("host", &host),
                ("impersonate-user", "root")
            ]
        );
    }

    #[test]
    fn a_fault_that_the_agent_named_is_known_again() {
        let report = Report::new(Fault::ClusterTokenRefused, "wrong audience");
        let again = told(report.status_json().as_bytes()).unwrap();
        assert_eq!((again.fault, again.detail.as_str()), (report.fault, "wrong audience"));
        let bare = Report::from(Fault::TicketMismatch);
        assert_eq!(told(bare.status_json().as_bytes()).unwrap().detail, "");
        assert!(told(br#"{"kind":"Status","message":"pods is forbidden","reason":"Forbidden"}"#).is_none());
        assert!(told(b"{").is_none() && told(br#"{"major":"1"}"#).is_none());
    }

    #[test]
    fn only_a_request_that_says_so_twice_is_an_upgrade() {
        let with = |fields: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_static(value));
            }
            is_upgrade(&headers)
        };
        assert!(with(&[("upgrade", "SPDY/3.1"), ("connection", "Upgrade")]));
        assert!(with(&[("upgrade", "websocket"), ("connection", "keep-alive, upgrade")]));
        assert!(!with(&[("upgrade", "websocket")]) && !with(&[("connection", "upgrade")]));
    }

    #[test]
    fn a_refusal_is_a_status_object() {
        let response = refusal(&Report::new(Fault::AgentOffline, "edge-7"), false);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        assert!(response.body().size_hint().exact().is_some());
    }
}

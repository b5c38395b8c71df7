//! Dialling the only place that requests go to: the configured kube-apiserver.
//!
//! Host, port, path prefix, trust and credential come from the pod's service account or a kubeconfig, and from nothing
//! that a caller sends (THREATS T13). Redirects are answers like any other and are never followed (T12).

mod connect;
mod credential;
mod follow;
mod kubeconfig;
mod pool;
mod target;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header, uri::PathAndQuery};
use http_body_util::{BodyExt as _, Full, Limited, combinators::UnsyncBoxBody};
use rustls::pki_types::ServerName;
use tokio::time::timeout;
use towline_tunnel::fault::{Fault, Report};
use tracing::warn;

pub use credential::message as status_message;
use credential::{Credential, Impersonator};
pub use pool::ApiserverBody;
use pool::{Line, Pool};
use target::{Target, Tls};

/// The agent's own small requests take no longer.
const CALL_WITHIN: Duration = Duration::from_secs(10);
/// No answer to one of them is larger.
const MAX_ANSWER: usize = 2 * 1024 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of a request on its way out.
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// Where kube-apiserver is, whom to trust, and who the agent is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiserverConfig {
    /// From the pod's service account and environment.
    InCluster,
    /// From a kubeconfig.
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// A context of it; the current one where none is given.
        context: Option<String>,
    },
}

/// A request as it goes out. Which server it goes to is no part of it.
#[derive(Debug)]
pub struct Outgoing {
    /// Its method.
    pub method: Method,
    /// Path and query, byte for byte as the caller wrote them.
    pub target: PathAndQuery,
    /// Its headers, without `Host` and `Authorization`.
    pub headers: HeaderMap,
    /// Its body.
    pub body: RequestBody,
    /// Whether it asks for an upgrade: then its connection is its own, and is never used again.
    pub upgrade: bool,
    /// Whose rights it uses.
    pub account: Account,
}

/// Whose rights a request uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// The agent's own.
    Own,
    /// The one that may impersonate; the agent's own where there is none.
    Impersonator,
    /// The caller's, by this `Authorization`.
    Caller(HeaderValue),
}

/// Connections that show the same to kube-apiserver. It believes a client certificate before any token: a request that is
/// to count as somebody else's must not go on a connection with the agent's own.
#[derive(Debug)]
struct Face {
    tls: Tls,
    pool: Arc<Pool>,
}

/// Connections to kube-apiserver, kept alive and pooled.
#[derive(Debug)]
pub struct Apiserver {
    host: String,
    port: u16,
    name: ServerName<'static>,
    authority: HeaderValue,
    prefix: String,
    /// With the agent's client certificate, if it has one.
    own: Face,
    /// With none.
    bare: Face,
    credential: Credential,
    impersonator: Option<Impersonator>,
}

impl Apiserver {
    /// Reads the configuration; connects to nothing. `impersonator` is `NAMESPACE/NAME` of a service account that
    /// callers are impersonated with, for which the agent requests tokens; the agent's own where none is given.
    ///
    /// # Errors
    /// If a file can't be read, is malformed, or asks for what is not supported.
    pub fn new(config: &ApiserverConfig, impersonator: Option<&str>) -> Result<Self, Report> {
        let target = match config {
            ApiserverConfig::InCluster => Target::in_cluster()?,
            ApiserverConfig::Kubeconfig { path, context } => kubeconfig::read(path, context.as_deref())?,
        };
        let wrong =
            |what: &str| Report::new(Fault::ConfigInvalid, format!("kube-apiserver's address: {what}"));
        let name = target.tls_name.as_deref().unwrap_or(&target.server.host).to_owned();
        Ok(Self {
            name: ServerName::try_from(name).map_err(|_| wrong("not a host name or IP address"))?,
            authority: HeaderValue::try_from(&target.server.authority)
                .map_err(|_| wrong("not a host and port"))?,
            host: target.server.host,
            port: target.server.port,
            prefix: target.server.prefix,
            bare: Face { tls: Tls::new(target.trust.clone(), None)?, pool: Arc::default() },
            own: Face { tls: Tls::new(target.trust, target.client)?, pool: Arc::default() },
            credential: Credential::new(target.token)?,
            impersonator: impersonator.map(Impersonator::parse).transpose()?,
        })
    }

    /// `host:port`, for messages.
    pub fn address(&self) -> String {
        let host = &self.host;
        if host.contains(':') { format!("[{host}]:{}", self.port) } else { format!("{host}:{}", self.port) }
    }

    /// Connections that wait for a request.
    pub fn idle(&self) -> usize {
        self.own.pool.idle() + self.bare.pool.idle()
    }

    /// Sends a request, and returns the answer's head; its body follows as it comes.
    ///
    /// There is no deadline for the answer: an apiserver that lives may take its time, as it may directly. Whoever
    /// waits for it drops this future when they lose patience.
    ///
    /// # Errors
    /// If there is no usable credential, no connection, or it ended before the answer's head.
    pub async fn forward(&self, outgoing: Outgoing) -> Result<Response<ApiserverBody>, Report> {
        self.send(outgoing).await
    }

    /// kube-apiserver, or something behind it, answered 401: a requested token may have been withdrawn, and is requested
    /// anew unless it is new.
    pub async fn doubt_credential(&self) {
        warn!(
            apiserver = self.address(),
            "a request was answered with 401: is the agent's own credential still good?"
        );
        if let Some(impersonator) = &self.impersonator {
            impersonator.doubt().await;
        }
    }

    /// A small request of the agent's own: the answer's status and body.
    ///
    /// # Errors
    /// As for [`Self::forward`], or if it takes longer than ten seconds.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        kind: &'static str,
        body: Vec<u8>,
    ) -> Result<(u16, Bytes), Report> {
        self.call_as(Account::Own, method, path, kind, body).await
    }

    /// The same with another account's rights.
    ///
    /// # Errors
    /// As for [`Self::call`].
    pub async fn call_as(
        &self,
        account: Account,
        method: Method,
        path: &str,
        kind: &'static str,
        body: Vec<u8>,
    ) -> Result<(u16, Bytes), Report> {
        let target = path.parse().map_err(|_| {
            Report::new(Fault::ConfigInvalid, format!("{path:?} is not a path of the apiserver"))
        })?;
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("towline-agent/", env!("CARGO_PKG_VERSION"))),
        );
        if !body.is_empty() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        let body = Full::from(body).map_err(|never| match never {}).boxed_unsync();
        let outgoing = Outgoing { method, target, headers, body, upgrade: false, account };
        let call = async {
            let response = self.send(outgoing).await?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|error| Report::caused_by(Fault::ApiserverCut, self.address(), error))?;
            Ok((status, body.to_bytes()))
        };
        timeout(CALL_WITHIN, call).await.unwrap_or_else(|_| {
            Err(Report::new(Fault::ApiserverUnreachable, format!("{}: no answer", self.address())))
        })
    }

    /// Closes connections that waited for too long, every so often; whoever runs this owns it.
    pub async fn keep_pool(&self) {
        loop {
            tokio::time::sleep(pool::IDLE).await;
            self.own.pool.prune();
            self.bare.pool.prune();
        }
    }

    /// What a request shows of whose it is: its connection's face, and its `Authorization`.
    async fn shown(&self, account: Account) -> Result<(&Face, Option<HeaderValue>), Report> {
        match (&self.impersonator, account) {
            (_, Account::Caller(value)) => Ok((&self.bare, Some(value))),
            // Boxed: asking for the impersonator's token is itself a request.
            (Some(impersonator), Account::Impersonator) => {
                Ok((&self.bare, Some(Box::pin(impersonator.authorization(self)).await?)))
            }
            _ => Ok((&self.own, self.credential.authorization()?)),
        }
    }

    async fn send(&self, outgoing: Outgoing) -> Result<Response<ApiserverBody>, Report> {
        let mut headers = outgoing.headers;
        headers.insert(header::HOST, self.authority.clone());
        headers.remove(header::AUTHORIZATION);
        let (face, authorization) = self.shown(outgoing.account).await?;
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value);
        }
        let mut request = Request::new(outgoing.body);
        *request.method_mut() = outgoing.method;
        *request.uri_mut() = self.uri(outgoing.target)?;
        *request.headers_mut() = headers;

        if !outgoing.upgrade {
            while let Some(mut line) = face.pool.take() {
                match line.send(request).await {
                    Ok(response) => return Ok(face.answer(response, line, true)),
                    // It died while it was idle, and nothing of the request was sent: another connection will do.
                    Err(mut error) => match error.take_message() {
                        Some(unsent) => request = unsent,
                        None => return Err(self.cut(error.into_error())),
                    },
                }
            }
        }
        let mut line = self.open(face).await?;
        match line.send(request).await {
            Ok(response) => Ok(face.answer(response, line, !outgoing.upgrade)),
            Err(error) => Err(self.cut(error.into_error())),
        }
    }

    fn uri(&self, target: PathAndQuery) -> Result<Uri, Report> {
        if self.prefix.is_empty() {
            return Ok(Uri::from(target));
        }
        format!("{}{target}", self.prefix).parse().map_err(|_| {
            Report::new(Fault::RequestHeadRefused, "the path can't follow the apiserver's own prefix")
        })
    }

    fn cut(&self, error: hyper::Error) -> Report {
        Report::caused_by(Fault::ApiserverCut, self.address(), error)
    }
}

impl Face {
    fn answer(
        &self,
        response: Response<hyper::body::Incoming>,
        line: Line,
        reuse: bool,
    ) -> Response<ApiserverBody> {
        response.map(|body| ApiserverBody::new(body, line, reuse.then(|| Arc::clone(&self.pool))))
    }
}

/// An empty body.
pub fn no_body() -> RequestBody {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
}

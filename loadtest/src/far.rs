//! The far end, the same for every path: an HTTP/1.1 server in kube-apiserver's place.
//!
//! It answers a GET with a small object. An upgrade, on a path that ends in `/exec?command=VERB`, makes raw bytes of the
//! connection: `echo` sends back what comes, `source` sends the [`Pattern`] (so many bytes, or without end), `sink`
//! takes bytes and says at their end what they were.

use std::{
    convert::Infallible,
    net::SocketAddr,
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{
    certificates::Certificates,
    path::{Duplex, Io},
    pattern::{PIECE, Pattern},
};

/// What is read at once.
const BLOCK: usize = 64 * 1024;

/// What raw bytes are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// They come back.
    Echo,
    /// The far end sends this many, and ends; without end where that is none.
    Source(Option<u64>),
    /// The far end takes them, and says `BYTES whole` or `BYTES wrong at OFFSET` after their end.
    Sink,
}

impl Verb {
    /// Path and query of the upgrade.
    pub fn path(self) -> String {
        let (verb, bytes) = match self {
            Self::Echo => ("echo", None),
            Self::Source(bytes) => ("source", bytes),
            Self::Sink => ("sink", None),
        };
        let bytes = bytes.map_or_else(String::new, |bytes| format!("&command={bytes}"));
        format!("/api/v1/namespaces/default/pods/far/exec?command={verb}{bytes}&stdin=true&stdout=true")
    }

    fn of_query(query: &str) -> Option<Self> {
        let mut commands = query.split('&').filter_map(|pair| pair.strip_prefix("command="));
        match commands.next()? {
            "echo" => Some(Self::Echo),
            "sink" => Some(Self::Sink),
            "source" => match commands.next() {
                None => Some(Self::Source(None)),
                Some(bytes) => u64::from_str(bytes).ok().map(|bytes| Self::Source(Some(bytes))),
            },
            _ => None,
        }
    }
}

/// What serves connections; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Far {
    sunk: Arc<AtomicU64>,
    pattern: Arc<Pattern>,
}

impl Far {
    /// Bytes that sinks took so far.
    pub fn sunk(&self) -> u64 {
        self.sunk.load(Ordering::Relaxed)
    }

    /// Serves one connection to its end.
    pub async fn serve(&self, io: Io) {
        let upgrade: Mutex<Option<(Verb, OnUpgrade)>> = Mutex::new(None);
        let service = service_fn(|request| {
            let answer = answer(request, &upgrade);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        // A connection that breaks is its peer's matter: the near end sees it, and says so.
        let served = http1::Builder::new().serve_connection(TokioIo::new(io), service).with_upgrades().await;
        let taken = upgrade.into_inner().unwrap_or_else(PoisonError::into_inner);
        if served.is_ok()
            && let Some((verb, upgrade)) = taken
            && let Ok(upgraded) = upgrade.await
        {
            let _ended = self.raw(verb, TokioIo::new(upgraded)).await;
        }
    }

    async fn raw(&self, verb: Verb, mut io: impl Duplex) -> std::io::Result<()> {
        match verb {
            Verb::Echo => {
                let mut block = vec![0; BLOCK];
                loop {
                    let n = io.read(&mut block).await?;
                    if n == 0 {
                        return io.shutdown().await;
                    }
                    io.write_all(&block[..n]).await?;
                    io.flush().await?;
                }
            }
            Verb::Source(bytes) => {
                let mut sent = 0;
                while bytes.is_none_or(|bytes| sent < bytes) {
                    let left = bytes.map_or(PIECE as u64, |bytes| bytes - sent);
                    let piece = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                    sent += io.write(&self.pattern.at(sent)[..piece]).await? as u64;
                }
                io.shutdown().await
            }
            Verb::Sink => {
                let (mut block, mut taken, mut wrong) = (vec![0; BLOCK], 0, None);
                loop {
                    let n = io.read(&mut block).await?;
                    if n == 0 {
                        break;
                    }
                    wrong = wrong.or_else(|| self.pattern.first_wrong(taken, &block[..n]));
                    taken += n as u64;
                    self.sunk.fetch_add(n as u64, Ordering::Relaxed);
                }
                let said = wrong.map_or_else(|| "whole".to_owned(), |wrong| format!("wrong at {wrong}"));
                io.write_all(format!("{taken} {said}").as_bytes()).await?;
                io.shutdown().await
            }
        }
    }
}

async fn answer(
    mut request: Request<Incoming>,
    upgrade: &Mutex<Option<(Verb, OnUpgrade)>>,
) -> Response<Full<Bytes>> {
    if let Some(protocol) = request.headers().get(header::UPGRADE).cloned() {
        let Some(verb) = request.uri().query().and_then(Verb::of_query) else {
            return object(StatusCode::BAD_REQUEST, r#"{"kind":"Status","code":400}"#);
        };
        *upgrade.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((verb, hyper::upgrade::on(&mut request)));
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        response.headers_mut().insert(header::UPGRADE, protocol);
        return response;
    }
    if *request.method() != Method::GET {
        // Whatever is asked about (a SubjectAccessReview): its body is read, so that the connection can go on.
        let _read = request.into_body().collect().await;
        return object(StatusCode::CREATED, r#"{"status":{"allowed":true}}"#);
    }
    match request.uri().path() {
        "/version" => object(StatusCode::OK, r#"{"major":"1","minor":"36","gitVersion":"v1.36.3"}"#),
        _ => object(StatusCode::OK, SMALL),
    }
}

/// About what a Namespace is.
const SMALL: &str = r#"{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"default","uid":"6f1c6a52-5b2e-4f1c-9a51-6a3f1f0b7c11","resourceVersion":"36","creationTimestamp":"2026-11-21T08:00:00Z","labels":{"kubernetes.io/metadata.name":"default"},"managedFields":[{"manager":"kube-apiserver","operation":"Update","apiVersion":"v1","time":"2026-11-21T08:00:00Z","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:labels":{".":{},"f:kubernetes.io/metadata.name":{}}}}}]},"spec":{"finalizers":["kubernetes"]},"status":{"phase":"Active"}}"#;

fn object(status: StatusCode, json: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(json.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The far end, listening. Dropping it ends every connection.
#[derive(Debug)]
pub struct FarEnd {
    far: Far,
    plain: SocketAddr,
    tls: SocketAddr,
    certificates: Certificates,
    _tasks: JoinSet<()>,
}

impl FarEnd {
    /// Listens twice on loopback: with TLS and without.
    ///
    /// # Errors
    /// If it can't.
    pub async fn start(certificates: Certificates) -> anyhow::Result<Self> {
        let (far, mut tasks) = (Far::default(), JoinSet::new());
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let (plain, tls) = (TcpListener::bind(loopback).await?, TcpListener::bind(loopback).await?);
        let end = (plain.local_addr()?, tls.local_addr()?);
        tasks.spawn(listen(plain, far.clone(), None));
        tasks.spawn(listen(tls, far.clone(), Some(certificates.clone())));
        Ok(Self { far, plain: end.0, tls: end.1, certificates, _tasks: tasks })
    }

    /// What serves its connections.
    pub fn far(&self) -> &Far {
        &self.far
    }

    /// Without TLS.
    pub fn plain(&self) -> SocketAddr {
        self.plain
    }

    /// With TLS; the certificate is [`Self::certificates`]'.
    pub fn tls(&self) -> SocketAddr {
        self.tls
    }

    /// Its own, which peers may use for their legs too.
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }
}

async fn listen(listener: TcpListener, far: Far, tls: Option<Certificates>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((tcp, _)) = listener.accept().await else {
            // Mostly that there are too many open files; those that are open go on.
            tokio::task::yield_now().await;
            continue;
        };
        let (far, tls) = (far.clone(), tls.clone());
        connections.spawn(async move {
            if let Some(io) = begin(tcp, tls.as_ref()).await {
                far.serve(io).await;
            }
        });
    }
}

async fn begin(tcp: TcpStream, tls: Option<&Certificates>) -> Option<Io> {
    tcp.set_nodelay(true).ok()?;
    match tls {
        None => Some(Box::new(tcp)),
        Some(certificates) => Some(Box::new(certificates.acceptor().accept(tcp).await.ok()?)),
    }
}

#[cfg(test)]
mod tests;

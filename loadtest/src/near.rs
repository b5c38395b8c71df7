//! The near end, the same for every path: what kubectl is to towline.

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    client::conn::http1::{self, SendRequest},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use tokio_util::task::AbortOnDropHandle;

use crate::{far::Verb, path::Path};

/// A path that the far end answers with a small object.
pub const SMALL: &str = "/api/v1/namespaces/default";

/// A connection for requests, one after the other; dropping it ends it.
#[derive(Debug)]
pub struct Http {
    sender: SendRequest<Empty<Bytes>>,
    host: String,
    prefix: String,
    _driver: AbortOnDropHandle<()>,
}

/// A connection that was upgraded: raw bytes both ways.
pub type Raw = TokioIo<Upgraded>;

impl Http {
    /// A new one over a path.
    ///
    /// # Errors
    /// If it can't be had.
    pub async fn dial(path: &dyn Path) -> anyhow::Result<Self> {
        let io = path.dial().await.with_context(|| path.name().to_owned())?;
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await?;
        let driver = tokio::spawn(async move {
            // What ends it shows in the request that it carries.
            let _ended = connection.with_upgrades().await;
        });
        let (host, prefix) = (path.host().to_owned(), path.prefix().to_owned());
        Ok(Self { sender, host, prefix, _driver: AbortOnDropHandle::new(driver) })
    }

    /// Asks for a path, and reads the whole answer; its length.
    ///
    /// # Errors
    /// If it is not 200.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<usize> {
        let request = Request::get(format!("{}{path}", self.prefix))
            .header(header::HOST, &self.host)
            .header(header::ACCEPT, "application/json")
            .body(Empty::new())?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status == StatusCode::OK, "{path}: {status}: {}", String::from_utf8_lossy(&body));
        Ok(body.len())
    }

    /// Asks for raw bytes, as kubectl does for `exec`.
    ///
    /// # Errors
    /// If that is refused.
    pub async fn upgrade(mut self, verb: Verb) -> anyhow::Result<Raw> {
        let request = Request::get(format!("{}{}", self.prefix, verb.path()))
            .header(header::HOST, &self.host)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "SPDY/3.1")
            .body(Empty::new())?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let body = response.into_body().collect().await?.to_bytes();
            anyhow::bail!("no upgrade: {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(TokioIo::new(hyper::upgrade::on(response).await?))
    }
}

/// Raw bytes over a new connection of a path.
///
/// # Errors
/// If they can't be had.
pub async fn raw(path: &dyn Path, verb: Verb) -> anyhow::Result<Raw> {
    Http::dial(path).await?.upgrade(verb).await
}

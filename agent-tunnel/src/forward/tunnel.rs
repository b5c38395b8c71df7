//! A connection that was upgraded: raw bytes, each direction with an end of its own.

use std::{io, time::Duration};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split},
    time::timeout,
};
use towline_tunnel::{fault::Fault, mux::CloseReason, observe::Present};
use tracing::{debug, info};

use super::{Ending, Forwarder, cut};
use crate::{authority::Hold, dial::ApiserverBody, stream::ResetReason};

/// What is read at once: a TLS record's worth.
const BLOCK: usize = 16 * 1024;
/// Both sides have written their heads already when this begins to count.
const SWITCH_WITHIN: Duration = Duration::from_secs(10);
/// kube-apiserver took no more bytes: whatever it has still to say comes within this, or never.
const LAST_BYTES_WITHIN: Duration = Duration::from_secs(10);

/// An upgrade that was accepted on both sides.
pub(super) struct Tunnel {
    inner: OnUpgrade,
    upstream: OnUpgrade,
    /// Holds the connection until its bytes are ours.
    _answer: ApiserverBody,
    hold: Hold,
}

/// Which side broke.
#[derive(Debug)]
enum Broken {
    Inner(io::Error),
    Upstream(io::Error),
}

impl Tunnel {
    pub(super) fn new(inner: OnUpgrade, upstream: OnUpgrade, answer: ApiserverBody, hold: Hold) -> Self {
        Self { inner, upstream, _answer: answer, hold }
    }

    /// Carries bytes until both directions ended. What breaks on kube-apiserver's side breaks the stream: its peer must
    /// not take it for an end.
    pub(super) async fn run(self, forwarder: &Forwarder, reset: &ResetReason, ending: &Ending) {
        let _present = Present::in_gauge(&forwarder.metrics.tunnels);
        let switched = timeout(SWITCH_WITHIN, async { tokio::try_join!(self.inner, self.upstream) }).await;
        let (inner, upstream) = match switched {
            Ok(Ok(switched)) => switched,
            Ok(Err(error)) => return debug!(%error, "an upgrade was not completed"),
            Err(_elapsed) => return debug!("an upgrade was not completed in time"),
        };
        let (inner, upstream) = (TokioIo::new(inner), TokioIo::new(upstream));
        let metrics = &forwarder.metrics;
        let carried = join(inner, upstream, &metrics.bytes_to_apiserver, &metrics.bytes_to_callers, reset);
        // The reason is set before whoever selects on this drops the stream.
        let cut = async {
            let (reason, why) = cut(ending.cut.clone(), self.hold).await.reason();
            reset.set(reason, why);
            why
        };
        tokio::select! {
            carried = carried => match carried {
                Ok(()) => debug!("an upgraded connection ended"),
                Err(Broken::Inner(error)) => debug!(%error, "the caller left an upgraded connection"),
                Err(Broken::Upstream(error)) => debug!(%error, "kube-apiserver cut an upgraded connection"),
            },
            why = cut => info!(why, "an upgraded connection was cut"),
        }
    }
}

/// Ends a connection whose upgrade was refused, once the refusal is written.
pub(super) async fn end(connection: OnUpgrade) {
    let end = async {
        // Where the connection broke there is nothing to end.
        if let Ok(connection) = connection.await {
            let _ended = TokioIo::new(connection).shutdown().await;
        }
    };
    let _late = timeout(SWITCH_WITHIN, end).await;
}

/// Carries bytes both ways. Each direction's end is passed on as an end; the other goes on.
async fn join<A, B>(
    inner: A,
    upstream: B,
    sent: &Counter,
    got: &Counter,
    reset: &ResetReason,
) -> Result<(), Broken>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (mut inner_reader, mut inner_writer) = split(inner);
    let (mut upstream_reader, mut upstream_writer) = split(upstream);
    let down = async {
        let copied = copy(&mut upstream_reader, &mut inner_writer, got).await;
        copied.map_err(|side| match side {
            Side::Reader(error) => {
                reset.set(CloseReason::Truncated, Fault::ApiserverCut.title());
                Broken::Upstream(error)
            }
            Side::Writer(error) => Broken::Inner(error),
        })
    };
    let up = async {
        match copy(&mut inner_reader, &mut upstream_writer, sent).await {
            Ok(()) => Ok(None),
            Err(Side::Reader(error)) => Err(Broken::Inner(error)),
            // It closed; what it said before is still to be read.
            Err(Side::Writer(error)) => Ok(Some(error)),
        }
    };
    let (mut down, mut up) = (std::pin::pin!(down), std::pin::pin!(up));
    let refused = tokio::select! {
        ended = down.as_mut() => {
            ended?;
            up.await?;
            return Ok(());
        }
        ended = up.as_mut() => ended?,
    };
    match refused {
        None => down.await,
        Some(error) => timeout(LAST_BYTES_WITHIN, down).await.unwrap_or_else(|_| {
            reset.set(CloseReason::Truncated, Fault::ApiserverCut.title());
            Err(Broken::Upstream(error))
        }),
    }
}

enum Side {
    Reader(io::Error),
    Writer(io::Error),
}

async fn copy<R, W>(reader: &mut R, writer: &mut W, bytes: &Counter) -> Result<(), Side>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut block = vec![0; BLOCK];
    loop {
        let n = reader.read(&mut block).await.map_err(Side::Reader)?;
        if n == 0 {
            return writer.shutdown().await.map_err(Side::Writer);
        }
        bytes.inc_by(n as u64);
        writer.write_all(&block[..n]).await.map_err(Side::Writer)?;
        writer.flush().await.map_err(Side::Writer)?;
    }
}

#[cfg(test)]
mod tests;

//! Requests that leave HTTP: exec, attach, port-forward over WebSocket or SPDY/3.1.

use std::{pin::Pin, sync::Arc};

use http::{
    HeaderValue, Response, StatusCode, Uri,
    header::{CONNECTION, UPGRADE},
};
use http_body_util::{BodyExt as _, Empty};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt as _, copy_bidirectional_with_sizes};
use towline_tunnel::{
    fault::{Fault, Report},
    session::message::Secret,
};

use super::{
    Answered, Arrival, Unanswered, authorization, body::Download, build, drop_hop_by_hop, exchange,
    note_told, nothing, onward,
};
use crate::dial::{InnerConnection, Pool, StreamAt, report_of};

/// One record of inner TLS, so that small writes are passed on as they come and large ones in few steps.
const COPY: usize = 16 * 1024;

/// Copies the bytes of an upgraded connection to their end; says whether that was clean.
pub type UpgradedCopy = Pin<Box<dyn Future<Output = bool> + Send>>;

/// Asks the cluster for the upgrade. What it refuses is passed back as it came; then the connection that asked
/// takes no further requests, on either side (THREATS T9).
pub(super) async fn forward(
    pool: &Arc<Pool>,
    mut arrival: Arrival,
    token: &Secret,
) -> Result<Answered, Unanswered> {
    let wanted = arrival.parts.headers.get(UPGRADE).cloned().ok_or(Report::from(Fault::Internal))?;
    let client =
        arrival.parts.extensions.remove::<OnUpgrade>().ok_or_else(|| {
            Report::new(Fault::RequestHeadRefused, "an upgrade is possible over HTTP/1.1 only")
        })?;
    let mut headers = onward(arrival.parts.headers, arrival.cluster, authorization(token)?)?;
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, wanted);
    let request = build(arrival.parts.method, Uri::from(arrival.path), headers, nothing());
    let (connection, mut response) = exchange(pool, request).await?;
    note_told(pool, token, &response);
    tracing::debug!(cluster = %arrival.cluster, channel = %connection.at.channel, stream = %connection.at.stream,
        status = response.status().as_u16(), "upgrade answered");
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (mut parts, body) = response.into_parts();
        drop_hop_by_hop(&mut parts.headers);
        let download = Download::last(body, connection);
        return Ok((Response::from_parts(parts, download.boxed_unsync()), None));
    }
    let agent = hyper::upgrade::on(&mut response);
    let (parts, _) = response.into_parts();
    let answer = Response::from_parts(parts, Empty::new().map_err(|never| match never {}).boxed_unsync());
    Ok((answer, Some(Box::pin(copy(client, agent, connection)))))
}

async fn copy(client: OnUpgrade, agent: OnUpgrade, connection: InnerConnection) -> bool {
    // The answer is on its way to the client when this runs; the agent's side has switched already.
    let joined = match tokio::try_join!(client, agent) {
        Ok((client, agent)) => join(client, agent).await,
        Err(error) => Err(report_of(&error)),
    };
    let StreamAt { channel, stream } = connection.at;
    match &joined {
        Ok((up, down)) => tracing::debug!(%channel, %stream, up, down, "upgraded stream ended"),
        // Whoever leaves, knows; what ended it from the other side is worth telling.
        Err(report) if report.fault == Fault::StreamTruncated => {
            tracing::debug!(%channel, %stream, %report, "upgraded stream was cut");
        }
        Err(report) => {
            tracing::warn!(%channel, %stream, %report, "an exec, attach or port-forward was cut");
        }
    }
    joined.is_ok()
}

/// Copies both ways. An end of one direction is passed on and leaves the other open; an error ends both without
/// a clean end on either side, so that nobody takes what is there for all there was.
async fn join(client: Upgraded, agent: Upgraded) -> Result<(u64, u64), Report> {
    let (mut client, mut agent) = (TokioIo::new(client), TokioIo::new(agent));
    let copied = copy_bidirectional_with_sizes(&mut client, &mut agent, COPY, COPY).await;
    let copied = copied.map_err(|error| report_of(&error))?;
    // Both have ended; what TLS still has to say is said.
    let _said = tokio::join!(client.flush(), agent.flush());
    Ok(copied)
}

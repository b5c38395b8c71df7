//! Whether a carrier carries: bytes of any value, few and many, both ways, each within a deadline.
//!
//! A proxy that accepts a carrier and then keeps back what goes through it would otherwise be found by a command that hangs. It is
//! asked for by diallers that don't know the network yet; it costs a round trip.

use std::{io, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    time::timeout,
};

use super::{
    AcceptError, ReceiveError,
    connect::{broken, lost, unread},
    message::{self, Message, MessageError, Refused},
    receive, send,
};
use crate::{
    fault::{Fault, Report},
    proto::CloseReason,
};

/// The relay waits so long for what is due, and then says that it does not come.
const COMES_WITHIN: Duration = Duration::from_secs(2);
/// The dialler waits so long: the relay's word, and a slow path's round trip.
const SAID_WITHIN: Duration = Duration::from_secs(3);
/// The relay leaves the end to the dialler for so long: until the dialler, which waits longer, has said what it misses.
const LEAVES_WITHIN: Duration = Duration::from_secs(2);
/// More than what goes into one packet, and than the small messages that some proxies let through.
const BYTES: usize = 4096;

type Received = (Message, Vec<u8>);

/// At the relay: the first message of a dialler that asked to be told if it does not come.
pub(super) async fn first<IO>(carrier: &mut IO) -> Result<Received, AcceptError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    match timeout(COMES_WITHIN, receive(carrier)).await {
        Ok(received) => Ok(received?),
        Err(_elapsed) => Err(refuse(carrier, CloseReason::NothingCame).await?),
    }
}

/// At the relay, once it announced it.
pub(super) async fn of_relay<IO>(carrier: &mut IO) -> Result<(), AcceptError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let bytes = random();
    let sent = hash(&bytes);
    send(carrier, &message::encode(&Message::Challenge { heard: None, bytes })).await?;
    match timeout(COMES_WITHIN, receive(carrier)).await {
        Ok(Ok((Message::Challenge { heard, bytes }, _))) if heard == Some(sent) => {
            let heard = hash(&bytes);
            Ok(send(carrier, &message::encode(&Message::Challenged { heard })).await?)
        }
        Ok(Ok((Message::Challenge { .. }, _))) => Err(refuse(carrier, CloseReason::Damaged).await?),
        Ok(Ok(_)) => Err(MessageError::Unexpected.into()),
        Ok(Err(ReceiveError::Io(error))) => Err(error.into()),
        // Damaged so far that it is no message.
        Ok(Err(ReceiveError::Message(_))) => Err(refuse(carrier, CloseReason::Damaged).await?),
        Err(_elapsed) => Err(refuse(carrier, CloseReason::LargeMissing).await?),
    }
}

async fn refuse<IO>(carrier: &mut IO, reason: CloseReason) -> io::Result<AcceptError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    send(carrier, &message::encode(&Message::Refused(Refused::new(reason, "")))).await?;
    // Where that does not come through either, an end that does would look like a connection that broke.
    let mut rest = [0; 1024];
    let left = async { while matches!(carrier.read(&mut rest).await, Ok(1..)) {} };
    let _late = timeout(LEAVES_WITHIN, left).await;
    Ok(AcceptError::Carrier(reason))
}

/// At the dialler: what answers HELLO.
pub(super) async fn answer<IO>(carrier: &mut IO) -> Result<Received, Report>
where
    IO: AsyncRead + Unpin,
{
    within(Fault::CarrierSilentDown, carrier).await.map_err(before_challenge)
}

/// Before its challenge has come, the relay misses its answer because that did not come, alone or with what was sent just before.
fn before_challenge(report: Report) -> Report {
    match report.fault {
        Fault::CarrierLargeUp => Fault::CarrierLargeDown.into(),
        _ => report,
    }
}

/// At the dialler, once the relay announced it.
pub(super) async fn of_dialler<IO>(carrier: &mut IO) -> Result<(), Report>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let (Message::Challenge { bytes, .. }, _) =
        within(Fault::CarrierLargeDown, carrier).await.map_err(before_challenge)?
    else {
        return Err(broken(MessageError::Unexpected));
    };
    let heard = Some(hash(&bytes));
    let bytes = random();
    let sent = hash(&bytes);
    send(carrier, &message::encode(&Message::Challenge { heard, bytes })).await.map_err(lost)?;
    match within(Fault::CarrierLargeUp, carrier).await?.0 {
        Message::Challenged { heard } if heard == sent => Ok(()),
        Message::Challenged { .. } => Err(Fault::CarrierDamaged.into()),
        _ => Err(broken(MessageError::Unexpected)),
    }
}

/// The next message, unless the relay says what is wrong with the carrier. Anybody in between could say it, and could as well cut.
async fn within<IO>(silent: Fault, carrier: &mut IO) -> Result<Received, Report>
where
    IO: AsyncRead + Unpin,
{
    match timeout(SAID_WITHIN, receive(carrier)).await {
        Ok(Ok((Message::Refused(refused), _))) if is_of_carrier(refused.reason) => {
            Err(refused.reason.fault().into())
        }
        Ok(received) => received.map_err(unread),
        Err(_elapsed) => Err(silent.into()),
    }
}

fn is_of_carrier(reason: CloseReason) -> bool {
    matches!(reason, CloseReason::NothingCame | CloseReason::LargeMissing | CloseReason::Damaged)
}

fn random() -> Vec<u8> {
    let mut bytes = vec![0; BYTES];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source answers");
    bytes
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

#[cfg(test)]
mod tests;

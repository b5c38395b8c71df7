//! Whether bytes cross once the upgrade is done.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    time::timeout,
};

use super::Verdict;
use crate::{
    fault::{Fault, Report},
    ids::KeyHash,
    session::{Exporter, Seen, look, look_closer, provoke},
};

/// A relay answers the first message at once; this is for the network.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);
/// A relay that is provoked hangs up at once.
const HANG_UP_WITHIN: Duration = Duration::from_secs(3);
/// More than any limit that is set against "large" messages of control protocols, and less than a session's longest message.
pub(super) const LARGE: usize = 8 * 1024;

/// Small messages: what the relay's first one says. A wrong key or version is no matter of the way there, and so comes inside.
pub(super) async fn small<IO>(
    mut carrier: IO,
    outer: Option<Exporter>,
    pin: KeyHash,
) -> Verdict<Result<Seen, Report>>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    match timeout(ANSWER_WITHIN, look(&mut carrier, outer, pin, 0)).await {
        Ok(Err(report)) if report.fault == Fault::CarrierLost => {
            Verdict::failed(report, "the connection ended before the relay's first message came")
        }
        Ok(looked) => Verdict::ok(looked, "the relay answers the first message"),
        Err(_elapsed) => swallowed(carrier).await,
    }
}

/// Nothing came back. Whether the relay got anything shows in whether it hangs up on nonsense.
async fn swallowed<IO>(mut carrier: IO) -> Verdict<Result<Seen, Report>>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let hung_up = async {
        provoke(&mut carrier).await?;
        let mut rest = [0; 256];
        while carrier.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    let silence = format!(
        "the upgrade was answered, and the first message was not within {} s",
        ANSWER_WITHIN.as_secs()
    );
    match timeout(HANG_UP_WITHIN, hung_up).await {
        // An error here is an end, too.
        Ok(_ended) => Verdict::failed(
            Report::new(Fault::FramesLostDown, silence),
            "the relay hung up on nonsense at once: what is sent arrives there, and its answers do not arrive here",
        ),
        Err(_elapsed) => Verdict::failed(
            Report::new(Fault::FramesLostUp, silence),
            "the relay did not even hang up on nonsense: what is sent does not arrive there",
        ),
    }
}

/// Large messages, one in each direction, on a carrier of their own.
pub(super) async fn large<IO>(mut carrier: IO, outer: Option<Exporter>, pin: KeyHash) -> Verdict<()>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let lost = |direction: &str, why: &str| {
        let seen = format!("{direction}: small messages crossed on the connection before");
        Verdict::failed(Report::new(Fault::LargeFramesLost, seen), why.to_owned())
    };
    match timeout(ANSWER_WITHIN, look(&mut carrier, outer, pin, LARGE)).await {
        Ok(Ok(_seen)) => {}
        Ok(Err(report)) if report.fault != Fault::CarrierLost => return Verdict::failed(report, ""),
        Ok(Err(_)) | Err(_) => {
            return lost(
                "towards the relay",
                "a first message of 8 KiB was not answered, and a small one was",
            );
        }
    }
    match timeout(ANSWER_WITHIN, look_closer(carrier, pin)).await {
        Ok(Ok(())) => Verdict::ok((), "8 KiB towards the relay, more than 1 KiB from it"),
        Ok(Err(_)) | Err(_) => lost(
            "from the relay",
            "8 KiB arrived there, and its answer of more than 1 KiB did not arrive here",
        ),
    }
}

//! A better carrier than the session's: looked for while the session goes on, and taken without disturbing its streams.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;
use towline_tunnel::{carrier::rung::Rung, mux::Closed};

use super::{Purpose, Session, Shared, establish};

/// How often a session that takes no new streams is looked at: without streams it is not needed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a failure of another kind than the carrier's, such as a token that is not there.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Waits until a session stands on a better carrier than this; for ever where there is none.
pub(super) async fn found(shared: &Shared, than: Rung) -> (Session, AbortOnDropHandle<Closed>) {
    loop {
        shared.ladder().better_due(than).await;
        match establish(shared, Purpose::Better(than)).await {
            Ok(better) => return better,
            Err(report) => {
                tracing::debug!(%report, carrier = than.name(), "no better carrier gets through yet")
            }
        }
        sleep(AGAIN_AFTER).await;
    }
}

/// Ends a session whose place another took, once its streams have ended. New ones are opened on the other; who just asked for this
/// one finds it open for a look's time.
pub(super) fn retire(session: Session, mut driver: AbortOnDropHandle<Closed>) -> AbortOnDropHandle<Closed> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let idle = async {
            loop {
                sleep(LOOK_EVERY).await;
                if session.connection.stream_count() == 0 {
                    break;
                }
            }
        };
        tokio::select! {
            closed = &mut driver => return closed.unwrap_or(Closed::Stopped),
            () = idle => session.connection.close(),
        }
        driver.await.unwrap_or(Closed::Stopped)
    }))
}

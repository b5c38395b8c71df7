//! One session with the relay, from its first stream to its last.

use std::{convert::Infallible, future::pending, sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
    time::{Instant, sleep},
};
use towline_tunnel::{
    drain::DrainWatcher,
    ids::ChannelId,
    keys::VerifyingKey,
    mux::{CloseReason, Connection, Driver, EndpointConfig, Keeper},
    observe::Present,
};
use tracing::{debug, info};

use crate::{accept::Acceptor, forward::Ending, metrics::Metrics};

/// How often a session that takes no new streams is looked at: without streams it is not needed.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// What the relay opened before it heard that a session is replaced has come by then, and is served there.
const CROSSED: Duration = Duration::from_secs(2);
/// What is cut has this long to tell its peer.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(3);

/// A session that began.
pub(crate) struct Session {
    pub(crate) channel: ChannelId,
    pub(crate) acceptor: Arc<Acceptor>,
    pub(crate) tickets: VerifyingKey,
    pub(crate) metrics: Metrics,
    pub(crate) keeper: Keeper,
    /// Of the agent, not of this session.
    pub(crate) ending: Ending,
    /// Streams may go on for this long once the agent drains.
    pub(crate) drain_timeout: Duration,
    /// It is a line, beside the agent's own session.
    pub(crate) line: bool,
}

/// What becomes of a session, between it and who owns it.
pub(crate) struct Fate {
    /// Told once the relay wants to be rid of it: it is gone, or takes no new streams.
    pub(crate) leaving: oneshot::Sender<Leaving>,
    /// Tells that another has taken its place, and how long its streams may go on here.
    pub(crate) replaced: oneshot::Receiver<Duration>,
}

/// The relay wants to be rid of a session: it is gone, or takes no new streams.
#[derive(Debug)]
pub(crate) struct Leaving {
    pub(crate) reason: CloseReason,
    /// Not to be dialled again before this is over.
    pub(crate) delay: Duration,
}

/// Why a session takes no new streams.
enum Going {
    Drain,
    Relay(Leaving),
    Replaced(Duration),
}

impl Session {
    /// Its mux.
    pub(crate) fn mux<IO>(&self, io: IO, config: EndpointConfig) -> (Connection, Driver<IO>) {
        Connection::kept(io, BytesMut::new(), config, self.keeper.clone())
    }

    /// Runs it to its end.
    pub(crate) async fn run<IO>(
        self,
        (connection, driver): (Connection, Driver<IO>),
        fate: Fate,
        drain: DrainWatcher,
    ) where
        IO: AsyncRead + AsyncWrite + Send,
    {
        let gauge = if self.line { &self.metrics.lines } else { &self.metrics.sessions };
        let _present = Present::in_gauge(gauge);
        if !self.line {
            self.metrics.sessions_opened.inc();
        }
        let mut driver = std::pin::pin!(driver.run());
        let accepting =
            Arc::clone(&self.acceptor).accept(connection.clone(), self.tickets, self.ending.clone());
        let mut streams = std::pin::pin!(accepting);
        let closed = tokio::select! {
            closed = driver.as_mut() => closed,
            () = streams.as_mut() => {
                // After somebody said to go.
                connection.close();
                driver.await
            }
            never = self.watch(&connection, fate, drain) => match never {},
        };
        let (reason, detail) = closed.reason();
        info!(channel = %self.channel, line = self.line, reason = reason.text(), detail, "a session with the relay ended");
    }

    /// Says when another session should take its place, and ends it in time once another did, or the agent drains. Never returns:
    /// the session ends when its streams did, or the connection.
    async fn watch(&self, connection: &Connection, fate: Fate, drain: DrainWatcher) -> Infallible {
        let Fate { leaving, replaced } = fate;
        let going = tokio::select! {
            () = drain.begun() => Going::Drain,
            goaway = connection.going_away() => Going::Relay(match goaway {
                Ok(goaway) => Leaving { reason: goaway.reason, delay: goaway.delay },
                Err(error) => Leaving { reason: error.reason, delay: Duration::ZERO },
            }),
            patience = told(replaced) => Going::Replaced(patience),
        };
        match going {
            Going::Drain => {}
            Going::Relay(gone) => {
                info!(channel = %self.channel, reason = gone.reason.text(), "the relay takes no new streams here");
                let _nobody_waits = leaving.send(gone);
                // Its streams go on elsewhere once the relay closes it.
                if !quiet(connection, &drain).await {
                    connection.close();
                    return pending().await;
                }
            }
            Going::Replaced(patience) => {
                connection.go_away(CloseReason::Draining, Duration::ZERO, "another session took its place");
                let until = Instant::now() + patience;
                let over = async {
                    sleep(CROSSED.min(patience)).await;
                    quiet(connection, &drain).await
                };
                tokio::select! {
                    drains = over => if !drains {
                        connection.close();
                        return pending().await;
                    },
                    () = tokio::time::sleep_until(until) => {
                        debug!(channel = %self.channel, "its streams go on on another session");
                        connection.leave();
                        return pending().await;
                    }
                }
            }
        }
        debug!(channel = %self.channel, "draining");
        connection.go_away(CloseReason::Draining, Duration::ZERO, "the agent is shutting down");
        sleep(self.drain_timeout + LAST_WORDS).await;
        connection.close();
        pending().await
    }
}

/// Whether it was told; waits for ever where nobody will tell it any more.
async fn told(replaced: oneshot::Receiver<Duration>) -> Duration {
    match replaced.await {
        Ok(patience) => patience,
        Err(_nobody) => pending().await,
    }
}

/// Waits until a session has no streams; true if the agent drains before. Streams end without telling: looked at now and then.
async fn quiet(connection: &Connection, drain: &DrainWatcher) -> bool {
    while connection.stream_count() > 0 {
        tokio::select! {
            () = drain.begun() => return true,
            () = sleep(LOOK_EVERY) => {}
        }
    }
    false
}

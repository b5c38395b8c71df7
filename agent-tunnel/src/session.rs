//! One session with the relay, from its first stream to its last.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
    time::{Instant, sleep, sleep_until},
};
use towline_tunnel::{
    clock::Clock,
    drain::DrainWatcher,
    ids::ChannelId,
    keys::VerifyingKey,
    mux::{CloseReason, Connection, Driver, EndpointConfig, Keeper},
    observe::Present,
    session::control::Control,
};
use tracing::{debug, info};

use crate::{accept::Acceptor, forward::Ending, instance::Instance, metrics::Metrics};

/// How often a session that takes no new streams is looked at: without streams it is not needed.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// What is cut has this long to tell its peer.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(3);

/// A session that began.
pub(crate) struct Session {
    pub(crate) channel: ChannelId,
    pub(crate) acceptor: Arc<Acceptor>,
    pub(crate) instance: Arc<Instance>,
    pub(crate) tickets: VerifyingKey,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
    pub(crate) keeper: Keeper,
    /// Of the agent, not of this session.
    pub(crate) ending: Ending,
    /// Streams may go on for this long once the agent drains.
    pub(crate) drain_timeout: Duration,
    /// It is a line, beside the agent's own session.
    pub(crate) line: bool,
}

/// The relay wants to be rid of a session: it is gone, or takes no new streams.
#[derive(Debug)]
pub(crate) struct Leaving {
    pub(crate) reason: CloseReason,
    /// Not to be dialled again before this is over.
    pub(crate) delay: Duration,
}

impl Session {
    /// Its mux.
    pub(crate) fn mux<IO>(&self, io: IO, config: EndpointConfig) -> (Connection, Driver<IO>) {
        Connection::kept(io, BytesMut::new(), config, self.keeper.clone())
    }

    /// Runs it to its end. `leaving` is told as soon as another session should take its place.
    pub(crate) async fn run<IO>(
        self,
        (connection, driver): (Connection, Driver<IO>),
        leaving: oneshot::Sender<Leaving>,
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
            never = self.renew(&connection), if !self.line => match never {},
            never = self.watch(&connection, leaving, drain) => match never {},
        };
        let (reason, detail) = closed.reason();
        info!(channel = %self.channel, line = self.line, reason = reason.text(), detail, "a session with the relay ended");
    }

    /// Says when another session should take its place, and ends it in time once the agent drains. Never returns: the session ends
    /// when its streams did, or the connection.
    async fn watch(
        &self,
        connection: &Connection,
        leaving: oneshot::Sender<Leaving>,
        drain: DrainWatcher,
    ) -> Infallible {
        let gone = tokio::select! {
            () = drain.begun() => None,
            goaway = connection.going_away() => Some(match goaway {
                Ok(goaway) => Leaving { reason: goaway.reason, delay: goaway.delay },
                Err(error) => Leaving { reason: error.reason, delay: Duration::ZERO },
            }),
        };
        if let Some(gone) = gone {
            info!(channel = %self.channel, reason = gone.reason.text(), "the relay takes no new streams here");
            let _nobody_waits = leaving.send(gone);
            // Its streams go on elsewhere once the relay closes it. Streams end without telling: looked at now and then.
            loop {
                tokio::select! {
                    () = drain.begun() => break,
                    () = sleep(LOOK_EVERY) => {}
                }
                if connection.stream_count() == 0 {
                    connection.close();
                    return std::future::pending().await;
                }
            }
        }
        debug!(channel = %self.channel, "draining");
        connection.go_away(CloseReason::Draining, Duration::ZERO, "the agent is shutting down");
        sleep(self.drain_timeout + LAST_WORDS).await;
        connection.close();
        std::future::pending().await
    }

    /// Asks for the next certificate in time. Never returns.
    async fn renew(&self, connection: &Connection) -> Infallible {
        let mut due = Instant::now() + self.instance.renew_in(self.clock.now());
        let mut number = 0;
        loop {
            tokio::select! {
                () = sleep_until(due) => {
                    number += 1;
                    connection.control(self.instance.renewal().encode(number));
                    due = Instant::now() + Instance::patience();
                }
                message = connection.next_control() => {
                    let Ok(message) = message else { return std::future::pending().await };
                    // Answers to nothing, and what a newer relay may say, are ignored.
                    if let Ok((id, answer)) = Control::decode(&message)
                        && id == number
                        && let Some(next) = self.instance.answered(answer, self.clock.now())
                    {
                        due = Instant::now() + next;
                    }
                }
            }
        }
    }
}

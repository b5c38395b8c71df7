//! An agent's ways to its relays: to one, or to two that know nothing of each other.
//!
//! A second relay is there for when the first is not: both are joined by themselves, hold sessions of their own, and are served alike. What is
//! lost with one changes nothing at the other. Streams are resumed where they began.

use std::{convert::Infallible, future::pending, sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};
use towline_tunnel::{
    clock::Clock,
    doctor::Network,
    drain::DrainWatcher,
    fault::{Fault, Report},
    mux::Connection,
    session::message::Secret,
};
use tracing::{error, warn};

use crate::{
    accept::Acceptor,
    secret::StateSecret,
    state::{DataDir, Rank, RefusedToken},
    uplink::{Parts, RelayConfig, Status, Uplink},
};

/// A note of why one ends, which kube-apiserver may have to keep, is not waited for longer.
const NOTE_WITHIN: Duration = Duration::from_secs(5);

/// One way, or two.
pub(crate) struct Uplinks {
    first: (Uplink, Option<Refusal>),
    second: Option<(Uplink, Option<Refusal>)>,
    acceptor: Arc<Acceptor>,
    status: watch::Sender<Status>,
    carrying: watch::Sender<Option<Connection>>,
}

impl Uplinks {
    /// Prepares them; `carrying` is told a session on which streams begin. Says whether there is one from then on.
    ///
    /// # Errors
    /// If the cluster was not enrolled at one of them and there is no token, both are the same, or a file can't be used.
    pub(crate) fn new(
        parts: Parts,
        first: RelayConfig,
        second: Option<RelayConfig>,
        carrying: watch::Sender<Option<Connection>>,
    ) -> Result<(Self, watch::Receiver<Status>), Report> {
        let is_one_of_two = second.is_some();
        let prepare = |rank, relay: RelayConfig| {
            let mut parts = parts.clone();
            if is_one_of_two {
                // Whatever is promised by way of the one, half is there for the other.
                parts.ledger = parts.ledger.child(parts.limits.max_buffered_bytes / 2);
            }
            let refusal = relay.enrolment.as_ref().map(|token| Refusal {
                rank,
                token: token.secret.clone(),
                dir: parts.dir.clone(),
                secret: parts.secret.clone(),
                clock: parts.clock.clone(),
            });
            Ok::<_, Report>((Uplink::new(parts, rank, relay)?, refusal))
        };
        let first = prepare(Rank::First, first)?;
        let second = second.map(|relay| prepare(Rank::Second, relay)).transpose()?;
        if let Some((second, _)) = &second
            && second.network()?.pin == first.0.network()?.pin
        {
            let token = second.rank().token_argument();
            let same =
                format!("{token}: the second relay is the first one: its token must be another relay's");
            return Err(Report::new(Fault::ConfigInvalid, same));
        }
        let (status, watcher) = watch::channel(Status::Away(None));
        Ok((Self { first, second, acceptor: Arc::clone(&parts.acceptor), status, carrying }, watcher))
    }

    /// The ways there are, for whoever looks at them, the first one first.
    pub(crate) fn networks(&self) -> Vec<Network> {
        let second = self.second.as_ref().map(|(second, _)| second);
        std::iter::once(&self.first.0).chain(second).filter_map(|uplink| uplink.network().ok()).collect()
    }

    /// Stays connected until the drain, and then until the last session ended.
    ///
    /// # Errors
    /// If no relay lets the agent in: why the first does not.
    pub(crate) async fn run(mut self, drain: DrainWatcher) -> Result<(), Report> {
        let _owner = self.acceptor.own_streams();
        let refusals = (self.first.1.take(), self.second.as_mut().and_then(|(_, refusal)| refusal.take()));
        let both = async {
            let first = self.stay(&self.first.0, refusals.0, drain.clone());
            match &self.second {
                None => first.await,
                Some((second, _)) => {
                    let (first, second) = tokio::join!(first, self.stay(second, refusals.1, drain.clone()));
                    second.or(first)
                }
            }
        };
        tokio::select! {
            ended = both => ended,
            never = self.tell_status() => match never {},
            never = self.tell_carrying() => match never {},
        }
    }

    async fn stay(
        &self,
        uplink: &Uplink,
        refusal: Option<Refusal>,
        drain: DrainWatcher,
    ) -> Result<(), Report> {
        let ended = uplink.run(drain).await;
        if let Err(report) = &ended {
            if self.second.is_some() {
                error!(%report, relay = uplink.rank().name(), "this relay does not let the agent in, which is left to the other until the agent is started again");
            }
            if let Some(refusal) = refusal {
                refusal.note(report, &self.acceptor).await;
            }
        }
        ended
    }

    async fn tell_status(&self) -> Infallible {
        let is = |status: &Status| matches!(status, Status::Connected { .. });
        let second = self.second.as_ref().map(|(second, _)| second.status());
        either(self.first.0.status(), second, is, &self.status).await
    }

    async fn tell_carrying(&self) -> Infallible {
        let second = self.second.as_ref().map(|(second, _)| second.carrying());
        either(self.first.0.carrying(), second, Option::is_some, &self.carrying).await
    }
}

/// Tells what the first says, or the second where that alone `is` something. Never returns.
async fn either<T: Clone>(
    mut first: watch::Receiver<T>,
    mut second: Option<watch::Receiver<T>>,
    is: impl Fn(&T) -> bool,
    to: &watch::Sender<T>,
) -> Infallible {
    loop {
        let told = first.borrow_and_update().clone();
        let other = second.as_mut().map(|second| second.borrow_and_update().clone());
        to.send_replace(other.filter(|other| !is(&told) && is(other)).unwrap_or(told));
        let changed = async {
            match &mut second {
                Some(second) => second.changed().await,
                None => pending().await,
            }
        };
        // Their senders live as long as this does.
        let _changed = tokio::select! {
            changed = first.changed() => changed,
            changed = changed => changed,
        };
    }
}

/// Keeps that a relay refused the enrolment token, for preflight: whether a token was used before only the relay knows.
struct Refusal {
    rank: Rank,
    token: Secret,
    dir: DataDir,
    secret: Option<StateSecret>,
    clock: Clock,
}

impl Refusal {
    async fn note(self, report: &Report, acceptor: &Acceptor) {
        if report.fault != Fault::EnrolTokenRefused {
            return;
        }
        let refused = RefusedToken::new(self.token.reveal(), &report.detail, self.clock.now());
        let kept = async {
            self.dir.keep_refused(self.rank, &refused)?;
            match &self.secret {
                Some(secret) => {
                    secret.keep_refused(acceptor.forwarder().apiserver(), self.rank, &refused).await
                }
                None => Ok(()),
            }
        };
        match timeout(NOTE_WITHIN, kept).await {
            Ok(Ok(())) => {}
            Ok(Err(report)) => warn!(%report, "preflight will not know that the enrolment token was refused"),
            Err(_elapsed) => warn!("preflight will not know that the enrolment token was refused"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_is_told_while_it_is_something_and_the_second_otherwise() {
        let (first, second) = (watch::Sender::new(None), watch::Sender::new(None));
        let (to, told) = watch::channel(Some(0));
        let (one, two) = (first.subscribe(), second.subscribe());
        let telling = tokio::spawn(async move { either(one, Some(two), Option::is_some, &to).await });
        let settled = async || {
            tokio::time::sleep(Duration::from_millis(1)).await;
            *told.borrow()
        };
        assert_eq!(settled().await, None);
        second.send_replace(Some(2));
        assert_eq!(settled().await, Some(2));
        first.send_replace(Some(1));
        assert_eq!(settled().await, Some(1));
        second.send_replace(Some(3));
        assert_eq!(settled().await, Some(1));
        first.send_replace(None);
        assert_eq!(settled().await, Some(3));
        telling.abort();
    }
}

//! Tokens of the cluster's own service accounts: they go to kube-apiserver as they are, which judges them itself.
//!
//! What is looked at here keeps everything else out: only a token that names this cluster's own issuer, one of its
//! service accounts and an end is passed on (ADR 13).

use std::time::{Duration, SystemTime};

use http::Method;
use serde::Deserialize;
use tokio::{sync::Mutex, time::Instant};
use towline_identity::Claimed;
use towline_tunnel::fault::{Fault, Report};
use tracing::warn;

use crate::dial::{Apiserver, status_message};

/// Where kube-apiserver says who issues service accounts' tokens (OpenID Connect Discovery 1.0).
const PATH: &str = "/.well-known/openid-configuration";
const SUBJECT: &str = "system:serviceaccount:";
/// A cluster seldom changes its issuer; who does keeps the old one for a while.
const KNOWN_FOR: Duration = Duration::from_secs(600);
/// What could not be had is not asked for again before this.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// The cluster's own issuer, asked for when the first such token comes.
#[derive(Debug, Default)]
pub(super) struct ClusterIssuer(Mutex<Option<Asked>>);

#[derive(Debug)]
struct Asked {
    at: Instant,
    issuer: Option<String>,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
}

/// Whether a token says that it is a service account's. Not that it is.
pub fn is_of_account(claimed: &Claimed) -> bool {
    claimed.subject.starts_with(SUBJECT)
}

impl ClusterIssuer {
    /// Whether a token may be passed on.
    ///
    /// # Errors
    /// If it is another issuer's or has no end ahead, or nobody says who the cluster's issuer is.
    pub(super) async fn check(
        &self,
        apiserver: &Apiserver,
        claimed: &Claimed,
        now: SystemTime,
    ) -> Result<(), Report> {
        let refused = |what: &str| Err(Report::new(Fault::AccountTokenRefused, what));
        match claimed.expires_at {
            None => return refused("it has no end (kubectl create token makes one that has)"),
            Some(ends) if ends <= now => return refused("it is expired"),
            Some(_) => {}
        }
        if self.current(ask(apiserver)).await? == claimed.issuer {
            Ok(())
        } else {
            refused("it is neither of a configured issuer nor of the cluster's own")
        }
    }

    async fn current(&self, ask: impl Future<Output = Option<String>>) -> Result<String, Report> {
        let unknown =
            || Report::new(Fault::IssuerUnreachable, "the cluster does not say who issues its tokens");
        // Held while asking: those who wait find the answer.
        let mut asked = self.0.lock().await;
        match asked.as_ref() {
            Some(Asked { at, issuer: Some(issuer) }) if at.elapsed() < KNOWN_FOR => return Ok(issuer.clone()),
            Some(Asked { at, issuer: None }) if at.elapsed() < ASK_AGAIN => return Err(unknown()),
            _ => {}
        }
        let before = Instant::now();
        let issuer = ask.await;
        // A failure may have taken longer than it counts: those who wait would ask again, one after the other.
        let at = if issuer.is_some() { before } else { Instant::now() };
        *asked = Some(Asked { at, issuer: issuer.clone() });
        issuer.ok_or_else(unknown)
    }
}

async fn ask(apiserver: &Apiserver) -> Option<String> {
    match apiserver.call(Method::GET, PATH, "", Vec::new()).await {
        Ok((200, answer)) => serde_json::from_slice::<Discovery>(&answer).ok().map(|found| found.issuer),
        Ok((code, answer)) => {
            warn!(code, message = status_message(&answer), "the cluster's issuer can't be had");
            None
        }
        Err(report) => {
            warn!(%report, "the cluster's issuer can't be had");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_while_nobody_answers_do_not_ask_one_after_the_other() {
        let (issuer, asked) = (ClusterIssuer::default(), AtomicU32::new(0));
        let ask = async || {
            asked.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_secs(10)).await;
            None
        };
        let begun = Instant::now();
        let (one, two, three) =
            tokio::join!(issuer.current(ask()), issuer.current(ask()), issuer.current(ask()));
        for answer in [one, two, three] {
            assert_eq!(answer.unwrap_err().fault, Fault::IssuerUnreachable);
        }
        assert_eq!((asked.load(Ordering::Relaxed), begun.elapsed().as_secs()), (1, 10));
        // And after a while it is asked for again.
        sleep(ASK_AGAIN).await;
        assert_eq!(
            issuer.current(async { Some("https://cluster".to_owned()) }).await.unwrap(),
            "https://cluster"
        );
    }
}

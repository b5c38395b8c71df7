//! A newer token for what is open: `exec`, `logs -f` and watches end with the token that they began with, unless the agent is told of
//! another one of the same user.

use std::{sync::Arc, time::Duration};

use http::{Method, StatusCode};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use towline_tunnel::{
    fault::{Fault, Report},
    ids::ClusterId,
    inner::RENEW_PATH,
};

use super::{Forwarder, ask, told};
use crate::dial::Pool;

/// Tokens are looked at this often: a small part of the time that a new one comes before the old one ends.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// One agent that is away does not keep others from hearing of it.
const TELL_WITHIN: Duration = Duration::from_secs(10);

impl Forwarder {
    /// Tells agents of each newer token while something of theirs is open; never returns.
    pub async fn keep_authorities(self: Arc<Self>) {
        loop {
            sleep(LOOK_EVERY).await;
            let mut telling = JoinSet::new();
            for (cluster, pool) in &self.clusters {
                let (me, cluster, pool) = (Arc::clone(&self), *cluster, Arc::clone(pool));
                telling.spawn(async move { me.tell(cluster, &pool).await });
            }
            telling.join_all().await;
        }
    }

    async fn tell(&self, cluster: ClusterId, pool: &Arc<Pool>) {
        // Where there is no token, whoever asks next is told why.
        let Ok(token) = self.token() else { return };
        if !pool.is_busy() || pool.has_told(&token) {
            return;
        }
        let asked = timeout(TELL_WITHIN, ask(cluster, pool, Method::POST, RENEW_PATH, &token)).await;
        let refused = match asked {
            Ok(Ok((StatusCode::NO_CONTENT, _))) => {
                return tracing::debug!(%cluster, "the agent has a newer token for what is open");
            }
            Ok(Ok((status, body))) => told(&body).unwrap_or_else(|| {
                Report::new(Fault::ClusterTokenRefused, format!("a newer token was answered with {status}"))
            }),
            Ok(Err(report)) => report,
            Err(_elapsed) => Report::new(Fault::AgentTimeout, "a newer token was not answered"),
        };
        if refused.fault == Fault::AccountTokenRefused {
            // It counts from the next request on.
            return pool.note_told(&token);
        }
        tracing::warn!(report = %refused, %cluster, "what is open may end with its token: the agent did not take the next one");
    }
}

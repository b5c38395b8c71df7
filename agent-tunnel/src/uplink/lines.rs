//! Lines for bulk beside the agent's session: dialled when a stream became bulk, so that the relay has where to lead it when its client asks
//! for it on a line of its own. Which one that is, the relay decides.

use std::{convert::Infallible, future::pending, sync::Arc};

use tokio::{sync::oneshot, task::JoinSet, time::sleep_until};
use towline_tunnel::{
    carrier::{dial::Errand, ladder::Climbed},
    drain::DrainWatcher,
    fault::{Fault, Report},
    mux::{Choice, Lines},
    session::{self, Identify},
};
use tracing::{debug, info};

use super::{Begun, Uplink};
use crate::session::Fate;

impl Uplink {
    /// Dials lines, and ends those that nobody needs any more. Never returns; while there is no session, none is dialled.
    pub(super) async fn tend(
        &self,
        lines: &mut Lines,
        running: &mut JoinSet<()>,
        drain: &DrainWatcher,
    ) -> Infallible {
        let mut carrying = self.carrying.subscribe();
        loop {
            let look = lines.sweep();
            tokio::select! {
                _key = self.keeper.next_bulk() => {}
                () = sleep_until(look.unwrap_or_else(tokio::time::Instant::now)), if look.is_some() => continue,
            }
            while running.try_join_next().is_some() {}
            // The relay takes a line only beside a session.
            if carrying.wait_for(Option::is_some).await.is_err() {
                return pending().await;
            }
            if !matches!(lines.choose(), Choice::Dial) {
                continue;
            }
            match self.begin_line().await {
                Ok(begun) => {
                    // A line has no successor: what it carried goes on with the agent's session.
                    let ((leaving, _), (_, replaced)) = (oneshot::channel(), oneshot::channel());
                    let (connection, driver) = begun.session.mux(begun.channel, begun.config);
                    lines.dialled(connection.clone());
                    let fate = Fate { leaving, replaced };
                    running.spawn(begun.session.run((connection, driver), fate, drain.clone()));
                }
                Err(report) => {
                    debug!(%report, "no line beside the session");
                    self.metrics.connect_failed(report.fault);
                    lines.failed(report.delay());
                }
            }
        }
    }

    async fn begin_line(&self) -> Result<Begun, Report> {
        let instance = self.enrolment.instance();
        let (certificate, membership) = instance
            .certificate()
            .zip(self.enrolment.membership())
            .ok_or_else(|| Report::from(Fault::AgentCertificateRefused))?;
        let identify = Identify::Agent {
            cluster: self.cluster.public(),
            instance: instance.id,
            key: &instance.key,
            certificate: &certificate,
            line: true,
            beside: &[],
        };
        let (relay, Climbed { session, rung, .. }, facts) =
            self.connect(Errand::Begin, Arc::clone(&instance), identify, None).await?;
        let session::Session { channel, welcome } = session;
        info!(channel = %welcome.channel, %relay, carrier = rung.name(), "a line beside the session");
        let session = self.session(welcome.channel, membership.tickets, true);
        Ok(Begun { session, channel, config: self.endpoint(&facts), name: None, facts })
    }
}

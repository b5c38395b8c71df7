//! Lines for bulk beside the agent's session: dialled when a stream became bulk, so that the relay has where to lead it when its client asks
//! for it on a line of its own. Which one that is, the relay decides.

use std::convert::Infallible;

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

impl Uplink {
    /// Dials lines, and ends those that nobody needs any more. Never returns; while it is not run, none is dialled.
    pub(super) async fn tend(
        &self,
        lines: &mut Lines,
        sessions: &mut JoinSet<()>,
        drain: &DrainWatcher,
    ) -> Infallible {
        loop {
            let look = lines.sweep();
            tokio::select! {
                _key = self.keeper.next_bulk() => {}
                () = sleep_until(look.unwrap_or_else(tokio::time::Instant::now)), if look.is_some() => continue,
            }
            while sessions.try_join_next().is_some() {}
            if !matches!(lines.choose(), Choice::Dial) {
                continue;
            }
            match self.begin_line().await {
                Ok(begun) => {
                    // A line has no successor: what it carried goes on with the agent's session.
                    let (nobody, _) = oneshot::channel();
                    let (connection, driver) = begun.session.mux(begun.channel, begun.config);
                    lines.dialled(connection.clone());
                    sessions.spawn(begun.session.run((connection, driver), nobody, drain.clone()));
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
        let (certificate, membership) = self
            .instance
            .certificate()
            .zip(self.membership.as_ref())
            .ok_or_else(|| Report::from(Fault::AgentCertificateRefused))?;
        let identify = Identify::Agent {
            cluster: self.cluster.public(),
            instance: self.instance.id,
            key: &self.instance.key,
            certificate: &certificate,
            line: true,
        };
        let (relay, Climbed { session, rung }) = self.connect(Errand::Begin, identify).await?;
        let session::Session { channel, welcome } = session;
        info!(channel = %welcome.channel, %relay, carrier = rung.name(), "a line beside the session");
        let session = self.session(welcome.channel, membership.tickets, true);
        Ok(Begun { session, channel, config: self.endpoint(), name: None })
    }
}

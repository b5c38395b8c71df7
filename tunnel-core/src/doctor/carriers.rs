//! Where websockets are stopped: whether another carrier gets through, which a dialler then takes by itself (ADR 20).
//!
//! What stops websockets is the same either way, and so is its code. It is a failure where nothing gets through, and a warning
//! where something does: it works, and at a higher cost.

use std::time::Duration;

use tokio::time::timeout;

use super::{Network, Verdict, frames::LARGE, network::Again};
use crate::{
    carrier::{
        dial::Dialler,
        ladder::{Ladder, Memory},
        rung::Rung,
    },
    egress::Egress,
    fault::{Fault, Report},
    session::{Seen, look, look_closer},
};

/// TCP, TLS and the request have this long; all carriers are asked for at once.
const DIAL_WITHIN: Duration = Duration::from_secs(5);
/// So have large messages in both directions, small ones among them.
const CROSS_WITHIN: Duration = Duration::from_secs(4);

/// How the relay is reached.
#[derive(Clone, Debug)]
pub(super) enum Carried<T> {
    /// By a websocket, as it should be.
    ByWebSocket(T),
    /// By another carrier, across which large messages went in both directions.
    By(Other),
}

/// A carrier that gets through where websockets do not.
#[derive(Clone, Debug)]
pub(super) struct Other {
    pub(super) rung: Rung,
    /// What the relay's first message says there. A wrong key or version is no matter of the carrier.
    pub(super) looked: Result<Seen, Report>,
}

impl Network {
    /// The verdict on a step of websockets as it is, unless they are stopped there: then on what the other carriers do.
    pub(super) async fn or_by_another<T>(
        &self,
        verdict: Verdict<T>,
        again: Again<'_>,
    ) -> Verdict<Carried<T>> {
        let (report, why) = match verdict.failure() {
            Ok(verdict) => return verdict.map(Carried::ByWebSocket),
            Err((report, why)) if stops_websockets(report.fault) => (report, why),
            Err((report, why)) => return Verdict::failed(report, why),
        };
        let why = if why.is_empty() { report.fault.cause().to_owned() } else { why };
        let mut met = report.clone().detail;
        for (rung, asked) in self.others(again).await {
            match asked {
                Ok(looked) => {
                    let seen = format!("{met}; by {rung} it gets through");
                    let why = format!(
                        "{why}. Agent and client take {rung} by themselves where websockets are stopped: it works, costs more at both ends, and each session is begun seconds later where this is not known yet"
                    );
                    return Verdict::warning(
                        Carried::By(Other { rung, looked }),
                        Report::new(report.fault, seen),
                        why,
                    );
                }
                Err(end) => met.push_str(&format!("; by {rung}: {end}")),
            }
        }
        Verdict::failed(Report::new(report.fault, met).retry_after(report.delay()), why)
    }

    /// What becomes of all other carriers, the better one first: what the relay says there, or a phrase for how it ended.
    async fn others(&self, again: Again<'_>) -> [(Rung, Result<Result<Seen, Report>, String>); 2] {
        let (second, third) = tokio::join!(self.crosses(Rung::Http2, again), self.crosses(Rung::Pair, again));
        [(Rung::Http2, second), (Rung::Pair, third)]
    }

    async fn crosses(&self, rung: Rung, again: Again<'_>) -> Result<Result<Seen, Report>, String> {
        let ladder = self.ladder(again).map_err(|report| named(&report))?;
        let asked = timeout(DIAL_WITHIN, ladder.carrier(rung)).await;
        let (mut carrier, exporter) = match asked {
            Ok(asked) => asked.map_err(|report| named(&report))?,
            Err(_elapsed) => return Err(named(&Fault::RequestUnanswered.into())),
        };
        let crossing = async {
            let looked = look(&mut carrier, exporter, self.pin, LARGE).await;
            match looked {
                Err(report) if report.fault == Fault::CarrierLost => Err(report),
                Ok(seen) => look_closer(carrier, self.pin).await.map(|()| Ok(seen)),
                Err(report) => Ok(Err(report)),
            }
        };
        match timeout(CROSS_WITHIN, crossing).await {
            Ok(crossed) => crossed.map_err(|report| named(&report)),
            Err(_elapsed) => {
                Err("it is let through, and large messages do not cross it in both directions".to_owned())
            }
        }
    }

    /// Dials as the first connection was made.
    fn ladder(&self, again: Again<'_>) -> Result<Ladder, Report> {
        let egress = match again {
            Again::At(address) => Egress::pinned(address),
            Again::Through(_) => self.egress.clone(),
        };
        let trust = self.egress.trust(self.ca_file.as_deref())?;
        Ok(Ladder::new(Dialler::over(self.relay.clone(), egress, trust)?, Memory::default()))
    }
}

/// Whether another carrier may get through where this stopped a websocket. A relay that is busy is so for all of them.
fn stops_websockets(fault: Fault) -> bool {
    matches!(
        fault,
        Fault::UpgradeStripped
            | Fault::UpgradeRefused
            | Fault::CarrierLost
            | Fault::FramesLostUp
            | Fault::FramesLostDown
            | Fault::LargeFramesLost
    )
}

fn named(report: &Report) -> String {
    format!("{} {}", report.fault.code(), report.fault.title())
}

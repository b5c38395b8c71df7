//! An agent that runs and is asked what it finds where it is, through its own line.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};
use towline_identity::Verifier;
use towline_tunnel::{
    clock::Clock,
    doctor::{Examination, Network, Step, Verdict},
    fault::Fault,
};

use super::{PROGRAM, cluster};
use crate::{dial::Apiserver, rights::Duties};

/// It looks no longer: whoever asks waits for it.
const WITHIN: Duration = Duration::from_secs(50);
/// Whoever asks again within this gets the same answer: looking dials the relay and asks kube-apiserver a dozen times.
const FRESH: Duration = Duration::from_secs(10);

/// The issuer is asked for its keys this often at most, however often somebody looks.
const ISSUER_FRESH: Duration = Duration::from_secs(300);

/// One look, from its beginning.
struct Look {
    begun: Instant,
    /// None while it goes on, and where whoever asked left before its end.
    answer: Option<String>,
    /// When the issuer was asked, and whether it answered.
    asked: Option<(Instant, bool)>,
}

/// Looks at an agent from inside, for callers whom it knows. One looks at a time; those who wait find what it found.
#[derive(Clone)]
pub struct SelfLook(Arc<Inner>);

struct Inner {
    duties: Duties,
    networks: OnceLock<Vec<Network>>,
    clock: Clock,
    last: Mutex<Option<Look>>,
}

impl fmt::Debug for SelfLook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SelfLook").field("networks", &self.0.networks).finish_non_exhaustive()
    }
}

impl SelfLook {
    /// Of an agent with these duties.
    pub fn new(duties: Duties, clock: Clock) -> Self {
        Self(Arc::new(Inner { duties, networks: OnceLock::new(), clock, last: Mutex::default() }))
    }

    /// The ways to the relays, once they are known.
    pub fn know(&self, networks: Vec<Network>) {
        let _known_before = self.0.networks.set(networks);
    }

    /// What it finds, as JSON (`docs/doctor.md`). Never a secret; and where the identity provider is, and why it can't be had, is not the
    /// caller's to know.
    pub(crate) async fn look(&self, apiserver: &Apiserver, verifier: &Verifier) -> String {
        // Held while looking: those who wait find the answer.
        let mut last = self.0.last.lock().await;
        if let Some(look) = last.as_ref().filter(|look| look.begun.elapsed() < FRESH) {
            tracing::debug!(age = ?look.begun.elapsed(), "the agent has just looked at itself");
            match &look.answer {
                Some(answer) => return answer.clone(),
                // Whoever asked hung up. Looking is not begun more often for that.
                None => sleep_until(look.begun + FRESH).await,
            }
        }
        let asked = last.as_ref().and_then(|look| look.asked).filter(|(at, _)| at.elapsed() < ISSUER_FRESH);
        let look = last.insert(Look { begun: Instant::now(), answer: None, asked });
        let mut examination = Examination::new(|_| {}).until(Instant::now() + WITHIN);
        let networks = self.0.networks.get().map_or(&[][..], Vec::as_slice);
        if networks.is_empty() {
            examination.skip(&[Step::Dns], "not looked at: which relay is meant is not known");
        }
        for network in networks {
            if networks.len() > 1 {
                examination
                    .say(Step::Configuration, Verdict::ok((), format!("the way to {}", network.relay)));
            }
            network.examine(&mut examination).await;
        }
        cluster::examine(apiserver, &self.0.duties, &mut examination).await;
        let issuer = async {
            let had = match look.asked {
                Some((_, had)) => had,
                None => verifier.refresh().await.is_ok(),
            };
            look.asked.get_or_insert_with(|| (Instant::now(), had));
            if had {
                Verdict::ok((), "metadata and keys were had")
            } else {
                // Why stands in the log.
                Verdict::failed(Fault::IssuerUnreachable.into(), "")
            }
        };
        examination.check(Step::Issuer, issuer).await;
        let relay = networks.first().map(|network| network.relay.to_string());
        let answer = examination.finish(PROGRAM, relay, self.0.clock.now()).to_json();
        look.answer.insert(answer).clone()
    }
}

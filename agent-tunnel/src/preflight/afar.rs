//! An agent that runs and is asked what it finds where it is, through its own line.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{sync::Mutex, time::Instant};
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

/// Looks at an agent from inside, for callers whom it knows. One looks at a time; those who wait find what it found.
#[derive(Clone)]
pub struct SelfLook(Arc<Inner>);

struct Inner {
    duties: Duties,
    network: OnceLock<Network>,
    clock: Clock,
    last: Mutex<Option<(Instant, String)>>,
}

impl fmt::Debug for SelfLook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SelfLook").field("network", &self.0.network).finish_non_exhaustive()
    }
}

impl SelfLook {
    /// Of an agent with these duties.
    pub fn new(duties: Duties, clock: Clock) -> Self {
        Self(Arc::new(Inner { duties, network: OnceLock::new(), clock, last: Mutex::default() }))
    }

    /// The way to the relay, once it is known.
    pub fn know(&self, network: Network) {
        let _known_before = self.0.network.set(network);
    }

    /// What it finds, as JSON (`docs/doctor.md`). Never a secret; and where the identity provider is, and why it can't be had, is not the
    /// caller's to know.
    pub(crate) async fn look(&self, apiserver: &Apiserver, verifier: &Verifier) -> String {
        // Held while looking: those who wait find the answer.
        let mut last = self.0.last.lock().await;
        if let Some((at, answer)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            tracing::debug!(age = ?at.elapsed(), "the agent has just looked at itself");
            return answer.clone();
        }
        let mut examination = Examination::new(|_| {}).until(Instant::now() + WITHIN);
        if let Some(network) = self.0.network.get() {
            network.examine(&mut examination).await;
        } else {
            examination.skip(&[Step::Dns], "not looked at: which relay is meant is not known");
        }
        cluster::examine(apiserver, &self.0.duties, &mut examination).await;
        let issuer = async {
            match verifier.refresh().await {
                Ok(()) => Verdict::ok((), "metadata and keys were had"),
                Err(_in_the_log) => Verdict::failed(Fault::IssuerUnreachable.into(), ""),
            }
        };
        examination.check(Step::Issuer, issuer).await;
        let relay = self.0.network.get().map(|network| network.relay.to_string());
        let answer = examination.finish(PROGRAM, relay, self.0.clock.now()).to_json();
        last.insert((Instant::now(), answer)).1.clone()
    }
}

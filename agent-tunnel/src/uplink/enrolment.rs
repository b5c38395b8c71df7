//! Whose agent this is to the relay: the token that was not used yet, the relay that was joined, and this process as an instance.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use towline_tunnel::{
    carrier::dial::RelayAddress,
    enrolment::{EnrolmentToken, JOIN},
    fault::{Fault, Report},
    ids::{ChannelId, KeyHash},
    keys::{SigningKey, VerifyingKey},
    session::{Identify, message::Secret},
};
use tracing::{error, info, warn};

use crate::{
    dial::Apiserver,
    instance::Instance,
    secret::StateSecret,
    state::{DataDir, Membership, Rank},
};

/// What is known of it; changes as sessions begin or are refused.
pub(super) struct Enrolment {
    state: Mutex<State>,
    rank: Rank,
    secret: Option<StateSecret>,
}

struct State {
    instance: Arc<Instance>,
    /// A token that was not yet used, as far as we know.
    token: Option<EnrolmentToken>,
    /// Why the relay did not take it: maybe because we used it, and were stopped before that was noted. Then the
    /// cluster is enrolled, and its key opens the door.
    token_refused: Option<Report>,
    membership: Option<Membership>,
}

impl State {
    /// There is a token for another relay than the one that was joined.
    fn is_for_another_relay(&self) -> bool {
        let both = self.token.as_ref().zip(self.membership.as_ref());
        both.is_some_and(|(token, joined)| token.relay_key != joined.relay_key)
    }
}

/// What one session begins with.
pub(super) enum Credential {
    Certificate(Arc<Instance>, Vec<u8>),
    Secret(Arc<Instance>, Secret),
}

impl Credential {
    /// Whose it is.
    pub(super) fn instance(&self) -> Arc<Instance> {
        let (Self::Certificate(instance, _) | Self::Secret(instance, _)) = self;
        Arc::clone(instance)
    }

    /// As the session's beginning has it.
    pub(super) fn identify<'a>(&'a self, cluster: &'a SigningKey, beside: &'a [ChannelId]) -> Identify<'a> {
        match self {
            Self::Certificate(instance, certificate) => Identify::Agent {
                cluster: cluster.public(),
                instance: instance.id,
                key: &instance.key,
                certificate,
                line: false,
                beside,
            },
            Self::Secret(instance, secret) => {
                Identify::Enrol { secret, cluster, instance: instance.id, key: &instance.key }
            }
        }
    }
}

impl Enrolment {
    /// What the folder says, and a token that it does not say was used.
    ///
    /// # Errors
    /// If the cluster was never enrolled and there is no token, or the folder can't be read.
    pub(super) fn new(
        rank: Rank,
        token: Option<EnrolmentToken>,
        dir: &DataDir,
        secret: Option<StateSecret>,
    ) -> Result<Self, Report> {
        let membership = dir.membership(rank)?;
        let is_new = |token: &EnrolmentToken| {
            membership.as_ref().is_none_or(|membership| membership.used_secret != hash(&token.secret))
        };
        let token = token.filter(is_new);
        if token.is_none() && membership.is_none() {
            return Err(not_enrolled(rank));
        }
        let instance = Arc::new(Instance::new());
        let state = State { instance, token, token_refused: None, membership };
        Ok(Self { state: Mutex::new(state), rank, secret })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This process, as the relay knows it or shall.
    pub(super) fn instance(&self) -> Arc<Instance> {
        Arc::clone(&self.lock().instance)
    }

    /// The relay that was joined, if one was.
    pub(super) fn membership(&self) -> Option<Membership> {
        self.lock().membership.clone()
    }

    /// Where the relay is, who it is, and the authority of its certificate, where it is its own.
    pub(super) fn relay(&self) -> Result<(RelayAddress, KeyHash, Option<String>), Report> {
        let state = self.lock();
        match (&state.token, &state.membership) {
            (Some(token), _) => Ok((token.relay.clone(), token.relay_key, token.ca_pem.clone())),
            (None, Some(joined)) => Ok((joined.relay.clone(), joined.relay_key, joined.ca_pem.clone())),
            (None, None) => Err(Report::from(Fault::EnrolTokenRefused)),
        }
    }

    /// What the next session begins with.
    pub(super) fn credential(&self) -> Credential {
        let state = self.lock();
        let instance = Arc::clone(&state.instance);
        match instance.certificate().filter(|_| state.token.is_none()) {
            Some(certificate) => Credential::Certificate(instance, certificate),
            None => {
                let unused = state.token.as_ref().filter(|_| state.token_refused.is_none());
                Credential::Secret(
                    instance,
                    unused.map_or_else(|| Secret::new(JOIN), |token| token.secret.clone()),
                )
            }
        }
    }

    /// What a failed attempt means for the next one.
    ///
    /// # Errors
    /// If there is no way left to be let in.
    pub(super) fn turn(&self, report: &Report) -> Result<(), Report> {
        let mut state = self.lock();
        match report.fault {
            // A second relay that was configured before, and is another, is not what is meant now.
            Fault::EnrolTokenRefused if self.rank == Rank::Second && state.is_for_another_relay() => {
                return Err(report.clone());
            }
            Fault::EnrolTokenRefused if state.token.is_some() && state.membership.is_some() => {
                warn!(%report, "the enrolment token was refused; the relay that was joined before stays");
                state.token = None;
            }
            Fault::EnrolTokenRefused if state.token.is_some() => match state.token_refused.take() {
                Some(first) => return Err(first),
                None => state.token_refused = Some(report.clone()),
            },
            Fault::AgentCertificateRefused if state.instance.certificate().is_some() => {
                warn!(%report, "the certificate was refused; the cluster's key will vouch for a new instance");
                state.instance = Arc::new(Instance::new());
            }
            _ => warn!(%report, "no session with the relay; it is tried again"),
        }
        Ok(())
    }

    /// The key that tickets must be signed with: pinned when a token was used, and never changed by less than another.
    ///
    /// # Errors
    /// If the relay enrolled us and did not say it.
    pub(super) async fn joined(
        &self,
        said: Option<VerifyingKey>,
        dir: &DataDir,
        apiserver: &Apiserver,
    ) -> Result<VerifyingKey, Report> {
        let used = self.lock().token.clone();
        if let Some(token) = used {
            let Some(tickets) = said else {
                return Err(Report::new(
                    Fault::ProtocolViolation,
                    "the relay enrolled us without its ticket key",
                ));
            };
            let membership = Membership {
                used_secret: hash(&token.secret),
                relay: token.relay,
                relay_key: token.relay_key,
                tickets,
                ca_pem: token.ca_pem,
            };
            // It serves this process in any case, and the same token serves the next one.
            if let Err(report) = self.store(&membership, dir, apiserver).await {
                error!(%report, "which relay was joined can't be kept");
            }
            info!(relay = %membership.relay, "the cluster was enrolled");
            let mut state = self.lock();
            (state.token, state.membership) = (None, Some(membership));
        }
        let pinned = self.lock().membership.as_ref().map(|membership| membership.tickets);
        let pinned = pinned.ok_or_else(|| Report::from(Fault::EnrolTokenRefused))?;
        if said.is_some_and(|said| said != pinned) {
            error!(
                "the relay signs tickets with another key than the pinned one: no stream will be accepted until the cluster is enrolled again"
            );
        }
        Ok(pinned)
    }

    async fn store(
        &self,
        membership: &Membership,
        dir: &DataDir,
        apiserver: &Apiserver,
    ) -> Result<(), Report> {
        dir.keep_membership(self.rank, membership)?;
        match &self.secret {
            Some(secret) => secret.keep(apiserver, self.rank, membership).await,
            None => Ok(()),
        }
    }
}

/// There is neither a token nor a relay that was joined.
pub(crate) fn not_enrolled(rank: Rank) -> Report {
    let at = match rank {
        Rank::First => "",
        Rank::Second => " at a second relay",
    };
    let token = rank.token_argument();
    let what = format!(
        "this cluster is not enrolled{at}: give {token} with a token that `towline-relay enroll NAME` made"
    );
    Report::new(Fault::ConfigInvalid, what)
}

fn hash(secret: &Secret) -> [u8; 32] {
    let mut hash = [0; 32];
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret.reveal());
    hash.copy_from_slice(digest.as_ref());
    hash
}

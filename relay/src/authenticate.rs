//! Judges who dialled: a client's token, an agent instance's certificate, an enrolment.
//!
//! Possession of each key was proven on the channel before (`towline_tunnel::session::accept`); here it is decided
//! what the keys' holders are.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::timeout;
use towline_identity::{Identity, Verifier, VerifyError};
use towline_tunnel::{
    clock::Clock,
    ids::ChannelId,
    keys::VerifyingKey,
    proto::CloseReason,
    session::{Credential, Refused, Welcome, message::Secret},
    ticket::MAX_PRINCIPAL,
};
use tracing::warn;

use crate::{
    access::Caller,
    audit::Channel,
    certificates::{CertificateAuthority, Holder, Issued},
    enrol::Enrolment,
    limits::Limits,
    registry::{Cluster, Registry},
    throttle::{Conduct, FailureThrottle},
};

/// The issuer is asked for no longer than this: less than what is left of a session's handshake.
const VERIFY_WITHIN: Duration = Duration::from_secs(7);

/// What is told with `UserRevoked`.
pub const REVOKED: &str = "your token is from before that";

/// A client whose token was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientPeer {
    /// Who it is, for access decisions and tickets.
    pub caller: Caller,
    /// The key of this run, which its tickets name.
    pub run_key: VerifyingKey,
    /// When the token was issued, if it says.
    pub issued_at: Option<SystemTime>,
    /// When the token ends, and with it what it opens.
    pub expires_at: SystemTime,
    /// Program and version that it told.
    pub program: String,
    /// The session is a line of the process, beside its own.
    pub line: bool,
}

impl ClientPeer {
    /// Its session, as the audit tells of it.
    pub fn channel(&self, id: ChannelId, source: SocketAddr) -> Channel {
        Channel {
            id,
            user: self.caller.username.clone(),
            principal: self.caller.principal.clone(),
            source,
            program: self.program.clone(),
        }
    }
}

/// An agent instance whose certificate or enrolment was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPeer {
    /// Its cluster, as enrolled.
    pub cluster: Arc<Cluster>,
    /// Which instance, with which key.
    pub holder: Holder,
    /// When its certificate ends; it should ask for the next one before.
    pub certificate_ends: SystemTime,
    /// Program and version that it told.
    pub program: String,
    /// The session is a line of the process, beside its own.
    pub line: bool,
    /// Other sessions of the process, as it says; none of a line's.
    pub beside: Vec<ChannelId>,
}

/// Who dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A client.
    Client(ClientPeer),
    /// An agent instance.
    Agent(AgentPeer),
}

/// Judges credentials.
pub struct Authenticator {
    verifier: Verifier,
    registry: Registry,
    authority: Arc<CertificateAuthority>,
    enrolment: Enrolment,
    ticket_key: VerifyingKey,
    throttle: FailureThrottle,
    wasted: FailureThrottle,
    clock: Clock,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authenticator")
    }
}

impl Peer {
    /// Whether the session is a line, which only takes up streams of the process's own session.
    pub fn is_line(&self) -> bool {
        match self {
            Self::Client(client) => client.line,
            Self::Agent(agent) => agent.line,
        }
    }
}

impl Authenticator {
    /// Judges tokens by the verifier, and agents by registry and authority.
    pub fn new(
        verifier: Verifier,
        registry: Registry,
        authority: CertificateAuthority,
        ticket_key: VerifyingKey,
        limits: &Limits,
        clock: Clock,
    ) -> Self {
        let authority = Arc::new(authority);
        Self {
            verifier,
            enrolment: Enrolment::new(
                registry.clone(),
                Arc::clone(&authority),
                limits.max_instances_per_cluster,
            ),
            registry,
            authority,
            ticket_key,
            throttle: FailureThrottle::new(limits.max_failures_per_minute),
            wasted: FailureThrottle::new(limits.max_failures_per_minute),
            clock,
        }
    }

    /// Decides on a credential that arrived from this address. For `towline_tunnel::session::accept`.
    ///
    /// # Errors
    /// What the peer is told instead of WELCOME.
    pub async fn authenticate(
        &self,
        credential: Credential,
        from: IpAddr,
    ) -> Result<(Welcome, Peer), Refused> {
        if let Some(delay) = self.barred(from) {
            let mut refused =
                Refused::new(CloseReason::LimitReached, "too many refused credentials from this address");
            refused.delay = delay;
            return Err(refused);
        }
        let judged = match credential {
            Credential::Client { token, run_key, program, line } => {
                self.client(&token, run_key, program, line).await
            }
            Credential::Agent { cluster, instance, key, certificate, program, line, beside } => {
                let holder = Holder { cluster: cluster.cluster_id(), instance, key };
                let beside = if line { Vec::new() } else { beside };
                self.agent(holder, &certificate, program, line, beside).await
            }
            Credential::Enrol { secret, cluster, instance, key, program } => {
                let holder = Holder { cluster: cluster.cluster_id(), instance, key };
                self.enrol(&secret, &cluster, holder, program).await
            }
        };
        if let Err(refused) = &judged
            && is_peers_fault(refused.reason)
        {
            self.throttle.failed(from);
        }
        judged
    }

    /// How long this address is not listened to, if it failed too often.
    pub fn barred(&self, from: IpAddr) -> Option<Duration> {
        self.throttle.wait(from)
    }

    /// What this address may expect, after what came from it in the last minute.
    pub fn conduct(&self, from: IpAddr) -> Conduct {
        match self.barred(from) {
            Some(wait) => Conduct::Barred(wait),
            None if self.wasted.wait(from).is_some() => Conduct::Wasteful,
            None => Conduct::Good,
        }
    }

    /// Counts a handshake that took a turn of the accept budget and became no session, though its credential is not at fault: it was
    /// not finished, or the peer is of another version, or asked for what it may not or can't have. Nobody's fault, maybe.
    pub fn note_waste(&self, from: IpAddr) {
        self.wasted.failed(from);
    }

    /// Counts a failure that was found elsewhere: a proof that is wrong, a dialler that breaks the protocol.
    pub fn note_failure(&self, from: IpAddr) {
        self.throttle.failed(from);
    }

    /// Whether an agent that was let in may stay, as far as the registry knows now.
    ///
    /// # Errors
    /// If its instance was revoked or its cluster is gone.
    pub fn standing(&self, agent: &AgentPeer) -> Result<(), Refused> {
        agent.holder.standing(&self.registry.snapshot())?;
        Ok(())
    }

    /// Whether a client may have a session, as far as the registry knows now.
    ///
    /// # Errors
    /// If its user's sessions were revoked after its token was issued.
    pub fn client_standing(&self, client: &ClientPeer) -> Result<(), Refused> {
        let known = self.registry.snapshot();
        if known.revocations().refuse(&client.caller, client.issued_at, None, self.clock.now()) {
            return Err(Refused::new(CloseReason::UserRevoked, REVOKED));
        }
        Ok(())
    }

    /// The next certificate for an instance that holds a session.
    ///
    /// # Errors
    /// If the key is not the one that it proved, it was revoked meanwhile, or the registry can't be written.
    pub async fn renew(&self, agent: &AgentPeer, key: &VerifyingKey) -> Result<Issued, Refused> {
        if *key != agent.holder.key {
            return Err(Refused::new(
                CloseReason::CertificateRefused,
                "not the key that this session proved",
            ));
        }
        self.standing(agent)?;
        self.enrolment.issue(&agent.holder, self.clock.now()).await
    }

    /// The verifier, so that somebody can own keeping its keys fresh.
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    async fn client(
        &self,
        token: &Secret,
        run_key: VerifyingKey,
        program: String,
        line: bool,
    ) -> Result<(Welcome, Peer), Refused> {
        let text = token
            .reveal_text()
            .ok_or_else(|| Refused::new(CloseReason::Unauthenticated, "the token is not a text"))?;
        let identity = timeout(VERIFY_WITHIN, self.verifier.verify(text, self.clock.now()))
            .await
            .map_err(|_| Refused::new(CloseReason::IssuerUnavailable, "the issuer does not answer in time"))?
            .map_err(token_refused)?;
        let (issued_at, expires_at) = (identity.issued_at, identity.expires_at);
        let caller = caller(identity)?;
        let client = ClientPeer { caller, run_key, issued_at, expires_at, program, line };
        self.client_standing(&client)?;
        let mut welcome = Welcome::new(ChannelId::random());
        welcome.name = Some(client.caller.principal.clone());
        Ok((welcome, Peer::Client(client)))
    }

    async fn agent(
        &self,
        holder: Holder,
        certificate: &[u8],
        program: String,
        line: bool,
        beside: Vec<ChannelId>,
    ) -> Result<(Welcome, Peer), Refused> {
        let now = self.clock.now();
        let known = self.registry.snapshot();
        let accepted = self.authority.judge(certificate, &holder, &known, now)?;
        let cluster = holder.standing(&known)?;
        let mut welcome = Welcome::new(ChannelId::random());
        welcome.name = Some(cluster.name.clone());
        welcome.spares = true;
        let certificate_ends = accepted.not_after;
        let cluster = Arc::clone(cluster);
        let mut peer = AgentPeer { cluster, holder, certificate_ends, program, line, beside };
        if now >= accepted.renew_at {
            match self.enrolment.issue(&holder, now).await {
                Ok(issued) => {
                    peer.certificate_ends = issued.not_after;
                    welcome.certificate = Some(issued.der);
                }
                // The old one still holds: an agent is not kept out because the registry is away.
                Err(refused) => {
                    warn!(instance = %holder.instance, reason = refused.reason.text(), "a certificate was not renewed");
                }
            }
        }
        Ok((welcome, Peer::Agent(peer)))
    }

    async fn enrol(
        &self,
        secret: &Secret,
        cluster: &VerifyingKey,
        holder: Holder,
        program: String,
    ) -> Result<(Welcome, Peer), Refused> {
        let (cluster, issued) = self.enrolment.enrol(secret, cluster, &holder, self.clock.now()).await?;
        let mut welcome = Welcome::new(ChannelId::random());
        welcome.name = Some(cluster.name.clone());
        welcome.ticket_key = Some(self.ticket_key);
        welcome.certificate = Some(issued.der);
        welcome.spares = true;
        let (certificate_ends, beside) = (issued.not_after, Vec::new());
        Ok((
            welcome,
            Peer::Agent(AgentPeer { cluster, holder, certificate_ends, program, line: false, beside }),
        ))
    }
}

fn caller(identity: Identity) -> Result<Caller, Refused> {
    let principal = identity.principal.to_string();
    if principal.len() > MAX_PRINCIPAL {
        return Err(Refused::new(CloseReason::Unauthenticated, "issuer and subject together are too long"));
    }
    Ok(Caller { username: identity.username, principal, groups: identity.groups })
}

fn token_refused(error: VerifyError) -> Refused {
    let reason = match &error {
        VerifyError::Expired => CloseReason::TokenExpired,
        VerifyError::IssuerUnreachable(_) => CloseReason::IssuerUnavailable,
        _ => CloseReason::Unauthenticated,
    };
    // Where the issuer's keys are and why they can't be had is the operator's to know.
    if let VerifyError::IssuerUnreachable(error) = &error {
        warn!(%error, "a token can't be judged");
        return Refused::new(reason, "the relay can't reach the issuer");
    }
    Refused::new(reason, error.to_string())
}

/// What is refused for the relay's own reasons is nobody's attempt.
fn is_peers_fault(reason: CloseReason) -> bool {
    matches!(
        reason,
        CloseReason::Unauthenticated
            | CloseReason::TokenExpired
            | CloseReason::EnrolmentRefused
            | CloseReason::CertificateRefused
    )
}

#[cfg(test)]
mod tests;

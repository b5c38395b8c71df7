//! Where a client's stream goes: decides, signs the ticket, picks the agent's session and opens the stream on it.

use std::{
    borrow::Cow,
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use towline_tunnel::{
    clock::Clock,
    ids::{ChannelId, ClusterId, KeyHash},
    issuer_host::IssuerHost,
    keys::SigningKey,
    proto::{CloseReason, OpenRequest, ResumeRequest},
    role::{DocumentId, hash_offer},
    session::control::Control,
    ticket::{MAX_LIFE, SKEW, Ticket},
};
use tracing::info;

use crate::{
    access::{AccessControl, Caller, Decision},
    authenticate::{ClientPeer, Peer, REVOKED},
    forward::{RelayConn, Route, Wanted},
    issuers::Issuers,
    metrics::Metrics,
    questions::{Asked, Question},
    roles::Offer,
    sessions::{Process, Sessions},
    users::User,
};

/// A ticket is used again for this much of its life: a signature each minute and user, not each stream.
const TICKET_USED_FOR: Duration = Duration::from_secs(60);
/// Less where it vouches for role documents, which agents take for a minute, clocks that differ included.
const STAMP_USED_FOR: Duration = Duration::from_secs(10);
/// Tickets kept; where there are more, all are made anew.
const MAX_TICKETS: usize = 16 * 1024;

/// Why a stream is refused, and a few words for the person.
pub type Refusal = (CloseReason, Cow<'static, str>);

/// Connects clients' streams with agents.
#[derive(Debug)]
pub struct Switchboard {
    access: AccessControl,
    sessions: Sessions,
    ticket_key: Arc<SigningKey>,
    tickets: Mutex<HashMap<(ClusterId, KeyHash), Signed>>,
    shares: RandomState,
    clock: Clock,
    metrics: Metrics,
    issuers: Issuers,
}

#[derive(Debug)]
struct Signed {
    bytes: Bytes,
    principal: String,
    expires: SystemTime,
    renew_at: SystemTime,
    offer: Option<[u8; 32]>,
}

impl Switchboard {
    /// Connects what `access` allows with the agents in `sessions`.
    pub fn new(
        access: AccessControl,
        sessions: Sessions,
        ticket_key: Arc<SigningKey>,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        Self {
            access,
            sessions,
            ticket_key,
            tickets: Mutex::default(),
            shares: RandomState::new(),
            clock,
            metrics,
            issuers: Issuers::default(),
        }
    }

    /// The same, which leads agents to these identity providers.
    pub fn leading_to(self, hosts: Vec<IssuerHost>) -> Self {
        Self { issuers: Issuers::new(hosts), ..self }
    }

    /// The identity providers that agents may reach.
    pub(crate) fn issuers(&self) -> &Issuers {
        &self.issuers
    }

    /// What the relay counts.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Whether a client may have streams to a cluster now, and until when at most.
    ///
    /// # Errors
    /// Why not.
    pub fn allowed(&self, client: &ClientPeer, cluster: ClusterId) -> Result<SystemTime, Refusal> {
        let now = self.clock.now();
        // First: streams go on when their token ends, and not when it was revoked.
        if self.access.is_revoked(client, Some(cluster), now) {
            return Err((CloseReason::UserRevoked, REVOKED.into()));
        }
        // As the verifier counts, which let the session in: clocks may differ by so much.
        let ends = client.expires_at + SKEW;
        if now >= ends {
            return Err((CloseReason::TokenExpired, "the token of this session is expired".into()));
        }
        match self.access.decide(&client.caller, cluster, now) {
            Decision::Allow { until, .. } => Ok(until.map_or(ends, |until| until.min(ends))),
            Decision::Deny(CloseReason::Forbidden) => {
                Err((CloseReason::Forbidden, self.access.remedy(&client.caller, cluster).into()))
            }
            Decision::Deny(reason) => Err((reason, "".into())),
        }
    }

    /// The cluster's name, if there is one with this id, and by which role the client may open it: for the audit.
    pub fn why(&self, client: &ClientPeer, cluster: ClusterId) -> (String, String) {
        let name = self.access.name(cluster);
        (name, self.access.why(&client.caller, cluster, self.clock.now()))
    }

    /// Opens the other half of a client's stream, `from`, on a session of the cluster's agent; or has the agent's process that
    /// holds it take it up.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn connect(
        &self,
        client: &ClientPeer,
        channel: ChannelId,
        wanted: Wanted,
        from: Route,
    ) -> Result<Route, Refusal> {
        let (cluster, key) = (wanted.cluster(), wanted.key());
        let until = self.allowed(client, cluster)?;
        // This one is counted already: of two at the limit that come at once, both may be refused, and none too many is let in.
        if from.conn.user().is_some_and(User::has_too_many) {
            return Err((
                CloseReason::LimitReached,
                "too many streams of this user (--max-streams-per-user)".into(),
            ));
        }
        let agent = match &wanted {
            Wanted::Open(_) => {
                self.sessions.agent_of(cluster).ok_or((CloseReason::AgentOffline, "".into()))?
            }
            Wanted::Resume(request) => {
                match self.sessions.process(cluster, request.instance, from.conn.is_line()) {
                    Process::Here(agent) => agent,
                    Process::Away => return Err((CloseReason::AgentOffline, "".into())),
                    Process::Replaced => {
                        return Err((CloseReason::Lost, "the agent that held it was replaced".into()));
                    }
                }
            }
        };
        // Opaque and different in each run: agents can be fair to users without learning who they are.
        let share = self.shares.hash_one(&client.caller.principal);
        let Offer { bytes: offer, documents } = self.access.offer(&client.caller, cluster, self.clock.now());
        let hash = offer.as_deref().map(hash_offer);
        let ticket = Some(self.ticket(&client.caller, client.run_key.hash(), cluster, until, hash));
        let opened = match wanted {
            Wanted::Open(request) => {
                agent.open(OpenRequest { channel: Some(channel), share, ticket, offer, ..request }, from)
            }
            Wanted::Resume(request) => {
                agent.resume(ResumeRequest { channel: Some(channel), share, ticket, offer, ..request }, from)
            }
        };
        let stream = opened.map_err(|reason| match reason {
            CloseReason::LimitReached => {
                (reason, "too many streams of the agent (--max-streams-per-agent)".into())
            }
            _ => (CloseReason::AgentOffline, "the agent is going away".into()),
        })?;
        Ok(Route { conn: agent, stream, key, documents })
    }

    /// An agent says over one of its sessions that another is lost: its streams are free to go on at once, and not only once
    /// this end finds it dead.
    pub fn gone(&self, of: &RelayConn, channel: ChannelId) {
        if let Some(lost) = self.sessions.kin(of, channel) {
            info!(%channel, said_on = %of.channel(), "an agent's session was ended: the agent has lost it");
            lost.close();
        }
    }

    /// Whether the role documents that went with a stream still stand.
    pub fn stand(&self, documents: &[DocumentId]) -> bool {
        self.access.stand(documents, self.clock.now())
    }

    fn ticket(
        &self,
        caller: &Caller,
        run_key: KeyHash,
        cluster: ClusterId,
        until: SystemTime,
        offer: Option<[u8; 32]>,
    ) -> Bytes {
        let now = self.clock.now();
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = tickets.get(&(cluster, run_key))
            && held.principal == caller.principal
            && held.offer == offer
            && now < held.renew_at
            && held.expires <= until
        {
            return held.bytes.clone();
        }
        let life = until.duration_since(now).unwrap_or_default().min(MAX_LIFE);
        let ticket = Ticket { offer, ..Ticket::new(cluster, caller.principal.clone(), run_key, now, life) };
        let bytes = ticket.sign(&self.ticket_key);
        if tickets.len() >= MAX_TICKETS {
            tickets.clear();
        }
        let used_for = if offer.is_some() { STAMP_USED_FOR } else { TICKET_USED_FOR };
        let renew_at = now + used_for.min(life / 2);
        let signed = Signed {
            bytes: bytes.clone(),
            principal: ticket.principal,
            expires: ticket.expires,
            renew_at,
            offer,
        };
        tickets.insert((cluster, run_key), signed);
        bytes
    }

    /// The time.
    pub fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// Answers a CONTROL message. What needs more than memory goes to `later`, and is answered later; false from it means that too many
    /// wait.
    pub fn answer(&self, peer: &Peer, payload: &[u8], later: impl FnOnce(Question) -> bool) -> Option<Bytes> {
        let failed =
            |id, reason, detail: &str| Some(Control::Failed { reason, detail: detail.into() }.encode(id));
        let (id, question) = match Control::decode(payload) {
            Ok(read) => read,
            Err(error) => {
                let id = payload.get(1..5).and_then(|id| id.try_into().ok()).map_or(0, u32::from_be_bytes);
                return failed(id, CloseReason::FrameUnknown, &error.to_string());
            }
        };
        match (question, peer) {
            (Control::Resolve { name }, Peer::Client(client)) => {
                match self.access.resolve(&client.caller, &name, self.clock.now()) {
                    Decision::Allow { cluster, .. } => {
                        let online = self.sessions.is_online(cluster.id);
                        let resolved =
                            Control::Resolved { cluster: cluster.id, name: cluster.name.clone(), online };
                        Some(resolved.encode(id))
                    }
                    Decision::Deny(CloseReason::Forbidden) => {
                        let known = self.access.cluster_named(&name);
                        let remedy = known.map(|cluster| self.access.remedy(&client.caller, cluster));
                        failed(id, CloseReason::Forbidden, remedy.as_deref().unwrap_or_default())
                    }
                    Decision::Deny(reason) => failed(id, reason, ""),
                }
            }
            // An agent asks on its session; who holds but a line is let in no longer than the session beside it.
            (Control::Renew { key }, Peer::Agent(agent)) if !agent.line => {
                if later(Question::Renewal { id, key }) {
                    None
                } else {
                    failed(id, CloseReason::LimitReached, "too many renewals at once")
                }
            }
            (Control::Ask { topic, cursor, body }, Peer::Client(_)) => {
                if later(Question::Asked(Box::new(Asked { id, topic, cursor, body }))) {
                    None
                } else {
                    failed(id, CloseReason::LimitReached, "too many questions at once")
                }
            }
            (Control::Resolve { .. } | Control::Renew { .. } | Control::Ask { .. }, _) => {
                failed(id, CloseReason::Forbidden, "not for this kind of peer")
            }
            // Answers to what was never asked; and what agents say of their sessions, which nobody waits for.
            _ => None,
        }
    }
}

//! Wires the agent: keys and state, the apiserver, the verifier, the acceptor, the way to the relay, metrics.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use http::Method;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_util::task::AbortOnDropHandle;
use towline_identity::{TrustSettings, TrustSource};
use towline_tunnel::{
    audit::{AuditLog, AuditWriter, Destination},
    clock::Clock,
    doctor::{Elsewhere, Network},
    drain::{DrainTrigger, drain},
    egress::Egress,
    fault::{Fault, Report},
    ids::ClusterId,
    inner::InnerAcceptor,
    mux::{BULK_AT_AGENT, Ledger, LineSettings},
};
use tracing::{info, warn};

pub use crate::uplink::{Holding, RelayConfig, Status};
use crate::{
    accept::Acceptor,
    dial::{Apiserver, ApiserverConfig},
    forward::{Access, Forwarder},
    health,
    issuers::IssuerWay,
    metrics::Metrics,
    preflight::SelfLook,
    rights::{Duties, Findings},
    roles::{RoleSettings, Roles},
    secret::StateSecret,
    state::{DataDir, METRICS_ADDRESS, Rank},
    uplink::Parts,
    uplinks::Uplinks,
};

/// What the relay, and callers behind it, can make grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Streams at once on one session.
    pub max_streams: u32,
    /// Streams of one user at once on all sessions together, those that wait for their client among them.
    pub max_streams_per_user: u32,
    /// Stream data promised for all sessions together, beyond 16 KiB each way for each stream.
    pub max_buffered_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_streams: 16_384, max_streams_per_user: 4096, max_buffered_bytes: 256 << 20 }
    }
}

/// How an agent uses lines where nobody says otherwise.
pub fn default_lines() -> LineSettings {
    LineSettings::new(BULK_LINES, BULK_AT_AGENT)
}

/// One is enough to keep bulk apart from what people type; each costs a connection through their firewall.
pub const BULK_LINES: u32 = 1;

/// An agent that ends waits no longer for its audit log.
const LAST_LINES: Duration = Duration::from_secs(2);

/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Identity key and membership.
    pub data_dir: PathBuf,
    /// A Secret that holds the same, where the folder doesn't last.
    pub state_secret: Option<StateSecret>,
    /// The relay.
    pub relay: RelayConfig,
    /// One beside it, for when that is not there.
    pub second_relay: Option<RelayConfig>,
    /// The way to the relay and to issuers. kube-apiserver is always dialled directly.
    pub egress: Egress,
    /// Issuers are reached through the relay, and not on that way.
    pub issuer_via_relay: bool,
    /// Where requests go.
    pub apiserver: ApiserverConfig,
    /// `NAMESPACE/NAME` of a service account whose tokens requests go with; the agent's own where there is none.
    pub impersonator: Option<String>,
    /// What callers may do there beyond being themselves, and how it learns who they are.
    pub access: Access,
    /// Which roles count that the organisation signs; none where nothing is said.
    pub roles: Option<RoleSettings>,
    /// Whose tokens for the cluster's audience are accepted.
    pub issuer: TrustSource,
    /// Where metrics are served.
    pub metrics_listen: SocketAddr,
    /// How long streams may go on after a drain began.
    pub drain_timeout: Duration,
    /// How long a stream waits for its client when its connection is gone.
    pub resume_timeout: Duration,
    /// How bulk is kept apart.
    pub lines: LineSettings,
    /// How sessions are held.
    pub holding: Holding,
    /// What can grow.
    pub limits: Limits,
    /// Where a line for each request goes, if anywhere.
    pub audit: Option<Destination>,
    /// The time.
    pub clock: Clock,
}

impl Config {
    /// The relays that are configured, the first one first.
    pub(crate) fn homes(&self) -> impl Iterator<Item = (Rank, &RelayConfig)> {
        Rank::ALL.into_iter().zip(std::iter::once(&self.relay).chain(&self.second_relay))
    }
}

/// An agent that runs. Dropping it ends it at once.
#[derive(Debug)]
pub struct Running {
    cluster: ClusterId,
    metrics_address: SocketAddr,
    metrics: Metrics,
    status: watch::Receiver<Status>,
    uplink: AbortOnDropHandle<Result<(), Report>>,
    outcome: Option<Result<(), Report>>,
    trigger: DrainTrigger,
    beside: JoinSet<()>,
    audit_writer: Option<AuditWriter>,
}

/// Reads keys and settings, binds, and starts to connect; whether that succeeds is told by [`Running::connected`].
///
/// # Errors
/// If a port is busy, a file or setting can't be used, or the cluster is not enrolled and there is no token.
pub async fn start(config: Config) -> Result<Running, Report> {
    let listener = bind(config.metrics_listen).await?;
    let metrics_address = listener
        .local_addr()
        .map_err(|error| Report::caused_by(Fault::PortBusy, config.metrics_listen.to_string(), error))?;
    let dir = DataDir::open(&config.data_dir)?;
    if let Err(error) = std::fs::write(dir.path(METRICS_ADDRESS), format!("{metrics_address}\n")) {
        warn!(%error, "`towline-agent health` will not find this agent");
    }
    let apiserver = Apiserver::new(&config.apiserver, config.impersonator.as_deref())?;
    let has_second = config.second_relay.is_some();
    if !has_second {
        dir.forget(Rank::Second)?;
    }
    if let Some(secret) = &config.state_secret {
        secret.join(&apiserver, &dir, has_second).await?;
    }
    let identity = dir.identity()?;
    let cluster = identity.public().cluster_id();
    let issuer = config.issuer.trust.names();
    let (carrying, sessions) = watch::channel(None);
    let egress = config.egress.clone();
    let way = match config.issuer_via_relay {
        true => IssuerWay::through_relay(egress, cluster, sessions),
        false => IssuerWay::out(egress),
    };
    let verifier = way
        .verifier(config.issuer.trust)
        .map_err(|error| Report::new(Fault::ConfigInvalid, format!("the issuer's authorities: {error}")))?;

    let ledger = Ledger::new(config.limits.max_buffered_bytes);
    let metrics = Metrics::new(ledger.clone());
    info!(%cluster, apiserver = apiserver.address(), issuer, metrics = %metrics_address, "starting");
    let inner = InnerAcceptor::new(Arc::clone(&identity), config.clock.now())?;
    let roles = config.roles.map(|settings| Arc::new(Roles::new(settings, &identity)));
    let duties = Duties {
        mode: config.access.mode,
        impersonator: config.impersonator,
        state_secret: config.state_secret.as_ref().map(|secret| secret.name().to_owned()),
        role_groups: roles.as_ref().map(|roles| roles.possible_groups()).unwrap_or_default(),
    };
    let look = SelfLook::new(duties.clone(), config.clock.clone());
    let (audit, audit_writer) = match &config.audit {
        Some(to) => AuditLog::open(to).map(|(log, writer)| (log, Some(writer)))?,
        None => (AuditLog::none(), None),
    };
    let forwarder = Forwarder::new(verifier, apiserver, config.access, metrics.clone(), config.clock.clone())
        .with_audit(audit)
        .with_roles(roles)
        .with_self_look(look.clone());
    let per_user = config.limits.max_streams_per_user;
    let acceptor = Acceptor::new(inner, forwarder, metrics.clone(), config.clock.clone(), per_user);
    let acceptor = Arc::new(acceptor);
    let parts = Parts {
        cluster: identity,
        egress: config.egress,
        dir,
        secret: config.state_secret,
        acceptor: Arc::clone(&acceptor),
        metrics: metrics.clone(),
        ledger,
        limits: config.limits,
        clock: config.clock,
        resume_timeout: config.resume_timeout,
        drain_timeout: config.drain_timeout,
        lines: config.lines,
        holding: config.holding,
    };
    let (uplinks, status) = Uplinks::new(parts, config.relay, config.second_relay, carrying)?;
    // Whoever asks from afar is told what this agent sees, and has it ask no proxies that nobody gave it.
    let nowhere = |network| Network { elsewhere: Elsewhere::nowhere(), ..network };
    look.know(uplinks.networks().into_iter().map(nowhere).collect());

    let (trigger, watcher) = drain();
    let mut beside = JoinSet::new();
    let findings = Findings::default();
    beside.spawn(health::serve(listener, metrics.clone(), findings.clone()));
    beside.spawn(keep_proving(Arc::clone(&acceptor), duties, metrics.clone(), findings));
    beside.spawn(keep_fresh(Arc::clone(&acceptor)));
    beside.spawn(ask_apiserver(Arc::clone(&acceptor)));
    if let Some(settings) = config.issuer.settings {
        beside.spawn(keep_loaded(Arc::clone(&acceptor), settings));
    }
    let uplink = AbortOnDropHandle::new(tokio::spawn(uplinks.run(watcher)));
    Ok(Running {
        cluster,
        metrics_address,
        metrics,
        status,
        uplink,
        outcome: None,
        trigger,
        beside,
        audit_writer,
    })
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Report> {
    TcpListener::bind(address).await.map_err(|error| {
        let fault = match error.kind() {
            std::io::ErrorKind::AddrInUse => Fault::PortBusy,
            _ => Fault::ConfigInvalid,
        };
        Report::caused_by(fault, format!("--metrics-listen {address}"), error)
    })
}

/// Asks for the issuer's keys before the first caller needs them, and keeps them and the pool of connections fresh.
async fn keep_fresh(acceptor: Arc<Acceptor>) {
    let forwarder = acceptor.forwarder();
    // What fails is in the log.
    let _asked = forwarder.verifier().refresh().await;
    tokio::join!(forwarder.verifier().keep_fresh(), forwarder.apiserver().keep_pool());
}

/// Asks kube-apiserver once, so that whoever starts an agent with a wrong address, authority or credential reads of it here, and
/// not the first caller.
async fn ask_apiserver(acceptor: Arc<Acceptor>) {
    let apiserver = acceptor.forwarder().apiserver();
    let refused = |fault, what: &str| Report::new(fault, format!("{}: {what}", apiserver.address()));
    let report = match apiserver.call(Method::GET, "/version", "", Vec::new()).await {
        Ok((401, _)) => refused(Fault::AgentCredential, "it answers 401"),
        Ok((500.., _)) => refused(Fault::ApiserverUnreachable, "it does not work yet"),
        Ok((status, _)) => return info!(apiserver = apiserver.address(), status, "kube-apiserver answers"),
        Err(report) => report,
    };
    warn!(%report, "kube-apiserver can't be used yet; it is asked again with each request");
}

/// Proves what the accounts may do.
async fn keep_proving(acceptor: Arc<Acceptor>, duties: Duties, metrics: Metrics, findings: Findings) {
    duties.keep_proving(acceptor.forwarder().apiserver(), &metrics, &findings).await;
}

/// Takes up what changes in the files that say whom to trust.
async fn keep_loaded(acceptor: Arc<Acceptor>, settings: TrustSettings) {
    acceptor.forwarder().verifier().keep_loaded(&settings).await;
}

impl Running {
    /// The cluster's id.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Where metrics are served.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics_address
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Whether it is connected, and every change of that.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Waits for a session with the relay.
    ///
    /// # Errors
    /// If there is none within `patience`: why the last attempt failed.
    pub async fn connected(&mut self, patience: Duration) -> Result<(), Report> {
        let connected = self.status.wait_for(|status| matches!(status, Status::Connected { .. }));
        let connected = tokio::time::timeout(patience, connected).await.map(|found| found.is_ok());
        match connected {
            Ok(true) => Ok(()),
            // Nobody tells any more: it gave up.
            Ok(false) => self.ended().await,
            Err(_elapsed) => Err(match &*self.status.borrow() {
                Status::Away(Some(report)) => report.clone(),
                _ => Report::new(Fault::RelayTimeout, "the agent has no session with it"),
            }),
        }
    }

    /// Waits until it ends by itself: it can't be enrolled.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn ended(&mut self) -> Result<(), Report> {
        if self.outcome.is_none() {
            self.outcome = Some(match (&mut self.uplink).await {
                Ok(ended) => ended,
                Err(error) => Err(Report::caused_by(Fault::Internal, "the agent's task ended", error)),
            });
        }
        self.outcome.clone().unwrap_or(Ok(()))
    }

    /// Takes no new streams, lets those that run go on for the drain's time, then ends them. False where the agent had
    /// ended with an error before.
    pub async fn drain(mut self) -> bool {
        self.trigger.begin();
        let ended = self.ended().await.is_ok();
        // Whoever could still record goes first.
        self.beside.shutdown().await;
        if let Some(writer) = self.audit_writer {
            writer.finish(LAST_LINES).await;
        }
        ended
    }
}

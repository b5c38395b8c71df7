//! Wires a relay together, and is the only place that does.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, SemaphorePermit},
    task::JoinSet,
    time::{sleep, timeout},
};
use towline_identity::{TrustSettings, TrustSource, Verifier};
use towline_tunnel::{
    audit::{AuditLog, AuditWriter, Destination},
    backoff,
    carrier::dial::RelayAddress,
    clock::Clock,
    drain::{DrainTrigger, DrainWatcher, drain},
    fault::{Fault, Report},
    ids::KeyHash,
    issuer_host::IssuerHost,
    proto::{CloseReason, ledger::Ledger},
    session::{Refused, RelayIdentity},
};
use tracing::{info, warn};

use crate::{
    accept,
    access::AccessControl,
    audit::{Audit, NOTED_EVERY, Retention},
    authenticate::Authenticator,
    budget::AcceptBudget,
    certificates::CertificateAuthority,
    data_dir::Claim,
    dial::Switchboard,
    duplicates,
    enrol::PublicAddress,
    forward::RelayConn,
    health::{self, Readiness},
    issuers,
    keys::RelayKeys,
    limits::Limits,
    metrics::Metrics,
    places::Places,
    questions::{CHANGES, SEARCHES},
    registry::{self, Registry},
    sessions::Sessions,
    tls::{OuterTls, TlsSource},
    users::Users,
};

/// A drain asks nobody to stay away for longer.
const RETURN_WITHIN: Duration = Duration::from_secs(60);
/// After the drain's deadline connections are closed, and have this long to say so.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Streams whose role has ended are looked for this often.
const WITHDRAW_EVERY: Duration = Duration::from_secs(2);

/// What a relay is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Keys, registry, and its own TLS authority.
    pub data_dir: PathBuf,
    /// Where agents and clients arrive.
    pub listen: SocketAddr,
    /// Where metrics are served.
    pub metrics_listen: SocketAddr,
    /// The outer certificate.
    pub tls: TlsSource,
    /// What agents and clients dial; the listener's address where none is given.
    pub public: Option<RelayAddress>,
    /// Whose tokens for the relay's audience are accepted.
    pub issuer: TrustSource,
    /// Identity providers that agents may reach through it.
    pub issuer_hosts: Vec<IssuerHost>,
    /// How long an agent instance's certificate lasts.
    pub certificate_life: Duration,
    /// How long streams may go on after a drain began.
    pub drain_timeout: Duration,
    /// What peers can make grow.
    pub limits: Limits,
    /// Who opened what.
    pub audit: AuditConfig,
    /// The time.
    pub clock: Clock,
}

/// What is kept of who opened what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditConfig {
    /// In the registry.
    pub retention: Retention,
    /// And as lines, if anywhere.
    pub log: Option<Destination>,
}

/// A relay: what its connections share.
#[derive(Debug)]
pub struct Relay {
    tls: OuterTls,
    identity: RelayIdentity,
    authenticator: Authenticator,
    sessions: Sessions,
    places: Places,
    pairs: accept::Pairs,
    budget: Arc<AcceptBudget>,
    switchboard: Arc<Switchboard>,
    audit: Audit,
    metrics: Metrics,
    readiness: Arc<Readiness>,
    ledger: Ledger,
    users: Users,
    limits: Limits,
    clock: Clock,
    registry: Registry,
    searches: Semaphore,
    changes: Semaphore,
    drain: DrainWatcher,
}

impl Relay {
    /// The outer TLS that it listens with.
    pub fn tls(&self) -> Arc<ServerConfig> {
        self.tls.config()
    }
    pub(crate) fn identity(&self) -> &RelayIdentity {
        &self.identity
    }
    pub(crate) fn authenticator(&self) -> &Authenticator {
        &self.authenticator
    }
    /// Who is connected.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }
    pub(crate) fn places(&self) -> &Places {
        &self.places
    }
    pub(crate) fn pairs(&self) -> &accept::Pairs {
        &self.pairs
    }
    pub(crate) fn budget(&self) -> &Arc<AcceptBudget> {
        &self.budget
    }
    pub(crate) fn switchboard(&self) -> &Arc<Switchboard> {
        &self.switchboard
    }
    pub(crate) fn audit(&self) -> &Audit {
        &self.audit
    }
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }
    pub(crate) fn readiness(&self) -> Arc<Readiness> {
        Arc::clone(&self.readiness)
    }
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }
    pub(crate) fn users(&self) -> &Users {
        &self.users
    }
    /// The limits that it was started with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }
    /// A question's turn to search the registry's file; over when it is dropped.
    pub(crate) async fn question_turn(&self) -> Option<SemaphorePermit<'_>> {
        // Nobody closes it.
        self.searches.acquire().await.ok()
    }

    /// A turn to change the registry by a question that everybody may ask; over when it is dropped.
    pub(crate) async fn change_turn(&self) -> Option<SemaphorePermit<'_>> {
        self.changes.acquire().await.ok()
    }

    /// What newcomers are told while the relay drains.
    pub(crate) fn draining(&self) -> Option<Refused> {
        self.drain.has_begun().then(|| {
            let mut refused = Refused::new(CloseReason::Draining, "");
            refused.delay = self.return_delay();
            refused
        })
    }

    /// For one that is none of those the drain began with: any time while they come back.
    fn return_delay(&self) -> Duration {
        let within = self.budget.time_for(self.sessions.all().len()).min(RETURN_WITHIN);
        within.mul_f64(backoff::random() as f64 / u64::MAX as f64)
    }

    /// Tells everybody to go: each when its turn at the successor would be, those with streams first, and last those that stand beside
    /// others of the same agent, which comes back by the first.
    fn send_away(&self) {
        let mut conns = self.sessions.all();
        let is_beside = |conn: &RelayConn| conn.agent().is_some_and(|agent| !agent.beside.is_empty());
        conns.sort_by_cached_key(|conn| (conn.stream_count() == 0, is_beside(conn)));
        for (before, conn) in conns.iter().enumerate() {
            let delay = self.budget.time_for(before).min(RETURN_WITHIN);
            conn.go_away(CloseReason::Draining, delay, "");
        }
    }
}

/// A relay that serves.
#[derive(Debug)]
pub struct Running {
    relay: Arc<Relay>,
    registry: Registry,
    address: SocketAddr,
    metrics_address: SocketAddr,
    public: PublicAddress,
    identity_hash: KeyHash,
    tasks: JoinSet<()>,
    audit_writer: Option<AuditWriter>,
    trigger: DrainTrigger,
    drain_timeout: Duration,
    _claim: Claim,
}

/// Binds, opens and starts everything; fails if any of it can't be had.
///
/// # Errors
/// If a port is busy, a file can't be used, or the issuer's settings are wrong.
pub async fn start(config: Config) -> Result<Running, Report> {
    let listener = bind(config.listen).await?;
    let metrics_listener = bind(config.metrics_listen).await?;
    start_on(config, listener, metrics_listener).await
}

async fn start_on(
    config: Config,
    listener: TcpListener,
    metrics_listener: TcpListener,
) -> Result<Running, Report> {
    let no_address = |error| Report::caused_by(Fault::Internal, "a listener has no address", error);
    let address = listener.local_addr().map_err(no_address)?;
    let metrics_address = metrics_listener.local_addr().map_err(no_address)?;
    let clock = config.clock;
    let now = clock.now();
    // Whatever can be wrong in what was typed is found before anything is written.
    let verifier = Verifier::new(config.issuer.trust)
        .map_err(|error| Report::new(Fault::ConfigInvalid, error.to_string()))?;
    let relay_address = match config.public {
        Some(public) => public,
        None => RelayAddress::parse(&address.to_string())?,
    };
    config.tls.check(&relay_address)?;
    let claim = Claim::take(&config.data_dir).await?;
    let tls = OuterTls::load(config.tls, now)?;
    if !tls.covers(relay_address.host()) {
        warn!(public = %relay_address, certificate = tls.names().join(", "), "the certificate does not cover what agents and clients are told to dial: give the right --public-url, or another certificate");
    }
    let keys = RelayKeys::load_or_create(&config.data_dir)?;
    let registry = Registry::open(&config.data_dir).await?;
    registry.begin_serving(now).await?;
    let ledger = Ledger::new(config.limits.max_buffered_bytes);
    let metrics = Metrics::new(ledger.clone());
    metrics.registry_available.set(1);
    let readiness = Arc::new(Readiness::new());
    let public =
        PublicAddress { relay: relay_address, ca_pem: tls.own_authority().map(|own| own.pem.clone()) };
    public.note(&registry).await?;
    let authority = CertificateAuthority::new(&keys.authority, config.certificate_life)?;
    let (log, audit_writer) = match &config.audit.log {
        Some(to) => AuditLog::open(to).map(|(log, writer)| (log, Some(writer)))?,
        None => (AuditLog::none(), None),
    };
    let (audit, auditor) = Audit::new(registry.clone(), log, config.audit.retention, clock.clone());
    let sessions = Sessions::default();
    let access = AccessControl::new(registry.clone());
    let (trigger, watcher) = drain();
    let relay = Arc::new(Relay {
        identity: RelayIdentity::new(Arc::clone(&keys.identity))?,
        authenticator: Authenticator::new(
            verifier,
            registry.clone(),
            authority,
            keys.ticket_key(),
            &config.limits,
            clock.clone(),
        ),
        places: Places::new(&config.limits),
        // Each is a session, or a handshake.
        pairs: accept::Pairs::new(
            config.limits.max_sessions.saturating_add(config.limits.max_handshakes) as usize
        ),
        budget: Arc::new(AcceptBudget::new(&config.limits)),
        switchboard: Arc::new(
            Switchboard::new(
                access,
                sessions.clone(),
                Arc::clone(&keys.tickets),
                clock.clone(),
                metrics.clone(),
            )
            .leading_to(config.issuer_hosts),
        ),
        sessions: sessions.clone(),
        audit,
        metrics: metrics.clone(),
        readiness: Arc::clone(&readiness),
        users: Users::new(&config.limits, &ledger),
        ledger,
        limits: config.limits,
        clock: clock.clone(),
        registry: registry.clone(),
        searches: Semaphore::new(SEARCHES),
        changes: Semaphore::new(CHANGES),
        drain: watcher.clone(),
        tls: tls.clone(),
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(tls.follow());
    tasks.spawn(follow_registry(registry.clone(), metrics.clone(), Arc::clone(&readiness)));
    tasks.spawn(sessions.follow(registry.clone(), clock));
    tasks.spawn(auditor.run());
    tasks.spawn(note_accounts(Arc::clone(&relay)));
    tasks.spawn(withdraw(Arc::clone(&relay), registry.clone()));
    tasks.spawn(duplicates::watch(Arc::clone(&relay)));
    tasks.spawn(keep_keys_fresh(Arc::clone(&relay)));
    tasks.spawn(issuers::serve(Arc::clone(&relay)));
    if let Some(settings) = config.issuer.settings {
        tasks.spawn(keep_trust_loaded(Arc::clone(&relay), settings));
    }
    tasks.spawn(health::serve(metrics_listener, metrics, Arc::clone(&readiness), watcher.clone()));
    let budget = Arc::clone(relay.budget());
    tasks.spawn(async move { budget.run().await });
    tasks.spawn(accept::listen(listener, Arc::clone(&relay), watcher));
    readiness.set_accepting(true);
    info!(listen = %address, metrics = %metrics_address, public = %public.relay, key = %keys.identity_hash(), "the relay serves");
    Ok(Running {
        relay,
        registry,
        address,
        metrics_address,
        public,
        identity_hash: keys.identity_hash(),
        tasks,
        audit_writer,
        trigger,
        drain_timeout: config.drain_timeout,
        _claim: claim,
    })
}

impl Running {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it serves metrics.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics_address
    }

    /// What agents and clients dial, and the authority of its TLS where it is its own.
    pub fn public(&self) -> &PublicAddress {
        &self.public
    }

    /// What agents and clients pin.
    pub fn identity_hash(&self) -> KeyHash {
        self.identity_hash
    }

    /// Clusters, roles and enrolment tokens.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The relay itself, for [`accept::connection`].
    pub fn relay(&self) -> &Arc<Relay> {
        &self.relay
    }

    /// Drains: takes nothing new, lets streams end for as long as was configured, then closes what is left. Says
    /// whether all streams ended by themselves.
    pub async fn drain(mut self) -> bool {
        info!("the relay drains");
        self.relay.readiness.set_accepting(false);
        self.trigger.begin();
        self.relay.send_away();
        let quiet = timeout(self.drain_timeout, self.relay.sessions.quiet()).await.is_ok();
        for conn in self.relay.sessions.all() {
            conn.stop().cancel();
        }
        let gone = async {
            while !self.relay.sessions.all().is_empty() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let _in_time = timeout(LAST_WORDS, gone).await;
        self.relay.sessions.write_changes(&self.registry, &self.relay.clock).await;
        self.relay.audit.flush().await;
        self.tasks.shutdown().await;
        if let Some(writer) = self.audit_writer {
            writer.finish(LAST_WORDS).await;
        }
        self.registry.close().await;
        info!(quiet, "the relay has ended");
        quiet
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Report> {
    TcpListener::bind(address).await.map_err(|error| {
        let fault = match error.kind() {
            std::io::ErrorKind::AddrInUse => Fault::PortBusy,
            _ => Fault::ConfigInvalid,
        };
        Report::caused_by(fault, format!("can't listen on {address}"), error)
    })
}

async fn follow_registry(registry: Registry, metrics: Metrics, readiness: Arc<Readiness>) {
    registry::follow(registry, move |available| {
        metrics.registry_available.set(i64::from(available));
        readiness.set_registry(available);
    })
    .await;
}

/// Ends what is no longer allowed, whenever the registry changes and now and then; ends with the registry.
async fn withdraw(relay: Arc<Relay>, registry: Registry) {
    let mut changes = registry.changes();
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            // A role's end is no change.
            () = sleep(WITHDRAW_EVERY) => {}
        }
        let known = Arc::clone(&changes.borrow_and_update());
        for conn in relay.sessions.all() {
            if let Some(agent) = conn.agent()
                && let Err(error) = agent.holder.standing(&known)
            {
                warn!(channel = %conn.channel(), instance = %agent.holder.instance, %error, "an agent's session was ended");
                conn.go_away(CloseReason::CertificateRefused, Duration::ZERO, &error.to_string());
                conn.stop().cancel();
            }
            if let Some(client) = conn.client() {
                conn.end_streams(|cluster| match relay.switchboard.allowed(client, cluster) {
                    Err((CloseReason::UserRevoked, _)) => Some((CloseReason::UserRevoked, "")),
                    Err((CloseReason::Forbidden | CloseReason::ClusterUnknown, _)) => {
                        Some((CloseReason::Forbidden, "the role was removed"))
                    }
                    // A token that is expired ends no stream here: the agent judges those.
                    Ok(_) | Err(_) => None,
                });
                accept::end_if_revoked(&conn, client, &relay);
                conn.end_streams_without(|documents| relay.switchboard.stand(documents));
            }
        }
    }
}

/// Takes up what changes in the files that say whom to trust.
async fn keep_trust_loaded(relay: Arc<Relay>, settings: TrustSettings) {
    relay.authenticator.verifier().keep_loaded(&settings).await;
}

/// What sessions that go on have carried is noted now and then; never returns.
async fn note_accounts(relay: Arc<Relay>) {
    loop {
        sleep(NOTED_EVERY).await;
        for conn in relay.sessions.all() {
            conn.note_account();
        }
    }
}

async fn keep_keys_fresh(relay: Arc<Relay>) {
    // What fails is in the log.
    let _asked = relay.authenticator.verifier().refresh().await;
    relay.authenticator.verifier().keep_fresh().await;
}

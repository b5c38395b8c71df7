//! `towline dev`: relay, agent and proxy in one process, against a cluster that somebody already has.
//!
//! Everything is as in earnest, between real sockets on loopback: enrolment, session, tickets, inner TLS, tokens that are
//! verified, impersonation. Only the identity provider is a stand-in that lives in this process, and gives its tokens to
//! nobody else. What it makes lies in a folder that is removed at the end.

mod source;

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tempfile::TempDir;
use tokio_util::task::AbortOnDropHandle;
use towline_agent::{app::RelayConfig, dial::ApiserverConfig};
use towline_identity::{
    IssuerConfig, IssuerSettings, TrustSource,
    dev::{DevIssuer, TokenRequest},
};
use towline_relay::{
    enrol,
    limits::Limits as RelayLimits,
    registry::{Role, RoleAssignment, SubjectKind},
    tls::TlsSource,
};
use towline_tunnel::{
    clock::Clock,
    drain::DrainWatcher,
    egress::Egress,
    enrolment::EnrolmentToken,
    fault::{Fault, Report},
};
use tracing::warn;

use crate::{
    app::{self, Choice, RESUME_TIMEOUT},
    kubeconfig::Location,
    token::TokenFrom,
};

const RELAY_AUDIENCE: &str = "towline-relay";
const CLUSTER_AUDIENCE: &str = "towline-cluster";
/// What the cluster and its context are called.
const NAME: &str = "towline-dev";
/// A token lives for an hour, and is replaced long before.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
const TOKEN_RENEWED_AFTER: Duration = Duration::from_secs(1200);
/// The agent connects over loopback.
const CONNECTED_WITHIN: Duration = Duration::from_secs(10);
/// Requests that run when it ends get so long.
const DRAIN: Duration = Duration::from_secs(2);

/// What `towline dev` is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's kubeconfig, whose user must be allowed to impersonate.
    pub source: Location,
    /// A context of it; its current one where none is given.
    pub context: Option<String>,
    /// As whom requests run.
    pub user: String,
    /// And in which groups, beside `system:authenticated`.
    pub groups: Vec<String>,
    /// Where the context for kubectl is put.
    pub kubeconfig: Location,
    /// Of the local endpoint, as a proxy's.
    pub port: Option<u16>,
    /// Keeps the local authority and client certificates.
    pub state_dir: PathBuf,
}

/// All three, running. Dropping it ends them at once.
#[derive(Debug)]
pub struct Running {
    proxy: app::Running,
    agent: towline_agent::app::Running,
    relay: towline_relay::app::Running,
    _tokens: AbortOnDropHandle<()>,
    _source: Option<AbortOnDropHandle<()>>,
    _folder: TempDir,
}

/// Starts all three. When this returns, kubectl works.
///
/// # Errors
/// If one of them can't be started, or the cluster does not answer. Then no kubeconfig was changed.
pub async fn start(config: Config, drain_watcher: DrainWatcher) -> Result<Running, Report> {
    let folder = private_folder()?;
    // Taken now: the context that is written below becomes the current one, and must not lead to itself.
    let source = source::prepare(config.source.files(), config.context.as_deref(), folder.path()).await?;
    let path = |name: &str| folder.path().join(name);
    let issuer = DevIssuer::start(0).await.map_err(|error| {
        Report::caused_by(Fault::Internal, "the development issuer can't be started", error)
    })?;
    write(&path("issuer-ca.pem"), issuer.ca_pem())?;
    let trust = |audience: &str| {
        IssuerConfig::parse(IssuerSettings {
            issuer_url: issuer.url(),
            client_id: audience.into(),
            username_prefix: Some("-".into()),
            groups_claim: Some("groups".into()),
            signing_algs: vec!["ES256".into()],
            ca_file: Some(path("issuer-ca.pem")),
            ..IssuerSettings::default()
        })
        .map(TrustSource::from)
        .map_err(|error| Report::new(Fault::Internal, error.to_string()))
    };
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));

    let relay = towline_relay::app::start(towline_relay::app::Config {
        data_dir: subfolder(&folder, "relay")?,
        listen: loopback,
        metrics_listen: loopback,
        tls: TlsSource::SelfSigned { names: vec!["127.0.0.1".into()], data_dir: path("relay") },
        public: None,
        issuer: trust(RELAY_AUDIENCE)?,
        issuer_hosts: Vec::new(),
        certificate_life: towline_relay::certificates::DEFAULT_LIFE,
        audit: towline_relay::app::AuditConfig::default(),
        drain_timeout: DRAIN,
        limits: RelayLimits::default(),
        clock: Clock::system(),
    })
    .await?;
    let token = enrolment(&relay).await?;
    let relay_ca_file = path("relay-ca.pem");
    write(&relay_ca_file, token.ca_pem.as_deref().unwrap_or_default())?;

    let mut agent = towline_agent::app::start(towline_agent::app::Config {
        data_dir: subfolder(&folder, "agent")?,
        state_secret: None,
        relay: RelayConfig { enrolment: Some(token), ..RelayConfig::default() },
        second_relay: None,
        // All of it is on this machine.
        egress: Egress::direct(),
        issuer_via_relay: false,
        apiserver: ApiserverConfig::Kubeconfig { path: source.path, context: None },
        impersonator: None,
        access: towline_agent::forward::Access::default(),
        roles: None,
        issuer: trust(CLUSTER_AUDIENCE)?,
        metrics_listen: loopback,
        drain_timeout: DRAIN,
        resume_timeout: RESUME_TIMEOUT,
        lines: towline_agent::app::default_lines(),
        // All of it would go at once.
        holding: towline_agent::app::Holding { spare: false, ..towline_agent::app::Holding::default() },
        audit: None,
        limits: towline_agent::app::Limits::default(),
        clock: Clock::system(),
    })
    .await?;
    agent.connected(CONNECTED_WITHIN).await?;
    let let_in = RoleAssignment {
        kind: SubjectKind::User,
        subject: config.user.clone(),
        role: Role::ClusterUser,
        cluster: agent.cluster(),
        expires_at: None,
    };
    relay.registry().assign_role(&let_in, SystemTime::now()).await?;

    let mint = Mint { issuer, user: config.user, groups: config.groups, folder: folder.path().to_owned() };
    mint.write()?;
    let proxy = app::start(
        app::Config {
            relay: relay.public().relay.clone(),
            relay_key: relay.identity_hash(),
            relay_ca_file: Some(relay_ca_file),
            egress: Egress::direct(),
            relay_token: TokenFrom::File(mint.file(RELAY_AUDIENCE)),
            cluster_token: TokenFrom::File(mint.file(CLUSTER_AUDIENCE)),
            resume_timeout: RESUME_TIMEOUT,
            lines: app::default_lines(),
            shared_audience: false,
            clusters: vec![Choice::named(NAME, agent.cluster())],
            confirm: None,
            port: config.port,
            kubeconfig: Some(config.kubeconfig),
            state_dir: config.state_dir,
        },
        drain_watcher,
    )
    .await?;
    let tokens = AbortOnDropHandle::new(tokio::spawn(mint.keep_fresh()));
    let renewal = source.renewal.map(|(plugin, next)| plugin.keep_fresh(next));
    let source = renewal.map(|renewal| AbortOnDropHandle::new(tokio::spawn(renewal)));
    Ok(Running { proxy, agent, relay, _tokens: tokens, _source: source, _folder: folder })
}

impl Running {
    /// The proxy: where it listens, and what it wrote for kubectl.
    pub fn proxy(&self) -> &app::Running {
        &self.proxy
    }

    /// Waits for the drain, then ends the three one after the other, each before what it depends on.
    ///
    /// # Errors
    /// If the kubeconfig can't be restored.
    pub async fn wait(self) -> Result<(), Report> {
        let restored = self.proxy.wait().await;
        self.agent.drain().await;
        self.relay.drain().await;
        restored
    }
}

/// Gives this process's person their tokens.
struct Mint {
    issuer: DevIssuer,
    user: String,
    groups: Vec<String>,
    folder: PathBuf,
}

impl Mint {
    fn file(&self, audience: &str) -> PathBuf {
        self.folder.join(format!("{audience}.token"))
    }

    fn write(&self) -> Result<(), Report> {
        let groups: Vec<&str> = self.groups.iter().map(String::as_str).collect();
        for audience in [RELAY_AUDIENCE, CLUSTER_AUDIENCE] {
            let mut request = TokenRequest::new(&self.user, &groups, audience);
            request.lifetime = TOKEN_LIFE;
            let token = self.issuer.mint(&request);
            let token =
                token.map_err(|error| Report::caused_by(Fault::Internal, "no token can be made", error))?;
            write(&self.file(audience), &token)?;
        }
        Ok(())
    }

    async fn keep_fresh(self) {
        loop {
            tokio::time::sleep(TOKEN_RENEWED_AFTER).await;
            if let Err(report) = self.write() {
                warn!(%report, "the tokens were not renewed; the last ones still hold for a while");
            }
        }
    }
}

async fn enrolment(relay: &towline_relay::app::Running) -> Result<EnrolmentToken, Report> {
    let request = enrol::TokenRequest {
        name: NAME.parse().map_err(|error| Report::caused_by(Fault::Internal, NAME, error))?,
        ttl: Duration::from_secs(60),
        replaces: false,
        address: relay.public().clone(),
    };
    enrol::make_token(relay.registry(), relay.identity_hash(), request, SystemTime::now()).await
}

fn private_folder() -> Result<TempDir, Report> {
    let made = tempfile::Builder::new()
        .prefix("towline-dev-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir();
    made.map_err(|error| Report::caused_by(Fault::FileUnwritable, "a folder for temporary files", error))
}

fn subfolder(folder: &TempDir, name: &str) -> Result<PathBuf, Report> {
    let path = folder.path().join(name);
    match fs::create_dir(&path) {
        Ok(()) => Ok(path),
        Err(error) => Err(Report::caused_by(Fault::FileUnwritable, path.display().to_string(), error)),
    }
}

/// Replaces a file at once, readable by its owner alone.
fn write(path: &Path, text: &str) -> Result<(), Report> {
    let new = path.with_extension("new");
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&new, path));
    written.map_err(|error| Report::caused_by(Fault::FileUnwritable, path.display().to_string(), error))
}

//! `towline proxy` as a value: everything that it needs, and what runs.
//!
//! The only place that wires the parts together. Nothing is written to a kubeconfig before a cluster has answered.

mod choose;
mod names;
mod port;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    task::{JoinSet, spawn_blocking},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;
use towline_tunnel::{
    carrier::{
        dial::{Dialler, RelayAddress},
        ladder::Memory,
    },
    clock::Clock,
    drain::DrainWatcher,
    egress::Egress,
    fault::{Fault, Report},
    ids::{ClusterId, KeyHash},
    keys::SigningKey,
    mux::{BULK_AT_CLIENT, LineSettings},
};

pub(crate) use choose::resolve;
pub use choose::{Choice, Confirm};

use crate::{
    accept::{DEFAULT_PORT, GRACE},
    dial::{Link, LinkConfig, Pool},
    forward::Forwarder,
    kubeconfig::{Entry, Location, Merged, standalone},
    local::{Authority, EndpointTls, ServingLock, StateFolder},
    token::{TokenFrom, Tokens},
};

/// How long a stream waits to go on, where nobody says otherwise.
pub const RESUME_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections for bulk beside the session, where nobody says otherwise: one is enough to keep bulk apart from what people type.
pub const BULK_LINES: u32 = 1;
/// A cluster has this long to answer `/version`.
const READY_WITHIN: Duration = Duration::from_secs(14);

/// In the state folder: which carriers got through, in which network.
const CARRIERS: &str = "carriers.json";

/// How a proxy uses lines where nobody says otherwise.
pub fn default_lines() -> LineSettings {
    LineSettings::new(BULK_LINES, BULK_AT_CLIENT)
}

/// All that a proxy needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the relay is.
    pub relay: RelayAddress,
    /// The hash of its identity key: nothing is said to another.
    pub relay_key: KeyHash,
    /// The authority of its outer TLS, where that is a private one (PEM).
    pub relay_ca_file: Option<PathBuf>,
    /// The way to it.
    pub egress: Egress,
    /// Where the token for the relay comes from.
    pub relay_token: TokenFrom,
    /// Where the token for the clusters comes from.
    pub cluster_token: TokenFrom,
    /// The relay may see a token that the clusters accept: it can then be you there.
    pub shared_audience: bool,
    /// How long a stream waits to go on when a connection on the way is lost.
    pub resume_timeout: Duration,
    /// How bulk is kept apart.
    pub lines: LineSettings,
    /// What to serve; at least one.
    pub clusters: Vec<Choice>,
    /// Asked before a name is believed that the relay resolved; without it no such name is.
    pub confirm: Option<Confirm>,
    /// Of the local endpoint; 0 takes a free one. Where none is named it is the usual one, or a free one where another proxy has that.
    pub port: Option<u16>,
    /// The kubeconfig to put contexts into, if any.
    pub kubeconfig: Option<Location>,
    /// Keeps the local authority, client certificates and confirmed names.
    pub state_dir: PathBuf,
}

/// One cluster that is served.
#[derive(Clone, Debug)]
pub struct Served {
    /// As it was asked for: a name, or the id.
    pub label: String,
    /// Its id.
    pub cluster: ClusterId,
    /// The context's name.
    pub context: String,
    /// `https://127.0.0.1:PORT/clusters/ID`.
    pub server: String,
    /// Why it did not answer yet, if it did not. It is served all the same.
    pub trouble: Option<Report>,
}

/// A proxy that runs: every cluster was asked, and at least one has answered.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    served: Vec<Served>,
    entries: Vec<Entry>,
    merged: Option<Merged>,
    endpoint: AbortOnDropHandle<()>,
    _renewed: AbortOnDropHandle<()>,
    link: Arc<Link>,
    drain: DrainWatcher,
    _locks: Vec<ServingLock>,
    _port: Option<ServingLock>,
}

/// Starts a proxy. When this returns, kubectl works.
///
/// # Errors
/// If a setting is wrong, the port is taken, or no cluster answers. Then nothing was written to a kubeconfig.
pub async fn start(config: Config, drain: DrainWatcher) -> Result<Running, Report> {
    let now = SystemTime::now();
    let chosen = choose::chosen(&config.clusters)?;
    let (state, names) = {
        let (location, dir) = (config.kubeconfig.clone(), config.state_dir.clone());
        let chosen = chosen.clone();
        off_runtime(move || {
            let names = names::contexts(&chosen, location.as_ref())?;
            Ok((StateFolder::open(&dir)?, names))
        })
        .await?
    };
    let authority = {
        let state = state.clone();
        off_runtime(move || Authority::load_or_create(&state, now)).await?
    };
    let tls = Arc::new(EndpointTls::new(authority, now)?);
    let (endpoint, port) = port::take(config.port, DEFAULT_PORT, &state, &config.clusters).await?;
    let address = endpoint.address();

    let (relay, cluster) = (config.relay_token.clone(), config.cluster_token.clone());
    let tokens = Arc::new(Tokens::start(relay, cluster, config.shared_audience, &Clock::system()).await?);
    let now = SystemTime::now();
    tokens.for_relay(now)?;
    tokens.for_cluster(now)?;
    let run_key = Arc::new(SigningKey::generate());
    let link = Arc::new(link(&config, Arc::clone(&run_key), Arc::clone(&tokens), false)?);
    let clusters = choose::resolve(&chosen, &config, &state, &link).await?;
    let served = served(&config.clusters, &clusters, names, address);
    let locks = match &config.kubeconfig {
        Some(_) => served
            .iter()
            .map(|one| state.serve(one.cluster, &one.label))
            .collect::<Result<Vec<_>, Report>>()?,
        None => Vec::new(),
    };

    let pools = clusters
        .iter()
        .map(|cluster| Ok((*cluster, Pool::new(*cluster, &run_key, Arc::clone(&link))?)))
        .collect::<Result<HashMap<_, _>, Report>>()?;
    let forwarder = Arc::new(Forwarder::new(pools, tokens));
    let serving = endpoint.serve(Arc::clone(&tls), Arc::clone(&forwarder), drain.clone());
    let endpoint = AbortOnDropHandle::new(tokio::spawn(serving));
    let served = probe(&forwarder, served).await?;
    let renewed = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&forwarder).keep_authorities()));

    let entries = entries(&served, Arc::clone(&tls), now).await?;
    let merged = match config.kubeconfig {
        Some(location) => {
            let entries = entries.clone();
            Some(off_runtime(move || location.merge(&entries)).await?)
        }
        None => None,
    };
    Ok(Running {
        address,
        served,
        entries,
        merged,
        endpoint,
        _renewed: renewed,
        link,
        drain,
        _locks: locks,
        _port: port,
    })
}

/// Begins to dial the relay; `brief` where it is for one question.
pub(crate) fn link(
    config: &Config,
    run_key: Arc<SigningKey>,
    tokens: Arc<Tokens>,
    brief: bool,
) -> Result<Link, Report> {
    let trust = config.egress.trust(config.relay_ca_file.as_deref())?;
    Ok(Link::start(LinkConfig {
        dialler: Dialler::over(config.relay.clone(), config.egress.clone(), trust)?,
        pin: config.relay_key,
        run_key,
        tokens,
        resume_timeout: config.resume_timeout,
        lines: config.lines,
        brief,
        carriers: carriers(&config.state_dir),
    }))
}

/// What earlier runs have learned, where there is a folder that is fit to keep it: none is made for that alone.
fn carriers(state_dir: &Path) -> Memory {
    match state_dir.is_dir().then(|| StateFolder::open(state_dir)) {
        Some(Ok(folder)) => Memory::kept(folder.path().join(CARRIERS)),
        Some(Err(_)) | None => Memory::default(),
    }
}

impl Running {
    /// Where the local endpoint listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The clusters, in the order in which they were asked for.
    pub fn served(&self) -> &[Served] {
        &self.served
    }

    /// The kubeconfig file that has the contexts, if one was to.
    pub fn kubeconfig_file(&self) -> Option<&Path> {
        self.merged.as_ref().map(Merged::path)
    }

    /// A kubeconfig of its own with the contexts: a secret.
    pub fn kubeconfig(&self) -> String {
        standalone(&self.entries)
    }

    /// Waits for the drain. Then the kubeconfig becomes what it was, requests that run get a little time, and the
    /// relay is told goodbye.
    ///
    /// # Errors
    /// If the kubeconfig can't be restored, or the endpoint has ended by itself.
    pub async fn wait(mut self) -> Result<(), Report> {
        tokio::select! {
            biased;
            () = self.drain.begun() => {}
            ended = &mut self.endpoint => {
                self.restore().await?;
                let why = ended.err().map_or_else(String::new, |error| error.to_string());
                return Err(Report::new(Fault::Internal, format!("the local endpoint ended {why}")));
            }
        }
        let restored = self.restore().await;
        // What is late is dropped with the endpoint.
        let _late = timeout(GRACE + Duration::from_secs(1), &mut self.endpoint).await;
        self.link.close().await;
        restored
    }

    async fn restore(&mut self) -> Result<(), Report> {
        match self.merged.take() {
            Some(merged) => off_runtime(move || merged.restore()).await,
            None => Ok(()),
        }
    }
}

fn served(
    choices: &[Choice],
    clusters: &[ClusterId],
    contexts: Vec<String>,
    address: SocketAddr,
) -> Vec<Served> {
    let described = choices.iter().zip(clusters).zip(contexts);
    described
        .map(|((choice, cluster), context)| Served {
            label: choice.label(),
            cluster: *cluster,
            context,
            server: format!("https://{address}/clusters/{cluster}"),
            trouble: None,
        })
        .collect()
}

/// Asks every cluster; some trouble is no reason to keep people from the others.
async fn probe(forwarder: &Arc<Forwarder>, mut served: Vec<Served>) -> Result<Vec<Served>, Report> {
    let mut probes = JoinSet::new();
    for (at, one) in served.iter().enumerate() {
        let (forwarder, cluster) = (Arc::clone(forwarder), one.cluster);
        probes.spawn(async move {
            let silent = |_elapsed| Report::new(Fault::AgentTimeout, "/version was not answered");
            (at, timeout(READY_WITHIN, forwarder.probe(cluster)).await.map_err(silent).flatten())
        });
    }
    while let Some(probed) = probes.join_next().await {
        if let Ok((at, Err(report))) = probed {
            served[at].trouble = Some(named(report, &served[at].label));
        }
    }
    let first = served.first().and_then(|one| one.trouble.clone());
    match first {
        Some(report) if served.iter().all(|one| one.trouble.is_some()) => Err(report),
        _ => Ok(served),
    }
}

/// A report about a cluster that names it.
fn named(mut report: Report, label: &str) -> Report {
    if !report.detail.contains(label) {
        report = report.clone();
        report.detail =
            [label, report.detail.as_str()].join(if report.detail.is_empty() { "" } else { ": " });
    }
    report
}

async fn entries(served: &[Served], tls: Arc<EndpointTls>, now: SystemTime) -> Result<Vec<Entry>, Report> {
    let served = served.to_vec();
    let entry = move |one: Served| {
        let identity = tls.authority().client(one.cluster, now)?;
        Ok(Entry {
            name: one.context,
            cluster: one.cluster,
            server: one.server,
            authority: tls.authority().pem().to_owned(),
            certificate: identity.certificate,
            key: identity.key,
        })
    };
    off_runtime(move || served.into_iter().map(entry).collect()).await
}

/// Files and locks are waited for on a thread of their own.
async fn off_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Report> + Send + 'static,
) -> Result<T, Report> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Report::caused_by(Fault::Internal, "", error)),
    }
}

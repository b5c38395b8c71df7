//! Being connected with the relay: dial, say who we are, stay; and again, for as long as the agent runs.
//!
//! An agent has one or two relays ([`crate::uplinks`]). With each there are two sessions: one on which streams begin, and a spare one beside it, which takes over at once when that is lost ([`hold`]).
//! Whatever is to be replaced is so by a successor that stands before it takes no more streams ([`replace`]).

mod enrolment;
mod held;
mod hold;
mod lines;
mod renew;
mod replace;
mod silence;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, task::JoinSet, time::timeout};
use towline_tunnel::{
    carrier::{
        dial::{Dialler, Errand, RelayAddress},
        ladder::{Climbed, Ladder, Memory},
        rung::{Carrier, Rung},
    },
    clock::Clock,
    doctor::Network,
    drain::DrainWatcher,
    egress::{Egress, TrustStore},
    enrolment::EnrolmentToken,
    fault::Report,
    ids::{ChannelId, KeyHash},
    keys::{SigningKey, VerifyingKey},
    mux::{Connection, EndpointConfig, Keeper, Ledger, LineSettings, Lines, Side},
    session::{self, Channel, Identify},
};
use tracing::info;

pub(crate) use self::enrolment::not_enrolled;
pub use self::replace::Holding;
use self::{enrolment::Enrolment, held::Facts};
use crate::{
    accept::Acceptor,
    app::Limits,
    forward::Ending,
    instance::Instance,
    metrics::Metrics,
    secret::StateSecret,
    session::{LAST_WORDS, Session},
    state::{DataDir, Rank},
};

/// Whether the agent is connected, for whoever started it.
#[derive(Clone, Debug)]
pub enum Status {
    /// Not now; why the last attempt failed, if there was one.
    Away(Option<Report>),
    /// It is.
    Connected {
        /// The session's name in every hop's logs.
        channel: ChannelId,
        /// The name under which the cluster is enrolled.
        name: Option<String>,
    },
}

/// A relay to be connected with, as configured.
#[derive(Clone, Debug, Default)]
pub struct RelayConfig {
    /// To join it with; may stay after it was used.
    pub enrolment: Option<EnrolmentToken>,
    /// Its address, where it is another than the enrolment token's.
    pub address: Option<RelayAddress>,
    /// Authorities of its outer TLS beside the system's, in place of the enrolment token's.
    pub ca_file: Option<PathBuf>,
}

/// The agent's way to a relay.
pub(crate) struct Uplink {
    rank: Rank,
    cluster: Arc<SigningKey>,
    enrolment: Enrolment,
    address: Option<RelayAddress>,
    ca_file: Option<PathBuf>,
    egress: Egress,
    /// For the file that it was made of: what it has read outlives a connection.
    trust: Mutex<Option<(Option<PathBuf>, TrustStore)>>,
    dir: DataDir,
    acceptor: Arc<Acceptor>,
    metrics: Metrics,
    ledger: Ledger,
    limits: Limits,
    clock: Clock,
    keeper: Keeper,
    ending: Ending,
    drain_timeout: Duration,
    line_settings: LineSettings,
    holding: Holding,
    /// Which carriers got through.
    carriers: Memory,
    status: watch::Sender<Status>,
    carrying: watch::Sender<Option<Connection>>,
}

/// What an uplink is made of, beside its relay.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) cluster: Arc<SigningKey>,
    pub(crate) egress: Egress,
    pub(crate) dir: DataDir,
    pub(crate) secret: Option<StateSecret>,
    pub(crate) acceptor: Arc<Acceptor>,
    pub(crate) metrics: Metrics,
    pub(crate) ledger: Ledger,
    pub(crate) limits: Limits,
    pub(crate) clock: Clock,
    pub(crate) resume_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) lines: LineSettings,
    pub(crate) holding: Holding,
}

/// A session that began, and what is needed to run it.
struct Begun {
    session: Session,
    channel: Channel<Carrier>,
    config: EndpointConfig,
    name: Option<String>,
    facts: Facts,
}

impl Uplink {
    /// Prepares it.
    ///
    /// # Errors
    /// If the cluster was never enrolled and there is no token, or a file can't be used.
    pub(crate) fn new(parts: Parts, rank: Rank, relay: RelayConfig) -> Result<Self, Report> {
        let enrolment = Enrolment::new(rank, relay.enrolment, &parts.dir, parts.secret)?;
        let max_streams = parts.limits.max_streams as usize;
        let uplink = Self {
            rank,
            cluster: parts.cluster,
            enrolment,
            address: relay.address,
            ca_file: relay.ca_file,
            egress: parts.egress,
            trust: Mutex::default(),
            dir: parts.dir,
            acceptor: parts.acceptor,
            metrics: parts.metrics,
            ledger: parts.ledger,
            limits: parts.limits,
            clock: parts.clock,
            // Streams that wait are taken up where they began.
            keeper: Keeper::with_lines(parts.resume_timeout, max_streams, parts.lines),
            ending: Ending::default(),
            drain_timeout: parts.drain_timeout,
            line_settings: parts.lines,
            holding: parts.holding,
            carriers: Memory::default(),
            status: watch::Sender::new(Status::Away(None)),
            carrying: watch::Sender::new(None),
        };
        // What is wrong with a certificate file or an address is told at start.
        uplink.dialler()?;
        uplink.metrics.relay_connected(rank, false);
        Ok(uplink)
    }

    /// Which of the agent's relays it leads to.
    pub(crate) fn rank(&self) -> Rank {
        self.rank
    }

    /// Whether it is connected, and every change of that.
    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// The session on which streams begin, and every change of that.
    pub(crate) fn carrying(&self) -> watch::Receiver<Option<Connection>> {
        self.carrying.subscribe()
    }

    /// Stays connected until the drain, and then until the last session ended.
    ///
    /// # Errors
    /// If the enrolment token is refused and there is no other way to be let in.
    pub(crate) async fn run(&self, drain: DrainWatcher) -> Result<(), Report> {
        tokio::select! {
            ended = self.stay(drain) => ended,
            never = self.keeper.watch() => match never {},
        }
    }

    async fn stay(&self, drain: DrainWatcher) -> Result<(), Report> {
        let (mut sessions, mut bulk) = (JoinSet::new(), JoinSet::new());
        let mut lines = Lines::new(self.line_settings);
        tokio::select! {
            held = self.hold(&mut sessions, &drain) => held?,
            never = self.tend(&mut lines, &mut bulk, &drain) => match never {},
            never = self.renew() => match never {},
        }
        // Streams may be there without a session.
        self.ending.going.cancel();
        if timeout(self.drain_timeout, self.acceptor.ended()).await.is_err() {
            self.ending.cut.cancel();
            let _late = timeout(LAST_WORDS, self.acceptor.ended()).await;
        }
        self.keeper.close();
        // They see the drain themselves, and have a deadline.
        while sessions.join_next().await.is_some() {}
        while bulk.join_next().await.is_some() {}
        Ok(())
    }

    fn dialler(&self) -> Result<(Dialler, KeyHash, TrustStore), Report> {
        let (address, pin, ca_file) = self.way()?;
        let trust = self.trust(ca_file)?;
        Ok((Dialler::over(address, self.egress.clone(), trust.clone())?, pin, trust))
    }

    /// The ladder of carriers to the relay.
    fn ladder(&self) -> Result<Ladder, Report> {
        let (dialler, _, _) = self.dialler()?;
        Ok(Ladder::new(dialler, self.carriers.clone()))
    }

    /// Where the relay is, who it is, and whom its certificate is trusted by beside the system's authorities.
    fn way(&self) -> Result<(RelayAddress, KeyHash, Option<PathBuf>), Report> {
        let (address, pin, ca_pem) = self.enrolment.relay()?;
        let address = self.address.clone().unwrap_or(address);
        let ca_file = match (&self.ca_file, ca_pem) {
            (Some(file), _) => Some(file.clone()),
            (None, Some(pem)) => Some(self.dir.relay_ca(self.rank, &pem)?),
            (None, None) => None,
        };
        Ok((address, pin, ca_file))
    }

    /// The roots for the relay's certificate; the same as before while they are made of the same file.
    fn trust(&self, ca_file: Option<PathBuf>) -> Result<TrustStore, Report> {
        let mut kept = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, trust)) = kept.as_ref().filter(|(file, _)| *file == ca_file) {
            return Ok(trust.clone());
        }
        let trust = self.egress.trust(ca_file.as_deref())?;
        *kept = Some((ca_file, trust.clone()));
        Ok(trust)
    }

    /// The way to the relay, for whoever looks at it.
    pub(crate) fn network(&self) -> Result<Network, Report> {
        let (relay, pin, ca_file) = self.way()?;
        Ok(Network { clock: self.clock.clone(), ..Network::over(self.egress.clone(), relay, pin, ca_file) })
    }

    /// Dials the relay and says who we are, by whatever gets through or by what is better than a carrier alone. A certificate that the
    /// relay gives is kept.
    async fn connect(
        &self,
        errand: Errand,
        instance: Arc<Instance>,
        identify: Identify<'_>,
        better: Option<Rung>,
    ) -> Result<(RelayAddress, Climbed, Facts), Report> {
        let (dialler, pin, trust) = self.dialler()?;
        let relay = dialler.address().clone();
        let ladder = Ladder::new(dialler, self.carriers.clone());
        // Before dialling: what changes meanwhile is a change.
        let network = ladder.network();
        let roots = trust.roots();
        let climbed = match better {
            Some(than) => ladder.better(than, errand, pin, identify).await,
            None => ladder.connect(errand, pin, identify).await,
        };
        let mut climbed = climbed?;
        self.metrics.connected_by(climbed.rung);
        if let Some(certificate) = climbed.session.welcome.certificate.take() {
            instance.keep(certificate);
        }
        let source = self.holding.routes.source(replace::far(climbed.peer));
        let facts = Facts {
            channel: climbed.session.welcome.channel,
            rung: climbed.rung,
            network,
            peer: climbed.peer,
            source,
            trust,
            roots,
            certificate: instance.certificate(),
            instance,
            spares: climbed.session.welcome.spares,
        };
        Ok((relay, climbed, facts))
    }

    /// A session that stands beside these of the same process; on a better carrier than one alone, where one is named.
    async fn begin(&self, beside: &[ChannelId], better: Option<Rung>) -> Result<Begun, Report> {
        let credential = self.enrolment.credential();
        let identify = credential.identify(&self.cluster, beside);
        let errand = Errand::of_parked(self.keeper.parked());
        let (relay, Climbed { session, rung, .. }, facts) =
            self.connect(errand, credential.instance(), identify, better).await?;
        let session::Session { channel, welcome } = session;
        let apiserver = self.acceptor.forwarder().apiserver();
        let tickets = self.enrolment.joined(welcome.ticket_key, &self.dir, apiserver).await?;
        let name = welcome.name;
        if beside.is_empty() {
            info!(
                channel = %welcome.channel, %relay, carrier = rung.name(), name, instance = %facts.instance.id,
                cluster = %self.cluster.public().cluster_id(), "connected"
            );
        } else {
            info!(channel = %welcome.channel, %relay, carrier = rung.name(), "one more session stands beside the others");
        }
        let session = self.session(welcome.channel, tickets, false);
        Ok(Begun { session, channel, config: self.endpoint(&facts), name, facts })
    }

    fn session(&self, channel: ChannelId, tickets: VerifyingKey, line: bool) -> Session {
        Session {
            channel,
            acceptor: Arc::clone(&self.acceptor),
            tickets,
            metrics: self.metrics.clone(),
            keeper: self.keeper.clone(),
            ending: self.ending.clone(),
            drain_timeout: self.drain_timeout,
            line,
        }
    }

    fn endpoint(&self, facts: &Facts) -> EndpointConfig {
        EndpointConfig {
            side: Side::Dialler,
            max_streams: self.limits.max_streams as usize,
            ledger: self.ledger.clone(),
            instance: facts.instance.id,
            jitter: facts.instance.id.as_bytes()[0],
        }
    }
}

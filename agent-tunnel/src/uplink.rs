//! Being connected with the relay: dial, say who we are, stay; and again, for as long as the agent runs.
//!
//! A replacement is dialled as soon as the relay takes no new streams; the old session's streams go on beside it.

mod lines;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use towline_tunnel::{
    backoff::{self, Backoff},
    carrier::{
        dial::{Dialler, Errand, RelayAddress},
        ladder::{Climbed, Ladder, Memory},
        rung::Carrier,
    },
    clock::Clock,
    doctor::Network,
    drain::DrainWatcher,
    egress::{Egress, TrustStore},
    enrolment::{EnrolmentToken, JOIN},
    fault::{Fault, Report},
    ids::{ChannelId, KeyHash},
    keys::{SigningKey, VerifyingKey},
    mux::{Connection, EndpointConfig, Keeper, Ledger, LineSettings, Lines, Side},
    session::{self, Channel, Identify, message::Secret},
};
use tracing::{error, info, warn};

use crate::{
    accept::Acceptor,
    app::Limits,
    forward::Ending,
    instance::Instance,
    metrics::Metrics,
    secret::StateSecret,
    session::{LAST_WORDS, Leaving, Session},
    state::{DataDir, Membership},
};

/// The first delay before dialling again is at most this, the longest at most that.
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// The same while streams wait to go on.
const STREAMS_WAIT: Duration = Duration::from_secs(1);
/// A session that stood this long was a good one: what was before is forgotten.
const STEADY: Duration = Duration::from_secs(10);

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

/// Where it connects to, as configured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    /// Another address than the enrolment token's.
    pub(crate) relay: Option<RelayAddress>,
    /// Authorities of the relay's outer TLS.
    pub(crate) ca_file: Option<PathBuf>,
}

/// The agent's way to its relay.
pub(crate) struct Uplink {
    cluster: Arc<SigningKey>,
    instance: Arc<Instance>,
    /// A token that was not yet used, as far as we know.
    token: Option<EnrolmentToken>,
    /// Why the relay did not take it: maybe because we used it, and were stopped before that was noted. Then the
    /// cluster is enrolled, and its key opens the door.
    token_refused: Option<Report>,
    membership: Option<Membership>,
    overrides: Overrides,
    egress: Egress,
    /// For the file that it was made of: what it has read outlives a connection.
    trust: Mutex<Option<(Option<PathBuf>, TrustStore)>>,
    dir: DataDir,
    secret: Option<StateSecret>,
    acceptor: Arc<Acceptor>,
    metrics: Metrics,
    ledger: Ledger,
    limits: Limits,
    clock: Clock,
    keeper: Keeper,
    ending: Ending,
    drain_timeout: Duration,
    line_settings: LineSettings,
    /// Which carriers got through.
    carriers: Memory,
    status: watch::Sender<Status>,
    carrying: watch::Sender<Option<Connection>>,
}

/// What an uplink is made of.
pub(crate) struct Parts {
    pub(crate) cluster: Arc<SigningKey>,
    pub(crate) token: Option<EnrolmentToken>,
    pub(crate) overrides: Overrides,
    pub(crate) egress: Egress,
    pub(crate) dir: DataDir,
    pub(crate) secret: Option<StateSecret>,
    pub(crate) acceptor: Arc<Acceptor>,
    pub(crate) metrics: Metrics,
    pub(crate) ledger: Ledger,
    pub(crate) limits: Limits,
    pub(crate) clock: Clock,
    pub(crate) keeper: Keeper,
    pub(crate) drain_timeout: Duration,
    pub(crate) lines: LineSettings,
    /// Told the session on which streams begin.
    pub(crate) carrying: watch::Sender<Option<Connection>>,
}

/// A session that began, and what is needed to run it.
struct Begun {
    session: Session,
    channel: Channel<Carrier>,
    config: EndpointConfig,
    name: Option<String>,
}

impl Uplink {
    /// Prepares it; says whether it is connected from then on.
    ///
    /// # Errors
    /// If the cluster was never enrolled and there is no token, or a file can't be used.
    pub(crate) fn new(parts: Parts) -> Result<(Self, watch::Receiver<Status>), Report> {
        let membership = parts.dir.membership()?;
        let is_new = |token: &EnrolmentToken| {
            membership.as_ref().is_none_or(|membership| membership.used_secret != hash(&token.secret))
        };
        let token = parts.token.filter(is_new);
        if token.is_none() && membership.is_none() {
            return Err(Report::new(
                Fault::ConfigInvalid,
                "this cluster is not enrolled: give --enrolment-token-file with a token that `towline-relay enroll NAME` made",
            ));
        }
        let (status, watcher) = watch::channel(Status::Away(None));
        let uplink = Self {
            cluster: parts.cluster,
            instance: Arc::new(Instance::new()),
            token,
            token_refused: None,
            membership,
            overrides: parts.overrides,
            egress: parts.egress,
            trust: Mutex::default(),
            dir: parts.dir,
            secret: parts.secret,
            acceptor: parts.acceptor,
            metrics: parts.metrics,
            ledger: parts.ledger,
            limits: parts.limits,
            clock: parts.clock,
            keeper: parts.keeper,
            ending: Ending::default(),
            drain_timeout: parts.drain_timeout,
            line_settings: parts.lines,
            carriers: Memory::default(),
            status,
            carrying: parts.carrying,
        };
        // What is wrong with a certificate file or an address is told at start.
        uplink.dialler()?;
        Ok((uplink, watcher))
    }

    /// Stays connected until the drain, and then until the last session ended.
    ///
    /// # Errors
    /// If the enrolment token is refused and there is no other way to be let in.
    pub(crate) async fn run(mut self, drain: DrainWatcher) -> Result<(), Report> {
        let _owner = self.acceptor.own_streams();
        let mut sessions = JoinSet::new();
        let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
        let mut lines = Lines::new(self.line_settings);
        while !drain.has_begun() {
            while sessions.try_join_next().is_some() {}
            let begun = tokio::select! {
                () = drain.begun() => break,
                begun = self.begin() => begun,
            };
            let hint = match begun {
                Ok(begun) => {
                    let since = Instant::now();
                    let leaving = self.keep(begun, &mut lines, &mut sessions, &drain).await;
                    if since.elapsed() >= STEADY {
                        backoff.reset();
                    }
                    let Some(leaving) = leaving else { break };
                    self.status.send_replace(Status::Away(None));
                    leaving.delay
                }
                Err(report) => {
                    self.metrics.connect_failed(report.fault);
                    self.turn(&report)?;
                    let hint = report.delay();
                    self.status.send_replace(Status::Away(Some(report)));
                    hint
                }
            };
            let cap = if self.keeper.parked() > 0 { STREAMS_WAIT } else { LONGEST_DELAY };
            let delay = backoff.after_failure_within(cap, hint, backoff::random());
            tokio::select! {
                () = drain.begun() => break,
                () = sleep(delay) => {}
            }
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
        Ok(())
    }

    /// Runs a session until another should take its place; `None` where the agent drains.
    async fn keep(
        &self,
        begun: Begun,
        lines: &mut Lines,
        sessions: &mut JoinSet<()>,
        drain: &DrainWatcher,
    ) -> Option<Leaving> {
        let (sender, leaving) = oneshot::channel();
        let channel = begun.session.channel;
        self.status.send_replace(Status::Connected { channel, name: begun.name });
        let mux = begun.session.mux(begun.channel, begun.config);
        self.carrying.send_replace(Some(mux.0.clone()));
        sessions.spawn(begun.session.run(mux, sender, drain.clone()));
        tokio::select! {
            () = drain.begun() => None,
            never = self.tend(lines, sessions, drain) => match never {},
            // A session that ended without saying so is one that was lost.
            leaving = leaving => Some(leaving.unwrap_or(Leaving {
                reason: towline_tunnel::mux::CloseReason::Detached,
                delay: Duration::ZERO,
            })),
        }
    }

    /// What a failed attempt means for the next one.
    fn turn(&mut self, report: &Report) -> Result<(), Report> {
        match report.fault {
            Fault::EnrolTokenRefused if self.token.is_some() && self.membership.is_some() => {
                warn!(%report, "the enrolment token was refused; the relay that was joined before stays");
                self.token = None;
            }
            Fault::EnrolTokenRefused if self.token.is_some() => match self.token_refused.take() {
                Some(first) => return Err(first),
                None => self.token_refused = Some(report.clone()),
            },
            Fault::AgentCertificateRefused if self.instance.certificate().is_some() => {
                warn!(%report, "the certificate was refused; the cluster's key will vouch for a new instance");
                self.instance = Arc::new(Instance::new());
            }
            _ => warn!(%report, "no session with the relay; it is tried again"),
        }
        Ok(())
    }

    fn dialler(&self) -> Result<(Dialler, KeyHash), Report> {
        let (address, pin, ca_file) = self.way()?;
        let trust = self.trust(ca_file)?;
        Ok((Dialler::over(address, self.egress.clone(), trust)?, pin))
    }

    /// Where the relay is, who it is, and whom its certificate is trusted by beside the system's authorities.
    fn way(&self) -> Result<(RelayAddress, KeyHash, Option<PathBuf>), Report> {
        let (address, pin, ca_pem) = match (&self.token, &self.membership) {
            (Some(token), _) => (&token.relay, token.relay_key, &token.ca_pem),
            (None, Some(membership)) => (&membership.relay, membership.relay_key, &membership.ca_pem),
            (None, None) => return Err(Report::from(Fault::EnrolTokenRefused)),
        };
        let address = self.overrides.relay.as_ref().unwrap_or(address).clone();
        let ca_file = match (&self.overrides.ca_file, ca_pem) {
            (Some(file), _) => Some(file.clone()),
            (None, Some(pem)) => Some(self.dir.relay_ca(pem)?),
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

    /// Dials the relay and says who we are. A certificate that it gives is kept.
    async fn connect(
        &self,
        errand: Errand,
        identify: Identify<'_>,
    ) -> Result<(RelayAddress, Climbed), Report> {
        let (dialler, pin) = self.dialler()?;
        let relay = dialler.address().clone();
        let ladder = Ladder::new(dialler, self.carriers.clone());
        let mut climbed = ladder.connect(errand, pin, identify).await?;
        self.metrics.connected_by(climbed.rung);
        if let Some(certificate) = climbed.session.welcome.certificate.take() {
            self.instance.keep(certificate);
        }
        Ok((relay, climbed))
    }

    async fn begin(&mut self) -> Result<Begun, Report> {
        let certificate = self.instance.certificate().filter(|_| self.token.is_none());
        let join = Secret::new(JOIN);
        let unused = self.token.as_ref().filter(|_| self.token_refused.is_none());
        let secret = unused.map_or(&join, |token| &token.secret);
        let (id, key) = (self.instance.id, &self.instance.key);
        let identify = match &certificate {
            Some(certificate) => Identify::Agent {
                cluster: self.cluster.public(),
                instance: id,
                key,
                certificate,
                line: false,
            },
            None => Identify::Enrol { secret, cluster: &self.cluster, instance: id, key },
        };
        let errand = Errand::of_parked(self.keeper.parked());
        let (relay, Climbed { session, rung }) = self.connect(errand, identify).await?;
        let session::Session { channel, welcome } = session;
        let tickets = self.joined(welcome.ticket_key).await?;
        let name = welcome.name;
        info!(
            channel = %welcome.channel, %relay, carrier = rung.name(), name, instance = %id,
            cluster = %self.cluster.public().cluster_id(), "connected"
        );
        let session = self.session(welcome.channel, tickets, false);
        Ok(Begun { session, channel, config: self.endpoint(), name })
    }

    fn session(&self, channel: ChannelId, tickets: VerifyingKey, line: bool) -> Session {
        Session {
            channel,
            acceptor: Arc::clone(&self.acceptor),
            instance: Arc::clone(&self.instance),
            tickets,
            metrics: self.metrics.clone(),
            clock: self.clock.clone(),
            keeper: self.keeper.clone(),
            ending: self.ending.clone(),
            drain_timeout: self.drain_timeout,
            line,
        }
    }

    fn endpoint(&self) -> EndpointConfig {
        EndpointConfig {
            side: Side::Dialler,
            max_streams: self.limits.max_streams as usize,
            ledger: self.ledger.clone(),
            instance: self.instance.id,
            jitter: self.instance.id.as_bytes()[0],
        }
    }

    async fn store(&self, membership: &Membership) -> Result<(), Report> {
        self.dir.keep_membership(membership)?;
        match &self.secret {
            Some(secret) => secret.keep(self.acceptor.forwarder().apiserver(), membership).await,
            None => Ok(()),
        }
    }

    /// The key that tickets must be signed with: pinned when a token was used, and never changed by less than another.
    async fn joined(&mut self, said: Option<VerifyingKey>) -> Result<VerifyingKey, Report> {
        if let Some(token) = self.token.take() {
            let Some(tickets) = said else {
                self.token = Some(token);
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
            if let Err(report) = self.store(&membership).await {
                error!(%report, "which relay was joined can't be kept");
            }
            info!(relay = %membership.relay, "the cluster was enrolled");
            self.membership = Some(membership);
        }
        let pinned = self.membership.as_ref().map(|membership| membership.tickets);
        let pinned = pinned.ok_or_else(|| Report::from(Fault::EnrolTokenRefused))?;
        if said.is_some_and(|said| said != pinned) {
            error!(
                "the relay signs tickets with another key than the pinned one: no stream will be accepted until the cluster is enrolled again"
            );
        }
        Ok(pinned)
    }
}

fn hash(secret: &Secret) -> [u8; 32] {
    let mut hash = [0; 32];
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret.reveal());
    hash.copy_from_slice(digest.as_ref());
    hash
}

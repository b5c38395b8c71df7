//! Which carrier gets through: tried in order, remembered for each network, and tried again from the top now and then.
//!
//! Down goes only what the way itself may be the reason of. Refused credentials, certificates that are not trusted, names that
//! don't resolve and relays that are busy are the same on each rung.

mod kept;

use std::{
    collections::HashMap,
    future::pending,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::{
    dial::{DIAL_WITHIN, Dialler, Errand, HTTP1, OuterTls},
    h2,
    http::RequestError,
    pair,
    rung::{Carrier, Rung},
    websocket::WebSocketCarrier,
};
use crate::{
    backoff,
    egress::source,
    fault::{Fault, Report},
    ids::KeyHash,
    session::{self, Exporter, Identify, Session},
};

/// All rungs together take no longer.
const LADDER_WITHIN: Duration = Duration::from_secs(10);
/// What is waited for ends this much sooner, so that it is said what that was.
const TO_SAY_WHAT: Duration = Duration::from_millis(200);
/// Where it is not known whether requests get through, an answer is waited for so long: a relay that lets sessions in one by one
/// answers within two seconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// A better rung than the one that works is tried again after this, and by chance up to a fifth sooner or later.
const BETTER_AFTER: Duration = Duration::from_secs(600);
/// Networks that are remembered; a laptop meets a few.
const NETWORKS: usize = 16;

/// A session, and how its bytes travel.
#[derive(Debug)]
pub struct Climbed {
    /// What began.
    pub session: Session<Carrier>,
    /// On which carrier.
    pub rung: Rung,
    /// Where its first hop ends, as far as this machine's routes go: the relay, or a proxy. Not known of a pair, which has several.
    pub peer: Option<IpAddr>,
}

/// A carrier that was dialled.
struct Dialled {
    carrier: Carrier,
    exporter: Option<Exporter>,
    peer: Option<IpAddr>,
}

/// Dials a relay by whatever gets through.
#[derive(Clone, Debug)]
pub struct Ladder {
    dialler: Dialler,
    memory: Memory,
}

impl Ladder {
    /// With what was learned before.
    pub fn new(dialler: Dialler, memory: Memory) -> Self {
        Self { dialler, memory }
    }

    /// Dials, and begins a session with the relay whose identity key has the hash `pin`.
    ///
    /// # Errors
    /// Which step failed, and why. Where no rung gets through it is the first one's fault, with what the others met.
    pub async fn connect(
        &self,
        errand: Errand,
        pin: KeyHash,
        identify: Identify<'_>,
    ) -> Result<Climbed, Report> {
        let network = Network::here(&self.dialler);
        if let Some(rungs) = self.memory.of_an_earlier_run(&network) {
            // It is the likeliest, and no more: it has to carry a challenge as any that is tried.
            return self.climb(&rungs, network, errand, pin, identify).await;
        }
        let Some(rung) = self.memory.known(&network, Instant::now()) else {
            return self.climb(&Rung::ALL, network, errand, pin, identify).await;
        };
        let begun = async {
            let Dialled { carrier, exporter, peer } =
                self.dial(rung, errand, Instant::now() + DIAL_WITHIN, None).await?;
            let session = session::connect(carrier, exporter, pin, identify).await?;
            Ok::<_, Report>(Climbed { session, rung, peer })
        };
        match begun.await {
            Ok(climbed) => Ok(climbed),
            Err(report) => {
                if is_of_carrier(report.fault) {
                    // The next attempt finds out what gets through now.
                    self.memory.forget(&network);
                }
                Err(report)
            }
        }
    }

    /// The network that it would be dialled through now.
    pub fn network(&self) -> Network {
        Network::here(&self.dialler)
    }

    /// Waits until a better rung than this should be tried beside the session that stands on it; for ever where there is none.
    pub async fn better_due(&self, than: Rung) {
        if than == Rung::ALL[0] {
            return pending().await;
        }
        let known = self.memory.better_at(&Network::here(&self.dialler));
        sleep_until(known.unwrap_or_else(|| Instant::now() + BETTER_AFTER)).await;
    }

    /// Whether it is time to try a better rung than this, on which a session stands.
    pub fn is_better_due(&self, than: Rung) -> bool {
        than != Rung::ALL[0]
            && self.memory.better_at(&Network::here(&self.dialler)).is_some_and(|at| Instant::now() >= at)
    }

    /// Tries the rungs that are better than this one, and no other: a session on one can take the place of one that stands. What
    /// fails is remembered as well: [`better_due`](Self::better_due) waits for the next time.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn better(
        &self,
        than: Rung,
        errand: Errand,
        pin: KeyHash,
        identify: Identify<'_>,
    ) -> Result<Climbed, Report> {
        let network = Network::here(&self.dialler);
        let better = Rung::ALL.partition_point(|rung| *rung < than);
        let climbed = self.climb(&Rung::ALL[..better], network.clone(), errand, pin, identify).await;
        if climbed.is_err() {
            self.memory.note(network, than, Instant::now(), backoff::random());
        }
        climbed
    }

    async fn climb(
        &self,
        rungs: &[Rung],
        network: Network,
        errand: Errand,
        pin: KeyHash,
        identify: Identify<'_>,
    ) -> Result<Climbed, Report> {
        let deadline = Instant::now() + LADDER_WITHIN;
        let mut failed: Vec<(Rung, Report)> = Vec::new();
        for &rung in rungs {
            let begun = async {
                let secured_by = deadline - TO_SAY_WHAT;
                let Dialled { carrier, exporter, peer } =
                    self.dial(rung, errand, secured_by, Some(ANSWER_WITHIN)).await?;
                let session = session::connect_challenged(carrier, exporter, pin, identify).await?;
                Ok::<_, Report>(Climbed { session, rung, peer })
            };
            let begun = timeout_at(deadline, begun).await.unwrap_or_else(|_elapsed| {
                Err(self.dialler.report(Fault::RequestUnanswered, "there was no time left"))
            });
            match begun {
                Ok(climbed) => {
                    if let Some((_, report)) = failed.iter().find(|(better, _)| *better < rung) {
                        tracing::warn!(%report, carrier = rung.name(), "the relay is reached by a slower way");
                    }
                    self.memory.note(network, rung, Instant::now(), backoff::random());
                    return Ok(climbed);
                }
                Err(report) if is_of_carrier(report.fault) => failed.push((rung, report)),
                // It was reached, or will be by none.
                Err(report) => return Err(report),
            }
        }
        failed.sort_by_key(|(rung, _)| *rung);
        Err(told(failed, &self.dialler))
    }

    /// A carrier of this kind and no other, and the exporter of its outer TLS: what compares them asks for each.
    ///
    /// # Errors
    /// Which step failed, and why.
    pub async fn carrier(&self, rung: Rung) -> Result<(Carrier, Option<Exporter>), Report> {
        let Dialled { carrier, exporter, .. } =
            self.dial(rung, Errand::Begin, Instant::now() + DIAL_WITHIN, None).await?;
        Ok((carrier, exporter))
    }

    /// A carrier of this kind, whose TLS stands by then. Where `within` is given, its request must be answered in that time, and is by a
    /// relay that is told so.
    async fn dial(
        &self,
        rung: Rung,
        errand: Errand,
        secured_by: Instant,
        within: Option<Duration>,
    ) -> Result<Dialled, Report> {
        let (dialler, challenged) = (&self.dialler, within.is_some());
        let within = within.unwrap_or(DIAL_WITHIN);
        let unanswered = |_elapsed| dialler.report(Fault::RequestUnanswered, rung.name());
        let authority = dialler.address().authority();
        match rung {
            Rung::WebSocket => {
                let (tls, exporter) = dialler.secured(HTTP1, secured_by).await?;
                let peer = peer(&tls);
                let asking = WebSocketCarrier::client_asking(tls, &authority, errand, challenged);
                let carrier = timeout(within, asking).await.map_err(unanswered)?;
                let carrier = Carrier::WebSocket(carrier.map_err(|error| dialler.upgrade_failed(error))?);
                Ok(Dialled { carrier, exporter, peer })
            }
            Rung::Http2 => {
                let (tls, exporter) = dialler.secured(h2::ALPN, secured_by).await?;
                let peer = peer(&tls);
                let refused = |error| dialler.request_failed("the POST over HTTP/2", error);
                if tls.get_ref().1.alpn_protocol() != Some(h2::ALPN) {
                    return Err(refused(RequestError::Version("HTTP/2")));
                }
                let asking = h2::client(tls, &authority, errand, challenged);
                let carrier = match timeout(within, asking).await.map_err(unanswered)?.map_err(refused)? {
                    h2::Asked::Post(carrier) => Carrier::Http(carrier),
                    h2::Asked::Tunnel(tunnel) => Carrier::Tunnel(tunnel),
                };
                Ok(Dialled { carrier, exporter, peer })
            }
            Rung::Pair => {
                let asking = pair::client(dialler, errand, challenged);
                let carrier = timeout(within, asking).await.map_err(unanswered)??;
                // Two connections have no exporter in common.
                Ok(Dialled { carrier: Carrier::Http(carrier), exporter: None, peer: None })
            }
        }
    }
}

/// Whether another carrier may get through where one met this.
fn is_of_carrier(fault: Fault) -> bool {
    matches!(
        fault,
        Fault::UpgradeRefused
            | Fault::CarrierLost
            | Fault::CarrierSilentUp
            | Fault::CarrierSilentDown
            | Fault::CarrierLargeUp
            | Fault::CarrierLargeDown
            | Fault::CarrierDamaged
            | Fault::RequestUnanswered
            | Fault::HttpCarrierRefused
            | Fault::ProtocolViolation
            | Fault::RelayTimeout
    )
}

/// The first rung's fault, and in its detail what the others met.
fn told(failed: Vec<(Rung, Report)>, dialler: &Dialler) -> Report {
    let mut failed = failed.into_iter();
    let Some((_, first)) = failed.next() else { return Report::from(Fault::Internal) };
    // The copy's detail has the source's text, too.
    let mut told = first.clone();
    if told.detail.is_empty() {
        told.detail = dialler.address().to_string();
    }
    for (rung, report) in failed {
        told.detail.push_str(&format!("; by {rung}: {} {}", report.fault.code(), report.fault.title()));
    }
    told
}

/// What was learned of networks, in memory, and in a file where one is named. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    networks: Arc<Mutex<HashMap<Network, Known>>>,
    file: Option<Arc<PathBuf>>,
}

/// What tells one network from another, as far as a program can see without asking it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    /// Another relay may be reached by another way.
    relay: String,
    /// So may the same one behind a proxy, which lets through what it likes.
    proxy: Option<String>,
    /// The machine's addresses on it, as its default routes choose them.
    from: [Option<IpAddr>; 2],
}

impl Network {
    fn here(dialler: &Dialler) -> Self {
        // Documentation addresses (RFC 5737, RFC 3849): nothing is sent to them, a route is looked up.
        let from = [
            source(Ipv4Addr::new(192, 0, 2, 1).into()),
            source(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
        ];
        Self { relay: dialler.address().authority(), proxy: dialler.proxy(), from }
    }

    /// One of several.
    #[cfg(test)]
    pub(super) fn of_tests(n: u8) -> Self {
        let from = [Some(Ipv4Addr::new(10, 0, 0, n).into()), None];
        Self { relay: "relay.test:443".into(), proxy: None, from }
    }
}

/// Where a connection's first hop ends.
fn peer(tls: &OuterTls) -> Option<IpAddr> {
    tls.get_ref().0.get_ref().peer()
}

#[derive(Clone, Copy, Debug)]
struct Known {
    rung: Rung,
    since: Instant,
    /// When better ones are tried again.
    better_at: Instant,
    /// Nothing has come of it yet in this process.
    is_of_an_earlier_run: bool,
}

impl Memory {
    /// With what an earlier run has kept in this file, and kept there in its turn. The file is small; its folder is not made.
    pub fn kept(file: PathBuf) -> Self {
        let networks = kept::load(&file, Instant::now(), SystemTime::now());
        Self { networks: Arc::new(Mutex::new(networks)), file: Some(Arc::new(file)) }
    }

    /// The rung that works there, unless it is time to look for a better one.
    fn known(&self, network: &Network, now: Instant) -> Option<Rung> {
        let known = *self.lock().get(network)?;
        (known.rung == Rung::WebSocket || now < known.better_at).then_some(known.rung)
    }

    fn note(&self, network: Network, rung: Rung, now: Instant, chance: u64) {
        let mut networks = self.lock();
        if networks.len() >= NETWORKS && !networks.contains_key(&network) {
            let oldest = networks.iter().min_by_key(|(_, known)| known.since).map(|(key, _)| key.clone());
            oldest.map(|oldest| networks.remove(&oldest));
        }
        // Four fifths, and up to two more.
        let part = 0.8 + 0.4 * (chance as f64 / u64::MAX as f64);
        let better_at = now + BETTER_AFTER.mul_f64(part);
        let mut known = Known { rung, since: now, better_at, is_of_an_earlier_run: false };
        if let Some(before) =
            networks.get(&network).filter(|known| known.is_of_an_earlier_run && known.rung == rung)
        {
            // It still gets through. That is no younger for it, or runs that are short would never look for a better one.
            (known.since, known.better_at) = (before.since, before.better_at);
        }
        networks.insert(network.clone(), known);
        drop(networks);
        self.save(&network, Some(&known));
    }

    fn better_at(&self, network: &Network) -> Option<Instant> {
        self.lock().get(network).map(|known| known.better_at)
    }

    /// In which order rungs are tried where only an earlier run knows which one works there: that one first.
    fn of_an_earlier_run(&self, network: &Network) -> Option<Vec<Rung>> {
        let known = self.lock().get(network).copied().filter(|known| known.is_of_an_earlier_run)?;
        let others = Rung::ALL.into_iter().filter(|rung| *rung != known.rung);
        Some(std::iter::once(known.rung).chain(others).collect())
    }

    fn forget(&self, network: &Network) {
        self.lock().remove(network);
        self.save(network, None);
    }

    fn save(&self, network: &Network, known: Option<&Known>) {
        if let Some(file) = &self.file {
            kept::save(file, network, known, Instant::now(), SystemTime::now());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Network, Known>> {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_works_is_remembered_for_a_network_and_better_rungs_are_tried_again() {
        let (memory, now) = (Memory::default(), Instant::now());
        assert_eq!(memory.known(&Network::of_tests(1), now), None);
        memory.note(Network::of_tests(1), Rung::Http2, now, u64::MAX / 2);
        let soon = now + BETTER_AFTER.mul_f64(0.9);
        assert_eq!(memory.known(&Network::of_tests(1), soon), Some(Rung::Http2));
        assert_eq!(memory.known(&Network::of_tests(2), soon), None, "another network");
        assert_eq!(memory.known(&Network::of_tests(1), now + BETTER_AFTER.mul_f64(1.1)), None);
        for (chance, at) in [(0, 0.8), (u64::MAX, 1.2)] {
            memory.note(Network::of_tests(1), Rung::Pair, now, chance);
            let at = now + BETTER_AFTER.mul_f64(at);
            assert_eq!(memory.known(&Network::of_tests(1), at - Duration::from_secs(1)), Some(Rung::Pair));
            assert_eq!(memory.known(&Network::of_tests(1), at + Duration::from_secs(1)), None);
        }
        memory.note(Network::of_tests(1), Rung::WebSocket, now, 0);
        assert_eq!(
            memory.known(&Network::of_tests(1), now + 10 * BETTER_AFTER),
            Some(Rung::WebSocket),
            "the best"
        );
        memory.forget(&Network::of_tests(1));
        assert_eq!(memory.known(&Network::of_tests(1), now), None);
    }

    #[test]
    fn so_many_networks_and_no_more_are_remembered() {
        let (memory, now) = (Memory::default(), Instant::now());
        for n in 0..40 {
            memory.note(Network::of_tests(n), Rung::Pair, now + Duration::from_secs(u64::from(n)), 0);
        }
        assert_eq!(memory.lock().len(), NETWORKS);
        assert_eq!(memory.known(&Network::of_tests(39), now), Some(Rung::Pair), "the newest stay");
        assert_eq!(memory.known(&Network::of_tests(0), now), None);
    }

    #[test]
    fn only_what_the_way_may_be_the_reason_of_climbs_down() {
        for fault in [Fault::UpgradeRefused, Fault::CarrierSilentUp, Fault::RequestUnanswered] {
            assert!(is_of_carrier(fault), "{fault:?}");
        }
        for fault in [
            Fault::NameUnresolved,
            Fault::ConnectionRefused,
            Fault::ConnectTimeout,
            Fault::CertificateUntrusted,
            Fault::CertificateExpired,
            Fault::TlsFailed,
            Fault::RelayKeyMismatch,
            Fault::RelayTokenRefused,
            Fault::EnrolTokenRefused,
            Fault::RelayLimit,
            Fault::VersionUnsupported,
        ] {
            assert!(!is_of_carrier(fault), "{fault:?}");
        }
    }

    /// Nobody looks for what is better than the best; for others the time is that of the network, or counted from now.
    #[tokio::test(start_paused = true)]
    async fn a_better_rung_is_due_after_its_time_and_again_after_a_failure() {
        let address = super::super::dial::RelayAddress::parse("127.0.0.1:9").unwrap();
        let ladder = Ladder::new(Dialler::new(address, None).unwrap(), Memory::default());
        let due = async |than| {
            let begun = Instant::now();
            timeout(10 * BETTER_AFTER, ladder.better_due(than)).await.ok().map(|()| begun.elapsed())
        };
        assert_eq!(due(Rung::WebSocket).await, None);
        let near = |waited: Duration| (waited.as_secs_f64() - BETTER_AFTER.as_secs_f64()).abs() < 1.0;
        assert!(due(Rung::Pair).await.is_some_and(near));
        let network = Network::here(&ladder.dialler);
        ladder.memory.note(network.clone(), Rung::Pair, Instant::now(), u64::MAX / 2);
        assert!(due(Rung::Pair).await.is_some_and(near));
        assert_eq!(due(Rung::Pair).await, Some(Duration::ZERO), "nothing was tried");

        // Nobody listens there: what stands stays, and is looked past later.
        let (token, run_key) = (session::message::Secret::new("token"), crate::keys::SigningKey::generate());
        let identify = Identify::Client { token: &token, run_key: &run_key, line: false };
        let pin = run_key.public().hash();
        assert!(ladder.better(Rung::Pair, Errand::Begin, pin, identify).await.is_err());
        assert_eq!(ladder.memory.known(&network, Instant::now()), Some(Rung::Pair));
        assert!(due(Rung::Pair).await.is_some_and(|waited| waited >= BETTER_AFTER.mul_f64(0.79)));
    }

    /// What is known of this machine's own network is found without a packet, and is the same twice.
    #[test]
    fn a_network_is_told_by_the_addresses_that_are_sent_from() {
        let dialler =
            |address| Dialler::new(super::super::dial::RelayAddress::parse(address).unwrap(), None).unwrap();
        assert_eq!(Network::here(&dialler("a.test")), Network::here(&dialler("a.test")));
        assert_ne!(Network::here(&dialler("a.test")), Network::here(&dialler("b.test")));
    }
}

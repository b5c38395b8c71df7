//! The sessions that are held, in the order in which they began: the first that takes streams carries, the next is spare. And what is
//! wanted next, and when. Nothing here waits or dials.

use std::{net::IpAddr, sync::Arc, time::Duration};

use rustls::RootCertStore;
use tokio::{sync::oneshot, time::Instant};
use towline_tunnel::{
    backoff::{self, Backoff},
    carrier::{ladder::Network, rung::Rung},
    egress::TrustStore,
    ids::ChannelId,
    mux::Connection,
    session::control::Control,
};

use super::replace::Holding;
use crate::instance::Instance;

/// The first delay before dialling again is at most this, the longest at most that.
const OWN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// The same while streams wait to go on.
const STREAMS_WAIT: Duration = Duration::from_secs(1);
/// The same for what nobody waits for: a spare session, and a successor of one that still serves.
const BESIDE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A session that stood this long was a good one: what was before is forgotten.
const STEADY: Duration = Duration::from_secs(10);

/// What was so when a session began.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) channel: ChannelId,
    pub(super) rung: Rung,
    /// What it was dialled through.
    pub(super) network: Network,
    /// The end of the first hop, as far as is known.
    pub(super) peer: Option<IpAddr>,
    /// The address that was sent from there.
    pub(super) source: Option<IpAddr>,
    pub(super) trust: TrustStore,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) certificate: Option<Vec<u8>>,
    pub(super) instance: Arc<Instance>,
    /// The relay knows spare sessions.
    pub(super) spares: bool,
}

/// A session that stands.
pub(super) struct Standing {
    pub(super) facts: Facts,
    pub(super) connection: Connection,
    pub(super) name: Option<String>,
    since: Instant,
    /// Tells it that another took its place; gone once that was told.
    replaced: Option<oneshot::Sender<Duration>>,
}

impl Standing {
    pub(super) fn new(
        facts: Facts,
        connection: Connection,
        name: Option<String>,
        replaced: oneshot::Sender<Duration>,
    ) -> Self {
        Self { facts, connection, name, since: Instant::now(), replaced: Some(replaced) }
    }

    /// Whether streams may begin on it.
    pub(super) fn takes_streams(&self) -> bool {
        self.replaced.is_some() && self.connection.is_open()
    }

    fn is_steady(&self) -> bool {
        self.since.elapsed() >= STEADY
    }

    pub(super) fn say(&self, control: &Control) {
        // Where it has no room or is closed, its own end tells the relay the same, later.
        let _said = self.connection.control(control.encode(0));
    }
}

/// What to dial for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    /// There is no session that takes streams.
    Own,
    /// There is one, and none to take its place.
    Spare,
    /// One that stands is to be replaced.
    Successor,
}

/// When one kind of session is dialled next.
struct Pace {
    backoff: Backoff,
    not_before: Instant,
}

impl Pace {
    fn new((first, longest): (Duration, Duration)) -> Self {
        Self { backoff: Backoff::new(first, longest), not_before: Instant::now() }
    }

    fn failed(&mut self, cap: Duration, hint: Duration) {
        self.not_before = Instant::now() + self.backoff.after_failure_within(cap, hint, backoff::random());
    }
}

/// All that are held.
pub(super) struct Held {
    standing: Vec<Standing>,
    own: Pace,
    spare: Pace,
    successor: Pace,
    /// When the relays that sent sessions away want to be dialled again.
    told: Vec<Instant>,
    holding: Holding,
}

impl Held {
    pub(super) fn new(holding: Holding) -> Self {
        let (own, spare, successor) = (Pace::new(OWN), Pace::new(BESIDE), Pace::new(BESIDE));
        Self { standing: Vec::new(), own, spare, successor, told: Vec::new(), holding }
    }

    /// Those on which streams may begin, the one that carries first.
    pub(super) fn taking(&self) -> impl Iterator<Item = &Standing> {
        self.standing.iter().filter(|standing| standing.takes_streams())
    }

    /// The one on which streams begin.
    pub(super) fn carrying(&self) -> Option<&Standing> {
        self.taking().next()
    }

    /// The session with this channel, if it was lost: neither side had said that it would go.
    pub(super) fn lost(&self, channel: ChannelId) -> Option<&Standing> {
        let lost = |standing: &&Standing| {
            let connection = &standing.connection;
            standing.replaced.is_some() && connection.is_closed() && connection.goaway().is_none()
        };
        self.standing.iter().find(|standing| standing.facts.channel == channel).filter(lost)
    }

    /// The channels that a session of this instance stands beside.
    pub(super) fn beside(&self, instance: &Arc<Instance>) -> Vec<ChannelId> {
        let same = |standing: &&Standing| Arc::ptr_eq(&standing.facts.instance, instance);
        self.taking().filter(same).map(|standing| standing.facts.channel).collect()
    }

    /// What to dial for next, and from when on. `due` says that some are to be replaced.
    pub(super) fn next(&self, due: bool) -> Option<(Errand, Instant)> {
        let mut taking = self.taking();
        let Some(carrying) = taking.next() else { return Some((Errand::Own, self.own.not_before)) };
        let lacks_spare = taking.next().is_none() && self.holding.spare && carrying.facts.spares;
        let spare = lacks_spare.then_some((Errand::Spare, self.spare.not_before));
        let successor = due.then_some((Errand::Successor, self.successor.not_before));
        spare.into_iter().chain(successor).min_by_key(|(_, at)| *at)
    }

    /// A session began: those of the same process say so to the relay.
    pub(super) fn begun(&mut self, new: Standing, errand: Errand) {
        if new.facts.spares {
            let beside = Control::Beside { channel: new.facts.channel };
            let kin = self.taking().filter(|other| Arc::ptr_eq(&other.facts.instance, &new.facts.instance));
            kin.for_each(|other| other.say(&beside));
        }
        if errand == Errand::Own {
            self.told.clear();
            // After a relay's restart everybody's own sessions come first.
            let share = backoff::random() as f64 / u64::MAX as f64;
            let (least, most) = self.holding.spare_after;
            self.spare.not_before = Instant::now() + least + most.saturating_sub(least).mul_f64(share);
        }
        if errand == Errand::Successor {
            self.successor.backoff.reset();
        }
        self.standing.push(new);
    }

    /// A session did not begin. `streams_wait`: some can't go on without.
    pub(super) fn failed(&mut self, errand: Errand, hint: Duration, streams_wait: bool) {
        match errand {
            Errand::Own => self.own.failed(if streams_wait { STREAMS_WAIT } else { OWN.1 }, hint),
            Errand::Spare => self.spare.failed(BESIDE.1, hint),
            Errand::Successor => self.successor.failed(BESIDE.1, hint),
        }
    }

    /// A session takes no new streams any more, or is gone: the others tell the relay, which may not have seen it yet. `delay` is how long the
    /// relay wants to be left alone.
    pub(super) fn left(&mut self, channel: ChannelId, delay: Duration, streams_wait: bool) {
        let Some(at) = self.standing.iter().position(|standing| standing.facts.channel == channel) else {
            return;
        };
        let left = self.standing.remove(at);
        if left.replaced.is_none() {
            // Its successor stands.
            return;
        }
        if left.connection.is_closed() && left.facts.spares {
            let gone = Control::Gone { channel };
            self.taking().for_each(|other| other.say(&gone));
        }
        let now = Instant::now();
        self.told.retain(|at| *at > now);
        if !delay.is_zero() {
            self.told.push(now + delay.min(backoff::MAX_HINT));
        }
        if self.carrying().is_some() {
            if left.is_steady() {
                self.spare.backoff.reset();
            }
            return self.spare.failed(BESIDE.1, delay);
        }
        if left.is_steady() {
            self.own.backoff.reset();
        }
        // Of several that were sent away, the first that may come back does.
        let hint = self.told.iter().min().map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        self.failed(Errand::Own, hint, streams_wait);
    }

    /// Others have taken the place of these: their streams may go on for so long.
    pub(super) fn replace(&mut self, which: &[(ChannelId, Duration)]) {
        for standing in &mut self.standing {
            let found = which.iter().find(|(channel, _)| *channel == standing.facts.channel);
            if let Some((_, patience)) = found
                && let Some(replaced) = standing.replaced.take()
            {
                let _gone = replaced.send(*patience);
            }
        }
    }
}

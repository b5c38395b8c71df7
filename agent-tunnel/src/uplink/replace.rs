//! Why a session that stands is replaced, before it is lost or stands on what is no longer so.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use towline_tunnel::{
    backoff,
    carrier::{keep_alive::KeepAlives, rung::Rung},
    egress::Routes,
    ids::ChannelId,
};

use super::{
    Uplink,
    held::{Held, Standing},
};
use crate::instance::Instance;

/// Sessions of a renewed certificate are replaced within this, or a tenth of the time to the next renewal, by chance.
const RENEWED_WITHIN: Duration = Duration::from_secs(60);

/// How an agent holds its sessions.
#[derive(Clone, Debug)]
pub struct Holding {
    /// Whether there is a spare session beside the one that carries.
    pub spare: bool,
    /// The spare one is dialled so long after the first, by chance between these: after a relay's restart those that carry come first.
    pub spare_after: (Duration, Duration),
    /// How often it is looked whether a session is to be replaced.
    pub look_every: Duration,
    /// Streams may go on for so long on a session that was replaced; then they go on on its successor.
    pub old_for: Duration,
    /// The machine's.
    pub routes: Routes,
    /// How long networks let a connection be silent, as far as that was found.
    pub keep_alives: KeepAlives,
}

impl Default for Holding {
    fn default() -> Self {
        Self {
            spare: true,
            spare_after: (Duration::from_secs(5), Duration::from_secs(30)),
            look_every: Duration::from_secs(5),
            old_for: Duration::from_secs(600),
            routes: Routes::system(),
            keep_alives: KeepAlives::default(),
        }
    }
}

/// Why a session is to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// This machine would send from another address now.
    Address,
    /// The authorities that its relay's certificate was trusted by have changed.
    Authorities,
    /// The certificate that it began with was renewed.
    Certificate,
    /// It stands on this carrier, and it is time to look for a better one.
    Better(Rung),
}

impl Cause {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Address => "this machine's address has changed",
            Self::Authorities => "certificate authorities have changed",
            Self::Certificate => "the certificate was renewed",
            Self::Better(_) => "a better carrier gets through",
        }
    }

    /// How long the streams of a session may go on there: not at all where it may hear nothing any more.
    pub(super) fn patience(self, holding: &Holding) -> Duration {
        match self {
            Self::Address => Duration::ZERO,
            Self::Authorities | Self::Certificate | Self::Better(_) => holding.old_for,
        }
    }

    /// The carrier than which a successor must be better, where that is all that it is wanted for.
    pub(super) fn only_better(due: &[(ChannelId, Self)]) -> Option<Rung> {
        let rungs: Option<Vec<Rung>> = due
            .iter()
            .map(|(_, cause)| match cause {
                Self::Better(rung) => Some(*rung),
                Self::Address | Self::Authorities | Self::Certificate => None,
            })
            .collect();
        rungs?.into_iter().min()
    }
}

/// An address at the far end of a session's first hop; one beyond the default route (RFC 5737) where it is not known.
pub(super) fn far(peer: Option<IpAddr>) -> IpAddr {
    peer.unwrap_or(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)))
}

/// What was found when it was looked last.
pub(super) struct Changes {
    holding: Holding,
    /// Addresses that routes have shown once: they may be about to change back.
    seen: HashMap<ChannelId, IpAddr>,
    /// The newest certificate, and from when on sessions are replaced for it.
    renewed: Option<(Vec<u8>, Instant)>,
    due: HashMap<ChannelId, Cause>,
}

impl Changes {
    pub(super) fn new(holding: Holding) -> Self {
        Self { holding, seen: HashMap::new(), renewed: None, due: HashMap::new() }
    }

    /// The sessions that are to be replaced, of those that take streams.
    pub(super) fn due(&self, held: &Held) -> Vec<(ChannelId, Cause)> {
        let due = |standing: &Standing| {
            let channel = standing.facts.channel;
            self.due.get(&channel).map(|cause| (channel, *cause))
        };
        held.taking().filter_map(due).collect()
    }

    pub(super) fn any(&self, held: &Held) -> bool {
        !self.due(held).is_empty()
    }

    /// No better carrier was found: the ladder says when to look again.
    pub(super) fn none_better(&mut self) {
        self.due.retain(|_, cause| !matches!(cause, Cause::Better(_)));
    }

    /// Looks at all that take streams.
    pub(super) fn look(&mut self, held: &Held, instance: &Arc<Instance>, uplink: &Uplink) {
        let mut seen = HashMap::new();
        let mut due = HashMap::new();
        for standing in held.taking() {
            let channel = standing.facts.channel;
            let address = self.new_address(standing);
            if let Some(address) = address {
                seen.insert(channel, address);
            }
            let cause = if address.is_some() && self.seen.get(&channel) == address.as_ref() {
                Some(Cause::Address)
            } else if !Arc::ptr_eq(&standing.facts.trust.roots(), &standing.facts.roots) {
                Some(Cause::Authorities)
            } else if self.is_renewed(standing, instance, uplink) {
                Some(Cause::Certificate)
            } else {
                is_better_due(standing, uplink).then_some(Cause::Better(standing.facts.rung))
            };
            if let Some(cause) = cause {
                due.insert(channel, cause);
            }
        }
        (self.seen, self.due) = (seen, due);
    }

    /// The address that would be sent from now, if it is another. A machine without any may get the same one back.
    fn new_address(&self, standing: &Standing) -> Option<IpAddr> {
        let then = standing.facts.source?;
        self.holding.routes.source(far(standing.facts.peer)).filter(|now| *now != then)
    }

    fn is_renewed(&mut self, standing: &Standing, instance: &Arc<Instance>, uplink: &Uplink) -> bool {
        if !Arc::ptr_eq(&standing.facts.instance, instance) {
            // Refused: the relay takes this process for another instance from now on, once that has begun.
            return instance.certificate().is_some();
        }
        let Some(newest) = instance.certificate().filter(|newest| {
            standing.facts.certificate.as_ref().is_some_and(|began_with| began_with != newest)
        }) else {
            return false;
        };
        let now = Instant::now();
        if self.renewed.as_ref().is_none_or(|(known, _)| *known != newest) {
            let within = RENEWED_WITHIN.min(instance.renew_in(uplink.clock.now()) / 10);
            let share = backoff::random() as f64 / u64::MAX as f64;
            self.renewed = Some((newest, now + within.mul_f64(share)));
        }
        self.renewed.as_ref().is_some_and(|(_, from)| now >= *from)
    }
}

fn is_better_due(standing: &Standing, uplink: &Uplink) -> bool {
    let rung = standing.facts.rung;
    rung != Rung::ALL[0] && uplink.ladder().is_ok_and(|ladder| ladder.is_better_due(rung))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_must_be_better_than_all_where_nothing_else_is_wanted() {
        let [one, two] = [ChannelId::random(), ChannelId::random()];
        let better = [(one, Cause::Better(Rung::Pair)), (two, Cause::Better(Rung::Http2))];
        assert_eq!(Cause::only_better(&better), Some(Rung::Http2));
        assert_eq!(Cause::only_better(&[better[0], (two, Cause::Certificate)]), None);
        assert_eq!(Cause::only_better(&[]), None);
    }

    #[test]
    fn streams_stay_for_a_while_but_where_the_address_is_gone() {
        let holding = Holding::default();
        assert_eq!(Cause::Address.patience(&holding), Duration::ZERO);
        assert_eq!(Cause::Authorities.patience(&holding), holding.old_for);
    }
}

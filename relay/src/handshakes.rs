//! Connections that are not yet sessions: how many there may be, and what one address may hold of them while others wait.
//!
//! While there is room it is anybody's: a fleet behind one NAT that comes back may have all of it. Once all places are
//! taken, addresses that hold more than a share of them make room, newest first, for those that hold less; they
//! themselves wait for places that become free, which go to whoever has fewest. Places to wait at are shared out by the same rule.
//! An IPv6 /64 is one address, and a /48 a few ([`crate::origin`]).

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use towline_tunnel::proto::CloseReason;

use crate::origin::{Counts, Range};

/// This part of all places is what no address can be made to give up: who wants to keep others out needs as many addresses.
const SHARE: u32 = 64;
/// So many connections may wait for a place, accepted and unread: as many as a kernel's backlog holds, for a fleet behind one NAT.
pub const WAITING: usize = 4096;
/// So many of them no address can be made to give up.
const WAITING_SHARE: u32 = (WAITING as u32).div_ceil(SHARE);

/// The places of all that are not yet sessions.
#[derive(Clone, Debug)]
pub struct Handshakes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: usize,
    share: u32,
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    next: u64,
    /// What each network holds, the newest last.
    held: HashMap<Range, Vec<Held>>,
    counts: Counts,
    waiting: Waiting,
}

#[derive(Debug)]
struct Held {
    address: IpAddr,
    number: u64,
    evicted: CancellationToken,
}

/// Those that have no place yet, the first that came first.
#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<(IpAddr, oneshot::Sender<Handshake>)>,
    counts: Counts,
}

impl Taken {
    /// A place that is free, or was taken from another.
    fn give(&mut self, of: &Handshakes, address: IpAddr) -> Handshake {
        let (number, evicted) = (self.next, CancellationToken::new());
        self.next += 1;
        let held = self.held.entry(Range::network(address)).or_default();
        held.push(Held { address, number, evicted: evicted.clone() });
        self.counts.add(address);
        Handshake { of: of.clone(), address, number, evicted }
    }

    /// Who waits gets what is free: of those whose address holds the least, the first that came.
    fn next(&mut self) -> Option<(IpAddr, oneshot::Sender<Handshake>)> {
        self.waiting.forget_gone();
        let counts = &self.counts;
        let waiting = self.waiting.queue.iter().enumerate();
        let (place, _) = waiting.min_by_key(|(_, (address, _))| counts.load(*address))?;
        self.waiting.remove(place)
    }

    /// The network that holds the most, if that is more than its share; of a site that holds more than the site's, the one
    /// that holds most, and of those the newest. Asked for with each connection: it looks nothing up.
    fn greediest(&self, share: u32) -> Option<Range> {
        let greediest = self.counts.greatest_above(Counts::share(share))?;
        if !greediest.is_site() {
            return Some(greediest);
        }
        let of_site = self.held.iter().filter_map(|(network, held)| {
            let newest = held.last().filter(|newest| greediest.has(newest.address))?;
            Some(((held.len(), newest.number), *network))
        });
        of_site.max_by_key(|(most, _)| *most).map(|(_, network)| network)
    }

    /// Takes the newest place of this network; who has it will notice.
    fn evict(&mut self, network: Range) {
        if let Some(newest) = self.held.get_mut(&network).and_then(Vec::pop) {
            self.counts.remove(newest.address);
            newest.evicted.cancel();
        }
    }
}

impl Waiting {
    /// A place in the queue. Where it is full, whoever waits more often than its share makes room, newest first, for those that
    /// don't; none for others.
    fn enter(&mut self, address: IpAddr) -> Option<oneshot::Receiver<Handshake>> {
        if self.queue.len() >= WAITING {
            self.forget_gone();
        }
        if self.queue.len() >= WAITING {
            let share = Counts::share(WAITING_SHARE);
            if self.counts.load(address) >= share {
                return None;
            }
            let greediest = self.counts.greatest_above(share)?;
            let newest = self.queue.iter().rposition(|(address, _)| greediest.has(*address))?;
            self.remove(newest);
        }
        let (sender, turn) = oneshot::channel();
        self.queue.push_back((address, sender));
        self.counts.add(address);
        Some(turn)
    }

    fn remove(&mut self, place: usize) -> Option<(IpAddr, oneshot::Sender<Handshake>)> {
        let removed = self.queue.remove(place)?;
        self.counts.remove(removed.0);
        Some(removed)
    }

    fn forget_gone(&mut self) {
        let Self { queue, counts } = self;
        queue.retain(|(address, waits)| {
            if waits.is_closed() {
                counts.remove(*address);
            }
            !waits.is_closed()
        });
    }
}

/// When a connection gets a place.
#[derive(Debug)]
pub enum Turn {
    /// It has one.
    Now(Handshake),
    /// Once one is free.
    Later(oneshot::Receiver<Handshake>),
}

impl Turn {
    /// The place; none where the relay ends before, or where it was to wait is another's. Dropping the future gives the turn up.
    pub async fn come(self) -> Option<Handshake> {
        match self {
            Self::Now(handshake) => Some(handshake),
            Self::Later(later) => later.await.ok(),
        }
    }
}

/// The place of one connection; dropping it frees it.
#[derive(Debug)]
pub struct Handshake {
    of: Handshakes,
    address: IpAddr,
    number: u64,
    evicted: CancellationToken,
}

impl Handshakes {
    /// So many places.
    pub fn new(places: u32) -> Self {
        Self(Arc::new(Inner {
            places: places as usize,
            share: places.div_ceil(SHARE),
            taken: Mutex::default(),
            freed: Notify::new(),
        }))
    }

    /// Waits until a connection may be accepted, whoever's it will be.
    pub async fn room(&self) {
        loop {
            let freed = self.0.freed.notified();
            {
                let taken = self.lock();
                if taken.all < self.0.places || taken.greediest(self.0.share).is_some() {
                    return;
                }
            }
            freed.await;
        }
    }

    /// A connection from this address wants a place. None where too many wait.
    pub fn enter(&self, address: IpAddr) -> Option<Turn> {
        let mut taken = self.lock();
        if taken.all < self.0.places {
            taken.all += 1;
            return Some(Turn::Now(taken.give(self, address)));
        }
        let has_share = taken.counts.load(address) >= Counts::share(self.0.share);
        if !has_share && let Some(greediest) = taken.greediest(self.0.share) {
            taken.evict(greediest);
            return Some(Turn::Now(taken.give(self, address)));
        }
        taken.waiting.enter(address).map(Turn::Later)
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handshake {
    /// Where it was taken.
    pub fn places(&self) -> Handshakes {
        self.of.clone()
    }

    /// Does one step of a handshake.
    ///
    /// # Errors
    /// Timeout if it takes longer than until `deadline`, LimitReached if the place was given to another address: the
    /// connection must end.
    pub async fn step<T>(&self, deadline: Instant, step: impl Future<Output = T>) -> Result<T, CloseReason> {
        tokio::select! {
            done = timeout_at(deadline, step) => done.map_err(|_| CloseReason::Timeout),
            () = self.evicted.cancelled() => Err(CloseReason::LimitReached),
        }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut taken = self.of.lock();
        let network = Range::network(self.address);
        let Some(held) = taken.held.get_mut(&network) else { return };
        let place = held.iter().rposition(|held| held.number == self.number);
        if let Some(place) = place {
            held.remove(place);
        }
        if held.is_empty() {
            taken.held.remove(&network);
        }
        // Not there if it was evicted: then its place is another's.
        if place.is_none() {
            return;
        }
        taken.counts.remove(self.address);
        match taken.next() {
            Some((address, waits)) => {
                let handshake = taken.give(&self.of, address);
                drop(taken);
                // Who has gone in this moment drops it, and the next one gets it.
                let _gone = waits.send(handshake);
            }
            None => {
                taken.all -= 1;
                drop(taken);
                self.of.0.freed.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::from((0xc000_0200 + n).to_be_bytes())
    }

    fn now(handshakes: &Handshakes, address: IpAddr) -> Option<Handshake> {
        match handshakes.enter(address) {
            Some(Turn::Now(handshake)) => Some(handshake),
            _ => None,
        }
    }

    fn fill(handshakes: &Handshakes, address: IpAddr, places: usize) -> Vec<Handshake> {
        (0..places).map(|_| now(handshakes, address).expect("there is room")).collect()
    }

    fn evicted(held: &[Handshake]) -> usize {
        held.iter().filter(|handshake| handshake.evicted.is_cancelled()).count()
    }

    #[tokio::test]
    async fn t33_one_address_may_have_all_places_and_keeps_nobody_out() {
        let handshakes = Handshakes::new(1024);
        let greedy = fill(&handshakes, address(0), 1024);
        let waiting: Vec<Turn> = std::iter::from_fn(|| handshakes.enter(address(0))).collect();
        assert_eq!(waiting.len(), WAITING, "its others wait, and not without end");
        handshakes.room().await;
        let mut others = Vec::new();
        for other in 1..=63 {
            others.extend(fill(&handshakes, address(other), 16));
        }
        assert_eq!((evicted(&greedy), evicted(&others)), (63 * 16, 0));
        assert!(greedy[..16].iter().all(|oldest| !oldest.evicted.is_cancelled()), "the newest go");
        // Everybody has a share now, and nobody waits: who comes does so in the kernel's backlog.
        drop(waiting);
        let mut room = std::pin::pin!(handshakes.room());
        tokio::select! {
            biased;
            () = &mut room => panic!("there is no room"),
            () = std::future::ready(()) => {}
        }
        drop(others.pop());
        room.await;
        others.push(now(&handshakes, address(99)).unwrap());
        drop((greedy, others));
        let taken = handshakes.lock();
        assert_eq!((taken.all, taken.held.len()), (0, 0));
    }

    #[tokio::test]
    async fn who_waits_gets_what_becomes_free_in_turn_and_who_has_gone_gets_nothing() {
        let handshakes = Handshakes::new(2);
        let mut held = fill(&handshakes, address(0), 2);
        let mut waiting = (0..3).map(|_| handshakes.enter(address(0)).unwrap());
        let (first, gone, last) = (waiting.next().unwrap(), waiting.next().unwrap(), waiting.next().unwrap());
        drop(gone);
        let other = now(&handshakes, address(1)).expect("it passes all that wait");
        assert_eq!(evicted(&held), 1);
        held.remove(0);
        let first = first.come().await.expect("the first place that is free");
        assert!(!matches!(handshakes.enter(address(0)), Some(Turn::Now(_))), "there is no other");
        drop(held);
        drop(other);
        let last = last.come().await.expect("what was evicted freed none, and the other one did");
        drop((first, last));
        let taken = handshakes.lock();
        assert_eq!((taken.all, taken.held.len(), taken.waiting.queue.len()), (0, 0, 0));
        assert!(taken.counts.is_empty() && taken.waiting.counts.is_empty());
    }

    #[tokio::test]
    async fn t33_what_becomes_free_is_for_whoever_has_fewest() {
        let handshakes = Handshakes::new(128);
        let mut greedy = fill(&handshakes, address(0), 128);
        let fleet = fill(&handshakes, address(1), 2);
        let of_greedy = handshakes.enter(address(0)).unwrap();
        let of_fleet = handshakes.enter(address(1)).unwrap();
        assert!(matches!(of_fleet, Turn::Later(_)), "it has its share already");
        greedy.truncate(125);
        let third = of_fleet.come().await.expect("it came later, and has fewer");
        greedy.pop();
        let again = of_greedy.come().await.expect("nobody else waits");
        drop((fleet, third, again, greedy));
        assert_eq!(handshakes.lock().all, 0);
    }

    #[tokio::test]
    async fn networks_of_ipv6_count_as_one_address() {
        let handshakes = Handshakes::new(3);
        let [one, two] = ["2001:db8::1", "2001:db8::2"].map(|text| text.parse::<IpAddr>().unwrap());
        let held = fill(&handshakes, one, 3);
        assert!(now(&handshakes, two).is_none(), "the same network");
        assert!(now(&handshakes, address(0)).is_some());
        assert_eq!(evicted(&held), 1);
    }
    fn network(site: u32, n: u32) -> IpAddr {
        format!("2001:db8:{site:x}:{n:x}::1").parse().unwrap()
    }

    #[tokio::test]
    async fn t33_an_ipv6_site_keeps_nobody_out_however_many_networks_it_has() {
        let handshakes = Handshakes::new(128);
        let greedy: Vec<_> = (0..128).map(|n| now(&handshakes, network(1, n)).unwrap()).collect();
        let mut others = Vec::new();
        for other in 0..60 {
            others.extend(fill(&handshakes, address(other), 2));
        }
        assert_eq!((evicted(&greedy), evicted(&others)), (120, 0), "a site keeps what four addresses would");
        assert!(greedy[..8].iter().all(|oldest| !oldest.evicted.is_cancelled()), "the newest go");
        assert!(now(&handshakes, network(1, 9999)).is_none(), "a network of its that has nothing");
        drop((greedy, others));
        assert!(handshakes.lock().counts.is_empty());
    }

    #[tokio::test]
    async fn t33_one_address_may_have_all_of_the_waiting_room_and_keeps_nobody_out() {
        let handshakes = Handshakes::new(2);
        let held = [now(&handshakes, address(0)).unwrap(), now(&handshakes, address(1)).unwrap()];
        let mut greedy: Vec<_> = (0..WAITING / 2).map(|_| handshakes.enter(address(0)).unwrap()).collect();
        greedy.extend((0..WAITING as u32 / 2).map(|n| handshakes.enter(network(1, n)).unwrap()));
        assert!(handshakes.enter(address(0)).is_none(), "there is no room for more of it");
        let share = WAITING_SHARE as usize;
        let fleet: Vec<_> = (0..share).map(|_| handshakes.enter(address(1)).expect("it waits")).collect();
        assert!(handshakes.enter(address(1)).is_none(), "it has its share");
        let site: Vec<_> = (0..1000).map_while(|n| handshakes.enter(network(2, n))).collect();
        assert_eq!(site.len(), 4 * share, "a site has a few");
        let gone = greedy.iter_mut().filter_map(|turn| match turn {
            Turn::Later(turn) => turn.try_recv().err(),
            Turn::Now(_) => None,
        });
        let gone = gone.filter(|error| *error == oneshot::error::TryRecvError::Closed).count();
        assert_eq!(gone, fleet.len() + site.len(), "as many made room");
        assert_eq!(handshakes.lock().waiting.queue.len(), WAITING);
        drop((greedy, fleet, site, held));
        assert!(handshakes.lock().counts.is_empty());
    }
}

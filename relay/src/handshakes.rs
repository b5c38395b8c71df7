//! Connections that are not yet sessions: how many there may be, and what one address may hold of them while others wait.
//!
//! While there is room it is anybody's: a fleet behind one NAT that comes back may have all of it. Once all places are
//! taken, addresses that hold more than a share of them make room, newest first, for those that hold less; they
//! themselves wait for places that become free, which go to whoever has fewest.

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

use crate::throttle::network;

/// This part of all places is what no address can be made to give up: who wants to keep others out needs as many addresses.
const SHARE: u32 = 64;
/// So many connections may wait for a place, accepted and unread: as many as a kernel's backlog holds, for a fleet behind one NAT.
const WAITING: usize = 4096;

/// The places of all that are not yet sessions.
#[derive(Clone, Debug)]
pub struct Handshakes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: usize,
    share: usize,
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    next: u64,
    /// What each address holds, the newest last.
    held: HashMap<IpAddr, Vec<Held>>,
    waiting: VecDeque<(IpAddr, oneshot::Sender<Handshake>)>,
}

#[derive(Debug)]
struct Held {
    number: u64,
    evicted: CancellationToken,
}

impl Taken {
    /// A place that is free, or was taken from another.
    fn give(&mut self, of: &Handshakes, address: IpAddr) -> Handshake {
        let (number, evicted) = (self.next, CancellationToken::new());
        self.next += 1;
        self.held.entry(address).or_default().push(Held { number, evicted: evicted.clone() });
        Handshake { of: of.clone(), address, number, evicted }
    }

    /// Who waits gets what is free: of those whose address holds the fewest, the first that came.
    fn next(&mut self) -> Option<(IpAddr, oneshot::Sender<Handshake>)> {
        let Taken { held, waiting, .. } = self;
        waiting.retain(|(_, waits)| !waits.is_closed());
        let held = |address| held.get(address).map_or(0, Vec::len);
        let (place, _) = waiting.iter().enumerate().min_by_key(|(_, (address, _))| held(address))?;
        waiting.remove(place)
    }

    /// The address that holds the most, if that is more than its share.
    fn greediest(&self, share: usize) -> Option<IpAddr> {
        let most = self.held.iter().max_by_key(|(_, held)| held.len())?;
        (most.1.len() > share).then_some(*most.0)
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
    /// The place; none where the relay ends before. Dropping the future gives the turn up.
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
            share: places.div_ceil(SHARE) as usize,
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
    pub fn enter(&self, from: IpAddr) -> Option<Turn> {
        let address = network(from);
        let mut taken = self.lock();
        if taken.all < self.0.places {
            taken.all += 1;
            return Some(Turn::Now(taken.give(self, address)));
        }
        let has_share = taken.held.get(&address).is_some_and(|held| held.len() >= self.0.share);
        if !has_share && let Some(greediest) = taken.greediest(self.0.share) {
            if let Some(newest) = taken.held.get_mut(&greediest).and_then(Vec::pop) {
                newest.evicted.cancel();
            }
            return Some(Turn::Now(taken.give(self, address)));
        }
        if taken.waiting.len() >= WAITING {
            taken.waiting.retain(|(_, waits)| !waits.is_closed());
            if taken.waiting.len() >= WAITING {
                return None;
            }
        }
        let (sender, turn) = oneshot::channel();
        taken.waiting.push_back((address, sender));
        Some(Turn::Later(turn))
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handshake {
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
        let Some(held) = taken.held.get_mut(&self.address) else { return };
        let place = held.iter().rposition(|held| held.number == self.number);
        if let Some(place) = place {
            held.remove(place);
        }
        if held.is_empty() {
            taken.held.remove(&self.address);
        }
        // Not there if it was evicted: then its place is another's.
        if place.is_none() {
            return;
        }
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
        assert_eq!((taken.all, taken.held.len(), taken.waiting.len()), (0, 0, 0));
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
}

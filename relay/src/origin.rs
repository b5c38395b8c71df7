//! Where connections come from, as ranges of addresses that one holder may have the whole of.
//!
//! Whatever is shared out by address is counted in each range that an address is in. An IPv4 address is alone. Whoever has
//! an IPv6 address has the other 2⁶⁴ of its /64 too, and may have all of a /48: what RFC 6177 allows for one site, which then
//! has 65,536 of the former. Providers also keep many customers in one /48, so that it may have more than a /64, a few times.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

/// All of an IPv6 /48 may have so many times what one address may.
pub const SITE_SHARES: u32 = 4;

/// Addresses that count as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    prefix: IpAddr,
    shares: u32,
}

impl Range {
    /// The IPv4 address, or the /64 of IPv6.
    pub fn network(address: IpAddr) -> Self {
        let prefix = match address.to_canonical() {
            IpAddr::V6(address) => leading(address, 4),
            v4 => v4,
        };
        Self { prefix, shares: 1 }
    }

    /// The /48; none for IPv4.
    pub fn site(address: IpAddr) -> Option<Self> {
        match address.to_canonical() {
            IpAddr::V6(address) => Some(Self { prefix: leading(address, 3), shares: SITE_SHARES }),
            IpAddr::V4(_) => None,
        }
    }

    /// Every range that this address counts in, the widest first.
    pub fn all(address: IpAddr) -> impl Iterator<Item = Self> {
        Self::site(address).into_iter().chain([Self::network(address)])
    }

    /// Whether it is all of a site, and not one network.
    pub fn is_site(self) -> bool {
        self.shares > 1
    }

    /// Whether this address counts in it.
    pub fn has(self, address: IpAddr) -> bool {
        if self.is_site() { Self::site(address) == Some(self) } else { Self::network(address) == self }
    }

    /// How many times it may have what one address may.
    pub fn shares(self) -> u32 {
        self.shares
    }
}

fn leading(address: Ipv6Addr, segments: usize) -> IpAddr {
    let mut kept = [0; 8];
    kept[..segments].copy_from_slice(&address.segments()[..segments]);
    IpAddr::from(kept)
}

/// How many there are of each range.
#[derive(Debug, Default)]
pub struct Counts(HashMap<Range, u32>);

impl Counts {
    /// One more from this address.
    pub fn add(&mut self, address: IpAddr) {
        for range in Range::all(address) {
            *self.0.entry(range).or_insert(0) += 1;
        }
    }

    /// One less.
    pub fn remove(&mut self, address: IpAddr) {
        for range in Range::all(address) {
            if let Some(count) = self.0.get_mut(&range) {
                *count -= 1;
                if *count == 0 {
                    self.0.remove(&range);
                }
            }
        }
    }

    /// One more, if each range has less than `most` for each of its shares.
    pub fn add_within(&mut self, address: IpAddr, most: u32) -> bool {
        let room = Range::all(address).all(|range| self.of(range) < most.saturating_mul(range.shares));
        if room {
            self.add(address);
        }
        room
    }

    /// How much of what it may have an address has, by whichever of its ranges has more: to compare with others, and with
    /// [`share`](Self::share).
    pub fn load(&self, address: IpAddr) -> u32 {
        Range::all(address).map(|range| load(range, self.of(range))).max().unwrap_or(0)
    }

    /// The range that has the most of what it may have, if that is a greater load than this.
    pub fn greatest_above(&self, share: u32) -> Option<Range> {
        let loads = self.0.iter().map(|(range, count)| (load(*range, *count), *range));
        let (most, range) = loads.max_by_key(|(load, _)| *load)?;
        (most > share).then_some(range)
    }

    /// The load of one that has exactly `most`.
    pub fn share(most: u32) -> u32 {
        most.saturating_mul(SITE_SHARES)
    }

    /// Whether nobody is counted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of(&self, range: Range) -> u32 {
        self.0.get(&range).copied().unwrap_or(0)
    }
}

fn load(range: Range, count: u32) -> u32 {
    count * (SITE_SHARES / range.shares)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_counts_with_its_network_and_its_site() {
        let ranges = |text| Range::all(ip(text)).collect::<Vec<_>>();
        assert_eq!(ranges("2001:db8:1:2::1"), ranges("2001:db8:1:2:ffff::"));
        let (one, other) = (ranges("2001:db8:1:2::1"), ranges("2001:db8:1:3::1"));
        assert!(one[0] == other[0] && one[1] != other[1], "one /48, two /64");
        assert_ne!(ranges("2001:db8:1::")[0], ranges("2001:db8:1::")[1], "a /48 is not its first /64");
        assert_ne!(ranges("2001:db8:1::")[0], ranges("2001:db8:2::")[0]);
        assert_eq!(ranges("::ffff:192.0.2.1"), [Range::network(ip("192.0.2.1"))]);
        assert!(one[0].has(ip("2001:db8:1:3::1")) && !one[1].has(ip("2001:db8:1:3::1")));
    }

    #[test]
    fn a_site_has_a_few_shares_however_many_networks_it_has() {
        let mut counts = Counts::default();
        let network = |n: u32| ip(&format!("2001:db8:1:{n:x}::1"));
        let taken = (0..1000).filter(|n| counts.add_within(network(*n), 3)).count();
        assert_eq!(taken, 3 * SITE_SHARES as usize);
        assert_eq!(counts.load(network(9999)), Counts::share(3), "as much as one address that has 3");
        assert_eq!(counts.greatest_above(Counts::share(3)), None);
        assert_eq!(counts.greatest_above(Counts::share(3) - 1), Range::site(network(0)));
        assert!(counts.add_within(ip("2001:db8:2::1"), 3) && counts.add_within(ip("192.0.2.1"), 3));
        (0..12).for_each(|n| counts.remove(network(n)));
        counts.remove(ip("2001:db8:2::1"));
        counts.remove(ip("192.0.2.1"));
        assert!(counts.is_empty());
    }
}

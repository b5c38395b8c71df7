//! Destinations that no proxy is asked for.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use ipnet::IpNet;

use super::Destination;

/// What a bare host name in a list stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BareNames {
    /// That name and no other.
    Exact,
    /// It and all names below it, as curl and Go read `NO_PROXY`.
    WithSubdomains,
}

/// Hosts, networks and names below others, each with or without a port. Names are compared as they are typed and never
/// resolved: where a proxy is in the way, it is the one who resolves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SkipRange(Vec<Entry>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    what: What,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    All,
    Net(IpNet),
    Host(String),
    Below(String),
    HostAndBelow(String),
}

impl SkipRange {
    /// Reads a list with commas or blanks between: `10.0.0.0/8`, `192.0.2.1`, `[2001:db8::1]:8443`, `host`, `host:8443`, `.suffix`,
    /// `*.suffix`, `*`, `*:8443`. What is none of these is given back.
    pub fn parse(text: &str, names: BareNames) -> (Self, Vec<String>) {
        let words = text.split([',', ' ', '\t', '\r', '\n']).filter(|word| !word.is_empty());
        let (mut entries, mut wrong) = (Vec::new(), Vec::new());
        for word in words {
            match Entry::parse(word, names) {
                Some(entry) => entries.push(entry),
                None => wrong.push(word.to_owned()),
            }
        }
        (Self(entries), wrong)
    }

    /// Whether a destination is among them.
    pub fn contains(&self, to: &Destination) -> bool {
        let host = plain(to.host());
        let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        self.0.iter().any(|entry| entry.takes_in(&host, address, to.port()))
    }

    /// The same and those of another list.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for SkipRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, entry) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            write!(f, "{comma}{entry}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.what, self.port) {
            (What::All, _) => f.write_str("*")?,
            (What::Net(IpNet::V6(net)), Some(_)) if net.prefix_len() == 128 => write!(f, "[{}]", net.addr())?,
            (What::Net(net), _) if net.prefix_len() == net.max_prefix_len() => write!(f, "{}", net.addr())?,
            (What::Net(net), _) => write!(f, "{net}")?,
            (What::Host(name) | What::HostAndBelow(name), _) => f.write_str(name)?,
            (What::Below(name), _) => write!(f, ".{name}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl Entry {
    fn parse(word: &str, names: BareNames) -> Option<Self> {
        let net = |address: IpAddr| What::Net(IpNet::from(address.to_canonical()));
        if let Some((address, rest)) = word.split_once('/') {
            let (bits, port) = with_port(rest)?;
            let what = What::Net(format!("{address}/{bits}").parse::<IpNet>().ok()?.trunc());
            return Some(Self { what, port });
        }
        if let Some(rest) = word.strip_prefix('[') {
            let (address, rest) = rest.split_once(']')?;
            let port = match rest {
                "" => None,
                rest => Some(port(rest.strip_prefix(':')?)?),
            };
            return Some(Self { what: net(address.parse::<Ipv6Addr>().ok()?.into()), port });
        }
        if let Ok(address) = word.parse::<IpAddr>() {
            return Some(Self { what: net(address), port: None });
        }
        let (host, port) = with_port(word)?;
        if host == "*" {
            return Some(Self { what: What::All, port });
        }
        if let Ok(address) = host.parse::<IpAddr>() {
            return Some(Self { what: net(address), port });
        }
        let (below, name) = match host.strip_prefix("*.").or_else(|| host.strip_prefix('.')) {
            Some(name) => (true, name),
            None => (false, host),
        };
        if !is_name(name) {
            return None;
        }
        let name = plain(name);
        let what = match (below, names) {
            (true, _) => What::Below(name),
            (false, BareNames::Exact) => What::Host(name),
            (false, BareNames::WithSubdomains) => What::HostAndBelow(name),
        };
        Some(Self { what, port })
    }

    fn takes_in(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        if self.port.is_some_and(|only| only != port) {
            return false;
        }
        match &self.what {
            What::All => true,
            What::Net(net) => address.is_some_and(|address| net.contains(&address)),
            What::Host(name) => host == name,
            What::Below(name) => is_below(host, name),
            What::HostAndBelow(name) => host == name || is_below(host, name),
        }
    }
}

fn is_below(host: &str, name: &str) -> bool {
    host.strip_suffix(name).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

/// As names are compared: DNS knows no case, and an absolute name is the same one.
fn plain(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_lowercase()
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// `host`, or `host:port`.
fn with_port(text: &str) -> Option<(&str, Option<u16>)> {
    match text.split_once(':') {
        Some((host, number)) => Some((host, Some(port(number)?))),
        None => Some((text, None)),
    }
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn skips(list: &str, host: &str, port: u16) -> bool {
        let (range, wrong) = SkipRange::parse(list, BareNames::Exact);
        assert!(wrong.is_empty(), "{wrong:?}");
        range.contains(&Destination::new(host, port))
    }

    #[test]
    fn each_form_takes_in_what_it_says() {
        for (list, yes, no) in [
            ("relay.corp", "RELAY.corp.", "a.relay.corp"),
            (".corp", "relay.corp", "corp"),
            ("*.corp", "a.b.corp", "acorp"),
            ("192.0.2.1", "192.0.2.1", "192.0.2.10"),
            ("10.1.2.3/8", "10.200.0.1", "11.0.0.1"),
            ("fd00::/8", "fd12::1", "fe80::1"),
            ("2001:db8::1", "2001:DB8:0::1", "2001:db8::2"),
            ("[2001:db8::1]", "2001:db8::1", "2001:db8::2"),
            ("192.0.2.0/24", "::ffff:192.0.2.7", "::ffff:192.0.3.7"),
            ("a, b\n.c", "x.c", "c"),
        ] {
            assert!(skips(list, yes, 443), "{list} takes in {yes}");
            assert!(!skips(list, no, 443), "{list} does not take in {no}");
        }
        assert!(skips("*", "anything", 1) && !skips("", "anything", 1));
    }

    #[test]
    fn a_port_narrows_an_entry() {
        for (list, host) in [
            ("relay.corp:8443", "relay.corp"),
            ("*:8443", "relay.corp"),
            (".corp:8443", "relay.corp"),
            ("192.0.2.1:8443", "192.0.2.1"),
            ("[2001:db8::1]:8443", "2001:db8::1"),
            ("192.0.2.0/24:8443", "192.0.2.1"),
            ("2001:db8::/32:8443", "2001:db8::1"),
        ] {
            assert!(skips(list, host, 8443) && !skips(list, host, 443), "{list}");
        }
    }

    #[test]
    fn the_environments_names_take_in_what_is_below() {
        let (range, wrong) = SkipRange::parse("corp.example,.other", BareNames::WithSubdomains);
        assert!(wrong.is_empty());
        let takes = |host: &str| range.contains(&Destination::new(host, 443));
        assert!(takes("corp.example") && takes("relay.corp.example") && takes("a.other"));
        assert!(!takes("mycorp.example") && !takes("other"));
    }

    #[test]
    fn what_is_no_entry_is_given_back() {
        let list = "ok, a*b, 10.0.0.0/33, x:0, x:y, [::1, [a], https://host, ..a, 1.2.3.4/8/9";
        let (range, wrong) = SkipRange::parse(list, BareNames::Exact);
        assert_eq!(range.to_string(), "ok");
        assert_eq!(wrong.len(), 9, "{wrong:?}");
    }

    proptest! {
        #[test]
        fn a_network_takes_in_exactly_its_addresses(net: u32, bits in 0..=32_u8, address: u32) {
            let list = format!("{}/{bits}", Ipv4Addr::from(net));
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            let inside = net & mask == address & mask;
            prop_assert_eq!(skips(&list, &Ipv4Addr::from(address).to_string(), 443), inside);
        }

        #[test]
        fn any_text_is_read_and_what_was_understood_reads_the_same_again(text: String) {
            let (range, _) = SkipRange::parse(&text, BareNames::Exact);
            let (again, wrong) = SkipRange::parse(&range.to_string(), BareNames::Exact);
            prop_assert_eq!(again, range);
            prop_assert!(wrong.is_empty());
        }
    }
}

//! A connection to a host that the operator has named. A name leads to public addresses only: whoever answers for it must not lead the relay
//! into its own network. Who means an address there, names the address.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{net::TcpStream, net::lookup_host, time::timeout};
use towline_tunnel::issuer_host::IssuerHost;

/// For the name.
const RESOLVED_WITHIN: Duration = Duration::from_secs(3);
/// For one address.
const CONNECTED_WITHIN: Duration = Duration::from_secs(2);
/// Addresses that are tried.
const ADDRESSES: usize = 3;

/// Connects; the error is for people.
pub(super) async fn reach(host: &IssuerHost) -> Result<TcpStream, String> {
    let mut why = "its name has no public address".to_owned();
    for address in addresses(host).await? {
        match timeout(CONNECTED_WITHIN, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => {
                // Handshakes are small messages.
                tcp.set_nodelay(true).map_err(|error| error.to_string())?;
                return Ok(tcp);
            }
            Ok(Err(error)) => why = error.to_string(),
            Err(_elapsed) => why = "it does not answer".to_owned(),
        }
    }
    Err(why)
}

async fn addresses(host: &IssuerHost) -> Result<Vec<SocketAddr>, String> {
    if let Some(address) = host.address() {
        return Ok(vec![(address, host.port()).into()]);
    }
    let found = timeout(RESOLVED_WITHIN, lookup_host((host.host(), host.port()))).await;
    let found = found.map_err(|_| "no name server answers")?.map_err(|error| error.to_string())?;
    Ok(found.filter(|address| is_public(address.ip())).take(ADDRESSES).collect())
}

/// Whether an address is on the Internet (IANA's special-purpose registries, RFC 6890).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = match (a, b, c) {
        // This network, shared, protocols, 6to4 relays, benchmarks, reserved.
        (0, ..) | (100, 64..=127, _) | (192, 0, 0) | (192, 88, 99) | (198, 18..=19, _) | (240.., ..) => true,
        _ => false,
    };
    !special
        && !address.is_private()
        && !address.is_loopback()
        && !address.is_link_local()
        && !address.is_documentation()
        && !address.is_multicast()
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    match segments {
        // IPv4 inside: mapped, NAT64.
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            let [.., a, b] = segments;
            let [a, b] = [a.to_be_bytes(), b.to_be_bytes()];
            is_public_v4(Ipv4Addr::new(a[0], a[1], b[0], b[1]))
        }
        // Protocols (Teredo among them), documentation, 6to4.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x2002, ..] => false,
        // Global unicast is what is left of 2000::/3.
        [first, ..] => first & 0xe000 == 0x2000 && !(0x3fff..0x4000).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_on_the_internet_is_public() {
        for public in [
            "8.8.8.8",
            "20.190.128.1",
            "100.128.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "2603:1036::1",
            "2a00::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for own in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2001::1",
            "2001:db8::1",
            "2002:a00:1::1",
            "3fff::1",
            "4000::1",
        ] {
            assert!(!is_public(own.parse().unwrap()), "{own}");
        }
    }

    /// `localhost` is this machine, whoever answers for it.
    #[tokio::test]
    async fn a_name_leads_into_no_network_of_ones_own() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let by_name = reach(&IssuerHost::new("localhost", port).unwrap()).await.unwrap_err();
        assert!(by_name.contains("no public address"), "{by_name}");
        assert!(reach(&IssuerHost::new("127.0.0.1", port).unwrap()).await.is_ok(), "named as an address");
    }
}

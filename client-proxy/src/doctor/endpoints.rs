//! What a firewall must allow, and why.

use serde::Serialize;
use towline_tunnel::carrier::dial::RelayAddress;
use url::Url;

/// One connection that somebody makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Who makes it.
    pub from: &'static str,
    /// Where to: allow it by this name, and not by its addresses, which may change.
    pub host: String,
    /// The TCP port there.
    pub port: u16,
    /// What is spoken.
    pub protocol: &'static str,
    /// Always outbound: nobody but the relay and the identity provider listens.
    pub direction: &'static str,
    /// What for.
    pub why: &'static str,
    /// What a proxy that inspects TLS is to do with it.
    pub tls_inspection: &'static str,
}

const PERSON: &str = "people's machines";
const AGENT: &str = "the agent in the cluster";
const RELAY: &str = "the relay";

/// All connections that are needed for this relay, and identity providers that answer at `issuers` (URLs).
pub fn endpoints(relay: &RelayAddress, issuers: &[String]) -> Vec<Endpoint> {
    let authority = relay.authority();
    let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(443);
    let to_relay = |from, why| Endpoint {
        from,
        host: relay.host().to_owned(),
        port,
        protocol: "TLS, in it HTTP/1.1 upgraded to websocket (RFC 6455); where that is stopped, one HTTP/2 request, or a pair of HTTP/1.1 requests (GET, POST)",
        direction: "outbound",
        why,
        tls_inspection: "exempt it; where that can't be, the proxy's authority goes into --proxy-cert, and what is inside stays encrypted",
    };
    let mut all = vec![
        to_relay(PERSON, "all requests of kubectl, and nothing else"),
        to_relay(AGENT, "enrolment, sessions, streams: the agent listens nowhere"),
    ];
    let mut seen = Vec::new();
    for url in issuers.iter().filter_map(|url| Url::parse(url).ok()) {
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { continue };
        if seen.contains(&(host.to_owned(), port)) {
            continue;
        }
        seen.push((host.to_owned(), port));
        let to_issuer = |from, why| Endpoint {
            from,
            host: host.to_owned(),
            port,
            protocol: "HTTPS",
            direction: "outbound",
            why,
            tls_inspection: "exempt it: issuers are never trusted by a proxy's authority",
        };
        all.push(to_issuer(PERSON, "logging in, in the browser too, and renewing tokens"));
        all.push(to_issuer(
            AGENT,
            "the provider's metadata and keys, by which tokens are verified in the cluster",
        ));
        all.push(to_issuer(RELAY, "the same at the relay"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relay_and_issuers_are_listed_once_for_each_who_dials_them() {
        let relay = RelayAddress::parse("https://relay.example").unwrap();
        let issuers = [
            "https://idp.example/realms/a",
            "https://idp.example/token",
            "https://keys.example:8443/x",
            "nonsense",
        ];
        let all = endpoints(&relay, &issuers.map(str::to_owned));
        let to: Vec<(&str, &str, u16)> =
            all.iter().map(|one| (one.from, one.host.as_str(), one.port)).collect();
        assert_eq!(
            to,
            [
                (PERSON, "relay.example", 443),
                (AGENT, "relay.example", 443),
                (PERSON, "idp.example", 443),
                (AGENT, "idp.example", 443),
                (RELAY, "idp.example", 443),
                (PERSON, "keys.example", 8443),
                (AGENT, "keys.example", 8443),
                (RELAY, "keys.example", 8443),
            ]
        );
        assert!(all.iter().all(|one| one.direction == "outbound"));
    }
}

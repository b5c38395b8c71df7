//! The head of the request to kube-apiserver: built afresh from an allow-list, never the caller's own with a few things
//! taken out.
//!
//! What is not on the list does not travel: `X-Remote-*`, `Authorization`, `Cookie`, `X-Forwarded-*`, hop-by-hop headers
//! (RFC 9110, section 7.6.1), and whatever `Connection` nominates. What would change *who* the request is for is never
//! dropped: [`crate::as_user`] reads it, or it goes on where kube-apiserver judges the caller itself.

use http::{HeaderMap, HeaderValue, header};
use towline_tunnel::fault::{Fault, Report};

use crate::as_user;

/// What client-go, kubectl, helm and plain HTTP clients send that kube-apiserver acts on. Lower case.
///
/// Not here on purpose: `Host`, `Authorization`, `Impersonate-*` and `Audit-Id` are the agent's own; the length of a body
/// follows from the body; `Connection` and `Upgrade` are set for an upgrade that was judged; `Expect` is answered here.
const ALLOWED: &[&str] = &[
    "accept",
    "accept-encoding",
    "cache-control",
    "content-encoding",
    "content-type",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "kubectl-command",
    "kubectl-session",
    "range",
    "sec-websocket-extensions",
    "sec-websocket-key",
    "sec-websocket-protocol",
    "sec-websocket-version",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-stream-protocol-version",
];

/// Headers that concern one connection only (RFC 9110, section 7.6.1; RFC 9113, section 8.2.2).
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// kube-apiserver takes a bearer token from a WebSocket subprotocol that begins so.
const TOKEN_SUBPROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// A protocol that a request may be upgraded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// RFC 6455: exec, attach, cp, port-forward of newer clients.
    WebSocket,
    /// The same, of older ones.
    Spdy,
}

impl Upgrade {
    /// As it stands in `Upgrade`.
    pub fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Spdy => "SPDY/3.1",
        }
    }
}

/// The caller's bearer token (RFC 6750, section 2.1).
///
/// # Errors
/// If there is not exactly one: two could be read differently by two programs.
pub fn bearer(headers: &HeaderMap) -> Result<&str, Report> {
    let missing = |why: &str| Report::new(Fault::ClusterTokenMissing, why);
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(missing(if headers.contains_key(header::AUTHORIZATION) {
            "there are two Authorization headers"
        } else {
            "there is no Authorization header"
        }));
    };
    if tokens(headers, "sec-websocket-protocol").any(|name| name.starts_with(TOKEN_SUBPROTOCOL)) {
        return Err(missing("a second token stands in Sec-WebSocket-Protocol"));
    }
    let text = value.to_str().map_err(|_| missing("the Authorization header is not ASCII"))?;
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    let token = token.trim_matches(' ');
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.contains([' ', '\t', ',']) {
        return Err(missing("the Authorization header is not \"Bearer\" and one token"));
    }
    Ok(token)
}

/// Refuses a caller that has `Connection` nominate what says who the request is for: whoever obeys would drop it, and the
/// request would run with greater rights than asked for.
///
/// # Errors
/// If it does (THREATS T2).
pub fn refuse_nominated(headers: &HeaderMap) -> Result<(), Report> {
    if tokens(headers, "connection").any(|name| name.starts_with(as_user::PREFIX)) {
        return Err(Report::new(Fault::ImpersonationUnsupported, "nominated by Connection"));
    }
    Ok(())
}

/// Adds the caller's own `Impersonate-*` as they are: for a server that judges the caller itself.
pub fn add_impersonation(out: &mut HeaderMap, headers: &HeaderMap) {
    for (name, value) in headers {
        if name.as_str().starts_with(as_user::PREFIX) {
            out.append(name, value.clone());
        }
    }
}

/// What the request asks to be upgraded to, if it does.
///
/// # Errors
/// If it is something that no Kubernetes client speaks, or several things.
pub fn upgrade(headers: &HeaderMap) -> Result<Option<Upgrade>, Report> {
    // Without being nominated, Upgrade means nothing (RFC 9110, section 7.8).
    if !headers.contains_key(header::UPGRADE) || !tokens(headers, "connection").any(|name| name == "upgrade")
    {
        return Ok(None);
    }
    let mut values = headers.get_all(header::UPGRADE).iter();
    let wanted = match (values.next(), values.next()) {
        (Some(value), None) => value.as_bytes(),
        _ => b"",
    };
    [Upgrade::WebSocket, Upgrade::Spdy]
        .into_iter()
        .find(|known| wanted.eq_ignore_ascii_case(known.name().as_bytes()))
        .map(Some)
        .ok_or_else(|| Report::new(Fault::RequestHeadRefused, "Upgrade must be websocket or SPDY/3.1"))
}

/// What of the caller's head goes on.
pub fn outgoing(headers: &HeaderMap, upgrade: Option<Upgrade>) -> HeaderMap {
    let nominated: Vec<String> = tokens(headers, "connection").collect();
    let mut out = HeaderMap::with_capacity(headers.len() + 8);
    for (name, value) in headers {
        let listed = ALLOWED.binary_search(&name.as_str()).is_ok();
        if listed && !nominated.iter().any(|nominated| nominated == name.as_str()) {
            out.append(name, value.clone());
        }
    }
    if let Some(upgrade) = upgrade {
        out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        out.insert(header::UPGRADE, HeaderValue::from_static(upgrade.name()));
    }
    out
}

/// What of kube-apiserver's head goes back: all of it but what concerned its connection with us.
pub fn incoming(headers: &mut HeaderMap, upgraded: bool) {
    let kept = headers.get(header::UPGRADE).filter(|_| upgraded).cloned();
    let nominated: Vec<String> = tokens(headers, "connection").collect();
    for name in nominated.iter().map(String::as_str).chain(HOP_BY_HOP.iter().copied()) {
        headers.remove(name);
    }
    if let Some(protocol) = kept {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// The members of a header that is a list (RFC 9110, section 5.6.1), lower case.
fn tokens<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = String> + 'a {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|token| String::from_utf8_lossy(token).trim().to_ascii_lowercase())
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn the_list_is_sorted_so_that_it_can_be_searched() {
        assert!(ALLOWED.is_sorted());
        assert!(HOP_BY_HOP.iter().all(|name| !ALLOWED.contains(name)));
    }

    #[test]
    fn only_what_is_listed_goes_on_and_repeated_headers_keep_their_order() {
        let out = outgoing(
            &headers(&[
                ("Accept", "application/json"),
                ("Kubectl-Command", "kubectl get"),
                ("X-Stream-Protocol-Version", "v5.channel.k8s.io"),
                ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
                ("Host", "elsewhere"),
                ("Authorization", "Bearer t"),
                ("Cookie", "a=b"),
                ("X-Remote-User", "admin"),
                ("X-Remote-Group", "system:masters"),
                ("X-Remote-Extra-Scopes", "all"),
                ("X-Forwarded-For", "10.0.0.1"),
                ("Front-Proxy-User", "admin"),
                ("Audit-Id", "mine"),
                ("Content-Length", "7"),
                ("Transfer-Encoding", "chunked"),
                ("Expect", "100-continue"),
                ("TE", "trailers"),
                ("Keep-Alive", "timeout=5"),
                ("Proxy-Authorization", "Basic x"),
                ("Upgrade", "h2c"),
                ("Origin", "https://evil.example"),
            ]),
            None,
        );
        let lines: Vec<_> =
            out.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(
            lines,
            [
                ("accept", "application/json"),
                ("kubectl-command", "kubectl get"),
                ("x-stream-protocol-version", "v5.channel.k8s.io"),
                ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ]
        );
    }

    #[test]
    fn t02_what_connection_nominates_does_not_go_on_and_neither_does_the_nomination() {
        let sent = headers(&[
            ("Connection", "keep-alive, Accept"),
            ("Connection", "authorization"),
            ("Accept", "text/plain"),
            ("User-Agent", "u"),
        ]);
        let out = outgoing(&sent, None);
        assert_eq!(out.len(), 1);
        assert!(out.contains_key("user-agent"));
        assert!(refuse_nominated(&sent).is_ok());
    }

    #[test]
    fn t01_t02_who_it_is_for_can_not_be_nominated_away() {
        for value in ["close, Impersonate-User", "IMPERSONATE-GROUP", "impersonate-extra-x"] {
            let sent = headers(&[("accept", "x"), ("Impersonate-User", "bob"), ("Connection", value)]);
            let report = refuse_nominated(&sent).unwrap_err();
            assert_eq!(
                (report.fault, report.http_status()),
                (Fault::ImpersonationUnsupported, 403),
                "{value}"
            );
        }
    }

    #[test]
    fn t01_where_the_apiserver_judges_it_itself_every_part_goes_on_as_it_is() {
        let sent = headers(&[
            ("Accept", "x"),
            ("IMPERSONATE-User", "bob"),
            ("Impersonate-Group", "a"),
            ("Impersonate-Group", "b"),
            ("Impersonate-Unheard-Of", "x"),
            ("Authorization", "Bearer t"),
        ]);
        let mut out = outgoing(&sent, None);
        assert_eq!(out.len(), 1, "the list alone has none of it");
        add_impersonation(&mut out, &sent);
        let lines: Vec<_> =
            out.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(
            lines,
            [
                ("accept", "x"),
                ("impersonate-user", "bob"),
                ("impersonate-group", "a"),
                ("impersonate-group", "b"),
                ("impersonate-unheard-of", "x"),
            ]
        );
    }

    #[test]
    fn t05_there_is_exactly_one_bearer_token() {
        assert_eq!(bearer(&headers(&[("authorization", "Bearer abc.def")])).unwrap(), "abc.def");
        assert_eq!(bearer(&headers(&[("authorization", "bearer  abc")])).unwrap(), "abc");
        for lines in [
            &[][..],
            &[("authorization", "")],
            &[("authorization", "Bearer")],
            &[("authorization", "Bearer  ")],
            &[("authorization", "Basic YTpi")],
            &[("authorization", "Bearer a b")],
            &[("authorization", "Bearer a, Bearer b")],
            &[("authorization", "Bearer a"), ("authorization", "Bearer a")],
            &[("authorization", "Bearer ä")],
            &[
                ("authorization", "Bearer a"),
                ("sec-websocket-protocol", "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.YQ"),
            ],
        ] {
            let report = bearer(&headers(lines)).unwrap_err();
            assert_eq!((report.fault, report.http_status()), (Fault::ClusterTokenMissing, 401), "{lines:?}");
        }
    }

    #[test]
    fn only_what_kubernetes_clients_speak_is_upgraded_to() {
        let asks = |protocol: &str| upgrade(&headers(&[("Connection", "Upgrade"), ("Upgrade", protocol)]));
        assert_eq!(asks("websocket").unwrap(), Some(Upgrade::WebSocket));
        assert_eq!(asks("WebSocket").unwrap(), Some(Upgrade::WebSocket));
        assert_eq!(asks("SPDY/3.1").unwrap(), Some(Upgrade::Spdy));
        for protocol in ["h2c", "SPDY/3", "websocket, h2c", ""] {
            assert_eq!(asks(protocol).unwrap_err().http_status(), 400, "{protocol}");
        }
        assert_eq!(
            upgrade(&headers(&[("Upgrade", "h2c")])).unwrap(),
            None,
            "not nominated, it means nothing"
        );
        assert_eq!(upgrade(&headers(&[("Connection", "Upgrade")])).unwrap(), None);
        let twice = headers(&[("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Upgrade", "h2c")]);
        assert!(upgrade(&twice).is_err());
        let out = outgoing(&HeaderMap::new(), Some(Upgrade::Spdy));
        assert_eq!(
            (out["connection"].as_bytes(), out["upgrade"].as_bytes()),
            (&b"Upgrade"[..], &b"SPDY/3.1"[..])
        );
    }

    #[test]
    fn answers_lose_only_what_concerned_the_connection() {
        let mut answer = headers(&[
            ("Connection", "Upgrade, X-Hop"),
            ("Upgrade", "websocket"),
            ("X-Hop", "1"),
            ("Transfer-Encoding", "chunked"),
            ("Keep-Alive", "timeout=5"),
            ("Content-Type", "application/json"),
            ("Warning", "299 - \"old\""),
            ("Location", "https://evil.example/"),
        ]);
        let mut upgraded = answer.clone();
        incoming(&mut answer, false);
        let mut names: Vec<_> = answer.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "location", "warning"]);
        incoming(&mut upgraded, true);
        assert_eq!(upgraded["connection"], "Upgrade");
        assert_eq!(upgraded["upgrade"], "websocket");
        assert!(!upgraded.contains_key("x-hop"));
    }
}

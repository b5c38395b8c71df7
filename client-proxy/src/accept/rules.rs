//! Which requests the endpoint takes, and what of their path is ours.

use http::{
    HeaderMap, HeaderName, Method,
    header::{CONNECTION, HOST, ORIGIN},
    request::Parts,
    uri::PathAndQuery,
};
use towline_tunnel::{
    fault::{Fault, Report},
    ids::ClusterId,
};

const PREFIX: &str = "/clusters/";
const ID_LENGTH: usize = 52;
/// As the agent's own check, less the two that are added on the way.
const MAX_HEADERS: usize = 98;
/// As the agent's own check of the request line, less method and version.
const MAX_PATH: usize = 16 * 1024 - 64;
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The names under which the endpoint may be addressed. A web page that has its own name resolve to the loopback
/// address sends that name (DNS rebinding, THREATS T26).
#[derive(Clone, Debug)]
pub struct Hosts([String; 3]);

impl Hosts {
    /// Of an endpoint on this port.
    pub fn new(port: u16) -> Self {
        Self(["127.0.0.1", "localhost", "[::1]"].map(|host| format!("{host}:{port}")))
    }

    fn has(&self, host: &str) -> bool {
        self.0.iter().any(|own| own.eq_ignore_ascii_case(host))
    }

    /// Checks what a request says about whom it is for and where it comes from.
    ///
    /// # Errors
    /// If it is for another host, or comes from a web page.
    pub(super) fn check(&self, parts: &Parts) -> Result<(), Report> {
        let refused = |what: &str| Report::new(Fault::LocalOriginRefused, what);
        let mut hosts = parts.headers.get_all(HOST).iter();
        let (first, second) = (hosts.next(), hosts.next());
        if second.is_some() {
            return Err(refused("several Host headers"));
        }
        let host = first.map(|host| host.to_str().map_err(|_| refused("Host is not text"))).transpose()?;
        let authority = parts.uri.authority().map(http::uri::Authority::as_str);
        match (host, authority) {
            (None, None) => return Err(refused("no Host")),
            (Some(host), Some(authority)) if host != authority => return Err(refused("two different hosts")),
            _ => {}
        }
        let host = authority.or(host).unwrap_or_default();
        if !self.has(host) {
            return Err(refused("Host is not this endpoint"));
        }
        // Some Kubernetes clients send their own endpoint's origin with websockets; no web page can.
        let same = |origin: &str| origin.strip_prefix("https://").is_some_and(|origin| origin == host);
        if parts.headers.get_all(ORIGIN).iter().any(|origin| !origin.to_str().is_ok_and(same)) {
            return Err(refused("Origin is foreign"));
        }
        let site = parts.headers.get_all(FETCH_SITE);
        if site.iter().any(|site| site != "none" && site != "same-origin") {
            return Err(refused("sent by another site's page"));
        }
        Ok(())
    }
}

/// Where a path leads, and the path there, byte for byte: `/clusters/ID/…`, or any other path, which leads to the
/// caller's `own` cluster. kubectl before 1.34 forgets the prefix of its server's URL in `get --raw`; the client
/// certificate says which cluster is meant.
///
/// # Errors
/// If what follows `/clusters/` is not an id.
pub(super) fn split(
    path: Option<&PathAndQuery>,
    own: ClusterId,
) -> Result<(ClusterId, PathAndQuery), Report> {
    let unknown = || Report::new(Fault::ClusterUnknown, "the path does not begin with /clusters/ID");
    let path = path.ok_or_else(unknown)?;
    let Some(rest) = path.as_str().strip_prefix(PREFIX) else {
        return if path.as_str().starts_with('/') { Ok((own, path.clone())) } else { Err(unknown()) };
    };
    let (id, rest) = rest.split_at_checked(ID_LENGTH).ok_or_else(unknown)?;
    let id = id.parse().map_err(|_| unknown())?;
    let rest = match rest.as_bytes().first() {
        None => PathAndQuery::from_static("/"),
        Some(b'/') => rest.parse().map_err(|_| unknown())?,
        Some(b'?') => format!("/{rest}").parse().map_err(|_| unknown())?,
        Some(_) => return Err(unknown()),
    };
    Ok((id, rest))
}

/// What of a path the cluster gets, if it is one for a cluster; a look only, that checks nothing.
pub(super) fn within_cluster(path: &str) -> &str {
    match path.strip_prefix(PREFIX) {
        Some(rest) => rest.find('/').map_or("", |at| &rest[at..]),
        None => path,
    }
}

/// Checks what could be read in two ways further on, or would not get past the agent. Over HTTP/1.1 the raw head
/// was checked before; this holds for both.
///
/// # Errors
/// What is wrong.
pub(super) fn check_head(parts: &Parts) -> Result<(), Report> {
    let refused = |what: &str| Report::new(Fault::RequestHeadRefused, what);
    if parts.method == Method::CONNECT {
        return Err(refused("CONNECT leads nowhere"));
    }
    if parts.headers.len() > MAX_HEADERS {
        return Err(Report::new(Fault::RequestTooLarge, format!("more than {MAX_HEADERS} headers")));
    }
    if parts.uri.path_and_query().is_some_and(|path| path.as_str().len() > MAX_PATH) {
        return Err(Report::new(Fault::RequestTooLarge, format!("a path longer than {MAX_PATH} bytes")));
    }
    check_nominated(&parts.headers)
}

/// `Connection` may name headers of this hop only. Whoever names another wants it dropped on the way: identity
/// must not be lost like that (THREATS T2), so nothing is dropped in silence.
fn check_nominated(headers: &HeaderMap) -> Result<(), Report> {
    const OF_THIS_HOP: [&str; 8] = [
        "close",
        "keep-alive",
        "upgrade",
        "te",
        "trailer",
        "http2-settings",
        "proxy-connection",
        "transfer-encoding",
    ];
    let named = headers.get_all(CONNECTION).iter().all(|value| {
        value.to_str().is_ok_and(|value| {
            value
                .split(',')
                .map(str::trim)
                .all(|name| name.is_empty() || OF_THIS_HOP.iter().any(|own| name.eq_ignore_ascii_case(own)))
        })
    });
    if named {
        Ok(())
    } else {
        Err(Report::new(Fault::RequestHeadRefused, "Connection names another header"))
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn t26_other_hosts_and_foreign_origins_are_refused() {
        let hosts = Hosts::new(47011);
        let good: [&[(&str, &str)]; 6] = [
            &[("host", "127.0.0.1:47011")],
            &[("host", "LocalHost:47011")],
            &[("host", "[::1]:47011")],
            &[("host", "127.0.0.1:47011"), ("origin", "https://127.0.0.1:47011")],
            &[("host", "127.0.0.1:47011"), ("sec-fetch-site", "none")],
            &[("host", "127.0.0.1:47011"), ("sec-fetch-site", "same-origin")],
        ];
        for headers in good {
            hosts.check(&parts("/x", headers)).unwrap();
        }
        let bad: [&[(&str, &str)]; 16] = [
            &[],
            &[("host", "")],
            &[("host", "127.0.0.1")],
            &[("host", "127.0.0.1:47012")],
            &[("host", "127.evil.example:47011")],
            &[("host", "127.0.0.1.evil.example:47011")],
            &[("host", "evil.example")],
            &[("host", "127.0.0.2:47011")],
            &[("host", "127.0.0.1:47011@evil.example")],
            &[("host", "127.0.0.1:47011"), ("host", "127.0.0.1:47011")],
            &[("host", "127.0.0.1:47011"), ("origin", "https://evil.example")],
            &[("host", "127.0.0.1:47011"), ("origin", "null")],
            &[("host", "127.0.0.1:47011"), ("origin", "http://127.0.0.1:47011")],
            &[
                ("host", "127.0.0.1:47011"),
                ("origin", "https://127.0.0.1:47011"),
                ("origin", "https://evil.example"),
            ],
            &[("host", "127.0.0.1:47011"), ("origin", "https://localhost:47011")],
            &[("host", "127.0.0.1:47011"), ("sec-fetch-site", "cross-site")],
        ];
        for headers in bad {
            let report = hosts.check(&parts("/x", headers)).unwrap_err();
            assert_eq!((report.fault, report.http_status()), (Fault::LocalOriginRefused, 403), "{headers:?}");
        }
    }

    #[test]
    fn t26_over_http2_the_authority_counts_and_a_host_beside_it_must_agree() {
        let hosts = Hosts::new(47011);
        hosts.check(&parts("https://127.0.0.1:47011/x", &[])).unwrap();
        hosts.check(&parts("https://127.0.0.1:47011/x", &[("host", "127.0.0.1:47011")])).unwrap();
        for (uri, headers) in [
            ("https://evil.example/x", vec![]),
            ("https://evil.example/x", vec![("host", "127.0.0.1:47011")]),
            ("https://127.0.0.1:47011/x", vec![("host", "evil.example")]),
            ("https://user@127.0.0.1:47011/x", vec![]),
        ] {
            assert!(hosts.check(&parts(uri, &headers)).is_err(), "{uri} {headers:?}");
        }
    }

    #[test]
    fn the_prefix_goes_and_the_rest_stays_byte_for_byte() {
        let (id, own) = (ClusterId::of_spki(b"k"), ClusterId::of_spki(b"own"));
        for rest in [
            "/api/v1/pods?labelSelector=a%3Db%2Cc&limit=500",
            "//double//slash/",
            "/a%2Fb/%7euser/..%2f/./x;p=1?",
            "/?a=/clusters/b&c=%",
            "/caf\u{e9}?\u{e9}",
        ] {
            let Ok(path) = format!("/clusters/{id}{rest}").parse::<PathAndQuery>() else {
                assert!(!rest.is_ascii());
                continue;
            };
            assert_eq!(split(Some(&path), own).unwrap(), (id, rest.parse().unwrap()));
            assert_eq!(split(Some(&path), own).unwrap().1.as_str(), rest);
        }
        let at = |text: String| split(Some(&text.parse().unwrap()), own);
        assert_eq!(at(format!("/clusters/{id}")).unwrap().1, "/");
        assert_eq!(at(format!("/clusters/{id}?x=1")).unwrap().1, "/?x=1");
        let upper = id.to_string().to_uppercase();
        for bad in [
            "*".to_owned(),
            "/clusters/".to_owned(),
            "/clusters/edge-7/api".to_owned(),
            format!("/clusters/{id}x/api"),
            format!("/clusters//{id}/api"),
            format!("/clusters/{upper}/api"),
        ] {
            assert_eq!(at(bad.clone()).unwrap_err().fault, Fault::ClusterUnknown, "{bad}");
        }
        for bare in ["/", "/version?timeout=32s", "/clusters", "/api//%2e", &format!("//clusters/{id}/api")] {
            assert_eq!(at(bare.to_owned()).unwrap(), (own, bare.parse().unwrap()), "without a prefix");
        }
    }

    #[test]
    fn t02_a_header_that_is_nominated_away_is_refused() {
        for good in ["keep-alive", "Upgrade", "close, TE", "Upgrade, HTTP2-Settings"] {
            check_head(&parts("/x", &[("connection", good)])).unwrap();
        }
        for bad in ["Authorization", "close, Impersonate-User", "impersonate-group", "x-remote-user", "a b"] {
            let report = check_head(&parts("/x", &[("connection", bad)])).unwrap_err();
            assert_eq!(report.fault, Fault::RequestHeadRefused, "{bad}");
        }
    }

    #[test]
    fn t34_too_many_headers_and_too_long_paths_are_refused() {
        let names: Vec<String> = (0..99).map(|n| format!("x-{n}")).collect();
        let headers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "v")).collect();
        assert_eq!(check_head(&parts("/x", &headers)).unwrap_err().fault, Fault::RequestTooLarge);
        check_head(&parts("/x", &headers[..98])).unwrap();
        let long = format!("/{}", "x".repeat(MAX_PATH));
        assert_eq!(check_head(&parts(&long, &[])).unwrap_err().fault, Fault::RequestTooLarge);
    }
}

//! A caller's head on its way to kube-apiserver: nothing goes on that could stand for a user, nothing that is asked for is dropped, and
//! whoever is asked to be is told as it was read.
//!
//! Not in the library's list, which `tunnel-core` tests: the target and `agent-tunnel/tests/fuzz_slice.rs` include it.

use std::{collections::BTreeMap, time::SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};
use towline_agent::{
    as_user::{MAX_PARTS, Wanted},
    headers,
    impersonate::{AuditId, act_as},
};
use towline_identity::{Identity, Principal};

/// What never goes on, whatever the list says.
const NEVER: &[&str] = &[
    "authorization",
    "audit-id",
    "content-length",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "origin",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
];
/// See [`NEVER`].
const NEVER_BEGINS: &[&str] = &["impersonate-", "x-remote-", "x-forwarded-", "front-proxy-"];

/// The first byte says whether `system:masters` may be asked for; the rest are a head's lines.
pub fn run(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    let given = lines(rest);
    if let Ok(token) = headers::bearer(&given) {
        assert_eq!(given.get_all("authorization").iter().count(), 1);
        assert!(!token.is_empty() && !token.contains([' ', ',', '\t']));
    }
    let nominated = members(&given, "connection");
    let asks = given.keys().any(|name| name.as_str().starts_with("impersonate-"));
    let nominates = nominated.iter().any(|name| name.starts_with("impersonate-"));
    assert_eq!(headers::refuse_nominated(&given).is_err(), nominates);
    let upgrade = headers::upgrade(&given).ok().flatten();
    let out = headers::outgoing(&given, upgrade);
    for (name, value) in &out {
        let text = name.as_str();
        assert!(
            !NEVER.contains(&text) && !NEVER_BEGINS.iter().any(|begin| text.starts_with(begin)),
            "{text}"
        );
        if matches!(text, "connection" | "upgrade") {
            assert!(upgrade.is_some(), "{text}");
        } else {
            assert!(given.get_all(name).iter().any(|given| given == value), "{text} is not the caller's");
            assert!(!nominated.iter().any(|nominated| nominated == text), "{text} was nominated");
        }
    }
    match Wanted::read(&given, first & 1 == 1) {
        Ok(None) => assert!(!asks, "who was asked for is dropped"),
        Ok(Some(wanted)) => told(out, &wanted, first & 1 == 1),
        Err(_) => assert!(asks),
    }
}

/// What kube-apiserver is told reads back as what was asked for, with who asked beside it.
fn told(mut out: HeaderMap, wanted: &Wanted, masters: bool) {
    let values = wanted.extra.values().map(Vec::len).sum::<usize>();
    assert!(1 + wanted.groups.len() + usize::from(wanted.uid.is_some()) + values <= MAX_PARTS);
    for name in wanted.groups.iter().chain([&wanted.user]) {
        let name = name.to_ascii_lowercase();
        assert!(!name.split(',').any(|part| part.trim().starts_with("towline:")), "{name}");
        assert!(masters || !name.split(',').any(|part| part.trim() == "system:masters"), "{name}");
    }
    act_as(&mut out, &alice(), wanted, AuditId::random()).expect("what was read can be told");
    let original = out.remove("impersonate-extra-towline.dev%2foriginal-user");
    assert_eq!(original.expect("who really asks is told"), "alice");
    assert!(!wanted.extra.keys().any(|key| key.starts_with("towline.dev/")));
    let read = Wanted::read(&out, true).expect("what was told is read");
    assert_eq!(read.as_ref(), Some(wanted));
}

fn alice() -> Identity {
    Identity {
        username: "alice".into(),
        groups: vec!["dev".into()],
        uid: Some("1".into()),
        extra: BTreeMap::new(),
        principal: Principal { issuer: "https://idp".into(), subject: "alice".into() },
        issued_at: None,
        expires_at: SystemTime::UNIX_EPOCH,
    }
}

/// Names and values with a colon between; what can't stand in a head is left out.
fn lines(text: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in text.split(|byte| *byte == b'\n').take(200) {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let name = HeaderName::from_bytes(name);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value.trim_ascii())) {
            headers.append(name, value);
        }
    }
    headers
}

/// The members of a list, lower case.
fn members(headers: &HeaderMap, name: &str) -> Vec<String> {
    let all = headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let all = all.map(|member| String::from_utf8_lossy(member).trim().to_ascii_lowercase());
    all.filter(|member| !member.is_empty()).collect()
}

/// Heads of kubectl's, and of people who would be somebody else.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        "\0Authorization: Bearer a.b.c\nAccept: application/json\nUser-Agent: kubectl\nKubectl-Command: get\nHost: a\nX-Remote-User: admin",
        "\0Impersonate-User: carol\nImpersonate-Group: dev\nImpersonate-Group: ops\nImpersonate-Uid: 7\nImpersonate-Extra-example.org%2fa%20b: c\nAccept: */*",
        "\x01Impersonate-User: carol\nImpersonate-Group: system:masters\nConnection: keep-alive, Accept\nAccept: a",
        "\0Impersonate-User: system:serviceaccount:kube-system:a\nImpersonate-Extra-Scopes: x\nImpersonate-Extra-scopes: y",
        "\0Connection: Upgrade, Impersonate-User\nUpgrade: websocket\nSec-WebSocket-Protocol: v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.x",
        "\0Connection: Upgrade\nUpgrade: SPDY/3.1\nX-Stream-Protocol-Version: v4.channel.k8s.io\nAuthorization: Bearer a\nAuthorization: Bearer b",
        "\0Impersonate-Group: dev\nImpersonate-Unknown: x\nAudit-ID: mine\nTransfer-Encoding: chunked",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect()
}

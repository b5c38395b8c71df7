//! Tokens: any text gives an answer, and whatever claims say, no user comes of them that must never be.
//!
//! Not in the library's list, which `tunnel-core` tests: the targets and `identity/tests/fuzz_slice.rs` include it.

use std::sync::OnceLock;

use data_encoding::BASE64URL_NOPAD;
use towline_identity::{IssuerConfig, fuzzing};

/// The first bit says whether the rest is a token as it is, or header and claims, each in need of its encoding.
pub fn token(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    if first & 1 == 0 {
        let _answer = fuzzing::parse_token(&String::from_utf8_lossy(rest));
        return;
    }
    let mut parts = rest.split(|byte| *byte == 0);
    let mut part = || BASE64URL_NOPAD.encode(parts.next().unwrap_or_default());
    let (header, claims) = (part(), part());
    let text = format!("{header}.{claims}.AAAA");
    if fuzzing::parse_token(&text) {
        // What was read strictly is read by anyone.
        let read = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).expect("it was encoded here");
        for part in [header, claims] {
            let value: serde_json::Value = serde_json::from_slice(&read(&part)).expect("it was read as JSON");
            assert!(value.is_object());
        }
    }
}

/// Claims as JSON, through each kind of issuer's rules.
pub fn claims(input: &[u8]) {
    static ISSUERS: OnceLock<Vec<IssuerConfig>> = OnceLock::new();
    let issuers = ISSUERS.get_or_init(fuzzing::issuers);
    let text = String::from_utf8_lossy(input);
    for issuer in issuers {
        let Ok(accepted) = fuzzing::user_of(issuer, &text) else { continue };
        let identity = accepted.identity;
        let names = || std::iter::once(&identity.username).chain(&identity.groups);
        for name in names() {
            assert!(!name.trim().is_empty() && !name.chars().any(char::is_control), "{name:?}");
            assert!(!fuzzing::is_reserved(name), "{name:?}");
            let begins = ["plain:", "cel:", "entra:"].iter().any(|prefix| name.starts_with(prefix));
            assert!(begins, "{name:?} has no prefix");
        }
        for value in identity.extra.values().flatten().chain(&identity.uid) {
            assert!(!value.chars().any(char::is_control) && !value.is_empty(), "{value:?}");
        }
        assert!(!identity.principal.subject.trim().is_empty());
    }
}

/// Tokens that are good, and some that are nearly.
pub fn token_seeds() -> Vec<Vec<u8>> {
    let pair = |header: &str, claims: &str| [&[1], header.as_bytes(), &[0], claims.as_bytes()].concat();
    vec![
        pair(r#"{"alg":"RS256","kid":"k","typ":"JWT"}"#, r#"{"iss":"https://i","sub":"a","exp":1}"#),
        pair(r#"{"alg":"ES512","typ":"at+jwt"}"#, r#"{"exp":1,"exp":2}"#),
        pair(
            r#"{"alg":"RS256","typ":"pop"}"#,
            r#"{"at":"a.b.c","cnf":{"jwk":{"kty":"RSA","n":"AQ","e":"AQAB"}}}"#,
        ),
        pair(r#"{"alg":"none","crit":["b64"]}"#, "{}"),
        [&[0], &b"eyJhbGciOiJSUzI1NiJ9.e30.c2ln"[..]].concat(),
        [&[0], &b"a.b.c.d.e"[..]].concat(),
    ]
}

/// Claims that each issuer takes.
pub fn claims_seeds() -> Vec<Vec<u8>> {
    let exp = 1_800_003_600_u64;
    let tenant = "72f988bf-86f1-41af-91ab-2d7cd011db47";
    [
        format!(
            r#"{{"iss":"https://plain.example","aud":"cluster","sub":"a","exp":{exp},"email":"a@b","groups":["dev"],"uid":"1"}}"#
        ),
        format!(
            r#"{{"iss":"https://cel.example","aud":["other"],"sub":"Alice,x","exp":{exp},"nbf":1800000000,"realm":"r","roles":"dev|axb","kinds":"b","nested":{{"list":["p","q"]}},"groups":["g"],"uid":" 42 "}}"#
        ),
        format!(
            r#"{{"iss":"https://login.microsoftonline.com/{tenant}/v2.0","ver":"2.0","tid":"{tenant}","aud":"api://towline","oid":"55555555-5555-4555-8555-555555555555","azp":"11111111-2222-3333-4444-555555555555","scp":"s","upn":"a@b","exp":{exp},"nbf":1800000000,"groups":["66666666-6666-4666-8666-666666666666"]}}"#
        ),
    ]
    .map(String::into_bytes)
    .into()
}

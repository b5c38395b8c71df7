//! Enrolment tokens, as somebody pasted them.

use std::time::{Duration, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use towline_tunnel::{
    carrier::dial::RelayAddress, enrolment::EnrolmentToken, ids::KeyHash, session::message::Secret,
};

/// What is read is written and read the same. The first bit says whether the input is the text, or what the text
/// encodes.
pub fn run(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    let text = if first & 1 == 0 {
        String::from_utf8_lossy(rest).into_owned()
    } else {
        format!("tle1.{}", BASE64URL_NOPAD.encode(rest))
    };
    if let Ok(token) = EnrolmentToken::decode(&text) {
        let again = EnrolmentToken::decode(&token.encode());
        assert!(again.as_ref().ok() == Some(&token), "{token:?} {again:?}");
    }
    if let Ok(address) = RelayAddress::parse(&text) {
        let again = RelayAddress::parse(&address.to_string());
        assert!(again.as_ref().ok() == Some(&address), "{text:?} {address:?} {again:?}");
    }
}

/// Tokens and addresses of each form.
pub fn seeds() -> Vec<Vec<u8>> {
    let token = |relay: &str, ca_pem| EnrolmentToken {
        relay: RelayAddress::parse(relay).expect("a seed's address is sound"),
        relay_key: KeyHash::from_bytes([1; 32]),
        secret: Secret::new([2; 32]),
        expires: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        ca_pem,
    };
    let mut seeds = Vec::new();
    for token in [token("relay.example", None), token("https://[::1]:8443", Some("pem".to_owned()))] {
        let text = token.encode();
        let fields = BASE64URL_NOPAD.decode(&text.as_bytes()[5..]).expect("it was just encoded");
        seeds.push([&[0], text.as_bytes()].concat());
        seeds.push([&[1], &fields[..]].concat());
    }
    for address in ["wss://a.b:1/", "[fe80::1]:443", "10.0.0.1", "https://user@host", "a:0"] {
        seeds.push([&[0], address.as_bytes()].concat());
    }
    seeds
}

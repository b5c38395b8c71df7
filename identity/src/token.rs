//! A signed token as text: JWS compact serialisation (RFC 7515), read strictly.

use std::{collections::BTreeMap, fmt};

use data_encoding::BASE64URL_NOPAD;
use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, Visitor},
};
use serde_json::Value;

use crate::Algorithm;

/// Longest token, in bytes.
pub(crate) const MAX_TOKEN: usize = 16 * 1024;

/// A JSON object whose keys stand once each: software that takes the first of two, or the last, can be made to
/// disagree with other software.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Object(BTreeMap<String, Value>);

impl Object {
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Unique;
        impl<'de> Visitor<'de> for Unique {
            type Value = Object;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, Value>()? {
                    if entries.insert(key, value).is_some() {
                        return Err(serde::de::Error::custom("a key stands twice"));
                    }
                }
                Ok(Object(entries))
            }
        }
        deserializer.deserialize_map(Unique)
    }
}

/// What a token is, by its header's `typ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Whoever has it may use it.
    Bearer,
    /// A signed request (proof of possession) around another token.
    Proof,
}

/// A token whose form is right; its signature is not yet checked.
#[derive(Debug)]
pub(crate) struct Unverified<'a> {
    pub(crate) kind: Kind,
    pub(crate) algorithm: Algorithm,
    pub(crate) key_id: Option<String>,
    pub(crate) signed: &'a str,
    pub(crate) signature: Vec<u8>,
    pub(crate) claims: Object,
}

/// Whether it is short enough to look at.
///
/// # Errors
/// If it is not, or there is nothing.
pub(crate) fn check_length(token: &str) -> Result<(), &'static str> {
    if token.is_empty() {
        return Err("it is empty");
    }
    if token.len() > MAX_TOKEN {
        return Err("it is longer than 16 KiB");
    }
    Ok(())
}

/// Reads a token.
///
/// # Errors
/// What about its form is wrong; the token itself is never repeated.
pub(crate) fn parse(token: &str) -> Result<Unverified<'_>, &'static str> {
    check_length(token)?;
    let mut parts = token.splitn(4, '.');
    let (Some(header), Some(payload), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err("it is not three parts with dots between them");
    };
    let object = |part: &str| -> Option<Object> {
        serde_json::from_slice(&BASE64URL_NOPAD.decode(part.as_bytes()).ok()?).ok()
    };
    let header = object(header).ok_or("its header is not a JSON object in base64url with unique keys")?;
    // Keys that the token brings along, and extensions that change its meaning.
    for name in ["jwk", "jku", "x5u", "crit", "enc", "b64"] {
        if header.get(name).is_some() {
            return Err("its header has a parameter that is not allowed (jwk, jku, x5u, crit, enc or b64)");
        }
    }
    let kind = match header.get("typ").map(|typ| typ.as_str().unwrap_or_default().to_ascii_lowercase()) {
        None => Kind::Bearer,
        Some(typ) if typ == "jwt" || typ == "at+jwt" || typ == "application/at+jwt" => Kind::Bearer,
        Some(typ) if typ == "pop" => Kind::Proof,
        Some(_) => return Err("its type is neither JWT, at+jwt nor pop"),
    };
    let algorithm = header
        .get("alg")
        .and_then(Value::as_str)
        .and_then(|name| name.parse().ok())
        .ok_or("its algorithm is missing or not known")?;
    let key_id = match header.get("kid") {
        None => None,
        Some(Value::String(id)) if id.len() <= 256 => Some(id.clone()),
        Some(_) => return Err("its key id is not a short text"),
    };
    let claims = object(payload).ok_or("its claims are not a JSON object in base64url with unique keys")?;
    let signed = &token[..token.len() - signature.len() - 1];
    let signature = BASE64URL_NOPAD.decode(signature.as_bytes());
    let signature = signature.map_err(|_| "its signature is not base64url")?;
    Ok(Unverified { kind, algorithm, key_id, signed, signature, claims })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(header: &str, claims: &str) -> String {
        format!(
            "{}.{}.c2ln",
            BASE64URL_NOPAD.encode(header.as_bytes()),
            BASE64URL_NOPAD.encode(claims.as_bytes())
        )
    }

    #[test]
    fn a_token_is_read() {
        let text = token(r#"{"alg":"ES256","kid":"k","typ":"JWT"}"#, r#"{"iss":"i"}"#);
        let token = parse(&text).unwrap();
        assert_eq!((token.algorithm, token.key_id.as_deref()), (Algorithm::ES256, Some("k")));
        assert_eq!(format!("{}.c2ln", token.signed), text);
    }

    #[test]
    fn t16_hostile_headers_are_refused_from_their_form() {
        for header in [
            r#"{"alg":"none"}"#,
            r#"{"alg":"RS256","jku":"https://evil"}"#,
            r#"{"alg":"RS256","jwk":{}}"#,
            r#"{"alg":"RS256","crit":["exp"]}"#,
            r#"{"alg":"RS256","alg":"none"}"#,
            r#"{"alg":"RS256","enc":"A128GCM"}"#,
            r#"{"alg":"RS256","kid":7}"#,
            r#"{"alg":"RS256","typ":"dpop+jwt"}"#,
            r#"["alg"]"#,
        ] {
            assert!(parse(&token(header, "{}")).is_err(), "{header}");
        }
        assert!(parse("a.b.c.d.e").is_err(), "JWE has five parts");
    }

    #[test]
    fn t16_a_million_dots_cost_nothing() {
        let dots = ".".repeat(1_000_000);
        assert_eq!(parse(&dots).unwrap_err(), "it is longer than 16 KiB");
        assert!(parse(&dots[..MAX_TOKEN]).is_err());
    }

    #[test]
    fn t16_a_token_has_a_greatest_length_and_its_key_id_too() {
        assert_eq!(check_length(""), Err("it is empty"));
        assert_eq!(check_length(&"a".repeat(16 * 1024)), Ok(()));
        assert_eq!(check_length(&"a".repeat(16 * 1024 + 1)), Err("it is longer than 16 KiB"));
        let with_id = |length: usize| {
            let header = format!(r#"{{"alg":"RS256","kid":"{}"}}"#, "k".repeat(length));
            parse(&token(&header, "{}")).map(|token| token.key_id.map(|id| id.len()))
        };
        assert_eq!(with_id(256), Ok(Some(256)));
        assert!(with_id(257).is_err());
    }

    #[test]
    fn t24_its_type_says_whether_it_is_a_bearers() {
        let kind =
            |typ: &str| parse(&token(&format!(r#"{{"alg":"RS256"{typ}}}"#), "{}")).map(|token| token.kind);
        for bearer in ["", r#","typ":"JWT""#, r#","typ":"at+jwt""#, r#","typ":"application/at+JWT""#] {
            assert!(matches!(kind(bearer), Ok(Kind::Bearer)), "{bearer}");
        }
        assert!(matches!(kind(r#","typ":"pop""#), Ok(Kind::Proof)));
        for other in [r#","typ":"dpop+jwt""#, r#","typ":"""#, r#","typ":7"#] {
            assert!(kind(other).is_err(), "{other}");
        }
    }

    #[test]
    fn what_is_no_object_is_told_as_that() {
        let told = serde_json::from_str::<Object>("[]").unwrap_err().to_string();
        assert!(told.contains("object"), "{told}");
    }

    #[test]
    fn t17_a_claim_that_stands_twice_is_refused() {
        assert!(parse(&token(r#"{"alg":"RS256"}"#, r#"{"exp":1,"exp":2}"#)).is_err());
    }

    proptest! {
        #[test]
        fn any_text_gives_an_answer(text in "\\PC{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn any_header_and_claims_give_an_answer(header in "\\PC{0,80}", claims in "\\PC{0,80}") {
            let _ = parse(&token(&header, &claims));
        }
    }
}

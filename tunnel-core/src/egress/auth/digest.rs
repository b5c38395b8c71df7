//! Digest access authentication (RFC 7616): MD5 and SHA-256, with their `-sess` forms, `qop` auth or none.
//!
//! MD5 is here because it is what proxies in the field still ask for (squid knows no other). It comes from its own small crate: no
//! cryptography library offers it any more.

use data_encoding::HEXLOWER;
use http_auth::ChallengeRef;
use md5::{Digest as _, Md5};

use super::Credentials;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Md5,
    Sha256,
}

impl Algorithm {
    /// H of RFC 7616, section 3.3, in hexadecimal.
    fn hash(self, text: &[u8]) -> String {
        match self {
            Self::Md5 => HEXLOWER.encode(&Md5::digest(text)),
            Self::Sha256 => {
                let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text);
                HEXLOWER.encode(digest.as_ref())
            }
        }
    }
}

/// A challenge that can be answered, and how often its nonce was used.
#[derive(Clone, Debug)]
pub(in crate::egress) struct Digest {
    algorithm: Algorithm,
    /// As the proxy wrote it; nothing where it wrote none.
    written: Option<String>,
    session: bool,
    realm: String,
    nonce: String,
    opaque: Option<String>,
    /// Whether the client's own nonce takes part (`qop=auth`), or RFC 2069's short form is wanted.
    qop: bool,
    user_hashed: bool,
    stale: bool,
    uses: u32,
}

impl Digest {
    /// A challenge of this scheme; nothing where it asks for what is not known here.
    pub(super) fn read(challenge: &ChallengeRef<'_>) -> Option<Self> {
        let value = |name: &str| {
            let mut all = challenge.params.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
            all.next().map(|(_, value)| value.to_unescaped())
        };
        let is_true = |name: &str| value(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let written = value("algorithm");
        let (algorithm, session) = match written.as_deref().unwrap_or("MD5").to_ascii_lowercase().as_str() {
            "md5" => (Algorithm::Md5, false),
            "md5-sess" => (Algorithm::Md5, true),
            "sha-256" => (Algorithm::Sha256, false),
            "sha-256-sess" => (Algorithm::Sha256, true),
            _ => return None,
        };
        let qop = match value("qop") {
            None => false,
            Some(list) if list.split(',').any(|one| one.trim().eq_ignore_ascii_case("auth")) => true,
            Some(_) => return None,
        };
        Some(Self {
            algorithm,
            written,
            session,
            realm: value("realm")?,
            nonce: value("nonce")?,
            opaque: value("opaque"),
            qop,
            user_hashed: is_true("userhash"),
            stale: is_true("stale"),
            uses: 0,
        })
    }

    pub(super) fn is_sha256(&self) -> bool {
        self.algorithm == Algorithm::Sha256
    }

    pub(super) fn is_stale(&self) -> bool {
        self.stale
    }

    /// The value of the header field, for a request's method and target.
    pub(super) fn answer(&mut self, credentials: &Credentials, method: &str, target: &str) -> String {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source answers");
        self.answer_with(credentials, method, target, &HEXLOWER.encode(&bytes))
    }

    fn answer_with(&mut self, credentials: &Credentials, method: &str, target: &str, cnonce: &str) -> String {
        self.uses = self.uses.saturating_add(1);
        let count = format!("{:08x}", self.uses);
        let hash = |text: &[u8]| self.algorithm.hash(text);
        // RFC 7616, section 3.4.2. The hash is as good as the password, for this realm.
        let mut secret =
            zeroize::Zeroizing::new(format!("{}:{}:", credentials.user(), self.realm).into_bytes());
        secret.extend_from_slice(credentials.password().reveal());
        let mut ha1 = zeroize::Zeroizing::new(hash(&secret));
        if self.session {
            ha1 = zeroize::Zeroizing::new(hash(format!("{}:{}:{cnonce}", *ha1, self.nonce).as_bytes()));
        }
        let ha2 = hash(format!("{method}:{target}").as_bytes());
        let nonce = &self.nonce;
        let response = if self.qop {
            hash(format!("{}:{nonce}:{count}:{cnonce}:auth:{ha2}", *ha1).as_bytes())
        } else {
            hash(format!("{}:{nonce}:{ha2}", *ha1).as_bytes())
        };
        let user = if self.user_hashed {
            hash(format!("{}:{}", credentials.user(), self.realm).as_bytes())
        } else {
            quoted(credentials.user())
        };
        let mut value = format!(
            "Digest username=\"{user}\", realm=\"{}\", nonce=\"{}\", uri=\"{}\", response=\"{response}\"",
            quoted(&self.realm),
            quoted(nonce),
            quoted(target)
        );
        if let Some(algorithm) = &self.written {
            value += &format!(", algorithm={algorithm}");
        }
        if self.qop {
            value += &format!(", qop=auth, nc={count}");
        }
        if self.qop || self.session {
            value += &format!(", cnonce=\"{cnonce}\"");
        }
        if let Some(opaque) = &self.opaque {
            value += &format!(", opaque=\"{}\"", quoted(opaque));
        }
        if self.user_hashed {
            value += ", userhash=true";
        }
        value
    }
}

/// Inside a quoted string (RFC 9110, section 5.6.4).
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(challenge: &str) -> Digest {
        let parsed = http_auth::parse_challenges(challenge).unwrap();
        Digest::read(&parsed[0]).unwrap()
    }

    fn field(value: &str, name: &str) -> Option<String> {
        let begin = format!("{name}=");
        let mut fields = value.trim_start_matches("Digest ").split(", ");
        fields.find_map(|field| Some(field.strip_prefix(&begin)?.trim_matches('"').to_owned()))
    }

    /// RFC 7616, section 3.9.1.
    #[test]
    fn the_rfcs_examples_come_out() {
        let credentials = Credentials::new("Mufasa", "Circle of Life").unwrap();
        for (algorithm, response) in [
            ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
            ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
        ] {
            let mut digest = digest(&format!(
                "Digest realm=\"http-auth@example.org\", qop=\"auth, auth-int\", algorithm={algorithm}, \
                 nonce=\"7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v\", opaque=\"FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS\""
            ));
            let value = digest.answer_with(
                &credentials,
                "GET",
                "/dir/index.html",
                "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
            );
            assert_eq!(field(&value, "response").as_deref(), Some(response), "{value}");
            assert_eq!(field(&value, "nc").as_deref(), Some("00000001"));
            assert_eq!(field(&value, "algorithm").as_deref(), Some(algorithm));
            assert_eq!(
                field(&value, "opaque").as_deref(),
                Some("FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS")
            );
            let next = digest.answer(&credentials, "GET", "/dir/index.html");
            assert_eq!(field(&next, "nc").as_deref(), Some("00000002"));
            assert_ne!(field(&next, "cnonce"), field(&value, "cnonce"));
        }
    }

    /// RFC 2069, section 2.4, as corrected by its errata.
    #[test]
    fn the_short_form_is_answered_without_a_nonce_of_ours() {
        let mut digest = digest(
            "Digest realm=\"testrealm@host.com\", nonce=\"dcd98b7102dd2f0e8b11d0f600bfb0c093\", opaque=\"5ccc069c403ebaf9f0171e9517f40e41\"",
        );
        let credentials = Credentials::new("Mufasa", "CircleOfLife").unwrap();
        let value = digest.answer_with(&credentials, "GET", "/dir/index.html", "unused");
        assert_eq!(field(&value, "response").as_deref(), Some("1949323746fe6a43ef61f9606e7febea"));
        assert!(!value.contains("unused") && field(&value, "algorithm").is_none(), "{value}");
    }

    #[test]
    fn what_would_end_a_quoted_string_does_not() {
        let mut digest = digest("Digest realm=\"a\\\"b\", nonce=\"n\", qop=auth, userhash=true");
        let value = digest.answer_with(&Credentials::new("u\"", "p").unwrap(), "CONNECT", "h:443", "c");
        assert!(value.contains("realm=\"a\\\"b\"") && !value.contains("u\""), "{value}");
        assert!(value.ends_with("userhash=true"), "{value}");
    }
}

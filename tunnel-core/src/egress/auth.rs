//! Telling a proxy who we are: what its 407 offers (RFC 9110, section 11.7), and what is answered.
//!
//! Nothing is sent before the proxy has asked: whoever listens on the way to a plain proxy could read a Basic password that nobody
//! wanted. How it asked is remembered for the connections that follow.

mod digest;

use std::{fmt, fs, io::Read as _, path::Path};

use data_encoding::BASE64;
use http_auth::ChallengeParser;
use zeroize::Zeroizing;

pub(super) use digest::Digest;

use super::{Destination, Origin};
use crate::{
    fault::{Fault, Report},
    session::message::Secret,
};

/// No file with a user name and a password is larger.
const MAX_FILE: u64 = 4096;
/// More ways than any proxy offers.
const MAX_OFFERS: usize = 16;

/// A user name and a password. Neither is printed.
#[derive(Clone)]
pub(super) struct Credentials {
    user: String,
    password: Secret,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

impl Credentials {
    /// Both as they are, without any encoding.
    pub(super) fn new(user: &str, password: &str) -> Result<Self, &'static str> {
        // RFC 7617, section 2; a line's end would begin another header field.
        if user.is_empty() || user.contains(':') || [user, password].concat().contains(char::is_control) {
            return Err("a user name has no colon, and neither it nor the password control characters");
        }
        Ok(Self { user: user.to_owned(), password: Secret::new(password) })
    }

    /// A file with `USER:PASSWORD` on one line.
    pub(super) fn read(path: &Path, from: &Origin) -> Result<Self, Report> {
        let wrong = |fault, why: &str| Report::new(fault, format!("{from}, {}: {why}", path.display()));
        let unreadable = |error: std::io::Error| wrong(Fault::FileUnreadable, &error.to_string());
        let mut text = Zeroizing::new(String::new());
        fs::File::open(path)
            .map_err(unreadable)?
            .take(MAX_FILE)
            .read_to_string(&mut text)
            .map_err(unreadable)?;
        let line = text.trim_end_matches(['\r', '\n']);
        let (user, password) = line
            .split_once(':')
            .ok_or_else(|| wrong(Fault::ProxySettingWrong, "it does not hold USER:PASSWORD"))?;
        Self::new(user, password).map_err(|why| wrong(Fault::ProxySettingWrong, why))
    }

    pub(super) fn user(&self) -> &str {
        &self.user
    }

    pub(super) fn password(&self) -> &Secret {
        &self.password
    }
}

/// A way of saying who we are.
#[derive(Clone, Debug)]
pub(super) enum Scheme {
    /// RFC 7617.
    Basic,
    /// RFC 7616, with what the proxy wants in it.
    Digest(Box<Digest>),
}

impl Scheme {
    /// The value of `Proxy-Authorization` for a CONNECT.
    pub(super) fn authorization(&mut self, credentials: &Credentials, to: &Destination) -> Zeroizing<String> {
        match self {
            Self::Basic => {
                let mut pair = Zeroizing::new(credentials.user.clone().into_bytes());
                pair.push(b':');
                pair.extend_from_slice(credentials.password.reveal());
                Zeroizing::new(format!("Basic {}", BASE64.encode(&pair)))
            }
            Self::Digest(digest) => Zeroizing::new(digest.answer(credentials, "CONNECT", &to.to_string())),
        }
    }
}

/// What a 407 offers.
#[derive(Clone, Debug, Default)]
pub(super) struct Offers {
    names: Vec<String>,
    best: Option<Scheme>,
}

impl Offers {
    /// Reads the values of `Proxy-Authenticate`, each of which may be a list.
    pub(super) fn read<'a>(values: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut offers = Self::default();
        for value in values {
            let Ok(text) = std::str::from_utf8(value) else { continue };
            for challenge in ChallengeParser::new(text) {
                match challenge {
                    Ok(challenge) => {
                        offers.name(challenge.scheme);
                        offers.weigh(&challenge);
                    }
                    // `NTLM TlRMTVNT…`: a form that the parser does not know, and no scheme of ours.
                    Err(_) => {
                        let word = text.split([' ', ',']).next().unwrap_or_default();
                        offers.name(word);
                        break;
                    }
                }
            }
        }
        offers
    }

    /// The strongest that we know, and among equals the first (RFC 7616, section 3.7).
    pub(super) fn best(&self) -> Option<Scheme> {
        self.best.clone()
    }

    /// Whether it is only the nonce that is too old (RFC 7616, section 3.3).
    pub(super) fn is_stale(&self) -> bool {
        matches!(&self.best, Some(Scheme::Digest(digest)) if digest.is_stale())
    }

    /// Their names, for people.
    pub(super) fn names(&self) -> String {
        if self.names.is_empty() { "nothing".to_owned() } else { self.names.join(", ") }
    }

    fn name(&mut self, scheme: &str) {
        let known = self.names.iter().any(|name| name.eq_ignore_ascii_case(scheme));
        let is_name = !scheme.is_empty() && scheme.len() <= 32 && scheme.is_ascii();
        if is_name && !known && self.names.len() < MAX_OFFERS {
            self.names.push(scheme.to_owned());
        }
    }

    fn weigh(&mut self, challenge: &http_auth::ChallengeRef<'_>) {
        let offered = if challenge.scheme.eq_ignore_ascii_case("basic") {
            Some(Scheme::Basic)
        } else if challenge.scheme.eq_ignore_ascii_case("digest") {
            Digest::read(challenge).map(|digest| Scheme::Digest(Box::new(digest)))
        } else {
            None
        };
        let rank = |scheme: &Scheme| match scheme {
            Scheme::Basic => 1,
            Scheme::Digest(digest) => 2 + u8::from(digest.is_sha256()),
        };
        if let Some(offered) = offered
            && self.best.as_ref().is_none_or(|best| rank(best) < rank(&offered))
        {
            self.best = Some(offered);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(values: &[&str]) -> Offers {
        Offers::read(values.iter().map(|value| value.as_bytes()))
    }

    #[test]
    fn the_strongest_offer_that_is_known_is_taken_and_all_are_named() {
        let read = offers(&["Negotiate", "NTLM", "Basic realm=\"p\""]);
        assert_eq!(read.names(), "Negotiate, NTLM, Basic");
        assert!(matches!(read.best(), Some(Scheme::Basic)));
        let read = offers(&[
            "Basic realm=\"p\", Digest realm=\"p\", nonce=\"n\", qop=\"auth\", algorithm=MD5",
            "Digest realm=\"p\", nonce=\"n\", qop=\"auth-int,auth\", algorithm=SHA-256, stale=TRUE",
        ]);
        assert_eq!(read.names(), "Basic, Digest");
        assert!(read.is_stale() && matches!(read.best(), Some(Scheme::Digest(digest)) if digest.is_sha256()));
    }

    #[test]
    fn what_cannot_be_answered_is_only_named() {
        for (value, names) in [
            ("Negotiate YII=", "Negotiate"),
            ("NTLM TlRMTVNTUAACAAAA", "NTLM"),
            ("Digest realm=\"p\", nonce=\"n\", algorithm=SHA-512-256, qop=\"auth\"", "Digest"),
            ("Digest realm=\"p\", nonce=\"n\", qop=\"auth-int\"", "Digest"),
            ("Digest realm=\"no nonce\"", "Digest"),
            ("", "nothing"),
            ("\u{fc}", "nothing"),
        ] {
            let read = offers(&[value]);
            assert_eq!((read.names(), read.best().is_none()), (names.to_owned(), true), "{value}");
        }
    }

    #[test]
    fn basic_is_the_pair_in_base64() {
        // RFC 7617, section 2.
        let credentials = Credentials::new("Aladdin", "open sesame").unwrap();
        let value = Scheme::Basic.authorization(&credentials, &Destination::new("h", 443));
        assert_eq!(*value, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }

    #[test]
    fn t29_a_file_holds_a_user_and_a_password_and_is_not_printed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("login");
        fs::write(&path, "me:ca:nary\n").unwrap();
        let from = Origin::Flag("proxy-credentials-file");
        let read = Credentials::read(&path, &from).unwrap();
        assert_eq!((read.user(), read.password().reveal()), ("me", &b"ca:nary"[..]));
        for bad in ["canary", "", ":canary", "me:can\rary", "m\te:canary"] {
            fs::write(&path, bad).unwrap();
            let report = Credentials::read(&path, &from).unwrap_err();
            assert_eq!(report.fault, Fault::ProxySettingWrong, "{bad:?}");
            assert!(!report.to_string().contains("canary"), "{report}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(Credentials::read(&path, &from).unwrap_err().fault, Fault::FileUnreadable);
    }
}

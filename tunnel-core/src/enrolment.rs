//! The one-time token by which an agent joins a relay: where the relay is, who it is, and a secret.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;

use crate::{
    carrier::dial::RelayAddress,
    fault::{Fault, Report},
    ids::KeyHash,
    proto::fields::{CRITICAL, FieldWriter, Fields},
    session::message::Secret,
};

/// Stands in ENROL where a token's secret would: a further instance of a cluster that is enrolled already, such as a
/// restarted pod, which the cluster's identity key vouches for. A token's secret has 32 bytes and is never this.
pub const JOIN: &[u8] = b"join";

const PREFIX: &str = "tle1.";
const RELAY: u16 = 1 | CRITICAL;
const KEY: u16 = 2 | CRITICAL;
const SECRET: u16 = 3 | CRITICAL;
const EXPIRES: u16 = 4 | CRITICAL;
const CA: u16 = 5;

/// What an enrolment token holds. It is a secret until it was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolmentToken {
    /// Where the relay is.
    pub relay: RelayAddress,
    /// The hash of its identity key: nothing is sent to another.
    pub relay_key: KeyHash,
    /// Good for one enrolment.
    pub secret: Secret,
    /// When it ends.
    pub expires: SystemTime,
    /// The authority of the relay's outer TLS (PEM), where it is a private one.
    pub ca_pem: Option<String>,
}

impl EnrolmentToken {
    /// One line of text, `tle1.` and base64url.
    pub fn encode(&self) -> String {
        let expires = self.expires.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut fields = FieldWriter::new();
        fields.put(RELAY, self.relay.to_string().as_bytes());
        fields.put(KEY, self.relay_key.as_bytes());
        fields.put(SECRET, self.secret.reveal());
        fields.put_u64(EXPIRES, expires);
        fields.put_some(CA, self.ca_pem.as_ref().map(String::as_bytes));
        format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&fields.finish()))
    }

    /// Reads the line.
    ///
    /// # Errors
    /// If it is not an enrolment token; the text itself is never repeated.
    pub fn decode(text: &str) -> Result<Self, Report> {
        let wrong = |why: &str| Report::new(Fault::EnrolTokenUnusable, why);
        let body = text.trim().strip_prefix(PREFIX).ok_or_else(|| wrong("it does not begin with tle1."))?;
        if body.len() > 64 * 1024 {
            return Err(wrong("it is too long"));
        }
        let bytes =
            BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| wrong("it was damaged on the way"))?;
        let fields = Fields::parse(&bytes, &[1, 2, 3, 4, 5]).map_err(|error| wrong(&error.to_string()))?;
        let damaged = |error: crate::proto::fields::FieldError| wrong(&error.to_string());
        let secret: [u8; 32] = fields.need_array(3).map_err(damaged)?;
        let expires = fields.need_u64(4).map_err(damaged)?;
        let ca = fields.maybe(CA).map(|_| fields.need_text(CA, 32 * 1024)).transpose().map_err(damaged)?;
        Ok(Self {
            relay: RelayAddress::parse(fields.need_text(1, 512).map_err(damaged)?)
                .map_err(|report| wrong(&report.detail))?,
            relay_key: KeyHash::from_bytes(fields.need_array(2).map_err(damaged)?),
            secret: Secret::new(secret),
            expires: UNIX_EPOCH
                .checked_add(Duration::from_secs(expires))
                .ok_or_else(|| wrong("its end is beyond time"))?,
            ca_pem: ca.map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> EnrolmentToken {
        EnrolmentToken {
            relay: RelayAddress::parse("https://relay.example:8443").unwrap(),
            relay_key: KeyHash::of_spki(b"k"),
            secret: Secret::new([7; 32]),
            expires: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            ca_pem: None,
        }
    }

    #[test]
    fn a_token_reads_back() {
        let mut token = token();
        assert_eq!(EnrolmentToken::decode(&format!(" {}\n", token.encode())).unwrap(), token);
        token.ca_pem = Some("pem".into());
        assert_eq!(EnrolmentToken::decode(&token.encode()).unwrap(), token);
    }

    #[test]
    fn damaged_tokens_are_refused_without_being_repeated() {
        let text = token().encode();
        for bad in ["", "tle1.", "tle2.AAAA", &text[..40], &format!("{text}!"), &text[5..]] {
            let report = EnrolmentToken::decode(bad).unwrap_err();
            assert_eq!(report.fault, Fault::EnrolTokenUnusable);
            assert!(bad.len() < 6 || !report.to_string().contains(bad), "{report}");
        }
    }
}

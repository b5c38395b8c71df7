//! Identifiers that cross a hop.

use std::{fmt, str::FromStr};

use aws_lc_rs::digest;
use data_encoding::{BASE32_NOPAD, HEXLOWER};

/// The identity of a connected cluster: SHA-256 of its identity key's SubjectPublicKeyInfo (DER).
///
/// Printed as base32 (RFC 4648, section 6), lower case, no padding: 52 characters. Whoever knows the id can
/// verify the cluster, so an id is the pin.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId([u8; 32]);

/// SHA-256 of a public key's SubjectPublicKeyInfo (DER): a relay's identity key, a client's run key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash([u8; 32]);

/// One agent process. Random per process start, never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId([u8; 16]);

/// The name of a stream for as long as it lives, whichever connections carry it: random, chosen by the client.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey([u8; 16]);

/// One authenticated connection with the relay, as every hop logs it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(pub u64);

/// A text is not an id of the wanted kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not {kind}: expected {expected}")]
pub struct ParseIdError {
    kind: &'static str,
    expected: &'static str,
}

impl ParseIdError {
    pub(crate) fn new(kind: &'static str, expected: &'static str) -> Self {
        Self { kind, expected }
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

fn base32(bytes: &[u8; 32]) -> String {
    BASE32_NOPAD.encode(bytes).to_ascii_lowercase()
}

fn parse_base32(kind: &'static str, text: &str) -> Result<[u8; 32], ParseIdError> {
    let error = ParseIdError { kind, expected: "52 base32 characters (a-z, 2-7)" };
    if text.len() != 52 || text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(error);
    }
    let bytes = BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).map_err(|_| error.clone())?;
    bytes.try_into().map_err(|_| error)
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source always answers once it is seeded");
    bytes
}

macro_rules! hash_id {
    ($name:ident, $kind:literal) => {
        impl $name {
            /// The id of the key with this SubjectPublicKeyInfo (DER).
            pub fn of_spki(spki: &[u8]) -> Self {
                Self(sha256(spki))
            }
            /// From the 32 bytes that travel on the wire.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
            /// The 32 bytes that travel on the wire.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&base32(&self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_base32($kind, text).map(Self)
            }
        }
    };
}

macro_rules! random_id {
    ($name:ident, $kind:literal) => {
        impl $name {
            /// A new random id.
            pub fn random() -> Self {
                Self(random())
            }
            /// From the 16 bytes that travel on the wire.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }
            /// The 16 bytes that travel on the wire.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&HEXLOWER.encode(&self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let error = ParseIdError { kind: $kind, expected: "32 hexadecimal digits" };
                let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| error.clone())?;
                bytes.try_into().map(Self).map_err(|_| error)
            }
        }
    };
}

hash_id!(ClusterId, "a cluster id");
hash_id!(KeyHash, "a key hash");
random_id!(InstanceId, "an agent instance id");
random_id!(StreamKey, "a stream key");

impl ChannelId {
    /// A new random id.
    pub fn random() -> Self {
        Self(u64::from_be_bytes(random()))
    }
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChannelId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_reads_back_from_what_it_prints() {
        let id = ClusterId::of_spki(b"a key");
        let text = id.to_string();
        assert_eq!(text.len(), 52);
        assert_eq!(text.parse::<ClusterId>(), Ok(id));
    }

    #[test]
    fn other_spellings_of_an_id_are_refused() {
        let text = ClusterId::of_spki(b"a key").to_string();
        for bad in ["", "edge-7", &text.to_uppercase(), &text[1..], &format!("{text}a"), &"1".repeat(52)] {
            assert!(bad.parse::<ClusterId>().is_err(), "{bad:?}");
        }
        // the last character carries one spare bit, which must be zero: one id has one spelling
        let twin = format!("{}b", &text[..51]);
        assert!(twin == text || twin.parse::<ClusterId>().map(|id| id.to_string()) != Ok(text));
    }

    #[test]
    fn random_ids_differ_and_read_back() {
        let (a, b) = (StreamKey::random(), StreamKey::random());
        assert_ne!(a, b);
        assert_eq!(a.to_string().parse::<StreamKey>(), Ok(a));
        assert!("xyz".parse::<InstanceId>().is_err());
    }
}

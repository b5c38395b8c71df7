//! Names of connected clusters.

use std::{fmt, str::FromStr};

use serde::Serialize;
use towline_tunnel::ids::ClusterId;

/// Longest name: that of a DNS label, so that it fits wherever Kubernetes puts names.
const MAX: usize = 63;

/// The name of a connected cluster at this relay: lower-case letters, digits, `-` and `.`; never mistakable for an id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ClusterName(String);

/// A text that is no name for a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has other characters, or too many.
    #[error(
        "a cluster's name has 1 to 63 lower-case letters, digits, '-' and '.', and begins and ends with a letter or digit"
    )]
    Form,
    /// It could be an id: whoever types an id means the pin, and must never get a name.
    #[error("a cluster's name must not look like a cluster id")]
    LooksLikeId,
}

impl ClusterName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        let ends = bytes.first().is_some_and(alphanumeric) && bytes.last().is_some_and(alphanumeric);
        let inside = bytes.iter().all(|byte| alphanumeric(byte) || matches!(byte, b'-' | b'.'));
        if !ends || !inside || bytes.len() > MAX {
            return Err(NameError::Form);
        }
        if text.parse::<ClusterId>().is_ok() {
            Err(NameError::LooksLikeId)
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_simple() {
        for good in ["a", "edge-7", "eu.prod-1", &"x".repeat(63)] {
            assert_eq!(good.parse::<ClusterName>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "-a", "a-", "Edge", "a b", "a/b", "ä", "a\u{0}", ".", &"x".repeat(64)] {
            assert_eq!(bad.parse::<ClusterName>(), Err(NameError::Form), "{bad:?}");
        }
    }

    #[test]
    fn t44_a_name_is_never_taken_for_an_id() {
        let id = ClusterId::of_spki(b"a key").to_string();
        assert_eq!(id.parse::<ClusterName>(), Err(NameError::LooksLikeId));
    }
}

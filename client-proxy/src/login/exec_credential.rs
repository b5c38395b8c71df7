//! What a credential plugin prints (`client.authentication.k8s.io/v1`, client-go credential plugins).

use std::time::SystemTime;

use serde::Deserialize;
use towline_tunnel::session::message::Secret;

/// The version that is asked for where nobody says which.
pub(super) const API_VERSION: &str = "client.authentication.k8s.io/v1";
/// What plugins of kubeconfigs may speak; they do not differ in what is read here.
pub(super) const API_VERSIONS: [&str; 2] = [API_VERSION, "client.authentication.k8s.io/v1beta1"];
/// The longest output that is read.
pub(super) const LONGEST: usize = 64 * 1024;

/// A token, and when it ends, if the plugin says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The token.
    pub token: Secret,
    /// `expirationTimestamp`.
    pub expires: Option<SystemTime>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecCredential {
    api_version: String,
    kind: String,
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    token: Option<String>,
    expiration_timestamp: Option<String>,
}

/// Reads an `ExecCredential`.
///
/// # Errors
/// What is wrong with it; nothing of it is repeated.
pub fn decode(output: &[u8]) -> Result<Decoded, &'static str> {
    decode_of(API_VERSION, output)
}

/// The same, of another version.
pub(super) fn decode_of(version: &str, output: &[u8]) -> Result<Decoded, &'static str> {
    if output.len() > LONGEST {
        return Err("it printed more than 64 KiB");
    }
    // What is skipped is not looked at otherwise, and JSON is UTF-8 (RFC 8259, section 8.1).
    let text = std::str::from_utf8(output).map_err(|_| "what it printed is not UTF-8 text")?;
    let read: ExecCredential =
        serde_json::from_str(text).map_err(|_| "what it printed is no ExecCredential")?;
    if read.kind != "ExecCredential" || read.api_version != version {
        return Err("it printed another kind or version than the ExecCredential that it was asked for");
    }
    let status = read.status.ok_or("its ExecCredential has no status")?;
    // Client certificates say nothing to a cluster behind a relay.
    let token = status.token.filter(|token| !token.is_empty()).ok_or("its ExecCredential has no token")?;
    let expires = match status.expiration_timestamp {
        Some(text) => {
            let time: jiff::Timestamp =
                text.parse().map_err(|_| "its expirationTimestamp is no time (RFC 3339)")?;
            Some(time.into())
        }
        None => None,
    };
    Ok(Decoded { token: Secret::new(token), expires })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_credential_is_read_and_anything_else_is_not() {
        let with = |status: &str| {
            let text =
                format!(r#"{{"apiVersion":"{API_VERSION}","kind":"ExecCredential","status":{status}}}"#);
            decode(text.as_bytes())
        };
        let read = with(r#"{"token":"canary","expirationTimestamp":"1970-01-01T00:00:07Z"}"#).unwrap();
        assert_eq!(read.token.reveal(), b"canary");
        assert_eq!(read.expires, Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(7)));
        assert!(with(r#"{"token":"t"}"#).unwrap().expires.is_none());
        for bad in [
            "null",
            "{}",
            r#"{"token":""}"#,
            r#"{"token":7}"#,
            r#"{"clientCertificateData":"c","clientKeyData":"k"}"#,
        ] {
            assert!(with(bad).is_err(), "{bad}");
        }
        let said = with(r#"{"token":"t","expirationTimestamp":"canary"}"#).unwrap_err();
        assert!(!said.contains("canary"));
        let old = r#"{"apiVersion":"client.authentication.k8s.io/v1alpha1","kind":"ExecCredential","status":{"token":"t"}}"#;
        assert!(decode(old.as_bytes()).is_err());
        assert!(decode(&vec![b' '; LONGEST + 1]).is_err());
        assert!(!format!("{read:?}").contains("canary"));
    }

    proptest! {
        #[test]
        fn any_output_gives_an_answer(output in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&output);
        }

        #[test]
        fn any_time_gives_an_answer(time in "[-+0-9TZ:.]{0,40}") {
            let text = format!(
                r#"{{"apiVersion":"{API_VERSION}","kind":"ExecCredential","status":{{"token":"t","expirationTimestamp":"{time}"}}}}"#
            );
            let _ = decode(text.as_bytes());
        }
    }
}

//! The agent's own credential for Microsoft Graph, as a token request.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, header};
use serde::Deserialize;
use serde_json::Value;

use crate::client_assertion;

const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Who asks Graph. Files are read at each use, so that what is rotated is taken up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credential {
    /// A client secret.
    Secret { client: String, file: PathBuf },
    /// A certificate and its RSA key.
    Certificate { client: String, certificate: PathBuf, key: PathBuf },
    /// A token of another issuer that Entra trusts: workload identity federation.
    Federated { client: String, file: PathBuf },
    /// The machine's own identity.
    ManagedIdentity { client: Option<String>, authority: String },
}

/// A token that must not be printed.
#[derive(Clone)]
pub(super) struct AccessToken(pub(super) String);

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(…)")
    }
}

/// Percent-encoded (RFC 3986, section 2.1).
pub(crate) fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// `application/x-www-form-urlencoded`.
pub(crate) fn form(fields: &[(&str, &str)]) -> String {
    let pairs: Vec<String> =
        fields.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    pairs.join("&")
}

fn read(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text.trim().to_owned())
}

impl Credential {
    /// The one address that is asked without TLS, if there is one.
    pub(super) fn plain_authority(&self) -> Option<&str> {
        match self {
            Self::ManagedIdentity { authority, .. } => Some(authority),
            _ => None,
        }
    }

    /// The request for a token for `graph` in a tenant.
    pub(super) fn request(
        &self,
        login: &str,
        tenant: &str,
        graph: &str,
        now: SystemTime,
    ) -> Result<Request<Bytes>, String> {
        let endpoint = format!("{login}/{tenant}/oauth2/v2.0/token");
        let scope = format!("{graph}/.default");
        let (client, proof) = match self {
            Self::ManagedIdentity { client, authority } => {
                let mut query = form(&[("api-version", "2018-02-01"), ("resource", graph)]);
                if let Some(client) = client {
                    query = format!("{query}&{}", form(&[("client_id", client)]));
                }
                return Request::get(format!("http://{authority}/metadata/identity/oauth2/token?{query}"))
                    .header("metadata", "true")
                    .body(Bytes::new())
                    .map_err(|error| error.to_string());
            }
            Self::Secret { client, file } => (client, form(&[("client_secret", &read(file)?)])),
            Self::Federated { client, file } => (client, assertion(&read(file)?)),
            Self::Certificate { client, certificate, key } => {
                (client, assertion(&client_assertion(client, &endpoint, certificate, key, now)?))
            }
        };
        let fields = form(&[("grant_type", "client_credentials"), ("client_id", client), ("scope", &scope)]);
        Request::post(endpoint)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Bytes::from(format!("{fields}&{proof}")))
            .map_err(|error| error.to_string())
    }
}

fn assertion(token: &str) -> String {
    form(&[("client_assertion_type", JWT_BEARER), ("client_assertion", token)])
}

/// What a token endpoint answers.
#[derive(Deserialize)]
struct Answer {
    access_token: String,
    /// Seconds; the metadata service writes them as a text.
    expires_in: Value,
}

/// A token and how long it lasts.
pub(super) fn answer(body: &[u8]) -> Result<(AccessToken, Duration), String> {
    let answer: Answer =
        serde_json::from_slice(body).map_err(|_| "the token endpoint's answer is no token")?;
    let seconds =
        answer.expires_in.as_u64().or_else(|| answer.expires_in.as_str().and_then(|text| text.parse().ok()));
    let life = Duration::from_secs(seconds.unwrap_or(0).min(24 * 3600));
    Ok((AccessToken(answer.access_token), life))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_kept_for_a_day_at_most_and_does_not_print() {
        let life = |expires: &str| {
            let (token, life) =
                answer(format!(r#"{{"access_token":"canary","expires_in":{expires}}}"#).as_bytes()).unwrap();
            assert_eq!((token.0.as_str(), format!("{token:?}").as_str()), ("canary", "AccessToken(…)"));
            life.as_secs()
        };
        assert_eq!(
            [life("3599"), life("\"3599\""), life("86400"), life("86401")],
            [3599, 3599, 86_400, 86_400]
        );
        assert_eq!(life("null"), 0);
        assert!(answer(b"{}").is_err());
    }
}

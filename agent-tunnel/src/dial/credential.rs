//! Who the agent is towards kube-apiserver.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use http::{HeaderValue, Method};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use tokio::{sync::Mutex, time::Instant};
use towline_tunnel::fault::{Fault, Report};

use super::{Apiserver, follow::Followed, target::Token};

/// The kubelet renews a projected token after 80 % of its hour; these are renewed by us, a little earlier.
const TOKEN_SECONDS: u32 = 3600;
/// A token that could not be renewed is tried again after this.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// The agent's own credential. A client certificate is TLS's business: then there is none here.
pub(super) enum Credential {
    None,
    Fixed(HeaderValue),
    File(PathBuf, Followed<HeaderValue>),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(…)")
    }
}

impl Credential {
    pub(super) fn new(token: Token) -> Result<Self, Report> {
        Ok(match token {
            Token::None => Self::None,
            Token::Fixed(token) => Self::Fixed(bearer(token.reveal())?),
            Token::File(path) => {
                let followed = Followed::new(vec![path.clone()], || read(&path))?;
                Self::File(path, followed)
            }
        })
    }

    /// The value of `Authorization`, as the file has it now.
    pub(super) fn authorization(&self) -> Result<Option<HeaderValue>, Report> {
        Ok(match self {
            Self::None => None,
            Self::Fixed(value) => Some(value.clone()),
            Self::File(path, followed) => Some(followed.current(|| read(path))),
        })
    }
}

fn read(path: &Path) -> Result<HeaderValue, Report> {
    let name = path.display().to_string();
    let token =
        fs::read(path).map_err(|error| Report::caused_by(Fault::AgentCredential, name.clone(), error))?;
    bearer(token.trim_ascii())
        .map_err(|report| Report::new(report.fault, format!("{name}: {}", report.detail)))
}

fn bearer(token: &[u8]) -> Result<HeaderValue, Report> {
    let wrong = |why: &str| Report::new(Fault::AgentCredential, why);
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err(wrong("it is empty, or not one token"));
    }
    let value = [b"Bearer ", token].concat();
    let mut value = HeaderValue::try_from(value).map_err(|_| wrong("it is not one token"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A service account that may do nothing but impersonate. The agent's own may do nothing but request its tokens.
pub(super) struct Impersonator {
    namespace: String,
    name: String,
    current: Mutex<Option<Held>>,
}

struct Held {
    value: HeaderValue,
    since: Instant,
    renew_at: Instant,
    ends: Instant,
}

impl fmt::Debug for Impersonator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Impersonator({}/{})", self.namespace, self.name)
    }
}

#[derive(Deserialize)]
struct TokenRequest {
    status: TokenStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenStatus {
    token: String,
    expiration_timestamp: String,
}

impl Impersonator {
    pub(super) fn parse(text: &str) -> Result<Self, Report> {
        let is_name = |name: &str| {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
        };
        match text.split_once('/') {
            Some((namespace, name)) if is_name(namespace) && is_name(name) => {
                Ok(Self { namespace: namespace.into(), name: name.into(), current: Mutex::default() })
            }
            _ => Err(Report::new(
                Fault::ConfigInvalid,
                format!("--impersonator {text:?} is not NAMESPACE/NAME of a service account"),
            )),
        }
    }

    /// The value of `Authorization`; a new token is requested once two thirds of the last one's life are over.
    pub(super) async fn authorization(&self, apiserver: &Apiserver) -> Result<HeaderValue, Report> {
        // Held while asking: those who wait find the answer.
        let mut current = self.current.lock().await;
        let now = Instant::now();
        if let Some(held) = current.as_ref().filter(|held| now < held.renew_at) {
            return Ok(held.value.clone());
        }
        match self.request(apiserver).await {
            Ok(held) => Ok(current.insert(held).value.clone()),
            Err(report) => match current.as_mut().filter(|held| now < held.ends) {
                Some(held) => {
                    tracing::warn!(%report, account = ?self, "no new token was had; the last one is still good");
                    held.renew_at = now + RETRY_AFTER;
                    Ok(held.value.clone())
                }
                None => Err(report),
            },
        }
    }

    /// The token may no longer be good. One that is new is not asked for again: callers can bring answers about that say so.
    pub(super) async fn doubt(&self) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|held| held.since.elapsed() >= RETRY_AFTER) {
            *current = None;
        }
    }

    async fn request(&self, apiserver: &Apiserver) -> Result<Held, Report> {
        let refused =
            |why: String| Report::new(Fault::AgentCredential, format!("no token for {self:?}: {why}"));
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{}/token", self.namespace, self.name);
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": { "expirationSeconds": TOKEN_SECONDS },
        });
        let (status, answer) =
            apiserver.call(Method::POST, &path, "application/json", body.to_string().into_bytes()).await?;
        if !(200..300).contains(&status) {
            return Err(refused(format!("kube-apiserver answered {status}: {}", message(&answer))));
        }
        let answer: TokenRequest = serde_json::from_slice(&answer)
            .map_err(|_| refused("the answer is not a TokenRequest".into()))?;
        let ends: Timestamp = answer
            .status
            .expiration_timestamp
            .parse()
            .map_err(|_| refused("its end is not a time".into()))?;
        let ends = SystemTime::from(ends);
        let life =
            ends.duration_since(SystemTime::now()).map_err(|_| refused("it has ended already".into()))?;
        let now = Instant::now();
        Ok(Held {
            since: now,
            value: bearer(answer.status.token.as_bytes())?,
            renew_at: now + life / 3 * 2,
            ends: now + life,
        })
    }
}

/// What a `Status` object says, as far as it is one.
pub fn message(answer: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Status {
        message: String,
    }
    serde_json::from_slice::<Status>(answer)
        .map_or_else(|_| "no Status object".into(), |status| status.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_is_trimmed_and_must_hold_one_token() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "abc\n").unwrap();
        let credential = Credential::new(Token::File(path.clone())).unwrap();
        let value = credential.authorization().unwrap().unwrap();
        assert_eq!(value, "Bearer abc");
        assert!(!format!("{value:?} {credential:?}").contains("abc"), "a token does not print");
        for bad in ["", "\n", "two words", "a\nb"] {
            fs::write(&path, bad).unwrap();
            let report = Credential::new(Token::File(path.clone())).unwrap_err();
            assert_eq!(report.fault, Fault::AgentCredential);
        }
    }

    #[test]
    fn an_impersonator_is_named_with_its_namespace() {
        assert!(Impersonator::parse("towline/towline-impersonator").is_ok());
        for bad in ["", "towline", "/x", "x/", "a/b/c", "A/b", "a/b?c"] {
            assert!(Impersonator::parse(bad).is_err(), "{bad:?}");
        }
    }
}

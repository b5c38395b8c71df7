//! The agent's state in a Secret of its own cluster: a pod's folder ends with the pod, the cluster's identity must not.

use data_encoding::BASE64;
use http::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use towline_tunnel::{
    fault::{Fault, Report},
    keys::SigningKey,
};

use tracing::debug;

use crate::{
    dial::{Apiserver, status_message},
    state::{DataDir, IDENTITY, Membership, Rank, RefusedToken},
};

/// How often another replica's write is waited out before that is given up.
const ATTEMPTS: usize = 5;

/// Where the state is kept: `NAMESPACE/NAME` of a Secret that is there already. The agent's account needs `get` and
/// `patch` on it, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateSecret {
    path: String,
    name: String,
}

#[derive(Deserialize)]
struct Secret {
    metadata: Metadata,
    #[serde(default)]
    data: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
}

impl Secret {
    fn file(&self, name: &str) -> Option<Vec<u8>> {
        let text = self.data.as_ref()?.get(name)?.as_str()?;
        BASE64.decode(text.as_bytes()).ok().filter(|bytes| !bytes.is_empty())
    }
}

impl StateSecret {
    /// Reads `NAMESPACE/NAME`.
    ///
    /// # Errors
    /// If it is not that.
    pub fn parse(text: &str) -> Result<Self, Report> {
        let is_name = |name: &str| {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
        };
        match text.split_once('/') {
            Some((namespace, name)) if is_name(namespace) && is_name(name) => Ok(Self {
                path: format!("/api/v1/namespaces/{namespace}/secrets/{name}"),
                name: text.to_owned(),
            }),
            _ => Err(Report::new(
                Fault::ConfigInvalid,
                format!("--state-secret {text:?} is not NAMESPACE/NAME of a Secret"),
            )),
        }
    }

    /// As it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn refused(&self, what: &str, status: u16, answer: &[u8]) -> Report {
        let message = status_message(answer);
        Report::new(
            Fault::AgentCredential,
            format!("the Secret {} can't be {what}: kube-apiserver answered {status}: {message}", self.name),
        )
    }

    async fn read(&self, apiserver: &Apiserver) -> Result<Secret, Report> {
        let (status, answer) = apiserver.call(Method::GET, &self.path, "", Vec::new()).await?;
        if status != 200 {
            return Err(self.refused("read", status, &answer));
        }
        serde_json::from_slice(&answer).map_err(|_| self.refused("read", status, b""))
    }

    /// Writes files into it; false where somebody else wrote since it was read.
    async fn write(
        &self,
        apiserver: &Apiserver,
        read: &Secret,
        files: &[(&str, &[u8])],
    ) -> Result<bool, Report> {
        let data: Map<String, Value> =
            files.iter().map(|(name, bytes)| ((*name).to_owned(), json!(BASE64.encode(bytes)))).collect();
        let patch =
            json!({ "metadata": { "resourceVersion": read.metadata.resource_version }, "data": data });
        let body = patch.to_string().into_bytes();
        let (status, answer) =
            apiserver.call(Method::PATCH, &self.path, "application/merge-patch+json", body).await?;
        match status {
            200 => Ok(true),
            409 => Ok(false),
            _ => Err(self.refused("written", status, &answer)),
        }
    }

    /// Makes folder and Secret agree on the cluster's identity, before anything is done in its name; of several agents
    /// that start at once, the first makes it. A membership in the Secret is newer than what is in the folder; one at a second relay
    /// is forgotten where none is configured (`has_second`).
    ///
    /// # Errors
    /// If the Secret can't be read or written, or holds another identity than the folder.
    pub async fn join(&self, apiserver: &Apiserver, dir: &DataDir, has_second: bool) -> Result<(), Report> {
        for _ in 0..ATTEMPTS {
            let secret = self.read(apiserver).await?;
            let Some(pem) = secret.file(IDENTITY) else {
                let is_new = !dir.has_identity();
                let identity = dir.identity()?;
                if self.write(apiserver, &secret, &[(IDENTITY, identity.to_pem().as_bytes())]).await? {
                    return Ok(());
                }
                // Somebody was quicker. A key that was just made is nobody's; one that was there is the cluster's.
                if is_new {
                    let _nobodys = std::fs::remove_file(dir.path(IDENTITY));
                }
                continue;
            };
            let kept = SigningKey::from_pem(&pem).map_err(|_| {
                Report::new(Fault::AgentCredential, format!("{}: {IDENTITY} is no key", self.name))
            })?;
            if dir.has_identity() {
                if dir.identity()?.public() != kept.public() {
                    return Err(Report::new(
                        Fault::ConfigInvalid,
                        format!(
                            "the data directory holds another cluster's identity than the Secret {}",
                            self.name
                        ),
                    ));
                }
            } else {
                dir.put_identity(&pem)?;
            }
            for rank in Rank::ALL.into_iter().filter(|rank| has_second || *rank == Rank::First) {
                if let Some(membership) = self.membership(&secret, rank)? {
                    dir.keep_membership(rank, &membership)?;
                }
            }
            let kept = [Rank::Second.relay_file(), Rank::Second.refused_file()];
            let stale = !has_second && kept.iter().any(|file| secret.file(file).is_some());
            // An empty file is none. If somebody else wrote just now, the next start does it.
            if stale && !self.write(apiserver, &secret, &kept.map(|file| (file, &b""[..]))).await? {
                debug!("the second relay that was joined before is not forgotten yet");
            }
            return Ok(());
        }
        Err(self.refused("written", 409, b""))
    }

    fn membership(&self, secret: &Secret, rank: Rank) -> Result<Option<Membership>, Report> {
        let file = rank.relay_file();
        let damaged = |why| Report::new(Fault::AgentCredential, format!("{}: {file}: {why}", self.name));
        secret.file(file).map(|text| Membership::from_json(&text)).transpose().map_err(damaged)
    }

    /// Which relay was joined, as it is kept there, and which token was refused last; for whoever only looks.
    ///
    /// # Errors
    /// If the Secret can't be read, or what is kept is damaged.
    pub async fn kept(
        &self,
        apiserver: &Apiserver,
        rank: Rank,
    ) -> Result<(Option<Membership>, Option<RefusedToken>), Report> {
        let secret = self.read(apiserver).await?;
        let refused = secret.file(rank.refused_file()).and_then(|text| RefusedToken::from_json(&text));
        Ok((self.membership(&secret, rank)?, refused))
    }

    /// Keeps which relay was joined.
    ///
    /// # Errors
    /// If the Secret can't be written.
    pub async fn keep(
        &self,
        apiserver: &Apiserver,
        rank: Rank,
        membership: &Membership,
    ) -> Result<(), Report> {
        self.keep_file(apiserver, rank.relay_file(), membership.to_json().as_bytes()).await
    }

    /// Keeps which enrolment token was refused.
    ///
    /// # Errors
    /// If the Secret can't be written.
    pub async fn keep_refused(
        &self,
        apiserver: &Apiserver,
        rank: Rank,
        refused: &RefusedToken,
    ) -> Result<(), Report> {
        self.keep_file(apiserver, rank.refused_file(), refused.to_json().as_bytes()).await
    }

    async fn keep_file(&self, apiserver: &Apiserver, name: &str, bytes: &[u8]) -> Result<(), Report> {
        for _ in 0..ATTEMPTS {
            let secret = self.read(apiserver).await?;
            if self.write(apiserver, &secret, &[(name, bytes)]).await? {
                return Ok(());
            }
        }
        Err(self.refused("written", 409, b""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_named_with_its_namespace() {
        let secret = StateSecret::parse("towline/towline-agent-state").unwrap();
        assert_eq!(secret.path, "/api/v1/namespaces/towline/secrets/towline-agent-state");
        for bad in ["", "a", "a/", "/a", "a/b/c", "a/../b", "A/b"] {
            assert!(StateSecret::parse(bad).is_err(), "{bad:?}");
        }
    }
}

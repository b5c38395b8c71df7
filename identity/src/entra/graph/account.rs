//! Whether an account is still enabled, by Microsoft Graph (`checkAccounts`).

use std::time::SystemTime;

use http::StatusCode;
use serde::Deserialize;
use tokio::time::Instant;

use super::{Graph, get, retry_after};
use crate::standing::{Definite, NoAnswer};

#[derive(Deserialize)]
struct Account {
    #[serde(rename = "accountEnabled")]
    enabled: Option<bool>,
}

#[derive(Deserialize)]
struct Refusal {
    error: Code,
}

#[derive(Deserialize)]
struct Code {
    code: String,
}

impl Graph {
    /// Whether the account of a user or application may still sign in. Only Graph's own word counts: that it is disabled, or that there is
    /// no such account.
    pub(crate) async fn account(
        &self,
        tenant: &str,
        object: &str,
        is_app: bool,
        now: SystemTime,
        deadline: Instant,
    ) -> Result<Definite, NoAnswer> {
        let no_token = |failure: super::Failure| NoAnswer { why: failure.why, pause: failure.pause };
        let token = self.token(tenant, now, deadline).await.map_err(no_token)?;
        let url = format!("{}?$select=accountEnabled", self.address(object, is_app));
        let request = get(&url, &token).map_err(|error| error.to_string())?;
        let response = self.fetch.send(request).await.map_err(|error| error.to_string())?;
        match response.status() {
            StatusCode::OK => {
                let account: Account = serde_json::from_slice(response.body())
                    .map_err(|_| "Microsoft Graph's answer is no account")?;
                match account.enabled {
                    Some(true) => Ok(Ok(())),
                    Some(false) => Ok(Err("Microsoft Entra ID says that the account is disabled".into())),
                    None => Err("Microsoft Graph does not say whether the account is enabled: the credential may not read that".into()),
                }
            }
            StatusCode::NOT_FOUND => {
                let refusal = serde_json::from_slice::<Refusal>(response.body()).ok();
                // A 404 of something on the way says nothing of the account.
                if refusal.is_some_and(|refusal| refusal.error.code == "Request_ResourceNotFound") {
                    return Ok(Err("Microsoft Entra ID says that the account is deleted".into()));
                }
                Err("Microsoft Graph answered 404".into())
            }
            status => {
                if status == StatusCode::UNAUTHORIZED {
                    self.forget_tokens();
                }
                let pause =
                    [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&status);
                let pause = pause.then(|| retry_after(response.headers()));
                Err(NoAnswer { why: format!("Microsoft Graph answered {status}"), pause })
            }
        }
    }
}

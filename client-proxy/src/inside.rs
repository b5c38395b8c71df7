//! Whom a cluster's kube-apiserver takes somebody for: asked of it, through the tunnel, as `kubectl auth whoami` does.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
    time::SystemTime,
};

use http::StatusCode;
use serde::{Deserialize, Serialize};
use towline_tunnel::{
    clock::Clock,
    fault::{Fault, Report},
    ids::ClusterId,
    keys::SigningKey,
};

use crate::{
    app::{Choice, Config, link, resolve},
    dial::Pool,
    forward::Forwarder,
    local::StateFolder,
    token::Tokens,
};

/// KEP-3325.
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const REVIEW: &str = r#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#;
/// A user with 1,000 groups fits.
const MOST: usize = 1 << 20;

/// Who somebody is inside a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inside {
    /// What the cluster is called here.
    pub cluster: String,
    /// The username, as RBAC names it.
    pub username: String,
    /// Groups, as RBAC names them.
    pub groups: Vec<String>,
    /// A unique id, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Further attributes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Review {
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    user_info: UserInfo,
}

#[derive(Deserialize)]
struct UserInfo {
    username: String,
    #[serde(default)]
    groups: Vec<String>,
    uid: Option<String>,
    #[serde(default)]
    extra: BTreeMap<String, Vec<String>>,
}

/// Asks the only cluster of this configuration.
///
/// # Errors
/// If it can't be reached, or does not say.
pub async fn inside(config: &Config) -> Result<Inside, Report> {
    let (relay, cluster) = (config.relay_token.clone(), config.cluster_token.clone());
    let tokens = Tokens::start(relay, cluster, config.shared_audience, &Clock::system()).await?;
    tokens.for_relay(SystemTime::now())?;
    let tokens = Arc::new(tokens);
    let run_key = Arc::new(SigningKey::generate());
    let link = Arc::new(link(config, Arc::clone(&run_key), Arc::clone(&tokens), true)?);
    let asked = async {
        let state = StateFolder::open(&config.state_dir)?;
        let ids = resolve(&config.clusters, config, &state, &link).await?;
        let (choice, id) = config.clusters.iter().zip(ids).next().ok_or(Fault::ConfigInvalid)?;
        let pool = Pool::new(id, &run_key, Arc::clone(&link))?;
        let forwarder = Forwarder::new(HashMap::from([(id, pool)]), tokens);
        ask(&forwarder, id, choice).await
    };
    let asked = asked.await;
    link.close().await;
    asked
}

async fn ask(forwarder: &Forwarder, id: ClusterId, choice: &Choice) -> Result<Inside, Report> {
    let (status, answer) = forwarder.post(id, REVIEWS, REVIEW, MOST).await?;
    let silent = |why: String| Report::new(Fault::ApiserverUnreachable, format!("{}: {why}", choice.label()));
    if status != StatusCode::CREATED {
        return Err(silent(format!("its kube-apiserver answers {status} to the question who you are")));
    }
    let review: Review = serde_json::from_slice(&answer)
        .map_err(|_| silent("its kube-apiserver's answer is no SelfSubjectReview".into()))?;
    let UserInfo { username, groups, uid, extra } = review.status.user_info;
    Ok(Inside { cluster: choice.label(), username, groups, uid: uid.filter(|uid| !uid.is_empty()), extra })
}

impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names are other people's text, and go to a terminal.
        let plain = |text: &str| text.escape_debug().to_string();
        let groups: Vec<String> = self.groups.iter().map(|group| plain(group)).collect();
        writeln!(f, "in the cluster {}", plain(&self.cluster))?;
        writeln!(f, "    username   {}", plain(&self.username))?;
        write!(f, "    groups     {}", groups.join(", "))?;
        if let Some(uid) = &self.uid {
            write!(f, "\n    uid        {}", plain(uid))?;
        }
        for (key, values) in &self.extra {
            write!(f, "\n    extra      {}: {}", plain(key), plain(&values.join(", ")))?;
        }
        Ok(())
    }
}

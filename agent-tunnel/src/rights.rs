//! The proof that the agent's accounts may do what they must, and nothing beside: asked of kube-apiserver itself, at start
//! and from time to time.
//!
//! What is missing will make requests fail, and what is too much serves only who takes the agent over. Neither ends the
//! agent: both are told, in the log, as a metric, and by `/readyz`.

mod ask;
mod rules;

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use towline_tunnel::fault::{Fault, Report};
use tracing::{error, info, warn};

use crate::{
    dial::{Account, Apiserver},
    forward::Mode,
    impersonate::ORIGINAL_USER,
    metrics::Metrics,
};
use ask::Attributes;

/// Rights change, and seldom.
const EVERY: Duration = Duration::from_secs(3600);
/// Somebody is about to repair what is missing; or kube-apiserver is away.
const AGAIN: Duration = Duration::from_secs(30);

/// What an agent is set up to do, which says what its accounts need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duties {
    /// How kube-apiserver learns who is calling.
    pub mode: Mode,
    /// `NAMESPACE/NAME` of the account that impersonates, where that is not the agent's own.
    pub impersonator: Option<String>,
    /// `NAMESPACE/NAME` of the Secret with the agent's state.
    pub state_secret: Option<String>,
    /// The groups that roles become here.
    pub role_groups: Vec<String>,
}

/// Which of the two accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// The agent's own.
    Own,
    /// The one that impersonates.
    Impersonator,
}

impl Who {
    /// As logs and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Impersonator => "impersonator",
        }
    }

    fn account(self) -> Account {
        match self {
            Self::Own => Account::Own,
            Self::Impersonator => Account::Impersonator,
        }
    }
}

/// A right that an account must have: one of these ways to have it.
struct Need(Vec<Attributes>);

/// What was found about one account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Rights that the account must have, and has not.
    pub(crate) missing: Vec<String>,
    /// Rights that it has, and does not need.
    pub(crate) excessive: Vec<String>,
}

/// What the last proof found; nothing where all is as it should be.
#[derive(Clone, Debug, Default)]
pub struct Findings(Arc<RwLock<Vec<String>>>);

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Findings {
    fn replace(&self, lines: Vec<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = lines;
    }
}

impl Duties {
    /// The accounts, with what each must be allowed.
    fn needs(&self) -> Vec<(Who, Vec<Need>)> {
        let mut own = Vec::new();
        if let Some((namespace, name)) = self.state_secret.as_deref().and_then(|name| name.split_once('/')) {
            let of = |verb| Need(vec![Attributes::new(verb, "", "secrets").named(namespace, name)]);
            own.extend([of("get"), of("patch")]);
        }
        if self.mode == Mode::PassThrough {
            return vec![(Who::Own, own)];
        }
        own.push(Need(vec![Attributes::new("create", "authorization.k8s.io", "subjectaccessreviews")]));
        let Some((namespace, name)) = self.impersonator.as_deref().and_then(|name| name.split_once('/'))
        else {
            own.extend(self.impersonation());
            return vec![(Who::Own, own)];
        };
        let token = Attributes::new("create", "", "serviceaccounts").of("token").named(namespace, name);
        own.push(Need(vec![token]));
        vec![(Who::Own, own), (Who::Impersonator, self.impersonation())]
    }

    /// Everything that impersonation needs, in constrained form (KEP-5284, from Kubernetes 1.36) or the older one.
    fn impersonation(&self) -> Vec<Need> {
        let authentication = "authentication.k8s.io";
        let of = |resource: &'static str, subresource: &'static str, name: &str| {
            let older = if matches!(resource, "uids" | "userextras") { authentication } else { "" };
            Need(vec![
                Attributes::new("impersonate:user-info", authentication, resource)
                    .of(subresource)
                    .named("", name),
                Attributes::new("impersonate", older, resource).of(subresource).named("", name),
            ])
        };
        // Names nobody has: the right must not be one to particular users.
        let mut needs = vec![
            of("users", "", "towline-probe"),
            of("groups", "", "system:authenticated"),
            of("uids", "", "towline-probe"),
            of("userextras", ORIGINAL_USER, "towline-probe"),
        ];
        needs.extend(self.role_groups.iter().map(|group| of("groups", "", group)));
        needs
    }

    /// Asks about all accounts.
    pub(crate) async fn prove(&self, apiserver: &Apiserver) -> Result<Vec<(Who, Found)>, Report> {
        let mut all = Vec::new();
        for (who, needs) in self.needs() {
            let mut found = Found::default();
            for need in needs {
                let mut has = false;
                for way in &need.0 {
                    has = has || ask::may(apiserver, who.account(), way).await?;
                }
                if !has {
                    let ways: Vec<String> = need.0.iter().map(ToString::to_string).collect();
                    found.missing.push(ways.join(" or "));
                }
            }
            let expected = rules::Expected {
                impersonates: self.mode == Mode::Impersonate
                    && (who == Who::Impersonator || self.impersonator.is_none()),
                duties: (who == Who::Own).then_some(self),
            };
            for namespace in self.namespaces() {
                for rule in ask::rules(apiserver, who.account(), namespace).await? {
                    let Some(what) = expected.excess(&rule) else { continue };
                    if !found.excessive.contains(&what) {
                        found.excessive.push(what);
                    }
                }
            }
            all.push((who, found));
        }
        Ok(all)
    }

    /// Where rules are looked at: those of a whole cluster show in each. No request asks for all namespaces.
    fn namespaces(&self) -> Vec<&str> {
        let named = [&self.impersonator, &self.state_secret].into_iter().flatten();
        let mut namespaces: Vec<&str> = named
            .filter_map(|name| Some(name.split_once('/')?.0))
            .chain(["default", "kube-system"])
            .collect();
        namespaces.dedup();
        namespaces
    }

    /// Proves it now and from time to time. Never returns; whoever runs this owns it.
    pub async fn keep_proving(&self, apiserver: &Apiserver, metrics: &Metrics, findings: &Findings) {
        let mut last = None;
        loop {
            let pause = match self.prove(apiserver).await {
                Ok(all) => {
                    let complete = all.iter().all(|(_, found)| found.missing.is_empty());
                    if last.as_ref() != Some(&all) {
                        findings.replace(tell(&all, metrics));
                        last = Some(all);
                    }
                    if complete { EVERY } else { AGAIN }
                }
                Err(report) => {
                    warn!(%report, "what the agent's accounts may do can't be asked; it is asked again");
                    AGAIN
                }
            };
            tokio::time::sleep(pause).await;
        }
    }
}

/// Logs and counts what was found, and says it in lines for `/readyz`.
fn tell(all: &[(Who, Found)], metrics: &Metrics) -> Vec<String> {
    let mut lines = Vec::new();
    for (who, found) in all {
        let account = who.name();
        metrics.found_rights(account, found.missing.len(), found.excessive.len());
        for what in &found.missing {
            let report = Report::new(Fault::RightsMissing, format!("{account}: {what}"));
            error!(account, fault = report.fault.code(), %report, "a right is missing");
            lines.push(report.to_string());
        }
        for what in &found.excessive {
            let report = Report::new(Fault::RightsExcessive, format!("{account}: {what}"));
            warn!(account, fault = report.fault.code(), %report, "a right is too much");
            lines.push(report.to_string());
        }
        if *found == Found::default() {
            info!(account, "the account may do what it must, and no more");
        }
    }
    lines
}

//! What stands for an id where people type: names of clusters that the profile pins, and subjects of its identity provider.
//!
//! Never the relay's word: what is signed here holds for the id that the name leads to.

use std::{fmt, str::FromStr};

use towline_tunnel::{
    fault::{Fault, Report},
    ids::ClusterId,
    role::Scope,
};

use super::super::profile::Profile;

/// Longest name of a cluster.
const MAX_NAME: usize = 253;

/// A cluster as a person names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum ClusterArgument {
    /// By its id.
    Id(ClusterId),
    /// By a name in the profile's `[clusters]`.
    Name(String),
}

/// A scope as a person names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum ScopeArgument {
    /// As documents write it.
    Scope(Scope),
    /// `cluster:NAME`.
    Cluster(String),
}

fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

impl FromStr for ClusterArgument {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(id) => Ok(Self::Id(id)),
            Err(_) if is_name(text) => Ok(Self::Name(text.to_owned())),
            Err(error) => Err(format!("neither a cluster's id nor a name: {error}")),
        }
    }
}

impl FromStr for ScopeArgument {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match (text.parse(), text.strip_prefix("cluster:")) {
            (Ok(scope), _) => Ok(Self::Scope(scope)),
            (Err(_), Some(name)) if is_name(name) => Ok(Self::Cluster(name.to_owned())),
            (Err(error), _) => Err(error.to_string()),
        }
    }
}

impl fmt::Display for ClusterArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

fn pinned(name: &str, profile: &Profile) -> Result<ClusterId, Report> {
    let unknown = || {
        format!(
            "profile {} has no cluster {name:?} in [clusters]: give its id, as `towline list` shows it",
            profile.name
        )
    };
    let id = profile.clusters.get(name).ok_or_else(|| Report::new(Fault::ConfigInvalid, unknown()))?;
    id.parse().map_err(|error| {
        Report::new(Fault::ConfigInvalid, format!("profile {}: cluster {name:?}: {error}", profile.name))
    })
}

impl ClusterArgument {
    /// # Errors
    /// If the profile does not know the name.
    pub(in crate::cli) fn id(&self, profile: &Profile) -> Result<ClusterId, Report> {
        match self {
            Self::Id(id) => Ok(*id),
            Self::Name(name) => pinned(name, profile),
        }
    }

    /// The one that was named, or the profile's only one.
    ///
    /// # Errors
    /// If none was, and the profile has none or several.
    pub(super) fn or_only(named: Option<&Self>, profile: &Profile) -> Result<ClusterId, Report> {
        match (named, profile.clusters.len()) {
            (Some(named), _) => named.id(profile),
            (None, 1) => profile
                .clusters
                .keys()
                .next()
                .map_or_else(|| Err(Fault::ConfigInvalid.into()), |name| pinned(name, profile)),
            (None, _) => {
                let names: Vec<&str> = profile.clusters.keys().map(String::as_str).collect();
                let what = format!(
                    "--cluster is missing: profile {} has {}",
                    profile.name,
                    match names.as_slice() {
                        [] => "none in [clusters]".to_owned(),
                        names => names.join(", "),
                    }
                );
                Err(Report::new(Fault::ConfigInvalid, what))
            }
        }
    }
}

impl ScopeArgument {
    /// # Errors
    /// If the profile does not know the name.
    pub(super) fn scope(&self, profile: &Profile) -> Result<Scope, Report> {
        match self {
            Self::Scope(scope) => Ok(scope.clone()),
            Self::Cluster(name) => pinned(name, profile).map(Scope::Cluster),
        }
    }
}

/// The principal of a subject at the profile's identity provider.
///
/// # Errors
/// If the profile names no provider.
pub(super) fn principal(subject: &str, profile: &Profile, issuer: Option<&str>) -> Result<String, Report> {
    match issuer.filter(|issuer| !issuer.is_empty()) {
        Some(issuer) => Ok(format!("{issuer}#{subject}")),
        None => Err(Report::new(
            Fault::ConfigInvalid,
            format!(
                "--user {subject}: profile {} names no issuer in [login]: give --principal ISSUER#SUBJECT",
                profile.name
            ),
        )),
    }
}

/// What the profile calls a cluster, if it knows it.
pub(super) fn name_of(id: ClusterId, profile: &Profile) -> Option<&str> {
    let id = id.to_string();
    profile.clusters.iter().find(|(_, known)| **known == id).map(|(name, _)| name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(clusters: &[(&str, ClusterId)]) -> Profile {
        Profile::pinning("work", clusters)
    }

    #[test]
    fn a_name_is_the_profiles_and_no_other() {
        let (one, two) = (ClusterId::of_spki(b"one"), ClusterId::of_spki(b"two"));
        let profile = profile(&[("edge-7", one), ("edge-8", two)]);
        let cluster = |text: &str| text.parse::<ClusterArgument>().unwrap().id(&profile);
        assert_eq!(cluster("edge-7").unwrap(), one);
        assert_eq!(cluster(&two.to_string()).unwrap(), two);
        assert!(cluster("edge-9").unwrap_err().to_string().contains("no cluster \"edge-9\""));
        let scope = |text: &str| text.parse::<ScopeArgument>().unwrap().scope(&profile);
        assert_eq!(scope("cluster:edge-8").unwrap(), Scope::Cluster(two));
        assert_eq!(scope("organisation").unwrap(), Scope::Organisation);
        assert!(scope("cluster:edge-9").is_err());
        for wrong in ["", "team:a", "group:A/", "cluster:", "cluster:a b"] {
            assert!(wrong.parse::<ScopeArgument>().is_err(), "{wrong}");
        }
        assert_eq!(name_of(one, &profile), Some("edge-7"));
    }

    #[test]
    fn where_there_is_one_cluster_it_is_meant() {
        let one = ClusterId::of_spki(b"one");
        assert_eq!(ClusterArgument::or_only(None, &profile(&[("edge-7", one)])).unwrap(), one);
        let two = ClusterId::of_spki(b"two");
        let several = ClusterArgument::or_only(None, &profile(&[("a", one), ("b", two)])).unwrap_err();
        assert!(several.to_string().contains("a, b"), "{several}");
        assert!(ClusterArgument::or_only(None, &profile(&[])).unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn a_user_is_a_subject_at_the_profiles_provider() {
        let profile = profile(&[]);
        assert_eq!(principal("4711", &profile, Some("https://idp")).unwrap(), "https://idp#4711");
        assert!(principal("4711", &profile, None).unwrap_err().to_string().contains("--principal"));
    }
}

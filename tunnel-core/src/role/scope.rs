//! Where a role holds: a tree of the organisation, groups of clusters in groups, and clusters.

use std::{fmt, str::FromStr};

use crate::ids::ClusterId;

/// Longest path of a group, in bytes.
pub const MAX_PATH: usize = 256;
/// Groups in groups at most.
pub const MAX_DEPTH: usize = 8;
/// Longest name of one group.
const MAX_NAME: usize = 63;

/// A group of clusters, as the path to it: `eu/retail`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupPath(String);

/// A part of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every cluster.
    Organisation,
    /// The clusters that are placed in this group, or in one below it.
    Group(GroupPath),
    /// One cluster.
    Cluster(ClusterId),
}

/// A text that is no scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// None of the three kinds.
    #[error("not a scope: it is organisation, group:PATH such as group:eu/retail, or cluster:ID")]
    Kind,
    /// A group's path is malformed.
    #[error(
        "not a group's path: names of a-z, 0-9, `-`, `_` and `.`, which begin with a letter or digit, at most 8 of them, with `/` between"
    )]
    Path,
    /// A cluster's id is malformed.
    #[error("not a cluster's id: 52 characters of a-z and 2-7")]
    Cluster,
}

impl GroupPath {
    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the other group is this one, or below it.
    pub fn covers(&self, other: &Self) -> bool {
        other.0.strip_prefix(self.0.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl fmt::Display for GroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for GroupPath {
    type Err = ScopeError;
    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let is_name = |name: &str| {
            name.len() <= MAX_NAME
                && name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
        };
        let sound =
            text.len() <= MAX_PATH && text.split('/').count() <= MAX_DEPTH && text.split('/').all(is_name);
        if sound { Ok(Self(text.to_owned())) } else { Err(ScopeError::Path) }
    }
}

impl Scope {
    /// Whether it holds for a cluster that is placed in `group`, or in none.
    pub fn covers(&self, cluster: ClusterId, group: Option<&GroupPath>) -> bool {
        match self {
            Self::Organisation => true,
            Self::Group(path) => group.is_some_and(|group| path.covers(group)),
            Self::Cluster(id) => *id == cluster,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Organisation => f.write_str("organisation"),
            Self::Group(path) => write!(f, "group:{path}"),
            Self::Cluster(id) => write!(f, "cluster:{id}"),
        }
    }
}

impl FromStr for Scope {
    type Err = ScopeError;
    fn from_str(text: &str) -> Result<Self, ScopeError> {
        match text.split_once(':') {
            None if text == "organisation" => Ok(Self::Organisation),
            Some(("group", path)) => path.parse().map(Self::Group),
            Some(("cluster", id)) => id.parse().map(Self::Cluster).map_err(|_| ScopeError::Cluster),
            _ => Err(ScopeError::Kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_covers_itself_and_what_is_below_it_and_no_namesake() {
        let path = |text: &str| text.parse::<GroupPath>().unwrap();
        assert!(path("eu").covers(&path("eu")) && path("eu").covers(&path("eu/retail")));
        assert!(!path("eu/retail").covers(&path("eu")));
        assert!(!path("eu").covers(&path("eu-west")) && !path("eu").covers(&path("us/eu")));
    }

    #[test]
    fn scopes_read_back_and_other_spellings_are_refused() {
        let id = ClusterId::of_spki(b"k");
        for scope in [Scope::Organisation, Scope::Group("eu/retail-1".parse().unwrap()), Scope::Cluster(id)] {
            assert_eq!(scope.to_string().parse(), Ok(scope));
        }
        let deep = ["a"; MAX_DEPTH + 1].join("/");
        let long = "a".repeat(MAX_NAME + 1);
        for bad in ["", "/", "eu/", "/eu", "eu//retail", "EU", "eu/..", "..", "a b", "é", &deep, &long] {
            assert_eq!(bad.parse::<GroupPath>(), Err(ScopeError::Path), "{bad:?}");
        }
        for bad in ["", "org", "Organisation", "organisation:", "group", "group:", "cluster:edge-7", "eu"] {
            assert!(bad.parse::<Scope>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_scope_holds_where_it_says() {
        let (a, b) = (ClusterId::of_spki(b"a"), ClusterId::of_spki(b"b"));
        let retail: GroupPath = "eu/retail".parse().unwrap();
        assert!(Scope::Organisation.covers(a, None));
        assert!(Scope::Cluster(a).covers(a, None) && !Scope::Cluster(a).covers(b, Some(&retail)));
        let eu = Scope::Group("eu".parse().unwrap());
        assert!(eu.covers(a, Some(&retail)) && !eu.covers(a, None));
    }
}

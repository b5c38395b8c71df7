//! What a role is called, and which is above which.

use std::{fmt, str::FromStr};

/// A role, weaker ones first: each holds all that those before it do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RoleName {
    /// May open streams to the cluster's agent, and nothing inside.
    ClusterUser,
    /// Reads most objects, and no Secrets (`ClusterRole` `view`).
    Viewer,
    /// Writes most objects of namespaces (`edit`).
    Writer,
    /// Administers namespaces (`admin`).
    Admin,
    /// Everything (`cluster-admin`).
    ClusterAdmin,
}

/// A text that names no role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a role: it is cluster-user, viewer, writer, admin or cluster-admin")]
pub struct UnknownRole;

impl RoleName {
    /// Every role, the weakest first.
    pub const ALL: [Self; 5] =
        [Self::ClusterUser, Self::Viewer, Self::Writer, Self::Admin, Self::ClusterAdmin];

    /// As documents' readers, flags and groups name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClusterUser => "cluster-user",
            Self::Viewer => "viewer",
            Self::Writer => "writer",
            Self::Admin => "admin",
            Self::ClusterAdmin => "cluster-admin",
        }
    }

    /// The `ClusterRole` of every Kubernetes cluster that the role's group is bound to; nothing for one that grants nothing inside.
    pub fn cluster_role(self) -> Option<&'static str> {
        match self {
            Self::ClusterUser => None,
            Self::Viewer => Some("view"),
            Self::Writer => Some("edit"),
            Self::Admin => Some("admin"),
            Self::ClusterAdmin => Some("cluster-admin"),
        }
    }

    /// The number that documents hold.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::ClusterUser => 1,
            Self::Viewer => 2,
            Self::Writer => 3,
            Self::Admin => 4,
            Self::ClusterAdmin => 5,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.code() == code)
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for RoleName {
    type Err = UnknownRole;
    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or(UnknownRole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_rise_and_read_back() {
        assert!(RoleName::ALL.is_sorted());
        for role in RoleName::ALL {
            assert_eq!(role.name().parse(), Ok(role));
            assert_eq!(RoleName::from_code(role.code()), Some(role));
        }
        assert_eq!("Viewer".parse::<RoleName>(), Err(UnknownRole));
        assert_eq!((RoleName::from_code(0), RoleName::from_code(6)), (None, None));
    }
}

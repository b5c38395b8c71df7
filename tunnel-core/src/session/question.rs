//! A person's questions to the relay: what they are about, and what questions and answers say.
//!
//! Bodies are JSON (RFC 8259), since both ends show them to people and scripts. Who may ask what, the relay decides for each
//! question, from the caller that it verified for the session. An answer that is longer than one frame comes in parts: the question is
//! asked again with the cursor of the part before.

use serde::{Deserialize, Serialize};

/// Longest body of a question or of one part of an answer, in bytes.
pub const MAX_BODY: usize = 15 * 1024;
/// Longest cursor, in bytes.
pub const MAX_CURSOR: usize = 512;

/// What a question is about. 1–19 are these, 20–39 are kept for roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Topic(pub u16);

impl Topic {
    /// Which clusters may I open? The body is empty; each part of the answer is a list of [`ClusterItem`].
    pub const CLUSTERS: Self = Self(1);
    /// Who opened what? The body is an [`AuditQuestion`]; each part of the answer is a list of records, newest first.
    pub const AUDIT: Self = Self(2);
    /// End somebody's sessions. The body is a [`RevokeQuestion`]; the answer is a [`RevokeAnswer`].
    pub const REVOKE: Self = Self(3);
}

/// A cluster that the caller may open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterItem {
    /// Its name at this relay: a convenience, never a proof.
    pub name: String,
    /// Its id, which is what clients pin. By this answer it is but a claim of the relay's.
    pub id: String,
    /// Whether an agent is connected.
    pub online: bool,
    /// Since when agents have been connected without a break (RFC 3339), as far as this relay's process knows.
    pub online_since: Option<String>,
    /// When the caller's right to open it ends (RFC 3339), if it does.
    pub until: Option<String>,
}

/// Which records are asked for. What is missing lets all through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuditQuestion {
    /// A username or a principal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A cluster's name or id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Of channels that went on at this time, or began later: seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Only what was refused.
    pub refused: bool,
}

/// Whose sessions are to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Whom {
    /// The caller's own.
    Me,
    /// Those of this principal: issuer, `#` and subject.
    Principal(String),
    /// Those of this username, as the relay makes it from a token.
    User(String),
}

/// Ends sessions, and refuses the tokens that they were begun with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokeQuestion {
    /// Whose.
    pub whom: Whom,
    /// Only towards the cluster with this name or id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Tokens that are issued within so many seconds from now are refused, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_seconds: Option<u64>,
}

/// What a revocation did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokeAnswer {
    /// Whose, as it stands in the registry: `principal …` or `user …`.
    pub whom: String,
    /// The cluster's name, where it is of one only.
    pub cluster: Option<String>,
    /// Tokens issued until then are refused (RFC 3339).
    pub issued_until: String,
    /// Sessions that it found.
    pub sessions: u32,
    /// Streams that it found.
    pub streams: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_of_a_question_is_not_asked_for() {
        let empty: AuditQuestion = serde_json::from_str("{}").unwrap();
        assert_eq!(empty, AuditQuestion::default());
        let mine = RevokeQuestion { whom: Whom::Me, cluster: None, for_seconds: None };
        assert_eq!(serde_json::to_string(&mine).unwrap(), r#"{"whom":"me"}"#);
        let named: RevokeQuestion =
            serde_json::from_str(r#"{"whom":{"user":"ada"},"cluster":"edge-7","forSeconds":60}"#).unwrap();
        assert_eq!(named.whom, Whom::User("ada".into()));
        assert_eq!((named.cluster.as_deref(), named.for_seconds), (Some("edge-7"), Some(60)));
    }
}

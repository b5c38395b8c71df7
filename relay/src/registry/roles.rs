//! Who may open which cluster.

use std::{fmt, str::FromStr, time::SystemTime};

use serde::Serialize;
use sqlx::Row as _;
use towline_tunnel::ids::ClusterId;

use super::{Registry, RegistryError, seconds, time};

/// What an assignment is about: exactly one of the names by which the relay knows a caller.
///
/// They are kept apart because a user may choose what stands in some claims: a username that looks like somebody
/// else's principal or group must not become it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SubjectKind {
    /// The username, as the relay's verifier makes it from the token's claims.
    User,
    /// Issuer, `#` and stable claim.
    Principal,
    /// A group of the relay token.
    Group,
}

impl SubjectKind {
    /// As the table and the command line name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Principal => "principal",
            Self::Group => "group",
        }
    }
}

impl fmt::Display for SubjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SubjectKind {
    type Err = Unknown;
    fn from_str(text: &str) -> Result<Self, Unknown> {
        [Self::User, Self::Principal, Self::Group].into_iter().find(|kind| kind.name() == text).ok_or(Unknown)
    }
}

/// What an assignment allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Open streams to the cluster's agent. Grants nothing inside the cluster.
    ClusterUser,
}

impl Role {
    /// As the table and the command line name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClusterUser => "cluster-user",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = Unknown;
    fn from_str(text: &str) -> Result<Self, Unknown> {
        if text == Self::ClusterUser.name() { Ok(Self::ClusterUser) } else { Err(Unknown) }
    }
}

/// A name of a newer version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a name that this version knows")]
pub struct Unknown;

/// One row: this subject has this role on this cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleAssignment {
    /// What `subject` is.
    pub kind: SubjectKind,
    /// A username, principal or group.
    pub subject: String,
    /// What it allows.
    pub role: Role,
    /// Where.
    pub cluster: ClusterId,
    /// When it ends, if it does.
    pub expires_at: Option<SystemTime>,
}

impl Registry {
    /// Assigns a role, or changes the end of an assignment that is there. Says whether it is new.
    ///
    /// # Errors
    /// If the file can't be written, or the cluster was removed meanwhile.
    pub async fn assign_role(
        &self,
        assignment: &RoleAssignment,
        now: SystemTime,
    ) -> Result<bool, RegistryError> {
        let mut tx = self.writing().await?;
        let removed = delete(assignment, &mut tx).await.map_err(|error| self.error(error))?;
        sqlx::query(
            "INSERT INTO role_assignments (subject_kind, subject, role, cluster, created_at, expires_at)
             VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(assignment.kind.name())
        .bind(&assignment.subject)
        .bind(assignment.role.name())
        .bind(assignment.cluster.to_string())
        .bind(seconds(now))
        .bind(assignment.expires_at.map(seconds))
        .execute(&mut *tx)
        .await
        .map_err(|error| self.error(error))?;
        self.commit(tx).await?;
        Ok(!removed)
    }

    /// Removes an assignment. Says whether it was there.
    ///
    /// # Errors
    /// If the file can't be written.
    pub async fn remove_role(&self, assignment: &RoleAssignment) -> Result<bool, RegistryError> {
        let mut tx = self.writing().await?;
        let removed = delete(assignment, &mut tx).await.map_err(|error| self.error(error))?;
        self.commit(tx).await?;
        Ok(removed)
    }

    /// All assignments, by cluster and subject, the ended ones too.
    ///
    /// # Errors
    /// If the file can't be read.
    pub async fn role_assignments(&self) -> Result<Vec<RoleAssignment>, RegistryError> {
        let rows = sqlx::query(
            "SELECT subject_kind, subject, role, cluster, expires_at FROM role_assignments
             ORDER BY cluster, subject_kind, subject",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        let read = |row: &sqlx::sqlite::SqliteRow| -> Result<Option<RoleAssignment>, sqlx::Error> {
            let parsed = (
                row.try_get::<String, _>("subject_kind")?.parse(),
                row.try_get::<String, _>("role")?.parse(),
                row.try_get::<String, _>("cluster")?.parse(),
            );
            let (Ok(kind), Ok(role), Ok(cluster)) = parsed else { return Ok(None) };
            Ok(Some(RoleAssignment {
                kind,
                subject: row.try_get("subject")?,
                role,
                cluster,
                expires_at: row.try_get::<Option<i64>, _>("expires_at")?.map(time),
            }))
        };
        rows.iter()
            .filter_map(|row| read(row).transpose())
            .collect::<Result<_, _>>()
            .map_err(|error| self.error(error))
    }
}

async fn delete(assignment: &RoleAssignment, on: &mut sqlx::SqliteConnection) -> Result<bool, sqlx::Error> {
    let done = sqlx::query(
        "DELETE FROM role_assignments WHERE subject_kind = ? AND subject = ? AND role = ? AND cluster = ?",
    )
    .bind(assignment.kind.name())
    .bind(&assignment.subject)
    .bind(assignment.role.name())
    .bind(assignment.cluster.to_string())
    .execute(on)
    .await?;
    Ok(done.rows_affected() > 0)
}

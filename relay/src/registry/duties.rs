//! Who may look into this relay or act on it, as a whole or as far as one cluster is concerned.

use std::{collections::HashMap, fmt, str::FromStr, time::SystemTime};

use serde::Serialize;
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};
use towline_tunnel::ids::ClusterId;

use super::{Registry, RegistryError, SubjectKind, Unknown, seconds, time};

/// What somebody may do at the relay. It opens no cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Duty {
    /// Read the audit.
    Auditor,
    /// Revoke people's sessions.
    Operator,
}

impl Duty {
    /// As the table and the command line name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auditor => "auditor",
            Self::Operator => "operator",
        }
    }
}

impl fmt::Display for Duty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Duty {
    type Err = Unknown;
    fn from_str(text: &str) -> Result<Self, Unknown> {
        [Self::Auditor, Self::Operator].into_iter().find(|duty| duty.name() == text).ok_or(Unknown)
    }
}

/// One row: this subject has this duty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DutyAssignment {
    /// What `subject` is.
    pub kind: SubjectKind,
    /// A username, principal or group.
    pub subject: String,
    /// What it allows.
    pub duty: Duty,
    /// Where; none for the whole relay.
    pub cluster: Option<ClusterId>,
    /// When it ends, if it does.
    pub expires_at: Option<SystemTime>,
}

/// All duties, in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Duties(HashMap<(SubjectKind, String), Vec<Held>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    duty: Duty,
    cluster: Option<ClusterId>,
    expires_at: Option<SystemTime>,
}

impl Duties {
    /// Where this subject has the duty at `now`: each cluster, and `None` for the whole relay.
    pub fn places(
        &self,
        kind: SubjectKind,
        subject: &str,
        duty: Duty,
        now: SystemTime,
    ) -> impl Iterator<Item = Option<ClusterId>> {
        // The map's key owns its text; duties are asked for by people, and not on any stream's path.
        let held = self.0.get(&(kind, subject.to_owned())).map_or(&[][..], Vec::as_slice);
        let lasts = move |held: &&Held| held.duty == duty && held.expires_at.is_none_or(|end| now < end);
        held.iter().filter(lasts).map(|held| held.cluster)
    }

    pub(super) async fn load(on: &mut SqliteConnection) -> Result<Self, sqlx::Error> {
        let rows = sqlx::query("SELECT subject_kind, subject, duty, cluster, expires_at FROM duties")
            .fetch_all(on)
            .await?;
        let mut all = Self::default();
        for row in &rows {
            // What a newer version wrote grants nothing here.
            if let Some(DutyAssignment { kind, subject, duty, cluster, expires_at }) = read(row)? {
                all.0.entry((kind, subject)).or_default().push(Held { duty, cluster, expires_at });
            }
        }
        Ok(all)
    }
}

impl Registry {
    /// Assigns a duty, or changes the end of an assignment that is there. Says whether it is new.
    ///
    /// # Errors
    /// If the file can't be written, or the cluster was removed meanwhile.
    pub async fn assign_duty(&self, held: &DutyAssignment, now: SystemTime) -> Result<bool, RegistryError> {
        let mut tx = self.writing().await?;
        let removed = delete(held, &mut tx).await.map_err(|error| self.error(error))?;
        sqlx::query(
            "INSERT INTO duties (subject_kind, subject, duty, cluster, created_at, expires_at)
             VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(held.kind.name())
        .bind(&held.subject)
        .bind(held.duty.name())
        .bind(held.cluster.map(|id| id.to_string()))
        .bind(seconds(now))
        .bind(held.expires_at.map(seconds))
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
    pub async fn remove_duty(&self, held: &DutyAssignment) -> Result<bool, RegistryError> {
        let mut tx = self.writing().await?;
        let removed = delete(held, &mut tx).await.map_err(|error| self.error(error))?;
        self.commit(tx).await?;
        Ok(removed)
    }

    /// All assignments, those for the whole relay first, the ended ones too.
    ///
    /// # Errors
    /// If the file can't be read.
    pub async fn duties(&self) -> Result<Vec<DutyAssignment>, RegistryError> {
        let rows = sqlx::query(
            "SELECT subject_kind, subject, duty, cluster, expires_at FROM duties
             ORDER BY cluster, subject_kind, subject, duty",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        let read = rows.iter().filter_map(|row| read(row).transpose());
        read.collect::<Result<_, _>>().map_err(|error| self.error(error))
    }
}

async fn delete(held: &DutyAssignment, on: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let done = sqlx::query(
        "DELETE FROM duties WHERE subject_kind = ? AND subject = ? AND duty = ? AND cluster IS ?",
    )
    .bind(held.kind.name())
    .bind(&held.subject)
    .bind(held.duty.name())
    .bind(held.cluster.map(|id| id.to_string()))
    .execute(on)
    .await?;
    Ok(done.rows_affected() > 0)
}

fn read(row: &SqliteRow) -> Result<Option<DutyAssignment>, sqlx::Error> {
    let cluster = row.try_get::<Option<String>, _>("cluster")?.map(|id| id.parse()).transpose();
    let parsed = (
        row.try_get::<String, _>("subject_kind")?.parse(),
        row.try_get::<String, _>("duty")?.parse(),
        // An id that can't be read is not the whole relay.
        cluster,
    );
    let (Ok(kind), Ok(duty), Ok(cluster)) = parsed else { return Ok(None) };
    Ok(Some(DutyAssignment {
        kind,
        subject: row.try_get("subject")?,
        duty,
        cluster,
        expires_at: row.try_get::<Option<i64>, _>("expires_at")?.map(time),
    }))
}

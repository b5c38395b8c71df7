//! Agent instances: what was issued to them, which are revoked, which are online.

use std::time::{Duration, SystemTime};

use sqlx::{Row as _, sqlite::SqliteRow};
use towline_tunnel::ids::{ClusterId, InstanceId};

use super::{Registry, RegistryError, seconds, time};
use crate::certificates::{Holder, Issued};

/// An online instance is noted this often. See [`Registry::note_presence`].
pub const PRESENCE_EVERY: Duration = Duration::from_secs(30);
/// Without a note for so long (a relay that was killed writes none) an instance counts as away.
const PRESENCE_HOLDS: Duration = Duration::from_secs(90);
/// Instances whose last certificate ended so long ago are forgotten: each start of an agent makes one.
const KEPT_AFTER_END: Duration = Duration::from_secs(7 * 24 * 3600);

/// One agent process, as the registry knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Serial of its newest certificate, hexadecimal.
    pub serial: String,
    /// When that certificate ends.
    pub not_after: SystemTime,
    /// When it was revoked.
    pub revoked_at: Option<SystemTime>,
    /// When a relay last saw it.
    pub last_seen: Option<SystemTime>,
    /// Program and version that it told.
    pub program: String,
    /// When two live holders of its identity were seen last (THREATS T52).
    pub duplicate_at: Option<SystemTime>,
    online: bool,
}

impl Instance {
    /// Whether it holds a session, as far as the serving relay has noted.
    pub fn is_online(&self, now: SystemTime) -> bool {
        let fresh = |seen: SystemTime| now < seen + PRESENCE_HOLDS;
        self.online && self.last_seen.is_some_and(fresh)
    }
}

/// Without a note for so long two holders of one identity count as one again. They are looked at every few seconds.
const DUPLICATE_HOLDS: Duration = Duration::from_secs(120);

impl Instance {
    /// Whether two live holders of its identity were seen just now.
    pub fn is_duplicate(&self, now: SystemTime) -> bool {
        self.duplicate_at.is_some_and(|at| now < at + DUPLICATE_HOLDS)
    }
}

/// Whether an instance holds a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It does.
    Online,
    /// It does no longer.
    Away,
}

/// An instance was seen, or went away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Which.
    pub instance: InstanceId,
    /// Online or away.
    pub presence: Presence,
    /// Program and version that it told.
    pub program: String,
}

/// Whether a certificate was recorded; only then it may be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It was.
    Yes,
    /// The instance's id is another key's or cluster's, or was revoked.
    Taken,
    /// The cluster has too many instances.
    TooMany,
}

impl Registry {
    /// Records a certificate that was issued to an instance, one of at most `max` of its cluster.
    ///
    /// # Errors
    /// If the file can't be written.
    pub async fn record_certificate(
        &self,
        holder: &Holder,
        issued: &Issued,
        max: u32,
        now: SystemTime,
    ) -> Result<Recorded, RegistryError> {
        let mut tx = self.writing().await?;
        let others =
            sqlx::query("SELECT count(*) FROM instances WHERE cluster = ? AND not_after >= ? AND id <> ?")
                .bind(holder.cluster.to_string())
                .bind(seconds(now))
                .bind(holder.instance.to_string())
                .fetch_one(&mut *tx)
                .await
                .and_then(|row| row.try_get::<i64, _>(0))
                .map_err(|error| self.error(error))?;
        if others >= i64::from(max) {
            return Ok(Recorded::TooMany);
        }
        let done = sqlx::query(
            "INSERT INTO instances (id, cluster, key_hash, serial, not_after) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT (id) DO UPDATE SET serial = excluded.serial, not_after = excluded.not_after
             WHERE cluster = excluded.cluster AND key_hash = excluded.key_hash AND revoked_at IS NULL",
        )
        .bind(holder.instance.to_string())
        .bind(holder.cluster.to_string())
        .bind(holder.key.hash().to_string())
        .bind(&issued.serial)
        .bind(seconds(issued.not_after))
        .execute(&mut *tx)
        .await
        .map_err(|error| self.error(error))?;
        tx.commit().await.map_err(|error| self.error(error))?;
        Ok(if done.rows_affected() > 0 { Recorded::Yes } else { Recorded::Taken })
    }

    /// Notes who is online and who went away, in one transaction. Call on changes, gathered for a second, and every
    /// [`PRESENCE_EVERY`] for all that are online.
    ///
    /// # Errors
    /// If the file can't be written; sessions don't depend on it.
    pub async fn note_presence(&self, sightings: &[Sighting], now: SystemTime) -> Result<(), RegistryError> {
        let mut tx = self.writing().await?;
        for sighting in sightings {
            sqlx::query("UPDATE instances SET online = ?, last_seen = ?, program = ? WHERE id = ?")
                .bind(sighting.presence == Presence::Online)
                .bind(seconds(now))
                .bind(&sighting.program)
                .bind(sighting.instance.to_string())
                .execute(&mut *tx)
                .await
                .map_err(|error| self.error(error))?;
        }
        tx.commit().await.map_err(|error| self.error(error))
    }

    /// Notes that each of these instances' identities has two live holders.
    ///
    /// # Errors
    /// If the file can't be written.
    pub async fn note_duplicates(
        &self,
        instances: &[InstanceId],
        now: SystemTime,
    ) -> Result<(), RegistryError> {
        let mut tx = self.writing().await?;
        for instance in instances {
            sqlx::query("UPDATE instances SET duplicate_at = ? WHERE id = ?")
                .bind(seconds(now))
                .bind(instance.to_string())
                .execute(&mut *tx)
                .await
                .map_err(|error| self.error(error))?;
        }
        tx.commit().await.map_err(|error| self.error(error))
    }

    /// For the start of a relay: nobody is online yet, and what ended long ago is forgotten.
    ///
    /// # Errors
    /// If the file can't be written.
    pub async fn begin_serving(&self, now: SystemTime) -> Result<(), RegistryError> {
        let mut tx = self.writing().await?;
        let long_ago = seconds(now - KEPT_AFTER_END);
        for (sql, bound) in [
            ("UPDATE instances SET online = 0 WHERE online <> ?", 0),
            ("DELETE FROM instances WHERE not_after < ?", long_ago),
            ("DELETE FROM enrolment_tokens WHERE expires_at < ?", long_ago),
        ] {
            sqlx::query(sql).bind(bound).execute(&mut *tx).await.map_err(|error| self.error(error))?;
        }
        tx.commit().await.map_err(|error| self.error(error))
    }

    /// All instances, by cluster.
    ///
    /// # Errors
    /// If the file can't be read.
    pub async fn instances(&self) -> Result<Vec<Instance>, RegistryError> {
        let rows = sqlx::query(
            "SELECT id, cluster, serial, not_after, revoked_at, last_seen, online, program, duplicate_at
             FROM instances
             ORDER BY cluster, last_seen DESC, id",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        rows.iter()
            .filter_map(|row| instance(row).transpose())
            .collect::<Result<_, _>>()
            .map_err(|error| self.error(error))
    }

    /// Revokes an instance's certificates, for good. Says whether there is such an instance.
    ///
    /// # Errors
    /// If the file can't be written.
    pub async fn revoke_instance(
        &self,
        instance: InstanceId,
        now: SystemTime,
    ) -> Result<bool, RegistryError> {
        let mut tx = self.writing().await?;
        let done = sqlx::query("UPDATE instances SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?")
            .bind(seconds(now))
            .bind(instance.to_string())
            .execute(&mut *tx)
            .await
            .map_err(|error| self.error(error))?;
        self.commit(tx).await?;
        Ok(done.rows_affected() > 0)
    }
}

fn instance(row: &SqliteRow) -> Result<Option<Instance>, sqlx::Error> {
    let parsed = (row.try_get::<String, _>("id")?.parse(), row.try_get::<String, _>("cluster")?.parse());
    let (Ok(id), Ok(cluster)) = parsed else { return Ok(None) };
    Ok(Some(Instance {
        id,
        cluster,
        serial: row.try_get("serial")?,
        not_after: time(row.try_get("not_after")?),
        revoked_at: row.try_get::<Option<i64>, _>("revoked_at")?.map(time),
        last_seen: row.try_get::<Option<i64>, _>("last_seen")?.map(time),
        program: row.try_get("program")?,
        duplicate_at: row.try_get::<Option<i64>, _>("duplicate_at")?.map(time),
        online: row.try_get("online")?,
    }))
}

//! Audit records in the registry's file.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use sqlx::{QueryBuilder, Row as _, Sqlite, sqlite::SqliteRow};
use towline_tunnel::ids::ClusterId;

use super::{Registry, RegistryError, seconds, time};
use crate::{
    audit::{Record, Retention, Tally},
    values::moment,
};

/// How a channel ended whose relay wrote no end.
const FORGOTTEN: &str = "the relay ended without a word";

/// One record, as the file, the audit log and `towline-relay audit -o json` have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditRow {
    /// The client's session.
    pub channel: String,
    /// As the relay's verifier calls them.
    pub user: String,
    /// Issuer, `#` and stable claim.
    pub principal: String,
    /// Address and port.
    pub source: String,
    /// Program and version, as the client says.
    pub program: String,
    /// The cluster's name then.
    pub cluster: String,
    /// Its id; empty for those beyond what is told apart.
    pub cluster_id: String,
    /// `allowed`, or the reason of the refusal.
    pub verdict: String,
    /// By which role, or why not.
    pub why: String,
    /// The first stream.
    #[serde(serialize_with = "as_moment")]
    pub began_at: SystemTime,
    /// When the numbers were true.
    #[serde(serialize_with = "as_moment")]
    pub noted_at: SystemTime,
    /// When the channel ended; none while it goes on.
    #[serde(serialize_with = "as_moment_or_null")]
    pub ended_at: Option<SystemTime>,
    /// How it ended.
    pub ending: String,
    /// What it carried.
    #[serde(flatten)]
    pub tally: Tally,
}

fn as_moment<S: serde::Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&moment(*at))
}

fn as_moment_or_null<S: serde::Serializer>(at: &Option<SystemTime>, to: S) -> Result<S::Ok, S::Error> {
    at.map(moment).serialize(to)
}

/// Whole seconds, as the file has them: so that the log's line says the same.
fn whole(at: SystemTime) -> SystemTime {
    time(seconds(at))
}

impl From<&Record> for AuditRow {
    fn from(record: &Record) -> Self {
        let channel = &record.channel;
        let (ended_at, ending) =
            record.ended.clone().map_or((None, String::new()), |(at, how)| (Some(whole(at)), how));
        Self {
            channel: channel.id.to_string(),
            user: channel.user.clone(),
            principal: channel.principal.clone(),
            source: channel.source.to_string(),
            program: channel.program.clone(),
            cluster: record.cluster_name.clone(),
            cluster_id: record.cluster.map(|id| id.to_string()).unwrap_or_default(),
            verdict: record.verdict.text().to_owned(),
            why: record.why.clone(),
            began_at: whole(record.began_at),
            noted_at: whole(record.noted_at),
            ended_at,
            ending,
            tally: record.tally,
        }
    }
}

/// Which records are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// A username or a principal.
    pub user: Option<String>,
    /// A cluster's name or id.
    pub cluster: Option<String>,
    /// Of channels that went on at this time, or began later.
    pub since: Option<SystemTime>,
    /// Only what was refused.
    pub refused: bool,
    /// Only what somebody may see who is not to see everything.
    pub own: Option<Own>,
    /// Only those older than the record with this time and number: where the part before ended.
    pub before: Option<(i64, i64)>,
    /// No more than the newest so many.
    pub limit: u32,
}

/// What one person may see: their own, and those of some clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Whose.
    pub principal: String,
    /// Which clusters'.
    pub clusters: Vec<ClusterId>,
}

const COLUMNS: &str = "channel, cluster, verdict, cluster_name, why, user, principal, source, program, began_at, noted_at, ended_at,
    ending, streams, resumed, bytes_to_agent, bytes_to_client";

impl Registry {
    /// Writes records, each over what stands there of the same channel, cluster and verdict.
    ///
    /// # Errors
    /// If the file can't be written: then none is.
    pub async fn note_audit(&self, rows: &[AuditRow]) -> Result<(), RegistryError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut tx = self.writing().await?;
        for row in rows {
            sqlx::query(
                "INSERT INTO audit (channel, cluster, verdict, cluster_name, why, user, principal, source, program, began_at,
                     noted_at, ended_at, ending, streams, resumed, bytes_to_agent, bytes_to_client)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                 ON CONFLICT (channel, cluster, verdict) DO UPDATE SET noted_at = excluded.noted_at,
                     ended_at = excluded.ended_at, ending = excluded.ending, streams = excluded.streams,
                     resumed = excluded.resumed, bytes_to_agent = excluded.bytes_to_agent,
                     bytes_to_client = excluded.bytes_to_client",
            )
            .bind(&row.channel)
            .bind(&row.cluster_id)
            .bind(&row.verdict)
            .bind(&row.cluster)
            .bind(&row.why)
            .bind(&row.user)
            .bind(&row.principal)
            .bind(&row.source)
            .bind(&row.program)
            .bind(seconds(row.began_at))
            .bind(seconds(row.noted_at))
            .bind(row.ended_at.map(seconds))
            .bind(&row.ending)
            .bind(number(row.tally.streams))
            .bind(number(row.tally.resumed))
            .bind(number(row.tally.bytes_to_agent))
            .bind(number(row.tally.bytes_to_client))
            .execute(&mut *tx)
            .await
            .map_err(|error| self.error(error))?;
        }
        tx.commit().await.map_err(|error| self.error(error))
    }

    /// Ends the records of channels that no relay has any more, with what was last noted of them: for a relay that begins. Returns them.
    ///
    /// # Errors
    /// If the file can't be written.
    pub async fn end_forgotten_audit(&self) -> Result<Vec<AuditRow>, RegistryError> {
        let mut tx = self.writing().await?;
        let update = format!(
            "UPDATE audit SET ended_at = noted_at, ending = ? WHERE ended_at IS NULL RETURNING {COLUMNS}"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(update))
            .bind(FORGOTTEN)
            .fetch_all(&mut *tx)
            .await
            .map_err(|error| self.error(error))?;
        tx.commit().await.map_err(|error| self.error(error))?;
        rows.iter().map(read).collect::<Result<_, _>>().map_err(|error| self.error(error))
    }

    /// Removes what need not be kept, and says how many records that were. Those of channels that go on stay; where
    /// there are too many, those of whoever has most go first.
    ///
    /// # Errors
    /// If the file can't be written.
    pub async fn sweep_audit(&self, retention: &Retention, now: SystemTime) -> Result<u64, RegistryError> {
        let mut tx = self.writing().await?;
        let before = now.checked_sub(retention.age).unwrap_or(SystemTime::UNIX_EPOCH);
        let old = sqlx::query("DELETE FROM audit WHERE ended_at < ?").bind(seconds(before));
        let old = old.execute(&mut *tx).await.map_err(|error| self.error(error))?.rows_affected();
        // Whoever has most loses most: nobody can press others' records out with their own.
        let many = sqlx::query(
            "DELETE FROM audit WHERE id IN (
                 SELECT id FROM (
                     SELECT id, ROW_NUMBER() OVER (PARTITION BY principal ORDER BY id DESC) AS depth
                     FROM audit WHERE ended_at IS NOT NULL)
                 ORDER BY depth DESC, id LIMIT MAX(0, (SELECT COUNT(*) FROM audit) - ?))",
        )
        .bind(number(retention.records));
        let many = many.execute(&mut *tx).await.map_err(|error| self.error(error))?.rows_affected();
        tx.commit().await.map_err(|error| self.error(error))?;
        Ok(old + many)
    }

    /// The newest records that the filter lets through, the oldest of them first.
    ///
    /// # Errors
    /// If the file can't be read.
    pub async fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>, RegistryError> {
        let newest_first = self.audit_backwards(filter).await?;
        Ok(newest_first.into_iter().rev().map(|(row, _)| row).collect())
    }

    /// The same, the newest first, each with what [`AuditFilter::before`] takes to go on behind it.
    ///
    /// # Errors
    /// If the file can't be read.
    pub async fn audit_backwards(
        &self,
        filter: &AuditFilter,
    ) -> Result<Vec<(AuditRow, (i64, i64))>, RegistryError> {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new("SELECT id, ");
        query.push(COLUMNS).push(" FROM audit WHERE 1");
        if let Some(user) = &filter.user {
            query.push(" AND (user = ").push_bind(user).push(" OR principal = ").push_bind(user).push(")");
        }
        if let Some(cluster) = &filter.cluster {
            query
                .push(" AND (cluster_name = ")
                .push_bind(cluster)
                .push(" OR cluster = ")
                .push_bind(cluster)
                .push(")");
        }
        if let Some(since) = filter.since {
            query.push(" AND (ended_at IS NULL OR ended_at >= ").push_bind(seconds(since)).push(")");
        }
        if filter.refused {
            query.push(" AND verdict <> 'allowed'");
        }
        if let Some(own) = &filter.own {
            query.push(" AND (principal = ").push_bind(&own.principal);
            for cluster in &own.clusters {
                query.push(" OR cluster = ").push_bind(cluster.to_string());
            }
            query.push(")");
        }
        if let Some((began_at, id)) = filter.before {
            query.push(" AND (began_at, id) < (").push_bind(began_at).push(", ").push_bind(id).push(")");
        }
        query.push(" ORDER BY began_at DESC, id DESC LIMIT ").push_bind(i64::from(filter.limit));
        let rows = query.build().fetch_all(&self.pool).await.map_err(|error| self.error(error))?;
        let placed = |row: &SqliteRow| -> Result<_, sqlx::Error> {
            Ok((read(row)?, (row.try_get("began_at")?, row.try_get("id")?)))
        };
        rows.iter().map(placed).collect::<Result<_, _>>().map_err(|error| self.error(error))
    }
}

/// SQLite's integers are signed.
fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn read(row: &SqliteRow) -> Result<AuditRow, sqlx::Error> {
    let count = |name| row.try_get::<i64, _>(name).map(|count| u64::try_from(count).unwrap_or(0));
    let at = |name| row.try_get::<i64, _>(name).map(time);
    Ok(AuditRow {
        channel: row.try_get("channel")?,
        user: row.try_get("user")?,
        principal: row.try_get("principal")?,
        source: row.try_get("source")?,
        program: row.try_get("program")?,
        cluster: row.try_get("cluster_name")?,
        cluster_id: row.try_get("cluster")?,
        verdict: row.try_get("verdict")?,
        why: row.try_get("why")?,
        began_at: at("began_at")?,
        noted_at: at("noted_at")?,
        ended_at: row.try_get::<Option<i64>, _>("ended_at")?.map(time),
        ending: row.try_get("ending")?,
        tally: Tally {
            streams: count("streams")?,
            resumed: count("resumed")?,
            bytes_to_agent: count("bytes_to_agent")?,
            bytes_to_client: count("bytes_to_client")?,
        },
    })
}

impl Default for Retention {
    fn default() -> Self {
        Self { age: Duration::from_secs(90 * 24 * 3600), records: 1_000_000 }
    }
}

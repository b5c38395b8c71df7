//! One-time enrolment tokens, and what using one does.

use std::time::SystemTime;

use sqlx::{Row as _, Sqlite, Transaction};
use towline_tunnel::{ids::ClusterId, keys::VerifyingKey};

use super::{ClusterName, Registry, RegistryError, seconds};

/// What an enrolment token offers. Only the hash of its secret is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolmentOffer {
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
    /// The name under which the cluster will be enrolled.
    pub name: ClusterName,
    /// Whether another cluster's key may take over the name, with the name's role assignments.
    pub replaces: bool,
    /// When it ends.
    pub expires_at: SystemTime,
}

/// What came of using an enrolment token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enrolled {
    /// The cluster is enrolled under this name now.
    Yes {
        /// Its name.
        name: String,
    },
    /// No such token was ever made here, or it was forgotten.
    TokenUnknown,
    /// Its time is over.
    TokenExpired,
    /// It was used before.
    TokenUsed,
    /// Another key holds the name, and the token was not made with `--replace`. The token stays usable.
    NameTaken {
        /// The name.
        name: String,
    },
    /// This key is enrolled under another name, and the token was not made with `--replace`. The token stays usable.
    EnrolledElsewhere {
        /// That other name.
        name: String,
    },
}

impl Registry {
    /// Keeps a new enrolment token.
    ///
    /// # Errors
    /// If the file can't be written.
    pub async fn offer_enrolment(
        &self,
        offer: &EnrolmentOffer,
        now: SystemTime,
    ) -> Result<(), RegistryError> {
        let mut tx = self.writing().await?;
        sqlx::query(
            "INSERT INTO enrolment_tokens (secret_hash, name, replaces, created_at, expires_at)
             VALUES (?, ?, ?, ?, ?)",
        )
        .bind(&offer.secret_hash[..])
        .bind(offer.name.as_str())
        .bind(offer.replaces)
        .bind(seconds(now))
        .bind(seconds(offer.expires_at))
        .execute(&mut *tx)
        .await
        .map_err(|error| self.error(error))?;
        tx.commit().await.map_err(|error| self.error(error))
    }

    /// Uses an enrolment token for a cluster whose possession of `key` was proven.
    ///
    /// One transaction: a token is used exactly if the cluster is enrolled, and two that race for it can't both win.
    ///
    /// # Errors
    /// If the file can't be written.
    pub async fn enrol(
        &self,
        secret_hash: &[u8; 32],
        key: &VerifyingKey,
        now: SystemTime,
    ) -> Result<Enrolled, RegistryError> {
        let mut tx = self.writing().await?;
        let enrolled = enrol(&mut tx, secret_hash, key, now).await.map_err(|error| self.error(error))?;
        if matches!(enrolled, Enrolled::Yes { .. }) {
            self.commit(tx).await?;
        } else {
            tx.rollback().await.map_err(|error| self.error(error))?;
        }
        Ok(enrolled)
    }

    /// Removes a cluster, its instances and its role assignments. Says whether it was there.
    ///
    /// # Errors
    /// If the file can't be written.
    pub async fn remove_cluster(&self, cluster: ClusterId) -> Result<bool, RegistryError> {
        let mut tx = self.writing().await?;
        let done = sqlx::query("DELETE FROM clusters WHERE id = ?")
            .bind(cluster.to_string())
            .execute(&mut *tx)
            .await
            .map_err(|error| self.error(error))?;
        self.commit(tx).await?;
        Ok(done.rows_affected() > 0)
    }
}

async fn enrol(
    tx: &mut Transaction<'_, Sqlite>,
    secret_hash: &[u8; 32],
    key: &VerifyingKey,
    now: SystemTime,
) -> Result<Enrolled, sqlx::Error> {
    let token =
        sqlx::query("SELECT name, replaces, expires_at, used_at FROM enrolment_tokens WHERE secret_hash = ?")
            .bind(&secret_hash[..])
            .fetch_optional(&mut **tx)
            .await?;
    let Some(token) = token else { return Ok(Enrolled::TokenUnknown) };
    if token.try_get::<Option<i64>, _>("used_at")?.is_some() {
        return Ok(Enrolled::TokenUsed);
    }
    if token.try_get::<i64, _>("expires_at")? <= seconds(now) {
        return Ok(Enrolled::TokenExpired);
    }
    let (name, replaces): (String, bool) = (token.try_get("name")?, token.try_get("replaces")?);
    let id = key.cluster_id().to_string();
    let holder: Option<String> = column(tx, "SELECT id FROM clusters WHERE name = ?", &name).await?;
    let held_name: Option<String> = column(tx, "SELECT name FROM clusters WHERE id = ?", &id).await?;
    if let Some(held) = held_name
        && held != name
        && !replaces
    {
        return Ok(Enrolled::EnrolledElsewhere { name: held });
    }
    let replaced = holder.filter(|holder| *holder != id);
    if replaced.is_some() && !replaces {
        return Ok(Enrolled::NameTaken { name });
    }
    let used =
        sqlx::query("UPDATE enrolment_tokens SET used_at = ? WHERE secret_hash = ? AND used_at IS NULL")
            .bind(seconds(now))
            .bind(&secret_hash[..])
            .execute(&mut **tx)
            .await?;
    if used.rows_affected() != 1 {
        return Ok(Enrolled::TokenUsed);
    }
    if let Some(replaced) = &replaced {
        // Frees the name. NUL can't stand in a name that the command line takes.
        let set_aside = "UPDATE clusters SET name = char(0) || id WHERE id = ?";
        sqlx::query(set_aside).bind(replaced).execute(&mut **tx).await?;
    }
    sqlx::query(
        "INSERT INTO clusters (id, name, key, enrolled_at) VALUES (?, ?, ?, ?)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, enrolled_at = excluded.enrolled_at, enabled = 1",
    )
    .bind(&id)
    .bind(&name)
    .bind(&key.spki()[..])
    .bind(seconds(now))
    .execute(&mut **tx)
    .await?;
    if let Some(replaced) = &replaced {
        for inherit in [
            "UPDATE OR IGNORE role_assignments SET cluster = ? WHERE cluster = ?",
            "UPDATE OR IGNORE duties SET cluster = ? WHERE cluster = ?",
            "UPDATE OR IGNORE revocations SET cluster = ? WHERE cluster = ?",
        ] {
            sqlx::query(inherit).bind(&id).bind(replaced).execute(&mut **tx).await?;
        }
        sqlx::query("DELETE FROM clusters WHERE id = ?").bind(replaced).execute(&mut **tx).await?;
    }
    Ok(Enrolled::Yes { name })
}

async fn column(
    tx: &mut Transaction<'_, Sqlite>,
    sql: &'static str,
    bound: &str,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query(sql).bind(bound).fetch_optional(&mut **tx).await?.map(|row| row.try_get(0)).transpose()
}

//! Words that the serving process leaves for the command line.

use sqlx::Row as _;

use super::{Registry, RegistryError};

impl Registry {
    /// What was set under this name.
    ///
    /// # Errors
    /// If the file can't be read.
    pub async fn setting(&self, name: &str) -> Result<Option<String>, RegistryError> {
        let row = sqlx::query("SELECT value FROM settings WHERE name = ?")
            .bind(name)
            .fetch_optional(&self.pool)
            .await;
        let value = row.and_then(|row| row.map(|row| row.try_get("value")).transpose());
        value.map_err(|error| self.error(error))
    }

    /// Sets a value, or removes it.
    ///
    /// # Errors
    /// If the file can't be written.
    pub async fn set(&self, name: &str, value: Option<&str>) -> Result<(), RegistryError> {
        let mut tx = self.writing().await?;
        let done = match value {
            Some(value) => {
                sqlx::query(
                    "INSERT INTO settings (name, value) VALUES (?, ?)
                     ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                )
                .bind(name)
                .bind(value)
                .execute(&mut *tx)
                .await
            }
            None => sqlx::query("DELETE FROM settings WHERE name = ?").bind(name).execute(&mut *tx).await,
        };
        done.map_err(|error| self.error(error))?;
        tx.commit().await.map_err(|error| self.error(error))
    }
}

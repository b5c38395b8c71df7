//! What the relay knows for longer than a session: clusters, enrolment tokens, agent instances, role assignments.
//!
//! One SQLite file in the data directory. Nothing on the path of a stream asks it: decisions are made from a
//! [`Snapshot`] in memory, which [`follow`] keeps current when another process (the command line) changes the file.
//! While the file is away, what is already known goes on.

mod audit;
mod documents;
mod duties;
mod enrolments;
mod error;
mod follow;
mod instances;
mod name;
mod revocations;
mod roles;
mod settings;
mod snapshot;

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use audit::{AuditFilter, AuditRow, Own};
pub use documents::{Documents, MAX_DOCUMENTS, Stored};
pub use duties::{Duties, Duty, DutyAssignment};
pub use enrolments::{Enrolled, EnrolmentOffer};
pub use error::RegistryError;
pub use follow::{LOOK_EVERY, follow};
pub use instances::{Instance, PRESENCE_EVERY, Presence, Recorded, Sighting};
pub use name::{ClusterName, NameError};
pub use revocations::{REMEMBERED_FOR, Revocation, Revocations};
pub use roles::{Role, RoleAssignment, SubjectKind, Unknown};
pub use snapshot::{Cluster, Grants, Snapshot};
use sqlx::{
    SqlSafeStr as _, Sqlite, SqlitePool, Transaction,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::watch;

/// The registry's file in the data directory.
pub const FILE: &str = "registry.sqlite";
/// How long a statement waits while another process writes. Writes here take milliseconds: longer means trouble.
const BUSY_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a caller waits for one of the connections.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections to the file at most. SQLite lets one of them write at a time; the others serve readers meanwhile.
pub const CONNECTIONS: u32 = 4;

/// The registry. Clones share connections and the snapshot.
#[derive(Clone, Debug)]
pub struct Registry {
    path: Arc<PathBuf>,
    inode: u64,
    pool: SqlitePool,
    snapshot: Arc<watch::Sender<Arc<Snapshot>>>,
}

impl Registry {
    /// Opens the registry in a data directory, makes it where there is none, and brings its tables up to date.
    ///
    /// # Errors
    /// If the file can't be opened, read, written or migrated; the error says which and what to do.
    pub async fn open(data_dir: &Path) -> Result<Self, RegistryError> {
        let path = data_dir.join(FILE);
        let at = |error: sqlx::Error| RegistryError::new(&path, error);
        create_private(&path).map_err(|error| at(error.into()))?;
        // WAL: readers go on while a writer writes, and the command line works beside a serving relay.
        // FULL: an enrolment token that was used stays used after a power cut.
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options)
            .await
            .map_err(at)?;
        migrations().run(&pool).await.map_err(|error| RegistryError::migration(&path, error))?;
        let snapshot = Snapshot::load(&pool).await.map_err(at)?;
        let inode = fs::metadata(&path).map_err(|error| at(error.into()))?.ino();
        Ok(Self {
            path: Arc::new(path),
            inode,
            pool,
            snapshot: Arc::new(watch::Sender::new(Arc::new(snapshot))),
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was last read: never waits.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    /// Tells when the snapshot changes, so that what is no longer allowed can be ended.
    pub fn changes(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.subscribe()
    }

    /// Reads the tables again now; done after each change made here.
    ///
    /// # Errors
    /// If the file can't be read; the snapshot stays as it was.
    pub async fn refresh(&self) -> Result<(), RegistryError> {
        let snapshot = Snapshot::load(&self.pool).await.map_err(|error| self.error(error))?;
        self.snapshot.send_if_modified(|held| {
            // Two refreshes can overtake each other; what was read first must not win.
            let newer = snapshot.revision > held.revision;
            if newer {
                *held = Arc::new(snapshot);
            }
            newer
        });
        Ok(())
    }

    /// Writes back what is in memory and closes the connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Whether the file is still the one that was opened. SQLite writes happily on into a file that was deleted or
    /// moved away, and what it wrote is gone with the process.
    fn in_place(&self) -> Result<(), RegistryError> {
        match fs::metadata(&*self.path) {
            Ok(found) if found.ino() == self.inode => Ok(()),
            Ok(_) => Err(RegistryError::replaced(&self.path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(RegistryError::missing(&self.path, error))
            }
            Err(error) => Err(self.error(error.into())),
        }
    }

    /// Begins to write: takes the write lock at once, so that what is read first still holds when it is acted on.
    async fn writing(&self) -> Result<Transaction<'static, Sqlite>, RegistryError> {
        self.in_place()?;
        self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(|error| self.error(error))
    }

    /// Ends a change of what is decided by: it is known here when this returns. Where nothing of that has changed, nothing is read again:
    /// strangers can bring what changes nothing.
    async fn commit(&self, mut tx: Transaction<'static, Sqlite>) -> Result<(), RegistryError> {
        let revision = follow::revision(&mut tx).await.map_err(|error| self.error(error))?;
        tx.commit().await.map_err(|error| self.error(error))?;
        if revision == self.snapshot().revision {
            return Ok(());
        }
        self.refresh().await
    }

    fn error(&self, error: sqlx::Error) -> RegistryError {
        RegistryError::new(&self.path, error)
    }
}

/// An empty file is an empty database. SQLite would make it readable by others; its -wal and -shm files take over this
/// mode.
fn create_private(path: &Path) -> io::Result<()> {
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn migrations() -> Migrator {
    let migration = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![
        migration(1, "registry", include_str!("registry/migrations/0001_registry.sql")),
        migration(2, "audit", include_str!("registry/migrations/0002_audit.sql")),
        migration(3, "role documents", include_str!("registry/migrations/0003_role_documents.sql")),
        migration(4, "duties", include_str!("registry/migrations/0004_duties.sql")),
    ])
}

/// Seconds since 1970, as the tables hold times.
fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// The time that a table holds.
fn time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests;

//! Why the registry can't be used, and what to do.

use std::{
    io,
    path::{Path, PathBuf},
};

use sqlx::migrate::MigrateError;
use towline_tunnel::fault::{Fault, Report};

/// SQLite's primary result codes (<https://www.sqlite.org/rescode.html>) that have an answer of their own.
mod code {
    pub(super) const BUSY: i32 = 5;
    pub(super) const LOCKED: i32 = 6;
    pub(super) const READONLY: i32 = 8;
    pub(super) const IO: i32 = 10;
    pub(super) const CORRUPT: i32 = 11;
    pub(super) const FULL: i32 = 13;
    pub(super) const CANT_OPEN: i32 = 14;
    pub(super) const NOT_A_DATABASE: i32 = 26;
}

/// The registry's file can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {advice}", path.display())]
pub struct RegistryError {
    path: PathBuf,
    advice: String,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl RegistryError {
    pub(super) fn new(path: &Path, error: sqlx::Error) -> Self {
        Self { path: path.to_owned(), advice: advice(&error), source: error.into() }
    }

    pub(super) fn missing(path: &Path, error: io::Error) -> Self {
        let advice =
            "gone while the relay runs; put it back with its -wal file, or restart the relay".to_owned();
        Self { path: path.to_owned(), advice, source: error.into() }
    }

    pub(super) fn replaced(path: &Path) -> Self {
        let advice =
            "replaced by another file while the relay runs; restart the relay to use that one".to_owned();
        Self { path: path.to_owned(), advice, source: "the inode changed".into() }
    }

    pub(super) fn migration(path: &Path, error: MigrateError) -> Self {
        let advice = match &error {
            MigrateError::Execute(error) => advice(error),
            MigrateError::VersionMissing(version) => {
                format!(
                    "made by a newer towline-relay (schema {version}); run that version, or restore a backup"
                )
            }
            MigrateError::VersionMismatch(version) => {
                format!("its schema {version} is not the one of this towline-relay; restore a backup")
            }
            other => format!("its tables can't be brought up to date: {other}"),
        };
        Self { path: path.to_owned(), advice, source: error.into() }
    }
}

fn advice(error: &sqlx::Error) -> String {
    if let sqlx::Error::Io(error) = error {
        return format!(
            "can't be opened: {error}; check that the folder exists and this user may write in it"
        );
    }
    let primary = match error {
        sqlx::Error::Database(error) => {
            error.code().and_then(|code| code.parse::<i32>().ok()).map(|extended| extended & 0xff)
        }
        _ => None,
    };
    let known = match primary {
        Some(code::BUSY | code::LOCKED) => {
            "locked by another process; end whatever holds it open and try again"
        }
        Some(code::READONLY) => "read-only; make file and folder writable for this user",
        Some(code::IO) => "reading or writing failed; check the disk",
        Some(code::CORRUPT) => {
            "damaged; stop the relay and restore the file (with its -wal file) from a backup"
        }
        Some(code::NOT_A_DATABASE) => "not an SQLite database; restore it from a backup, or move it away",
        Some(code::FULL) => "the disk is full; make room",
        Some(code::CANT_OPEN) => {
            "can't be opened; check that the folder exists and this user may write in it"
        }
        _ => return error.to_string(),
    };
    format!("{known} ({error})")
}

impl From<RegistryError> for Report {
    fn from(error: RegistryError) -> Self {
        Self::new(Fault::RelayDatabase, error.to_string())
    }
}

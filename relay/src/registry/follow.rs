//! Keeps the snapshot of a serving relay current while other processes change the file.

use std::time::Duration;

use sqlx::{ConnectOptions as _, Row as _, SqliteConnection};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::{Registry, RegistryError};

/// How often the file is looked at: a role that is removed holds no longer than this, and what a look takes.
pub const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A look that takes longer counts as failed. It reads one page.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

/// Looks at the registry at short intervals and reads it again when another process changed it; never returns.
///
/// `available` is told whenever the file goes away or comes back, for readiness and metrics. What was known stays
/// known meanwhile.
pub async fn follow(registry: Registry, available: impl Fn(bool) + Send) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = None;
    let mut was_available = true;
    loop {
        ticks.tick().await;
        let looked = timeout(LOOK_WITHIN, look(&registry, &mut watch))
            .await
            .unwrap_or_else(|_| Err(registry.error(sqlx::Error::PoolTimedOut)));
        if let Err(error) = &looked {
            // A connection that failed is not trusted again: the next look opens a new one.
            watch = None;
            if was_available {
                warn!(%error, "the registry is away; what is known of clusters and roles goes on");
            }
        } else if !was_available {
            info!("the registry is back");
        }
        if looked.is_ok() != was_available {
            was_available = looked.is_ok();
            available(was_available);
        }
    }
}

/// One connection of its own, kept open: `data_version` tells it of every commit that others made.
struct Watch {
    connection: SqliteConnection,
    version: Option<i64>,
}

async fn look(registry: &Registry, watch: &mut Option<Watch>) -> Result<(), RegistryError> {
    let at = |error: sqlx::Error| registry.error(error);
    registry.in_place()?;
    let held = match watch {
        Some(held) => held,
        None => {
            let options = (*registry.pool.connect_options()).clone().create_if_missing(false);
            let connection = options.connect().await.map_err(at)?;
            watch.insert(Watch { connection, version: None })
        }
    };
    let version = number(&mut held.connection, "PRAGMA data_version").await.map_err(at)?;
    if held.version == Some(version) {
        return Ok(());
    }
    let revision = revision(&mut held.connection).await.map_err(at)?;
    if revision != registry.snapshot().revision {
        registry.refresh().await?;
    }
    held.version = Some(version);
    Ok(())
}

/// Counts the changes of what is decided by; what a [`Snapshot`](super::Snapshot) was read at.
pub(super) async fn revision(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    number(connection, "SELECT value FROM revision").await
}

async fn number(connection: &mut SqliteConnection, sql: &'static str) -> Result<i64, sqlx::Error> {
    sqlx::query(sql).fetch_one(connection).await?.try_get(0)
}

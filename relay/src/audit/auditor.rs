//! The task that writes records to the registry's file and to the audit log.

use std::time::{Duration, SystemTime};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, interval, sleep_until, timeout},
};
use towline_tunnel::{audit::AuditLog, clock::Clock};
use tracing::{info, warn};

use super::{Record, Retention};
use crate::registry::{AuditRow, Registry};

/// Records that may wait for the task.
const QUEUE: usize = 4 * 1024;
/// Records are gathered for so long, and then written together.
const GATHERED_FOR: Duration = Duration::from_millis(250);
/// Records that are kept while the file is away; then no more are taken out of the queue.
const MAX_GATHERED: usize = 4 * 1024;
/// After an error of the file.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// How often old records are removed.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);
/// And after so many records: nobody fills the disk in between.
const SWEEP_AFTER: usize = 20_000;
/// A relay that ends waits no longer for its records.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);

#[derive(Debug)]
enum Message {
    Record(Box<Record>),
    Flush(oneshot::Sender<()>),
}

/// Takes records. Clones hand them to the same task.
#[derive(Clone, Debug)]
pub struct Audit {
    queue: mpsc::Sender<Message>,
    clock: Clock,
}

/// Writes them: see [`Auditor::run`].
#[derive(Debug)]
pub struct Auditor {
    queue: mpsc::Receiver<Message>,
    registry: Registry,
    log: AuditLog,
    retention: Retention,
    clock: Clock,
}

impl Audit {
    /// Where records go, and what writes them once it runs.
    pub fn new(registry: Registry, log: AuditLog, retention: Retention, clock: Clock) -> (Self, Auditor) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let auditor = Auditor { queue, registry, log, retention, clock: clock.clone() };
        (Self { queue: sender, clock }, auditor)
    }

    /// The time, as records have it.
    pub(super) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// Hands on a record. Waits for nothing.
    pub(super) fn send(&self, record: Record) {
        if let Err(
            mpsc::error::TrySendError::Full(Message::Record(record))
            | mpsc::error::TrySendError::Closed(Message::Record(record)),
        ) = self.queue.try_send(Message::Record(Box::new(record)))
        {
            tell_instead(&record);
        }
    }

    /// Hands on something that happened beside streams.
    pub fn tell(&self, event: Record) {
        self.send(event);
    }

    /// Waits until everything that was handed on before is written, for some seconds at most.
    pub async fn flush(&self) {
        let (done, written) = oneshot::channel();
        let flushed = async {
            if self.queue.send(Message::Flush(done)).await.is_ok() {
                let _ended = written.await;
            }
        };
        if timeout(FLUSH_WITHIN, flushed).await.is_err() {
            warn!("audit records are missing from the registry");
        }
    }
}

/// A record that can't be kept stands in the relay's own log.
fn tell_instead(record: &Record) {
    let record = serde_json::to_string(&AuditRow::from(record)).unwrap_or_default();
    warn!(target: "towline::audit", record, "an audit record was not kept; it stands here instead");
}

impl Auditor {
    /// Writes records as they come, and removes old ones; never returns while anybody has an [`Audit`].
    pub async fn run(mut self) {
        self.end_forgotten().await;
        let mut sweeps = interval(SWEEP_EVERY);
        let mut gathered: Vec<Record> = Vec::new();
        let (mut due, mut taken) = (Instant::now(), 0);
        loop {
            tokio::select! {
                message = self.queue.recv(), if gathered.len() < MAX_GATHERED => match message {
                    Some(Message::Record(record)) => {
                        if gathered.is_empty() {
                            due = Instant::now() + GATHERED_FOR;
                        }
                        if record.ended.is_some() {
                            self.log.record(&AuditRow::from(&*record));
                        }
                        gathered.push(*record);
                        taken += 1;
                    }
                    Some(Message::Flush(done)) => {
                        self.write_last(&mut gathered).await;
                        let _gone = done.send(());
                    }
                    None => return self.write_last(&mut gathered).await,
                },
                () = sleep_until(due), if !gathered.is_empty() => {
                    if !self.write(&mut gathered).await {
                        due = Instant::now() + AGAIN_AFTER;
                    } else if taken >= SWEEP_AFTER {
                        taken = 0;
                        self.sweep().await;
                    }
                }
                _ = sweeps.tick() => self.sweep().await,
            }
        }
    }

    async fn write(&self, gathered: &mut Vec<Record>) -> bool {
        let rows: Vec<AuditRow> = gathered.iter().map(AuditRow::from).collect();
        match self.registry.note_audit(&rows).await {
            Ok(()) => {
                gathered.clear();
                true
            }
            Err(error) => {
                warn!(%error, records = rows.len(), "audit records can't be written; they are kept and tried again");
                false
            }
        }
    }

    /// The same where there is no later.
    async fn write_last(&self, gathered: &mut Vec<Record>) {
        if !self.write(gathered).await {
            gathered.drain(..).for_each(|record| tell_instead(&record));
        }
    }

    /// What a relay that was killed left open.
    async fn end_forgotten(&self) {
        match self.registry.end_forgotten_audit().await {
            Ok(rows) => rows.iter().for_each(|row| self.log.record(row)),
            Err(error) => warn!(%error, "channels of an earlier run stay without an end in the audit"),
        }
    }

    async fn sweep(&self) {
        match self.registry.sweep_audit(&self.retention, self.clock.now()).await {
            Ok(0) => {}
            Ok(removed) => info!(removed, "old audit records were removed"),
            Err(error) => warn!(%error, "old audit records could not be removed"),
        }
    }
}

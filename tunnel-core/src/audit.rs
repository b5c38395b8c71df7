//! The audit log of a program: one JSON object a line, to standard output or to a file that is rotated.
//!
//! Whoever records something waits for nothing. A thread of its own writes; where it can't keep up, or the file can't be written, the line
//! goes to the program's own log instead: none is lost in silence.

mod rotating;

use std::{
    io::{self, Write},
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    thread::JoinHandle,
    time::Duration,
};

use serde::Serialize;
use tracing::{error, warn};

use crate::{
    fault::{Fault, Report},
    json,
};
use rotating::RotatingFile;

/// Lines that may wait for the file.
const QUEUE: usize = 8 * 1024;
/// A writer whose program ends looks this often whether everybody who records has gone.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Where audit lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// A file, which is rotated.
    File(FileSettings),
}

/// A file of audit lines, made with mode 0600.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSettings {
    /// The newest lines; older ones stand in `PATH.1`, `PATH.2`, ….
    pub path: PathBuf,
    /// Bytes after which the next file is begun. No line is divided.
    pub max_bytes: u64,
    /// Older files that are kept.
    pub keep: u32,
}

impl Destination {
    /// As a flag says it: `-` is standard output, everything else a path.
    pub fn parse(text: &str, max_bytes: u64, keep: u32) -> Self {
        match text {
            "-" => Self::Stdout,
            path => Self::File(FileSettings { path: path.into(), max_bytes, keep }),
        }
    }
}

/// Takes lines. Clones write to the same place.
#[derive(Clone, Debug)]
pub struct AuditLog(Option<SyncSender<String>>);

/// Owns the thread that writes.
#[derive(Debug)]
pub struct AuditWriter(JoinHandle<()>);

impl AuditLog {
    /// One that keeps nothing.
    pub fn none() -> Self {
        Self(None)
    }

    /// Opens the destination, and starts what writes to it.
    ///
    /// # Errors
    /// If the file can't be opened to append to it.
    pub fn open(to: &Destination) -> Result<(Self, AuditWriter), Report> {
        let sink: Box<dyn Write + Send> = match to {
            Destination::Stdout => Box::new(io::stdout()),
            Destination::File(settings) => {
                Box::new(RotatingFile::open(settings.clone()).map_err(|error| {
                    let path = settings.path.display();
                    Report::caused_by(Fault::FileUnwritable, format!("the audit log {path}"), error)
                })?)
            }
        };
        let (queue, lines) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || write(sink, &lines))
            .map_err(|error| Report::caused_by(Fault::Internal, "no thread for the audit log", error))?;
        Ok((Self(Some(queue)), AuditWriter(thread)))
    }

    /// Whether anything is kept.
    pub fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Queues one line. Waits for nothing.
    pub fn record(&self, of: &impl Serialize) {
        let Some(queue) = &self.0 else { return };
        match json::to_string(of) {
            Ok(line) => {
                if let Err(TrySendError::Full(line) | TrySendError::Disconnected(line)) = queue.try_send(line)
                {
                    warn!(target: "towline::audit", line, "the audit log can't keep up; the line stands here instead");
                }
            }
            Err(error) => error!(%error, "an audit line can't be made"),
        }
    }
}

impl AuditWriter {
    /// Waits until every line is written, at most so long: for a program that ends. Whoever still records must have gone before. False
    /// if some line may be missing.
    pub async fn finish(self, within: Duration) -> bool {
        let until = tokio::time::Instant::now() + within;
        while !self.0.is_finished() {
            if tokio::time::Instant::now() >= until {
                warn!("the audit log was not written to its end");
                return false;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        true
    }
}

/// Writes until nobody is left who records.
fn write(mut sink: impl Write, lines: &Receiver<String>) {
    let mut broken = false;
    loop {
        let mut next = match lines.recv_timeout(LOOK_EVERY) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        while let Some(line) = next {
            // In one call, or rotation would divide it.
            let written = sink.write_all(format!("{line}\n").as_bytes());
            note(&mut broken, written, Some(&line));
            next = lines.try_recv().ok();
        }
        let flushed = sink.flush();
        note(&mut broken, flushed, None);
    }
}

fn note(broken: &mut bool, written: io::Result<()>, line: Option<&str>) {
    match written {
        Ok(()) => *broken = false,
        Err(error) => {
            if !std::mem::replace(broken, true) {
                error!(%error, "the audit log can't be written");
            }
            if let Some(line) = line {
                warn!(target: "towline::audit", line, "an audit line that could not be written");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Serialize)]
    struct Line {
        n: usize,
    }

    fn numbers(text: &str) -> Vec<u64> {
        let read =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["n"].as_u64().unwrap();
        text.lines().map(read).collect()
    }

    #[tokio::test]
    async fn every_line_is_written_whole_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let to = Destination::parse(path.to_str().unwrap(), 200, 100);
        let (log, writer) = AuditLog::open(&to).unwrap();
        let other = log.clone();
        for n in 0..500 {
            if n % 2 == 0 { &log } else { &other }.record(&Line { n });
        }
        drop((log, other));
        assert!(writer.finish(Duration::from_secs(10)).await);
        let mut all = Vec::new();
        for number in (1..=100).rev() {
            let older = folder.path().join(format!("audit.log.{number}"));
            all.extend(fs::read_to_string(older).map(|text| numbers(&text)).unwrap_or_default());
        }
        all.extend(numbers(&fs::read_to_string(&path).unwrap()));
        assert_eq!(all, (0..500).collect::<Vec<_>>());
    }

    #[test]
    fn where_nothing_can_be_written_it_is_said_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none/audit.log");
        let report = AuditLog::open(&Destination::parse(path.to_str().unwrap(), 100, 1)).unwrap_err();
        assert_eq!(report.fault, Fault::FileUnwritable);
        assert!(report.to_string().contains("none/audit.log"), "{report}");
        assert_eq!(Destination::parse("-", 1, 1), Destination::Stdout);
        assert!(!AuditLog::none().is_kept());
    }

    /// Fails until it is mended.
    struct Full(Arc<Mutex<(bool, Vec<u8>)>>);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.0.lock().unwrap();
            if state.0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            state.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_ends_nothing() {
        let state = Arc::new(Mutex::new((true, Vec::new())));
        let (queue, lines) = sync_channel(10);
        let sink = Full(Arc::clone(&state));
        queue.send("1".into()).unwrap();
        let writer = std::thread::spawn(move || write(sink, &lines));
        // A full queue of lines later the first one is past.
        for _ in 0..20 {
            queue.send("2".into()).unwrap();
        }
        state.lock().unwrap().0 = false;
        queue.send("3".into()).unwrap();
        drop(queue);
        writer.join().unwrap();
        assert!(state.lock().unwrap().1.ends_with(b"3\n"));
    }
}

//! Logs: text on a terminal, JSON otherwise.

use std::{
    io::{self, IsTerminal as _},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use towline_tunnel::log::{Level, Lines};
use tracing_subscriber::{Layer as _, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// What logs here and at the other hops, which a test may have in one process with it.
const OURS: &[&str] = &["towline", "towline_tunnel", "towline_relay", "towline_agent", "towline_identity"];

/// No more of a log is kept for a bundle; what comes after it is not.
const KEPT: usize = 1 << 20;

static LOG: OnceLock<Kept> = OnceLock::new();

/// What was logged, in memory.
#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = KEPT.saturating_sub(kept.len());
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What was logged until now, where it is kept.
pub(super) fn kept() -> String {
    let bytes = LOG.get().map(|kept| kept.0.lock().unwrap_or_else(PoisonError::into_inner).clone());
    String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
}

/// Begins to log to stderr.
pub fn start(level: Level) {
    begin(level, false);
}

/// The same, and keeps what is logged at `debug` for a bundle.
pub fn start_and_keep(level: Level) {
    begin(level, true);
}

fn begin(level: Level, keep: bool) {
    let told = fmt::layer().with_writer(io::stderr);
    let told = if io::stderr().is_terminal() {
        told.with_target(false).boxed()
    } else {
        told.json().flatten_event(true).with_writer(|| Lines(io::stderr())).boxed()
    };
    let told = told.with_filter(level.of(OURS));
    let kept = keep.then(|| {
        let kept = LOG.get_or_init(Kept::default).clone();
        let lines = fmt::layer().with_ansi(false).with_writer(move || kept.clone());
        lines.with_filter(Level::Debug.of(OURS))
    });
    // A second start, as in tests, changes nothing.
    let _already = tracing_subscriber::registry().with(told).with(kept).try_init();
}

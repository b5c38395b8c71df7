//! Logs: text on a terminal, JSON otherwise.

use std::io::{self, IsTerminal as _};

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, fmt};

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// What failed for good.
    Error,
    /// What went wrong and is dealt with.
    Warn,
    /// What happens seldom.
    Info,
    /// Each stream and request.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// Our own programs at this level. Libraries never below `warn`: what they trace may hold tokens (THREATS T29).
    fn filter(self) -> String {
        let level = self.name();
        let others = if self == Self::Error { "error" } else { "warn" };
        let ours = ["towline", "towline_tunnel", "towline_relay", "towline_agent", "towline_identity"];
        ours.iter().fold(others.to_owned(), |filter, program| format!("{filter},{program}={level}"))
    }
}

/// Begins to log to stderr.
pub fn start(level: Level) {
    let filter = EnvFilter::new(level.filter());
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr);
    // A second start, as in tests, changes nothing.
    let _already = if io::stderr().is_terminal() {
        builder.with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
}

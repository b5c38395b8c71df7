//! How much a program logs and where: text on a terminal, JSON with all fields at one level otherwise, on standard error.

use std::io::{self, IsTerminal as _};

use clap::ValueEnum;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// What failed for good
    Error,
    /// What went wrong and is dealt with
    Warn,
    /// Sessions and streams, and requests that failed
    Info,
    /// Each request, and each step of a session
    Debug,
    /// Everything
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

    /// What these crates log at this level. Libraries never below `warn`: what they trace may hold tokens (THREATS T29).
    pub fn of(self, crates: &[&str]) -> EnvFilter {
        let others = if self == Self::Error { Self::Error } else { Self::Warn };
        let ours = crates.iter().map(|name| format!("{name}={}", self.name()));
        EnvFilter::new(ours.fold(others.name().to_owned(), |filter, part| format!("{filter},{part}")))
    }
}

/// Begins to log what these crates say: at the level given, or else as `RUST_LOG` says, or else at `info`.
pub fn start(level: Option<Level>, crates: &[&str]) {
    let filter = match level {
        Some(level) => level.of(crates),
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if io::stderr().is_terminal() {
        builder.with_target(false).init();
    } else {
        builder.json().flatten_event(true).init();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_for_our_own_code() {
        let filter = |level: Level| level.of(&["towline_relay", "towline_tunnel"]).to_string();
        let debug = filter(Level::Debug);
        for part in ["towline_relay=debug", "towline_tunnel=debug", "warn"] {
            assert!(debug.split(',').any(|said| said == part), "{debug}");
        }
        assert!(filter(Level::Error).split(',').any(|said| said == "error"));
        assert!(filter(Level::Trace).split(',').any(|said| said == "warn"));
    }
}

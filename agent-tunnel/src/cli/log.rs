//! Logs: text on a terminal, JSON with all fields at one level otherwise, on standard error.

use std::io::IsTerminal as _;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Level {
    /// What failed for good
    Error,
    /// What went wrong and is dealt with
    Warn,
    /// Sessions and requests
    Info,
    /// Each step of them
    Debug,
    /// Everything
    Trace,
}

impl Level {
    /// Our own code at this level. Libraries never below `warn`: what they trace may hold tokens (THREATS T29).
    fn filter(self) -> String {
        let level = self.to_possible_value().map_or_else(String::new, |level| level.get_name().to_owned());
        let others = if self == Self::Error { "error" } else { "warn" };
        let ours = ["towline_agent", "towline_tunnel", "towline_identity"];
        ours.iter().fold(others.to_owned(), |filter, part| format!("{filter},{part}={level}"))
    }
}

/// Begins to log: as the flag says, or else RUST_LOG, or else at `info`.
pub(super) fn start(level: Option<Level>) {
    let filter = match level {
        Some(level) => EnvFilter::new(level.filter()),
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
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
        assert_eq!(
            Level::Debug.filter(),
            "warn,towline_agent=debug,towline_tunnel=debug,towline_identity=debug"
        );
        assert!(Level::Error.filter().starts_with("error,towline_agent=error"));
        for level in Level::value_variants() {
            EnvFilter::try_new(level.filter()).unwrap();
        }
    }
}

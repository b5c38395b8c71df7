//! How much a program logs and where: text on a terminal, JSON with all fields at one level otherwise, on standard error.

use std::io::{self, IsTerminal as _, Write};

use clap::ValueEnum;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

use crate::json;

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
        builder.json().flatten_event(true).with_writer(|| Lines(io::stderr())).init();
    }
}

/// Takes lines of JSON, and writes what `kubectl logs` can show on a terminal: words of a peer may stand in them. Each event is one write.
#[derive(Debug)]
pub struct Lines<W>(pub W);

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.0.write_all(json::escape(text).as_bytes())?,
            Err(_) => self.0.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_words_in_a_line_do_nothing_to_a_terminal() {
        #[derive(Clone, Default)]
        struct Kept(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
        impl Write for Kept {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let kept = Kept::default();
        let to = kept.clone();
        let told = tracing_subscriber::fmt().json().flatten_event(true);
        let told = told.with_writer(move || Lines(to.clone())).finish();
        tracing::subscriber::with_default(told, || {
            tracing::info!(program = "x\u{9b}2J\u{1b}[0m\u{202e}é", "a peer");
        });
        let line = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert!(line.contains(r"x\u009b2J\u001b[0m\u202eé") && line.ends_with("}\n"), "{line}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["message"], "a peer");
    }

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

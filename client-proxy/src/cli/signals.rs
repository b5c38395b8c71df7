//! Being asked to end.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use towline_tunnel::fault::{Fault, Report};

/// The signals that ask a program to end.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

/// Which one came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// From the keyboard: programs that this one started got it too.
    Interrupt,
    Terminate,
    Hangup,
}

impl Asked {
    /// The exit code of a program that this signal ended before its work was done.
    pub(super) fn exit_code(self) -> u8 {
        128 + match self {
            Self::Hangup => 1,
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }
}

impl Signals {
    pub(super) fn new() -> Result<Self, Report> {
        let failed =
            |error: io::Error| Report::caused_by(Fault::Internal, "signals can't be received", error);
        let of = |kind| signal(kind).map_err(failed);
        Ok(Self {
            interrupt: of(SignalKind::interrupt())?,
            terminate: of(SignalKind::terminate())?,
            hangup: of(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::Interrupt,
            _ = self.terminate.recv() => Asked::Terminate,
            _ = self.hangup.recv() => Asked::Hangup,
        }
    }
}

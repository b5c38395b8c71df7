//! The mux on a real connection: `proto`'s state machines, driven by tokio over a carrier.
//!
//! [`Connection`] is one end's handle; its streams are [`MuxStream`]s. [`drive`] is the loop that both ends and the
//! relay share: a reader that waits on nothing but its socket, a writer that makes a batch only when the last one
//! is in the kernel, and a timer.

mod connection;
mod driver;
mod keeper;
mod lines;
mod stream;

pub use connection::{Connection, Driver};
pub use driver::{Closed, Machine, drive};
pub use keeper::{Admit, Keeper, Owner};
pub use lines::{BULK_AT_AGENT, BULK_AT_CLIENT, Choice, LineSettings, Lines, MAX_LINES};
pub use stream::{MuxStream, StreamView};

pub use crate::proto::{
    CloseReason, OpenRequest, Opened,
    endpoint::{EndpointConfig, Side, StreamError},
    ledger::Ledger,
    link::GoAway,
    resume::{EXPORTER_LABEL, ResumeKey, ResumeRequest},
};

#[cfg(test)]
mod tests;

//! The wire protocol: bytes, states and limits, without IO and without a clock.
//!
//! `docs/protocol.md` is the specification; names here are its names.

pub mod blocks;
pub mod budget;
pub mod endpoint;
pub mod fields;
pub mod frame;
pub mod interactive;
pub mod ledger;
pub mod leg;
pub mod link;
mod numbers;
pub mod open;
pub mod reason;
pub mod receive;
pub mod resume;
pub mod schedule;
pub mod send;
mod tables;
pub mod tuning;
pub mod window;

pub use frame::{Frame, StreamId};
pub use open::{OpenRequest, Opened};
pub use reason::CloseReason;
pub use resume::{Arrived, ResumeRequest, Resumed};

//! The wire protocol: bytes, states and limits, without IO and without a clock.
//!
//! `docs/protocol.md` is the specification; names here are its names.

pub mod fields;
pub mod frame;
pub mod open;
pub mod reason;

pub use frame::{Frame, StreamId};
pub use open::{OpenRequest, Opened};
pub use reason::CloseReason;

//! The wire protocol: bytes, states and limits, without IO and without a clock.
//!
//! `docs/protocol.md` is the specification; names here are its names.

pub mod fields;
pub mod reason;

pub use reason::CloseReason;

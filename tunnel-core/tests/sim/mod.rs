//! Endpoints, directly joined or through a relay's legs, under virtual time, against a model of what applications
//! wrote and read.
//!
//! The rules that are checked at every step:
//! - what is read is what was written: every byte, in order, once;
//! - an end is read only where the writer queued it and everything before it was read;
//! - an error is met only by a stream that something happened to: a reset, a lost line, a refusal;
//! - on the wire, limits never fall, nothing follows an end or a reset, nothing exceeds the credit;
//! - a relay holds no more than its ledger promised and each stream's floor.
//!
//! [`World::settle`] then lets everything flow: each stream must come to its end or an error, all that was promised
//! must be given back, and every table must be empty.

#[allow(dead_code, reason = "the fuzz targets, which share this, play scripts only")]
mod beside;
mod carry;
mod line;
mod model;
mod settle;
mod tap;
mod world;

pub(crate) use model::Op;
pub(crate) use world::{Config, World};

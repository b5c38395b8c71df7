//! Endpoints, directly joined or through a relay's legs, under virtual time, against a model of what applications
//! wrote and read.
//!
//! The rules that are checked at every step:
//! - what is read is what was written: every byte, in order, once;
//! - an end is read only where the writer queued it and everything before it was read;
//! - an error is met only by a stream that something happened to: a reset, a lost line, a refusal;
//! - on the wire, limits never fall, nothing follows an end or a reset, nothing exceeds the credit;
//! - a stream that is kept survives the loss of its connections, and nobody notices;
//! - a relay holds no more than its ledger promised and each stream's floor.
//!
//! [`World::settle`] then lets everything flow: each stream must come to its end or an error, all that was promised
//! must be given back, and every table must be empty.

#![allow(dead_code, reason = "those who share this use different parts of it")]

mod beside;
mod carry;
mod line;
mod model;
mod resume;
pub(crate) mod seed;
mod settle;
mod tap;
mod world;

pub(crate) use model::Op;
pub(crate) use world::{Config, Planted, World};

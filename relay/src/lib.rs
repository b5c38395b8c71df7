//! The towline relay: sessions, routing, access decisions, registry, enrolment.

pub mod access;
pub mod certificates;
pub mod keys;
pub mod registry;

//! The towline relay: sessions, routing, access decisions, registry, enrolment.

pub mod registry;

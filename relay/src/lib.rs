//! The towline relay: sessions, routing, access decisions, registry, enrolment.

pub mod access;
pub mod certificates;
pub mod health;
pub mod keys;
pub mod metrics;
pub mod registry;
pub mod tls;

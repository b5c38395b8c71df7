//! The towline relay: sessions, routing, access decisions, registry, enrolment.

pub mod access;
pub mod authenticate;
pub mod certificates;
pub mod clock;
pub mod enrol;
pub mod health;
pub mod keys;
pub mod limits;
pub mod metrics;
pub mod registry;
pub mod throttle;
pub mod tls;
pub mod values;

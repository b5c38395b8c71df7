//! The towline relay: sessions, routing, access decisions, registry, enrolment.

pub mod accept;
pub mod access;
pub mod app;
pub mod audit;
pub mod authenticate;
pub mod budget;
pub mod certificates;
pub mod cli;
pub mod data_dir;
pub mod dial;
pub mod enrol;
pub mod forward;
pub mod handshakes;
pub mod health;
pub mod keys;
pub mod limits;
pub mod metrics;
pub mod open_files;
pub mod origin;
pub mod places;
pub mod registry;
pub mod sessions;
pub mod throttle;
pub mod tls;
pub mod users;
pub mod values;

//! What people run: a local endpoint through which kubectl reaches clusters behind a relay.
//!
//! A request's journey: [`accept`] (loopback, mutual TLS) → [`forward`] (one request on one inner connection) →
//! [`dial`] (the session with the relay, and inner TLS to the agent). [`app`] wires them together.

pub mod accept;
pub mod app;
pub mod cli;
pub mod dev;
pub mod dial;
pub mod doctor;
pub mod forward;
pub mod inside;
pub mod kubeconfig;
pub mod local;
pub mod login;
pub mod relay;
pub mod role;
pub mod token;

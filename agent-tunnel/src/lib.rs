//! The towline agent: dials out of the cluster, authenticates callers, impersonates them towards kube-apiserver.
//!
//! It keeps a session with the relay (`uplink`, `session`); streams come in over that ([`accept`]), their requests are
//! judged and rewritten ([`forward`]), and go to the one configured apiserver ([`dial`]). [`app`] wires it.

pub mod accept;
pub mod app;
pub mod as_user;
pub mod audit;
pub mod authority;
pub mod cli;
pub mod dial;
pub mod forward;
pub mod headers;
pub mod health;
pub mod impersonate;
pub mod instance;
mod issuers;
pub mod metrics;
pub mod preflight;
mod proxies;
pub mod rights;
pub mod roles;
pub mod secret;
mod session;
mod standing;
pub mod state;
pub mod stream;
mod uplink;
mod uplinks;

//! The towline agent: dials out of the cluster, authenticates callers, impersonates them towards kube-apiserver.
//!
//! Streams come in over the session with the relay ([`accept`]), their requests are judged and rewritten ([`forward`]),
//! and go to the one configured apiserver ([`dial`]).

pub mod accept;
pub mod dial;
pub mod forward;
pub mod headers;
pub mod impersonate;
pub mod metrics;
pub mod stream;

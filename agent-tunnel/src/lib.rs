//! The towline agent: dials out of the cluster, authenticates callers, impersonates them towards kube-apiserver.

pub mod headers;
pub mod impersonate;

//! What people run: a local endpoint through which kubectl reaches clusters behind a relay.

pub mod kubeconfig;
pub mod local;

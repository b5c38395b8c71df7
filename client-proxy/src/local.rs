//! What makes the local endpoint private: an authority of its own, a server certificate for the loopback address,
//! and a client certificate for each context, which opens that context's cluster and no other.
//!
//! Another user of the machine has no client certificate; a squatter on the port has no certificate of the
//! authority. Authority and client certificates are kept over restarts, so that programs which read the kubeconfig
//! once (k9s, IDEs) go on working.

mod authority;
mod endpoint;
mod known;
mod state;

pub use authority::{Authority, ClientIdentity};
pub use endpoint::{EndpointTls, caller};
pub use state::{ServingLock, StateFolder};

#[cfg(test)]
mod tests;

//! What both ends of a towline hop must agree on.
//!
//! Nothing in here knows Kubernetes or a registry: ids, the wire protocol (`proto`, without IO or clock), the way out of a
//! network (`egress`), carriers, the mux, inner TLS, drain and
//! backoff. The specification that this crate implements is
//! `docs/protocol.md`.
//!
//! With the feature `program` there is what only programs need: settings as arguments of a command line, `log` and `observe`.

pub mod audit;
pub mod backoff;
pub mod carrier;
pub mod clock;
pub mod doctor;
pub mod drain;
pub mod egress;
pub mod enrolment;
pub mod fault;
pub mod head;
pub mod ids;
pub mod inner;
pub mod issuer_host;
pub mod json;
pub mod keys;
#[cfg(feature = "program")]
pub mod log;
pub mod mux;
#[cfg(feature = "program")]
pub mod observe;
pub mod proto;
pub mod role;
pub mod session;
pub mod ticket;
pub mod values;
mod write_through;

//! Roles inside clusters: documents are made and signed here, where the organisation's key is, and judged as an agent judges them.

mod explain;
mod signer;

pub(crate) use explain::moment;
pub use explain::{Asked, explain};
pub use signer::Signer;

//! Towards the relay, and through it to the agents: one session, kept; per cluster a pool of inner connections.

mod cause;
mod link;
mod pool;
mod question;
mod resolve;

pub use cause::report_of;
pub use link::{Link, LinkConfig, Session};
pub use pool::{InnerConnection, Pool, RequestBody, StreamAt, Unopened};
pub use question::Part;
pub use resolve::Resolved;

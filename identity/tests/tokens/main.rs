//! Tokens, good and hostile, against issuers that a test scripts over loopback TLS.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test that fails here says where")]

mod entra;
mod graph;
mod issuers;
mod pop;
mod reload;
mod standing;
mod support;

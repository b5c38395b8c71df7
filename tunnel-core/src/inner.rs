//! Inner TLS 1.3, end to end between proxy and agent, mutual, one session a stream (`docs/protocol-session.md`, "Inner TLS").
//!
//! The agent's leaf is signed by the cluster's identity key, whose hash is the [`ClusterId`] that the client pins.
//! The client's certificate only carries its run key; the relay's ticket says whose it is. The relay between them
//! sees ciphertext. A clean end is close_notify and *then* the stream's FIN: anything else is an error.

mod client;
mod server;
mod stream;

pub use client::InnerConnector;
pub use server::InnerAcceptor;
pub use stream::InnerStream;

use rustls::pki_types::ServerName;

use crate::ids::ClusterId;

/// Plaintext of one TLS record such that the record (5 bytes of header, a type byte, a 16-byte tag) fits one DATA frame.
pub const RECORD_PLAINTEXT: usize = 16_298;
/// rustls counts the record's header in its fragment size, and nothing else.
const MAX_FRAGMENT: usize = RECORD_PLAINTEXT + 5;
/// Where a client posts a newer token for what it has open (`docs/protocol-session.md`, "Authority"). The agent answers; kube-apiserver has
/// nothing below this path, and never sees it.
pub const RENEW_PATH: &str = "/.towline/authority";
/// Where a client asks what the agent finds where it is (`docs/doctor.md`). The agent answers, whoever may send requests; kube-apiserver never sees it.
pub const DOCTOR_PATH: &str = "/.towline/doctor";
/// The only protocol inside.
const ALPN: &[u8] = b"http/1.1";

/// The name in the agent's leaf and in the client's SNI.
fn server_name(cluster: ClusterId) -> ServerName<'static> {
    ServerName::try_from(dns_name(cluster)).expect("base32 is a DNS label of 52 characters")
}

fn dns_name(cluster: ClusterId) -> String {
    format!("{cluster}.towline.internal")
}

#[cfg(test)]
mod tests;

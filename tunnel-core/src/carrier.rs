//! How bytes reach the relay: reliable byte pipes over something that gets through the firewall.
//!
//! The mux above does not know which carrier it has. The first is WebSocket (RFC 6455) over TLS; for networks that let none through
//! there are others ([`rung::Rung`]), which [`ladder`] tries in turn.

pub mod dial;
mod h2;
pub mod http;
pub mod keep_alive;
pub mod ladder;
pub mod pair;
pub mod pipe;
mod read_ahead;
pub mod rung;
pub mod websocket;

use std::{io, time::Duration};

use socket2::SockRef;
use tokio::net::TcpStream;

pub use read_ahead::ReadAhead;

/// Where agents and clients meet the relay.
pub const CONNECT_PATH: &str = "/v1/connect";
/// The WebSocket subprotocol (RFC 6455, section 1.9).
pub const SUBPROTOCOL: &str = "towline.v1";
/// Header of an upgrade by whoever holds streams that wait to go on: it comes before others, within its share.
pub const STREAMS_WAIT: &str = "towline-streams-wait";

/// Header of a request by a dialler that does not know yet whether this carrier gets through: it wants to be told soon, and
/// understands it, if nothing comes of what it sends.
pub const CHALLENGED: &str = "towline-challenge";

/// Little stays unsent in the kernel, so that the scheduler decides what goes next, and not the kernel's buffer.
const NOTSENT_LOWAT: u32 = 32 * 1024;
/// What was sent and is not acknowledged for this long is never going to be: the connection is dead (RFC 5482).
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Sets what every carrier's TCP connection needs. SO_SNDBUF and SO_RCVBUF stay the kernel's.
///
/// # Errors
/// If the socket refuses; it is dead then.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

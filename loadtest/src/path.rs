//! A way from the near end to the far end, through whatever is measured.
//!
//! The ends are the same for every path: the near end ([`crate::near`]) speaks HTTP/1.1 on what [`Path::dial`] gives,
//! and the far end ([`crate::far`]) answers it. Raw bytes, as `exec` and `port-forward` carry them, come after an
//! upgrade. TLS in and TLS out: the connection that `dial` makes is TLS to the first hop, and the last hop reaches the
//! far end over TLS ([`crate::far::FarEnd::tls`]), or the path says in its name that it is otherwise.

use std::{fmt, pin::Pin};

use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection of a path.
pub type Io = Box<dyn Duplex>;

/// A connection that is being made.
pub type Dialling<'a> = Pin<Box<dyn Future<Output = anyhow::Result<Io>> + Send + 'a>>;

/// A way to the far end.
pub trait Path: Send + Sync {
    /// What it is called in tables: `direct`, `towline`, `haproxy x3`.
    fn name(&self) -> &str;

    /// A new connection, on which the far end speaks HTTP/1.1. Handshakes with the first hop are done when it is there.
    fn dial(&self) -> Dialling<'_>;

    /// The Host of each request.
    fn host(&self) -> &str {
        "127.0.0.1"
    }

    /// Stands before the path of each request.
    fn prefix(&self) -> &str {
        ""
    }

    /// The processes that carry its bytes, without the one that measures: whose CPU counts.
    fn processes(&self) -> Vec<u32> {
        Vec::new()
    }
}

impl fmt::Debug for dyn Path + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Path({})", self.name())
    }
}

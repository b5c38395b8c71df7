//! A strict check of each raw HTTP/1.1 request head, ahead of the HTTP library (RFC 9112).
//!
//! hyper accepts a bare LF, a Content-Length beside Transfer-Encoding, and two Host headers; each of these lets two
//! programs read one request differently (request smuggling, THREATS T11). [`RequestGuard`] reads what the library
//! will read, passes on only what can be read in one way, and knows where each body ends, so that no head escapes
//! it. [`HeadGuard`] puts it in front of a library's server.

mod guard;
mod io;
mod rules;
mod steady;

pub use guard::RequestGuard;
pub use io::{GuardHandle, HeadGuard, Patience};
pub use steady::{Answering, Flight, Reading, Steady};

use crate::fault::{Fault, Report};

/// Longest head: request line and headers.
pub const MAX_HEAD: usize = 64 * 1024;
/// Longest request line.
pub const MAX_REQUEST_LINE: usize = 16 * 1024;
/// Most headers in one head.
pub const MAX_HEADERS: usize = 100;

/// What about a request can be read in two ways, or must not be asked at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// A line ends otherwise than by CR LF, or CR, LF or NUL stand inside one.
    #[error("a line does not end with exactly CR LF")]
    LineEnd,
    /// The request line is not `METHOD SP /path SP HTTP/1.1`.
    #[error("the request line is not METHOD, a path that begins with /, and HTTP/1.1")]
    RequestLine,
    /// A header line is not `name: value`, or continues on the next line.
    #[error("a header is malformed")]
    Header,
    /// None, or several.
    #[error("there must be exactly one Host header")]
    Host,
    /// Not one number.
    #[error("Content-Length must stand once and be a number")]
    ContentLength,
    /// Not exactly `chunked`.
    #[error("Transfer-Encoding must stand once and be chunked")]
    TransferEncoding,
    /// Both stand there.
    #[error("Content-Length and Transfer-Encoding stand together")]
    BothLengths,
    /// Something else than 100-continue.
    #[error("Expect must be 100-continue")]
    Expect,
    /// An upgrade with a body.
    #[error("a request to upgrade must not have a body")]
    UpgradeBody,
    /// A chunk's size or end is malformed, or has extensions or trailers.
    #[error("the chunked body is malformed")]
    Chunk,
    /// Too long, or too many headers.
    #[error("the head is larger than 64 KiB or has more than 100 headers")]
    TooLarge,
    /// It did not come in time.
    #[error("the head did not arrive in time")]
    TooSlow,
}

impl From<HeadError> for Report {
    fn from(error: HeadError) -> Self {
        let fault = match error {
            HeadError::TooLarge => Fault::RequestTooLarge,
            HeadError::TooSlow => Fault::RequestTimeout,
            _ => Fault::RequestHeadRefused,
        };
        Self::new(fault, error.to_string())
    }
}

#[cfg(test)]
mod tests;

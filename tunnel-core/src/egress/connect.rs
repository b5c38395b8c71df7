//! HTTP CONNECT (RFC 9110, section 9.3.6): one question to a proxy, and what its answer means.

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, timeout_at},
};
use zeroize::Zeroizing;

use super::{Destination, auth::Offers};
use crate::fault::Fault;

/// No answer's head is longer.
const MAX_HEAD: usize = 16 * 1024;
/// Nor has one more header fields.
const MAX_FIELDS: usize = 64;
/// So much of an answer is told to people.
const MAX_TOLD: usize = 80;

/// What a proxy answered, where something can be done with it.
#[derive(Debug)]
pub(super) enum Answer {
    /// The way is open. Bytes of the destination may have come right behind the answer.
    Open(Bytes),
    /// It wants to know who we are.
    Authenticate(Offers),
}

/// An answer with which it ends: the fault, and what was seen.
pub(super) type Refusal = (Fault, String);

/// Asks for a way to `to`.
///
/// # Errors
/// If the proxy does not answer in time, refuses, or is none.
pub(super) async fn ask<IO: AsyncRead + AsyncWrite + Unpin>(
    io: &mut IO,
    to: &Destination,
    authorization: Option<&str>,
    deadline: Instant,
) -> Result<Answer, Refusal> {
    let silent = |_| (Fault::ProxySilent, "no answer to CONNECT".to_owned());
    timeout_at(deadline, exchange(io, to, authorization)).await.map_err(silent)?
}

async fn exchange<IO: AsyncRead + AsyncWrite + Unpin>(
    io: &mut IO,
    to: &Destination,
    authorization: Option<&str>,
) -> Result<Answer, Refusal> {
    let cut = |error: std::io::Error| (Fault::ProxyCut, error.to_string());
    let mut request = Zeroizing::new(format!(
        "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: towline/{}\r\n",
        env!("CARGO_PKG_VERSION")
    ));
    if let Some(authorization) = authorization {
        request.push_str("Proxy-Authorization: ");
        request.push_str(authorization);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    io.write_all(request.as_bytes()).await.map_err(cut)?;
    io.flush().await.map_err(cut)?;

    let mut read = BytesMut::with_capacity(1024);
    loop {
        if let Some(answer) = understand(&mut read, authorization.is_some())? {
            return Ok(answer);
        }
        match io.read_buf(&mut read).await {
            Ok(0) if read.is_empty() => return Err((Fault::ProxyCut, "no answer to CONNECT".to_owned())),
            Ok(0) => return Err((Fault::ProxyCut, "it ended in the middle of its answer".to_owned())),
            Ok(_) => {}
            Err(error) => return Err(cut(error)),
        }
    }
}

/// The answer, once its head is whole. `known`: whether we said who we are.
fn understand(read: &mut BytesMut, known: bool) -> Result<Option<Answer>, Refusal> {
    const BEGIN: &[u8] = b"HTTP/1.";
    loop {
        let seen = read.len().min(BEGIN.len());
        if read[..seen] != BEGIN[..seen] {
            return Err((Fault::ProxyNotHttp, what_else(read)));
        }
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let length = match response.parse(read) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if read.len() < MAX_HEAD => return Ok(None),
            Ok(httparse::Status::Partial) => {
                return Err((Fault::ProxyNotHttp, "its answer's head is longer than 16 KiB".to_owned()));
            }
            Err(error) => {
                return Err((Fault::ProxyNotHttp, format!("its answer is malformed ({error})")));
            }
        };
        let status = response.code.unwrap_or_default();
        if (100..200).contains(&status) {
            // Interim (RFC 9110, section 15.2): the answer is still to come.
            let _interim = read.split_to(length);
            continue;
        }
        let reason = response.reason.unwrap_or_default();
        let judged = judge((status, reason), response.headers, &read[length..], known)?;
        return Ok(Some(match judged {
            Verdict::Authenticate(offers) => Answer::Authenticate(offers),
            Verdict::Open => Answer::Open(read.split_off(length).freeze()),
        }));
    }
}

enum Verdict {
    Open,
    Authenticate(Offers),
}

fn judge(
    (status, reason): (u16, &str),
    fields: &[httparse::Header<'_>],
    behind: &[u8],
    known: bool,
) -> Result<Verdict, Refusal> {
    let all = |name: &'static str| {
        fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    };
    let first = |name: &'static str| all(name).next().map(told);
    let mut seen = format!("answered {status} {}", told(reason.as_bytes()));
    // squid says more here than in the status.
    for more in ["x-squid-error", "server"] {
        if let Some(words) = first(more) {
            seen = format!("{seen}, {more}: {words}");
        }
    }
    let is_page = first("content-type").is_some_and(|kind| kind.to_ascii_lowercase().contains("html"));
    let fault = match status {
        // What answers for every host with its own page is a portal (RFC 8910 calls it captive).
        200..=299 if is_page || behind.starts_with(b"<") => Fault::ProxyLoginPage,
        200..=299 => return Ok(Verdict::Open),
        300..=399 => {
            if let Some(place) = first("location") {
                seen = format!("{seen}, to {}", without_query(&place));
            }
            Fault::ProxyLoginPage
        }
        // tinyproxy, where the password is wrong.
        401 if known => Fault::ProxyCredentialsRefused,
        407 => return Ok(Verdict::Authenticate(Offers::read(all("proxy-authenticate")))),
        403 | 451 => Fault::ProxyForbids,
        500 | 502 | 503 | 504 => Fault::ProxyFailed,
        // RFC 6585, section 6.
        511 => Fault::ProxyLoginPage,
        _ => Fault::ProxyRefused,
    };
    Err((fault, seen))
}

/// The first words of something that is no HTTP.
fn what_else(read: &[u8]) -> String {
    match read {
        // An alert or a handshake of TLS (RFC 8446, section 5.1).
        [0x15 | 0x16, 3, ..] => "it answered with TLS: is its URL to begin with https://?".to_owned(),
        [4 | 5, ..] => "it answered as a SOCKS proxy does".to_owned(),
        other => format!("it answered {:?}", told(other)),
    }
}

/// A peer's words, bounded.
fn told(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().next().unwrap_or_default().trim();
    line.chars().take(MAX_TOLD).collect()
}

/// A portal's address without what it carries, which may be a session's.
fn without_query(place: &str) -> &str {
    place.split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests;

//! What a single head must be, and how its body is framed.

use super::{HeadError, MAX_HEADERS, MAX_REQUEST_LINE};

/// How the body of a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// After this many bytes; 0 where there is none.
    Length(u64),
    /// With the last chunk.
    Chunked,
    /// There is none, and what follows is no request until the upgrade is answered.
    Upgrade,
}

/// RFC 9110, section 5.6.2.
fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

fn check_request_line(line: &[u8]) -> Result<(), HeadError> {
    if line.len() > MAX_REQUEST_LINE {
        return Err(HeadError::TooLarge);
    }
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(b"HTTP/1.1"), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(HeadError::RequestLine);
    };
    // Origin form only: an absolute URI, an authority or `*` would ask for something else than the one apiserver.
    let is_origin_form =
        target.first() == Some(&b'/') && target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#');
    if is_token(method) && method != b"CONNECT" && is_origin_form {
        Ok(())
    } else {
        Err(HeadError::RequestLine)
    }
}

/// Checks a whole head, its empty last line included; says how its body is framed.
pub(super) fn check(head: &[u8]) -> Result<Framing, HeadError> {
    let body = head.strip_suffix(b"\r\n\r\n").ok_or(HeadError::LineEnd)?;
    let mut lines = body.split(|byte| *byte == b'\n');
    let whole = |line: &'_ [u8], last: bool| -> Result<usize, HeadError> {
        // Every line but the last ends with the CR that stood before the LF.
        let content = if last { line } else { line.strip_suffix(b"\r").ok_or(HeadError::LineEnd)? };
        if content.contains(&b'\r') || content.contains(&0) {
            Err(HeadError::LineEnd)
        } else {
            Ok(content.len())
        }
    };
    let mut framing = Seen::default();
    let mut number = 0;
    let mut next = lines.next();
    while let Some(line) = next {
        next = lines.next();
        let line = &line[..whole(line, next.is_none())?];
        if number == 0 {
            check_request_line(line)?;
        } else {
            framing.header(line)?;
        }
        number += 1;
        if number > MAX_HEADERS + 1 {
            return Err(HeadError::TooLarge);
        }
    }
    framing.decide()
}

#[derive(Default)]
struct Seen {
    host: bool,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

impl Seen {
    #[expect(clippy::collapsible_match, reason = "a match guard that notes what it saw would be a trap")]
    fn header(&mut self, line: &[u8]) -> Result<(), HeadError> {
        let colon = line.iter().position(|byte| *byte == b':').ok_or(HeadError::Header)?;
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        // A folded line begins with white space, which is no token either.
        if !is_token(name) || value.iter().any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f) {
            return Err(HeadError::Header);
        }
        match name.to_ascii_lowercase().as_slice() {
            b"host" => {
                if std::mem::replace(&mut self.host, true) || value.is_empty() {
                    return Err(HeadError::Host);
                }
            }
            b"content-length" => {
                let digits = std::str::from_utf8(value).ok().filter(|text| {
                    (1..=18).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
                });
                let length = digits.and_then(|digits| digits.parse().ok()).ok_or(HeadError::ContentLength)?;
                if self.length.replace(length).is_some() {
                    return Err(HeadError::ContentLength);
                }
            }
            b"transfer-encoding" => {
                if !value.eq_ignore_ascii_case(b"chunked") || std::mem::replace(&mut self.chunked, true) {
                    return Err(HeadError::TransferEncoding);
                }
            }
            b"expect" if !value.eq_ignore_ascii_case(b"100-continue") => return Err(HeadError::Expect),
            b"upgrade" => self.upgrade = true,
            _ => {}
        }
        Ok(())
    }

    fn decide(self) -> Result<Framing, HeadError> {
        if !self.host {
            return Err(HeadError::Host);
        }
        match (self.length, self.chunked, self.upgrade) {
            (Some(_), true, _) => Err(HeadError::BothLengths),
            (Some(1..), _, true) | (_, true, true) => Err(HeadError::UpgradeBody),
            (_, _, true) => Ok(Framing::Upgrade),
            (_, true, _) => Ok(Framing::Chunked),
            (length, ..) => Ok(Framing::Length(length.unwrap_or(0))),
        }
    }
}

//! The raw head guard against httparse, which is what hyper reads with.
//!
//! What passes is read once more, by httparse, as a server would: every head must be whole, mean the same as its
//! text says, and end its body where the guard said. And however the bytes are cut, the same passes.

use bytes::BytesMut;
use httparse::{EMPTY_HEADER, Request, Status, parse_chunk_size};
use towline_tunnel::head::{HeadError, MAX_HEAD, MAX_HEADERS, RequestGuard};

/// The first byte says how the rest is cut and how an upgrade is answered.
pub fn run(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    let accepted = first & 1 == 1;
    let (passed, end) = feed(rest, usize::MAX, accepted);
    let (passed_cut, end_cut) = feed(rest, 1 + usize::from(first >> 1) % 40, accepted);
    assert_eq!(String::from_utf8_lossy(&passed), String::from_utf8_lossy(&passed_cut));
    assert_eq!(end.is_ok(), end_cut.is_ok(), "{end:?} {end_cut:?}");
    assert!(rest.starts_with(&passed), "bytes pass as they are");
    read(&passed, accepted);
}

fn feed(bytes: &[u8], piece: usize, accepted: bool) -> (BytesMut, Result<(), HeadError>) {
    let (mut guard, mut input, mut passed) = (RequestGuard::new(), BytesMut::new(), BytesMut::new());
    for piece in bytes.chunks(piece) {
        input.extend_from_slice(piece);
        let fed = guard.feed(&mut input, &mut passed);
        if fed.is_err() {
            assert!(guard.has_ended());
            return (passed, fed);
        }
        if guard.is_undecided() {
            guard.answered(accepted);
            let fed = guard.feed(&mut input, &mut passed);
            assert_eq!(fed, Ok(()), "what follows an upgrade is not judged");
        }
        assert!(input.len() < MAX_HEAD, "no more is held than a head");
    }
    (passed, Ok(()))
}

/// Reads requests as a server that trusts the guard.
fn read(mut bytes: &[u8], accepted: bool) {
    while !bytes.is_empty() {
        let mut headers = [EMPTY_HEADER; MAX_HEADERS];
        let mut request = Request::new(&mut headers);
        let length = match request.parse(bytes) {
            Ok(Status::Complete(length)) => length,
            other => panic!("httparse reads {other:?} in {:?}", String::from_utf8_lossy(bytes)),
        };
        let (head, rest) = bytes.split_at(length);
        same(head, &request);
        let all = |name: &str| -> Vec<&[u8]> {
            let found = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
            found.map(|header| header.value).collect()
        };
        assert_eq!(all("host").len(), 1);
        let (lengths, encodings) = (all("content-length"), all("transfer-encoding"));
        assert!(lengths.len() + encodings.len() <= 1, "one framing");
        if !all("upgrade").is_empty() {
            assert!(accepted || rest.is_empty(), "nothing passes behind an upgrade that was refused");
            return;
        }
        bytes = if encodings.is_empty() {
            let length = lengths.first().map_or(0, |text| {
                std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).expect("a number")
            });
            &rest[rest.len().min(length)..]
        } else {
            assert!(encodings[0].eq_ignore_ascii_case(b"chunked"));
            after_chunks(rest)
        };
    }
}

/// The head's text, split at its line ends and first colons, says what httparse says.
fn same(head: &[u8], request: &Request<'_, '_>) {
    let text = head.strip_suffix(b"\r\n\r\n").expect("a head ends with an empty line");
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').map(|line| line.trim_ascii_end()).collect();
    let line = format!("{} {} HTTP/1.1", request.method.unwrap_or(""), request.path.unwrap_or(""));
    assert_eq!(lines[0], line.as_bytes());
    assert_eq!(request.version, Some(1));
    assert_eq!(lines.len() - 1, request.headers.len());
    for (line, header) in lines[1..].iter().zip(request.headers.iter()) {
        let colon = line.iter().position(|byte| *byte == b':').expect("a header has a colon");
        assert_eq!(&line[..colon], header.name.as_bytes());
        assert_eq!(line[colon + 1..].trim_ascii(), header.value.trim_ascii());
    }
}

fn after_chunks(mut bytes: &[u8]) -> &[u8] {
    loop {
        if bytes.is_empty() {
            return bytes;
        }
        let (line, size) = match parse_chunk_size(bytes) {
            Ok(Status::Complete(found)) => found,
            other => panic!("httparse reads a chunk's size as {other:?}"),
        };
        assert!(bytes[..line].ends_with(b"\r\n") && bytes[..line - 2].iter().all(u8::is_ascii_hexdigit));
        let chunk = line + usize::try_from(size).unwrap_or(usize::MAX);
        let Some(end) = bytes.get(chunk..) else { return &[] };
        let line_end = &end[..end.len().min(2)];
        assert!(b"\r\n".starts_with(line_end), "a chunk ends with CR LF: {line_end:?}");
        bytes = end.get(2..).unwrap_or(&[]);
        if size == 0 {
            return bytes;
        }
    }
}

/// Requests that pass and requests that don't.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        "GET /api?watch=1 HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nhost:a\r\nContent-Length: 5\r\n\r\nhelloPUT /b HTTP/1.1\r\nHost: a\r\n\r\n",
        "PATCH /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /exec HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\nGET /secrets HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n y\r\nExpect: 100-continue\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: x\r\n\r\n",
    ]
    .iter()
    .enumerate()
    .map(|(number, text)| [&[(number as u8).wrapping_mul(37)], text.as_bytes()].concat())
    .collect()
}

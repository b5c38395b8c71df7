//! The WebSocket carrier, as the relay has it, before a peer that sends anything: what is read is the same however
//! the bytes are cut, and what is answered is sound frames that hold what was written, however little is taken at once.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use towline_tunnel::carrier::websocket::{
    WebSocketCarrier,
    frame::{Decoded, Header, MAX_CONTROL, MAX_HEADER, Mask, Opcode, decode, decode_close, encode},
};

/// See the module's text.
pub fn run(input: &[u8]) {
    header(input);
    let Some((&how, bytes)) = input.split_first() else { return };
    let whole = talk(bytes, usize::MAX, 4096, false);
    let piece = 1 + usize::from(how & 0xf) * 3;
    let cut = talk(bytes, piece, 1 + usize::from(how >> 4) * 5, how & 1 != 0);
    assert_eq!(whole.read, cut.read);
    assert_eq!(whole.end, cut.end);
    for told in [&whole, &cut] {
        assert!(told.read.len() <= bytes.len());
        told.check();
    }
}

/// A header that is read is written in no more bytes, and read the same again.
fn header(input: &[u8]) {
    match decode(input) {
        Ok(Decoded::Needs(need)) => assert!(input.len() < need && need <= MAX_HEADER),
        Ok(Decoded::Whole(header, taken)) => {
            assert!(taken <= input.len() && header.length >> 63 == 0);
            let mut written = Vec::new();
            encode(&mut written, &header);
            assert!(written.len() <= taken);
            assert_eq!(decode(&written), Ok(Decoded::Whole(header, written.len())));
        }
        Err(_) => {}
    }
}

/// What one connection came to.
struct Told {
    /// What was read, and written back.
    read: Vec<u8>,
    /// How it ended, if not by a close frame.
    end: Option<String>,
    /// What was accepted for writing.
    written: Vec<u8>,
    /// What the peer got.
    out: Vec<u8>,
}

impl Told {
    /// What came out is frames of a server, with what was written in them.
    fn check(&self) {
        let (mut rest, mut data, mut closed) = (&self.out[..], Vec::new(), false);
        while !rest.is_empty() {
            let Ok(Decoded::Whole(Header { fin, opcode, mask, length }, taken)) = decode(rest) else {
                panic!("no frame: {rest:x?}")
            };
            let end = taken + length as usize;
            let payload = &rest[taken..end];
            rest = &rest[end..];
            assert!(fin && mask.is_none() && !closed, "{opcode:?} after the end, or not a server's");
            match opcode {
                Opcode::Binary => data.extend_from_slice(payload),
                Opcode::Close => {
                    closed = true;
                    decode_close(payload).expect("a close frame that may be sent");
                }
                Opcode::Pong => assert!(payload.len() <= MAX_CONTROL),
                other => panic!("{other:?} was never asked for"),
            }
        }
        assert_eq!(data, self.written);
    }
}

/// Reads all that a peer sends, and writes it back.
fn talk(bytes: &[u8], piece: usize, buffer: usize, blocks: bool) -> Told {
    let mut told = Told { read: Vec::new(), end: None, written: Vec::new(), out: Vec::new() };
    let peer = Peer { bytes, piece, blocks, turn: false, out: &mut told.out };
    let mut carrier = WebSocketCarrier::server(peer);
    let mut cx = Context::from_waker(Waker::noop());
    let mut space = vec![0; buffer];
    loop {
        let mut space = ReadBuf::new(&mut space);
        match Pin::new(&mut carrier).poll_read(&mut cx, &mut space) {
            Poll::Pending => continue,
            Poll::Ready(Ok(())) if space.filled().is_empty() => break,
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                told.end = Some(error.to_string());
                break;
            }
        }
        told.read.extend_from_slice(space.filled());
        let mut rest = space.filled();
        while !rest.is_empty() {
            match Pin::new(&mut carrier).poll_write(&mut cx, rest) {
                Poll::Pending => {}
                Poll::Ready(Ok(count)) => {
                    assert!(count > 0);
                    told.written.extend_from_slice(&rest[..count]);
                    rest = &rest[count..];
                }
                // It has closed.
                Poll::Ready(Err(_)) => break,
            }
        }
    }
    for _ in 0..1 << 20 {
        if let Poll::Ready(closed) = Pin::new(&mut carrier).poll_shutdown(&mut cx) {
            closed.expect("the peer takes all");
            drop(carrier);
            return told;
        }
    }
    panic!("it never closes");
}

/// A peer that sends its bytes in pieces, and takes pieces; every second turn, if it `blocks`.
struct Peer<'a> {
    bytes: &'a [u8],
    piece: usize,
    blocks: bool,
    turn: bool,
    out: &'a mut Vec<u8>,
}

impl Peer<'_> {
    fn blocked(&mut self) -> bool {
        self.turn = !self.turn;
        self.blocks && self.turn
    }
}

impl AsyncRead for Peer<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.blocked() {
            return Poll::Pending;
        }
        let (now, rest) = self.bytes.split_at(self.piece.min(buf.remaining()).min(self.bytes.len()));
        buf.put_slice(now);
        self.bytes = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.blocked() {
            return Poll::Pending;
        }
        let count = self.piece.min(bytes.len());
        self.out.extend_from_slice(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    // Takes one part at a time, as it may.
    fn is_write_vectored(&self) -> bool {
        self.piece.is_multiple_of(2)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Messages whole and in fragments with control frames between; ends of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let frame = |fin, opcode, payload: &[u8]| {
        let mut mask = Mask([0x37, 0xfa, 0x21, 0x3d]);
        let mut out = Vec::new();
        encode(&mut out, &Header { fin, opcode, mask: Some(mask), length: payload.len() as u64 });
        let mut payload = payload.to_vec();
        mask.apply(&mut payload);
        out.extend_from_slice(&payload);
        out
    };
    let message = frame(true, Opcode::Binary, b"a message");
    let fragments = [
        frame(false, Opcode::Binary, b"one "),
        frame(true, Opcode::Ping, b"there?"),
        frame(false, Opcode::Continuation, b""),
        frame(true, Opcode::Pong, b""),
        frame(true, Opcode::Continuation, b"message"),
    ]
    .concat();
    let close = frame(true, Opcode::Close, b"\x03\xe8bye");
    let middle = frame(true, Opcode::Binary, &[5; 300]);
    let text = frame(true, Opcode::Text, b"text");
    let first = |how: u8, parts: &[&[u8]]| [&[how][..], &parts.concat()].concat();
    vec![
        first(0x00, &[&message]),
        first(0x11, &[&message, &fragments, &close]),
        first(0x05, &[&fragments, &middle, &close]),
        first(0xff, &[&middle, &text]),
        first(0x2d, &[&message, &frame(true, Opcode::Continuation, b"of nothing")]),
        first(0x01, &[&frame(true, Opcode::Ping, &[1; 125]), &frame(true, Opcode::Close, b"")]),
        first(0x33, &[&[0x82, 0xff, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0, 0]]),
        first(0x44, &[&[0x82, 2, 1, 2]]),
    ]
}

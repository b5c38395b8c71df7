//! Peers that break the protocol, frame by frame: the right reason, for that stream or that connection only, no
//! panic, and no more memory than was promised.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

#[path = "hostile/growth.rs"]
mod growth;
#[path = "hostile/legs.rs"]
mod legs;
#[path = "hostile/session.rs"]
mod session;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinSet,
    time::timeout,
};
use towline_tunnel::{
    ids::{ClusterId, InstanceId, StreamKey},
    mux::{CloseReason, Closed, Connection, EndpointConfig, Ledger, Side},
    proto::{
        Frame, OpenRequest, Opened, StreamId,
        fields::{CRITICAL, FieldWriter},
        frame::{decode, encode},
        link::MAX_CONTROL,
        open::MAX_TICKET,
        send::FLOOR,
        window::INITIAL_WINDOW,
    },
};

/// Nothing here takes longer.
const SOON: Duration = Duration::from_secs(10);

fn request() -> OpenRequest {
    OpenRequest::new(StreamKey::random(), ClusterId::of_spki(b"cluster"))
}

fn open(stream: StreamId) -> Frame {
    Frame::Open { stream, payload: request().encode() }
}

fn data(stream: StreamId, payload: impl Into<Bytes>, fin: bool) -> Frame {
    Frame::Data { stream, payload: payload.into(), fin, blocked: false }
}

fn wire(frames: &[Frame]) -> Vec<u8> {
    let mut out = BytesMut::new();
    for frame in frames {
        encode(&mut out, frame);
    }
    out.to_vec()
}

/// A frame's bytes, whatever they are.
fn raw(kind: u8, flags: u8, length: u16, stream: u32) -> Vec<u8> {
    let mut bytes = vec![kind, flags];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.resize(8 + usize::from(length.min(64)), 0);
    bytes
}

/// The peer that breaks rules: it dialled, an honest acceptor answers.
struct Mallory {
    io: DuplexStream,
    read: BytesMut,
}

impl Mallory {
    async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
    }

    /// The next frame that the honest side sends; nothing once it has ended the carrier.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = decode(&mut self.read).unwrap() {
                return Some(frame);
            }
            let read = timeout(SOON, self.io.read_buf(&mut self.read)).await.expect("an answer comes soon");
            if read.unwrap() == 0 {
                return None;
            }
        }
    }

    /// Passes over all but the next RESET.
    async fn reset(&mut self) -> (StreamId, CloseReason) {
        loop {
            match self.next().await.expect("the connection stays") {
                Frame::Reset { stream, reason, .. } => return (stream, reason),
                Frame::GoAway { reason, detail, .. } => panic!("the connection ends: {reason:?} {detail}"),
                _ => {}
            }
        }
    }
}

/// An honest acceptor and its peer. Dropping the set drops the connection.
fn honest(max_streams: usize) -> (Connection, Mallory, JoinSet<Closed>) {
    let (ours, theirs) = duplex(1 << 20);
    let config = EndpointConfig {
        side: Side::Acceptor,
        max_streams,
        ledger: Ledger::new(64 << 20),
        instance: InstanceId::random(),
        jitter: 0,
    };
    let (connection, driver) = Connection::new(ours, BytesMut::new(), config);
    let mut tasks = JoinSet::new();
    tasks.spawn(driver.run());
    (connection, Mallory { io: theirs, read: BytesMut::new() }, tasks)
}

/// These bytes end the connection: GOAWAY gives the reason, and the carrier ends.
async fn ends(bytes: &[u8], expected: CloseReason) {
    let (connection, mut mallory, mut tasks) = honest(100);
    mallory.send(bytes).await;
    let mut said = None;
    while let Some(frame) = mallory.next().await {
        if let Frame::GoAway { reason, .. } = frame {
            said = Some(reason);
        }
    }
    assert_eq!(said, Some(expected), "{bytes:?}");
    let closed = timeout(SOON, tasks.join_next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(&closed, Closed::Violation(violation) if violation.reason == expected), "{closed:?}");
    assert_eq!(connection.closed().await.reason, expected);
}

#[tokio::test]
async fn a_bad_length_type_flag_or_stream_id_ends_the_connection_with_its_reason() {
    use CloseReason::{FrameMalformed, FrameUnknown, StreamIdInvalid};
    for (kind, flags, length, stream, reason) in [
        (0x03, 0, 16_321, 1, FrameMalformed),
        (0x03, 0, 0, 1, FrameMalformed),
        (0x04, 0, 15, 1, FrameMalformed),
        (0x05, 0, 1, 1, FrameMalformed),
        (0x05, 0, 259, 1, FrameMalformed),
        (0x08, 0, 1, 1, FrameMalformed),
        (0x09, 0, 7, 0, FrameMalformed),
        (0x0b, 0, 9, 0, FrameMalformed),
        (0x0c, 0, 0, 0, FrameMalformed),
        (0x01, 1, 0, 1, FrameMalformed),
        (0x03, 4, 1, 1, FrameMalformed),
        (0x09, 0x80, 8, 0, FrameMalformed),
        (0x00, 0, 0, 0, FrameUnknown),
        (0x0d, 0, 0, 0, FrameUnknown),
        (0x7f, 0, 0, 1, FrameUnknown),
        (0x03, 0, 1, 0, StreamIdInvalid),
        (0x01, 0, 0, 0, StreamIdInvalid),
        (0x09, 0, 8, 1, StreamIdInvalid),
        (0x0b, 0, 10, 1, StreamIdInvalid),
    ] {
        ends(&raw(kind, flags, length, stream), reason).await;
    }
}

#[tokio::test]
async fn frames_of_streams_that_never_were_end_the_connection() {
    use CloseReason::{FrameMalformed, StreamIdInvalid};
    let credit = Frame::Credit { stream: 9, received: 0, limit: 1 };
    let reset = Frame::Reset { stream: 9, reason: CloseReason::Cancelled, detail: String::new() };
    let opened = Frame::Opened { stream: 4, payload: Bytes::new() };
    for frames in [
        vec![data(9, "x", false)],
        vec![credit],
        vec![reset],
        vec![opened],
        vec![Frame::Detached { stream: 9 }],
        vec![Frame::Resumed { stream: 9, payload: Bytes::new() }],
        vec![open(2)],
        vec![open(5), open(5)],
        vec![open(5), open(3)],
        vec![Frame::Resume { stream: 8, payload: Bytes::new() }],
    ] {
        ends(&wire(&frames), StreamIdInvalid).await;
    }
    ends(&[&wire(&[open(1)])[..], &[5, 0, 0, 4, 0, 0, 0, 1, 0, 1, 0xc3, 0x28]].concat(), FrameMalformed)
        .await;
}

#[tokio::test]
async fn garbage_after_the_upgrade_ends_the_connection() {
    use CloseReason::{FrameMalformed, FrameUnknown};
    ends(b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n", FrameMalformed).await;
    ends(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", FrameUnknown).await;
    ends(&[&raw(0xff, 0, 1, 0)[..], b"n\0\0\0nonsense"].concat(), FrameUnknown).await;
}

#[tokio::test]
async fn a_flood_of_control_messages_or_of_opens_ends_the_connection() {
    let control = Frame::Control { payload: Bytes::from_static(b"?") };
    ends(&wire(&vec![control; MAX_CONTROL + 1]), CloseReason::LimitReached).await;
    let opens: Vec<Frame> = (0..201).map(|n| open(1 + 2 * n)).collect();
    ends(&wire(&opens), CloseReason::LimitReached).await;
}

/// The first of two streams breaks a rule: it is reset for `expected`, and the second goes on as if nothing were.
async fn resets(frames: &[Frame], expected: CloseReason) {
    let (connection, mut mallory, _tasks) = honest(100);
    mallory.send(&wire(frames)).await;
    assert_eq!(mallory.reset().await, (1, expected), "{frames:?}");
    mallory.send(&wire(&[open(3), data(3, "alive", true)])).await;
    let mut accepted = Vec::new();
    let stream = loop {
        let (_, stream) = timeout(SOON, connection.accept()).await.unwrap().unwrap();
        if stream.id() == 3 {
            break stream;
        }
        accepted.push(stream);
    };
    let mut stream = stream;
    let mut got = String::new();
    stream.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "alive");
    for mut broken in accepted {
        let mut got = Vec::new();
        broken.read_to_end(&mut got).await.expect_err("what broke a rule never looks finished");
    }
}

fn fields(write: impl FnOnce(&mut FieldWriter) -> &mut FieldWriter) -> Bytes {
    let mut fields = FieldWriter::new();
    fields.put(1 | CRITICAL, &[1; 16]).put(2 | CRITICAL, &[2; 32]);
    write(&mut fields);
    fields.finish().into()
}

#[tokio::test]
async fn a_stream_that_breaks_a_rule_is_reset_and_its_neighbour_is_not() {
    use CloseReason::{CreditExceeded, FrameMalformed};
    let blocks = |bytes: u64| -> Vec<Frame> {
        let whole = bytes / 16_000;
        let mut frames = vec![open(1)];
        frames.extend((0..whole).map(|_| data(1, vec![0; 16_000], false)));
        frames.push(data(1, vec![0; (bytes - 16_000 * whole) as usize], false));
        frames
    };
    resets(&blocks(INITIAL_WINDOW + 1), CreditExceeded).await;
    resets(&[open(1), Frame::Credit { stream: 1, received: 1, limit: FLOOR }], FrameMalformed).await;
    resets(&[open(1), Frame::Credit { stream: 1, received: u64::MAX, limit: u64::MAX }], FrameMalformed)
        .await;
    resets(&[open(1), Frame::Resumed { stream: 1, payload: Bytes::new() }], FrameMalformed).await;
    let answer = Opened { instance: InstanceId::random(), limit: FLOOR }.encode();
    resets(&[open(1), Frame::Opened { stream: 1, payload: answer }], FrameMalformed).await;
    resets(&[Frame::Resume { stream: 1, payload: Bytes::from_static(b"?") }], FrameMalformed).await;
    for payload in [
        Bytes::new(),
        Bytes::from_static(b"\0\x01"),
        Bytes::from_static(&[0xff; 300]),
        fields(|fields| fields.put(3, &[0; 7])),
        fields(|fields| fields.put(6, &[0; MAX_TICKET + 1])),
        fields(|fields| fields.put(9 | CRITICAL, b"of the future")),
    ] {
        resets(&[Frame::Open { stream: 1, payload }], FrameMalformed).await;
    }
}

#[tokio::test]
async fn data_behind_the_end_resets_the_stream_and_is_never_read() {
    let (connection, mut mallory, _tasks) = honest(100);
    mallory.send(&wire(&[open(1), data(1, "whole", true), data(1, "forged", true)])).await;
    assert_eq!(mallory.reset().await, (1, CloseReason::DataAfterFin));
    let (_, mut stream) = timeout(SOON, connection.accept()).await.unwrap().unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "whole");
    stream.write_all(b"x").await.expect_err("the stream is over");
}

#[tokio::test]
async fn what_a_future_version_may_add_is_passed_over() {
    let (connection, mut mallory, _tasks) = honest(100);
    mallory.send(&raw(0x80, 0xff, 12, 77)).await;
    let payload = fields(|fields| fields.put(0x7f00, b"of the future"));
    mallory.send(&wire(&[Frame::Open { stream: 1, payload }])).await;
    mallory.send(&raw(0xff, 0, 0, 0)).await;
    mallory.send(&wire(&[data(1, "both are understood", true)])).await;
    let (_, mut stream) = timeout(SOON, connection.accept()).await.unwrap().unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "both are understood");
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_those_before_go_on() {
    let (connection, mut mallory, _tasks) = honest(2);
    mallory.send(&wire(&[open(1), open(3), open(5)])).await;
    assert_eq!(mallory.reset().await, (5, CloseReason::LimitReached));
    mallory.send(&wire(&[data(1, "first", true)])).await;
    let (_, mut stream) = timeout(SOON, connection.accept()).await.unwrap().unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "first");
}

#[tokio::test]
async fn a_reset_behind_data_is_an_error_however_much_was_read() {
    let (connection, mut mallory, _tasks) = honest(2);
    let reset = Frame::Reset { stream: 1, reason: CloseReason::Other(4711), detail: "of the future".into() };
    mallory.send(&wire(&[open(1), data(1, "half a senten", false), reset])).await;
    let (_, mut stream) = timeout(SOON, connection.accept()).await.unwrap().unwrap();
    let mut got = Vec::new();
    let error = stream.read_to_end(&mut got).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

//! What a script makes of its bytes: ids, numbers and frames, valid and hostile.

use bytes::{Bytes, BytesMut};
use towline_tunnel::{
    ids::{ClusterId, InstanceId, StreamKey},
    proto::{
        CloseReason, OpenRequest, Opened,
        frame::{Frame, MAX_PAYLOAD, StreamId, decode, encode},
        send::FLOOR,
    },
};

use super::super::script::Script;

/// Ids that are likely to be used, and any other.
pub(super) fn stream(script: &mut Script<'_>) -> StreamId {
    match script.byte() {
        byte @ 0..=239 => u32::from(byte % 14),
        _ => script.long() as u32,
    }
}

pub(super) fn offset(script: &mut Script<'_>) -> u64 {
    match script.byte() % 8 {
        0 => 0,
        1 => FLOOR,
        2 => u64::from(script.byte()),
        3 => u64::from(script.short()),
        4 => FLOOR + u64::from(script.short()),
        5 => 1 << 20,
        6 => u64::MAX - u64::from(script.byte()),
        _ => script.long(),
    }
}

pub(super) fn size(script: &mut Script<'_>) -> usize {
    match script.byte() % 8 {
        0 => 0,
        1 => 1,
        2 => 1023 + usize::from(script.byte() % 3),
        3 => MAX_PAYLOAD,
        4 => usize::from(script.byte()),
        _ => usize::from(script.short()) % (MAX_PAYLOAD + 1),
    }
}

pub(super) fn reason(script: &mut Script<'_>) -> CloseReason {
    CloseReason::from_code(script.byte().into())
}

pub(super) fn request(script: &mut Script<'_>) -> OpenRequest {
    let mut request =
        OpenRequest::new(StreamKey::from_bytes([script.byte(); 16]), ClusterId::from_bytes([0; 32]));
    request.limit = offset(script);
    request.share = u64::from(script.byte() % 3);
    request
}

fn frame(script: &mut Script<'_>) -> Frame {
    let stream = stream(script);
    match script.byte() % 16 {
        0 => Frame::Open { stream, payload: Bytes::copy_from_slice(script.bytes(20)) },
        1 | 2 => Frame::Open { stream, payload: request(script).encode() },
        3 => Frame::Opened {
            stream,
            payload: Opened { instance: InstanceId::from_bytes([1; 16]), limit: offset(script) }.encode(),
        },
        4 => Frame::Opened { stream, payload: Bytes::copy_from_slice(script.bytes(20)) },
        5..=7 => {
            let flags = script.byte();
            let payload = vec![flags; size(script)].into();
            Frame::Data { stream, payload, fin: flags & 3 == 3, blocked: flags & 4 != 0 }
        }
        8 | 9 => Frame::Credit { stream, received: offset(script), limit: offset(script) },
        10 => Frame::Reset { stream, reason: reason(script), detail: String::new() },
        11 => match script.byte() % 4 {
            0 => Frame::Resume { stream, payload: Bytes::new() },
            1 => Frame::Resumed { stream, payload: Bytes::new() },
            _ => Frame::Detached { stream },
        },
        12 => Frame::Ping { token: 7 },
        13 => Frame::Pong { token: 7 },
        14 => Frame::GoAway { last: stream, reason: reason(script), delay_ms: 1, detail: String::new() },
        _ => Frame::Control { payload: Bytes::from_static(b"?") },
    }
}

/// Bytes that came: some as sound frames, some as they are.
pub(super) fn arrive(script: &mut Script<'_>, bytes: &mut BytesMut) {
    if script.byte().is_multiple_of(8) {
        let length = script.byte().into();
        bytes.extend_from_slice(script.bytes(length));
    } else {
        encode(bytes, &frame(script));
    }
}

/// What was sent must be whole, sound frames.
pub(super) fn sound(mut out: BytesMut) {
    while let Some(frame) = decode(&mut out).expect("what is sent can be read") {
        assert_ne!(frame, Frame::Ignored);
    }
    assert!(out.is_empty(), "what is sent is whole");
}

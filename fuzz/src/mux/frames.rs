//! What a script makes of its bytes: ids, numbers and frames, valid and hostile.

use bytes::{Bytes, BytesMut};
use towline_tunnel::{
    ids::{ClusterId, InstanceId, StreamKey},
    proto::{
        Arrived, CloseReason, OpenRequest, Opened, ResumeRequest,
        frame::{Frame, MAX_PAYLOAD, StreamId, decode, encode},
        resume::{Claim, MAX_OFFSET, ResumeKey},
        send::FLOOR,
    },
};

use super::super::script::Script;

/// The process that the peer's RESUMEs name.
pub(super) const INSTANCE: InstanceId = InstanceId::from_bytes([9; 16]);

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

/// Few names, so that those of RESUME are likely to be known.
pub(super) fn key(script: &mut Script<'_>) -> StreamKey {
    StreamKey::from_bytes([script.byte() % 8; 16])
}

pub(super) fn cluster() -> ClusterId {
    ClusterId::from_bytes([0; 32])
}

/// What an end keeps of a stream; the peer's proofs fit if they are made with the same.
pub(super) fn claim(key: StreamKey) -> Claim {
    Claim::new(key, cluster(), INSTANCE, ResumeKey::new(&[7; 32]))
}

/// How far a peer says that it is: likely where it can be.
fn arrived(script: &mut Script<'_>) -> Arrived {
    let bytes = match script.byte() % 8 {
        0 => MAX_OFFSET - 1,
        1 => 1 << 20,
        2..=4 => u64::from(script.byte()),
        5 => size(script) as u64 * 9,
        _ => 0,
    };
    Arrived { bytes, fin: script.byte().is_multiple_of(4) }
}

/// RESUME of a stream that may be kept here, with an epoch near its own, and a proof that fits more often than not.
fn resume(script: &mut Script<'_>) -> ResumeRequest {
    let (mut claim, arrived, limit) = (claim(key(script)), arrived(script), offset(script));
    let epoch = script.byte() % 6;
    let mut request = claim.ask(arrived, limit);
    for _ in 0..epoch {
        request = claim.ask(arrived, limit);
    }
    request.share = u64::from(script.byte() % 3);
    match script.byte() {
        0..=31 => request.proof[0] ^= 1,
        32..=39 => request.instance = InstanceId::from_bytes([8; 16]),
        40..=47 => request.arrived.bytes ^= 1,
        48..=55 => request.epoch += 1,
        _ => {}
    }
    request
}

/// RESUMED, likely of a RESUME that was sent: with a proof that fits more often than not.
fn answer(script: &mut Script<'_>, asked: &[(StreamId, ResumeRequest)], stream: StreamId) -> Frame {
    let last = asked.get(asked.len().wrapping_sub(1 + usize::from(script.byte() % 4)));
    let request = last.map_or_else(|| resume(script), |(_, request)| request.clone());
    let stream = last.map_or(stream, |(stream, _)| *stream);
    let mut resumed = claim(request.key).answer(&request, arrived(script), offset(script));
    match script.byte() {
        0..=31 => resumed.proof[0] ^= 1,
        32..=47 => resumed.epoch -= 1,
        _ => {}
    }
    Frame::Resumed { stream, payload: resumed.encode() }
}

pub(super) fn request(script: &mut Script<'_>) -> OpenRequest {
    let mut request = OpenRequest::new(key(script), cluster());
    request.limit = offset(script);
    request.share = u64::from(script.byte() % 3);
    request
}

fn frame(script: &mut Script<'_>, asked: &[(StreamId, ResumeRequest)]) -> Frame {
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
        11 => match script.byte() % 8 {
            0 => Frame::Resume { stream, payload: Bytes::new() },
            1 => Frame::Resumed { stream, payload: Bytes::new() },
            2 | 3 => Frame::Resume { stream, payload: resume(script).encode() },
            4 | 5 => answer(script, asked, stream),
            _ => Frame::Detached { stream },
        },
        12 => Frame::Ping { token: 7 },
        13 => Frame::Pong { token: 7 },
        14 => Frame::GoAway { last: stream, reason: reason(script), delay_ms: 1, detail: String::new() },
        _ => Frame::Control { payload: Bytes::from_static(b"?") },
    }
}

/// Bytes that came: some as sound frames, some as they are.
pub(super) fn arrive(script: &mut Script<'_>, bytes: &mut BytesMut, asked: &[(StreamId, ResumeRequest)]) {
    if script.byte().is_multiple_of(8) {
        let length = script.byte().into();
        bytes.extend_from_slice(script.bytes(length));
    } else {
        encode(bytes, &frame(script, asked));
    }
}

/// What was sent must be whole, sound frames. Adds the RESUMEs among them to those that can be answered.
pub(super) fn sound(mut out: BytesMut, asked: &mut Vec<(StreamId, ResumeRequest)>) {
    while let Some(frame) = decode(&mut out).expect("what is sent can be read") {
        assert_ne!(frame, Frame::Ignored);
        if let Frame::Resume { stream, payload } = frame {
            asked.push((stream, ResumeRequest::decode(&payload).expect("a sound RESUME")));
        }
    }
    assert!(out.is_empty(), "what is sent is whole");
}

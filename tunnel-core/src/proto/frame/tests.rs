use proptest::prelude::*;

use super::*;

fn wire(frame: &Frame) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode(&mut out, frame);
    out.to_vec()
}

/// The specification's examples, byte for byte.
#[test]
fn bytes_on_the_wire() {
    let data = Frame::Data { stream: 3, payload: Bytes::from_static(b"hi"), fin: true, blocked: false };
    assert_eq!(wire(&data), [3, 1, 0, 2, 0, 0, 0, 3, b'h', b'i']);
    assert_eq!(
        wire(&Frame::Credit { stream: 5, received: 1, limit: 0x4001 }),
        [4, 0, 0, 16, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x40, 1]
    );
    assert_eq!(
        wire(&Frame::Reset { stream: 7, reason: CloseReason::Lost, detail: "x".into() }),
        [5, 0, 0, 3, 0, 0, 0, 7, 0, 22, b'x']
    );
    assert_eq!(
        wire(&Frame::GoAway { last: 9, reason: CloseReason::Draining, delay_ms: 500, detail: String::new() }),
        [11, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 9, 0, 18, 0, 0, 1, 0xf4]
    );
    assert_eq!(wire(&Frame::Ping { token: 1 }), [9, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
}

fn refused(bytes: &[u8]) -> FrameError {
    decode(&mut BytesMut::from(bytes)).unwrap_err()
}

#[test]
fn bad_lengths_types_flags_and_ids_are_refused_from_the_header_alone() {
    assert_eq!(refused(&[3, 0, 0xff, 0xff, 0, 0, 0, 1]), FrameError::Length { kind: 3, length: 65535 });
    assert_eq!(refused(&[3, 0, 0, 0, 0, 0, 0, 1]), FrameError::Length { kind: 3, length: 0 });
    assert_eq!(refused(&[4, 0, 0, 15, 0, 0, 0, 1]), FrameError::Length { kind: 4, length: 15 });
    assert_eq!(refused(&[0, 0, 0, 0, 0, 0, 0, 0]), FrameError::Unknown(0));
    assert_eq!(refused(&[0x7f, 0, 0, 0, 0, 0, 0, 0]), FrameError::Unknown(0x7f));
    assert_eq!(refused(&[3, 4, 0, 1, 0, 0, 0, 1]), FrameError::Flags { kind: 3, flags: 4 });
    assert_eq!(refused(&[3, 0, 0, 1, 0, 0, 0, 0]), FrameError::Stream { kind: 3, stream: 0 });
    assert_eq!(refused(&[9, 0, 0, 8, 0, 0, 0, 2]), FrameError::Stream { kind: 9, stream: 2 });
    assert_eq!(refused(&[5, 0, 0, 3, 0, 0, 0, 1, 0, 1, 0xff]), FrameError::Text(5));
}

#[test]
fn optional_types_of_the_future_are_passed_over() {
    let mut bytes = BytesMut::from(&[0x80, 0xff, 0, 2, 0, 0, 0, 9, 1, 2, 9, 0, 0, 8, 0, 0, 0, 0][..]);
    assert_eq!(decode(&mut bytes), Ok(Some(Frame::Ignored)));
    assert_eq!(decode(&mut bytes), Ok(None));
    assert_eq!(bytes.len(), 8);
}

fn any_bytes(max: usize) -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let stream = 1..=u32::MAX;
    let reason = any::<u16>().prop_map(CloseReason::from_code);
    prop_oneof![
        (stream.clone(), any_bytes(300)).prop_map(|(stream, payload)| Frame::Open { stream, payload }),
        (stream.clone(), any_bytes(300)).prop_map(|(stream, payload)| Frame::Opened { stream, payload }),
        (stream.clone(), any_bytes(MAX_PAYLOAD), any::<bool>(), any::<bool>())
            .prop_filter("an empty DATA has a flag", |(_, p, f, b)| !p.is_empty() || *f || *b)
            .prop_map(|(stream, payload, fin, blocked)| Frame::Data { stream, payload, fin, blocked }),
        (stream.clone(), any::<u64>(), any::<u64>()).prop_map(|(stream, received, limit)| Frame::Credit {
            stream,
            received,
            limit
        }),
        (stream.clone(), reason.clone(), "[a-zé]{0,100}").prop_map(|(stream, reason, detail)| Frame::Reset {
            stream,
            reason,
            detail
        }),
        (stream.clone(), any_bytes(300)).prop_map(|(stream, payload)| Frame::Resume { stream, payload }),
        (stream.clone(), any_bytes(300)).prop_map(|(stream, payload)| Frame::Resumed { stream, payload }),
        stream.prop_map(|stream| Frame::Detached { stream }),
        any::<u64>().prop_map(|token| Frame::Ping { token }),
        any::<u64>().prop_map(|token| Frame::Pong { token }),
        (any::<u32>(), reason, any::<u32>(), "[a-z]{0,100}")
            .prop_map(|(last, reason, delay_ms, detail)| Frame::GoAway { last, reason, delay_ms, detail }),
        any_bytes(300)
            .prop_filter("CONTROL is not empty", |p| !p.is_empty())
            .prop_map(|payload| Frame::Control { payload }),
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_reads_back_however_it_is_cut(frames in proptest::collection::vec(any_frame(), 1..8), cut in 1usize..5000) {
        let mut out = BytesMut::new();
        for frame in &frames {
            encode(&mut out, frame);
        }
        let mut read = BytesMut::new();
        let mut got = Vec::new();
        for chunk in out.chunks(cut) {
            read.extend_from_slice(chunk);
            while let Some(frame) = decode(&mut read).unwrap() {
                got.push(frame);
            }
        }
        prop_assert_eq!(got, frames);
        prop_assert!(read.is_empty());
    }

    #[test]
    fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = decode(&mut bytes) {}
    }
}

//! The frame codec: what is read is written the same, however the bytes are cut.

use bytes::{Buf, Bytes, BytesMut};
use towline_tunnel::proto::{
    CloseReason,
    frame::{Frame, FrameError, HEADER, MAX_PAYLOAD, decode, encode},
};

/// See the module's text.
pub fn run(input: &[u8]) {
    let (frames, end) = whole(input);
    let piece = 1 + usize::from(input.first().copied().unwrap_or(0)) % 23;
    let mut cut = BytesMut::new();
    let mut again = Vec::new();
    let mut end_again = None;
    'pieces: for piece in input.chunks(piece) {
        cut.extend_from_slice(piece);
        loop {
            match decode(&mut cut) {
                Ok(Some(frame)) => again.push(frame),
                Ok(None) => break,
                Err(error) => {
                    end_again = Some(error);
                    break 'pieces;
                }
            }
        }
        assert!(cut.len() < HEADER + MAX_PAYLOAD, "no more is waited for than one frame");
    }
    assert_eq!(frames, again);
    assert_eq!(end, end_again);
}

fn whole(input: &[u8]) -> (Vec<Frame>, Option<FrameError>) {
    let mut rest = BytesMut::from(input);
    let mut frames = Vec::new();
    loop {
        let before = rest.clone();
        match decode(&mut rest) {
            Ok(Some(frame)) => {
                let read = &before[..before.len() - rest.len()];
                let mut written = BytesMut::new();
                encode(&mut written, &frame);
                assert!(frame == Frame::Ignored || written == read, "{frame:?}: {written:?} {read:?}");
                frames.push(frame);
            }
            Ok(None) => {
                assert_eq!(before, rest);
                return (frames, None);
            }
            Err(error) => return (frames, Some(error)),
        }
    }
}

/// One frame of each type.
pub fn seeds() -> Vec<Vec<u8>> {
    let payload = Bytes::from_static(b"payload");
    let stream = 7;
    let frames = [
        Frame::Open { stream, payload: payload.clone() },
        Frame::Opened { stream, payload: payload.clone() },
        Frame::Data { stream, payload: payload.clone(), fin: false, blocked: true },
        Frame::Data { stream, payload: Bytes::new(), fin: true, blocked: false },
        Frame::Credit { stream, received: 5, limit: 1 << 20 },
        Frame::Reset { stream, reason: CloseReason::Cancelled, detail: "né".into() },
        Frame::Resume { stream, payload: payload.clone() },
        Frame::Resumed { stream, payload: payload.clone() },
        Frame::Detached { stream },
        Frame::Ping { token: 1 },
        Frame::Pong { token: 1 },
        Frame::GoAway { last: 3, reason: CloseReason::Draining, delay_ms: 5, detail: "bye".into() },
        Frame::Control { payload },
    ];
    let mut all = BytesMut::new();
    let mut seeds: Vec<Vec<u8>> = frames
        .iter()
        .map(|frame| {
            let mut out = BytesMut::new();
            encode(&mut out, frame);
            all.extend_from_slice(&out);
            out.to_vec()
        })
        .collect();
    all.extend_from_slice(&[0x80, 1, 0, 2, 0, 0, 0, 0, 1, 2]);
    seeds.push(all.to_vec());
    all.advance(3);
    seeds.push(all.to_vec());
    seeds
}

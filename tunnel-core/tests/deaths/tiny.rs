//! `logs -f` of lines of one byte: a peer that sends many tiny frames is no attacker. h2 ends such connections; here a
//! frame of one byte is as welcome as any, and costs no answer of its own.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use towline_tunnel::{
    mux::{Ledger, Side},
    proto::{
        Frame, StreamId,
        endpoint::{Endpoint, Read},
        frame::{HEADER, decode, encode},
        leg::{Leg, LegConfig, LegEvent},
    },
};

use super::path::{Path, endpoint, request};

const FRAMES: usize = 1_000_000;
/// Frames that come between two looks of the reader.
const AT_ONCE: usize = 1_000;

fn open() -> Frame {
    Frame::Open { stream: 1, payload: request().encode() }
}

/// As they come from a socket: so many frames of one byte.
fn tiny_frames() -> BytesMut {
    let mut wire = BytesMut::new();
    for _ in 0..AT_ONCE {
        encode(
            &mut wire,
            &Frame::Data { stream: 1, payload: b"x".as_slice().into(), fin: false, blocked: false },
        );
    }
    assert_eq!(wire.len(), AT_ONCE * (HEADER + 1));
    wire
}

#[test]
fn a_million_frames_of_one_byte_do_not_end_a_connection_and_get_few_answers() {
    let mut end = Endpoint::<()>::new(endpoint(Side::Acceptor), Instant::now());
    let now = Instant::now();
    end.on_frame(open(), now).unwrap();
    let (id, _) = end.accept().unwrap();
    let (wire, mut said, mut buffer) = (tiny_frames(), BytesMut::new(), vec![0; AT_ONCE]);
    for _ in 0..FRAMES / AT_ONCE {
        let mut came = wire.clone();
        while let Some(frame) = decode(&mut came).unwrap() {
            end.on_frame(frame, now).expect("a tiny frame is no fault");
        }
        assert_eq!(end.read(id, &mut buffer), Ok(Read::Bytes(AT_ONCE)));
        assert_eq!(end.held(), 0);
        end.fill(&mut said);
    }
    // OPENED, and a CREDIT for each eighth of the window.
    assert!(said.len() < 64 * 24, "{} bytes were said to a million of one", said.len());
}

#[test]
fn a_relay_passes_a_million_frames_of_one_byte_on_in_large_ones() {
    let now = Instant::now();
    let leg = || {
        let ledger = Ledger::new(64 << 20);
        Leg::<StreamId>::new(LegConfig { side: Side::Acceptor, max_streams: 10, ledger, jitter: 0 }, now)
    };
    let (mut client, mut agent) = (leg(), leg());
    let Ok(Some(LegEvent::Open { stream, request })) = client.on_frame(open(), now) else {
        panic!("OPEN is an event");
    };
    let id = agent.open(request, stream).unwrap();
    client.bind(stream, id, 0);
    let (wire, mut on, mut back, mut progress) =
        (tiny_frames(), BytesMut::new(), BytesMut::new(), Vec::new());
    let (mut frames, mut bytes) = (0, 0);
    // The far end takes what came, and says so now and then.
    let takes = |agent: &mut Leg<StreamId>, client: &mut Leg<StreamId>, received: usize| {
        let (received, limit) = (received as u64, received as u64 + 256 * 1024);
        agent.on_frame(Frame::Credit { stream: id, received, limit }, now).unwrap();
        client.credit(stream, received, limit);
    };
    agent.fill(&mut on, &mut progress);
    takes(&mut agent, &mut client, 0);
    client.fill(&mut back, &mut Vec::new());
    for round in 1..=FRAMES / AT_ONCE {
        let mut came = wire.clone();
        while let Some(frame) = decode(&mut came).unwrap() {
            match client.on_frame(frame, now).expect("a tiny frame is no fault") {
                Some(LegEvent::Data { to, payload, fin, blocked }) => {
                    agent.forward(to, payload, fin, blocked)
                }
                other => panic!("{other:?}"),
            }
        }
        agent.fill(&mut on, &mut progress);
        for step in progress.drain(..) {
            client.passed(step.to, step.written);
        }
        while let Some(frame) = decode(&mut on).unwrap() {
            if let Frame::Data { payload, .. } = frame {
                frames += 1;
                bytes += payload.len();
            }
        }
        if round % 30 == 0 {
            takes(&mut agent, &mut client, round * AT_ONCE);
        }
        client.fill(&mut back, &mut Vec::new());
    }
    assert_eq!(bytes, FRAMES);
    assert!(frames <= 2 * FRAMES / AT_ONCE, "{frames} frames were sent on");
    assert!(back.len() < 200 * 24, "{} bytes were said to a million of one", back.len());
}

#[tokio::test(start_paused = true)]
async fn lines_of_one_byte_that_are_followed_arrive_each_at_once() {
    for path in Path::both(5_000) {
        let (mut near, mut far) = path.stream().await;
        let follow = async {
            for _ in 0..20_000 {
                far.write_all(b"\n").await.unwrap();
                // Not gathered with the next one: it is read before that is written.
                near.read_u8().await.unwrap();
            }
        };
        timeout(Duration::from_secs(3600), follow).await.expect("a line stays away");
    }
}

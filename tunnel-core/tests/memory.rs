//! What bytes for readers that stand still take of this process's memory, however a peer cuts them.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use bytes::BytesMut;
use towline_tunnel::{
    ids::{ClusterId, InstanceId, StreamKey},
    mux::{EndpointConfig, Ledger, OpenRequest, Side},
    proto::{
        Frame, StreamId,
        endpoint::{Endpoint, Read},
        frame::{decode, encode},
        leg::{Leg, LegConfig, LegEvent},
    },
};

/// Memory is measured for the whole process.
static ALONE: Mutex<()> = Mutex::new(());

fn endpoint(ledger: &Ledger) -> Endpoint<()> {
    let config = EndpointConfig {
        side: Side::Acceptor,
        max_streams: 10,
        ledger: ledger.clone(),
        instance: InstanceId::random(),
        jitter: 0,
    };
    Endpoint::new(config, Instant::now())
}

fn open(stream: StreamId) -> Frame {
    let request = OpenRequest::new(StreamKey::random(), ClusterId::of_spki(b"cluster"));
    Frame::Open { stream, payload: request.encode() }
}

fn data(stream: StreamId, payload: Vec<u8>) -> Frame {
    Frame::Data { stream, payload: payload.into(), fin: false, blocked: false }
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn bytes_that_come_one_by_one_cost_little_more_than_their_number() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let ledger = Ledger::new(64 << 20);
    let before = resident();
    // At an end that doesn't read: 10 windows of 256 KiB.
    let mut end = endpoint(&ledger);
    for stream in (1..20).step_by(2) {
        end.on_frame(open(stream), Instant::now()).unwrap();
        for _ in 0..256 * 1024 {
            end.on_frame(data(stream, b"x".to_vec()), Instant::now()).unwrap();
        }
    }
    assert_eq!(end.held(), 10 * 256 * 1024);
    // At a relay whose agent doesn't read.
    let relay_ledger = Ledger::new(64 << 20);
    let leg = || {
        let ledger = relay_ledger.clone();
        Leg::<StreamId>::new(
            LegConfig { side: Side::Acceptor, max_streams: 100, ledger, jitter: 0 },
            Instant::now(),
        )
    };
    let (mut client, mut agent) = (leg(), leg());
    for stream in (1..200).step_by(2) {
        let Ok(Some(LegEvent::Open { request, .. })) = client.on_frame(open(stream), Instant::now()) else {
            panic!("OPEN is an event");
        };
        client.bind(stream, agent.open(request, stream).unwrap(), 0);
        for _ in 0..16 * 1024 {
            match client.on_frame(data(stream, b"x".to_vec()), Instant::now()).unwrap() {
                Some(LegEvent::Data { to, payload, fin, blocked }) => {
                    agent.forward(to, payload, fin, blocked)
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(agent.held(), 100 * 16 * 1024);
    let grown = resident().saturating_sub(before);
    assert!(grown < 24 << 20, "4.1 MiB of stream bytes take {} KiB", grown / 1024);
    // And they all are there.
    let mut read = 0;
    let mut room = vec![0; 100_000];
    let (id, _) = end.accept().unwrap();
    while let Ok(Read::Bytes(n)) = end.read(id, &mut room) {
        assert!(room[..n].iter().all(|byte| *byte == b'x'));
        read += n;
    }
    assert_eq!(read, 256 * 1024);
}

#[test]
fn a_few_bytes_do_not_hold_the_block_that_they_came_in() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = resident();
    let ledger = Ledger::new(64 << 20);
    let mut end = endpoint(&ledger);
    let now = Instant::now();
    end.on_frame(open(1), now).unwrap();
    end.on_frame(open(3), now).unwrap();
    // Each block of 64 KiB holds a few bytes for a reader that stands still, and many that are gone at once.
    let mut block = BytesMut::new();
    let mut wire = BytesMut::new();
    encode(&mut wire, &data(1, vec![1; 1_500]));
    for _ in 0..4 {
        encode(&mut wire, &data(3, vec![3; 15_000]));
    }
    let mut room = vec![0; 64 * 1024];
    for _ in 0..170 {
        block.reserve(64 * 1024);
        block.extend_from_slice(&wire);
        while let Some(frame) = decode(&mut block).unwrap() {
            end.on_frame(frame, now).unwrap();
        }
        block = BytesMut::new();
        assert_eq!(end.read(3, &mut room), Ok(Read::Bytes(60_000)));
        let mut out = BytesMut::new();
        end.fill(&mut out);
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 4 << 20, "{} bytes for a reader take {} KiB", end.held(), grown / 1024);
}

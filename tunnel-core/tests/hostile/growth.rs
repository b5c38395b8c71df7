//! What a peer can make grow is bounded, though it never reads and never stops.

use std::time::Instant;

use bytes::BytesMut;
use towline_tunnel::{
    ids::InstanceId,
    mux::{CloseReason, EndpointConfig, Ledger, Side},
    proto::{
        Frame,
        endpoint::{Endpoint, Read},
        schedule::Scheduler,
        window::MAX_WINDOW,
    },
};

use super::{data, legs::Relay, open, request};

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

/// All state shows in the debug output, so its length is a measure of it.
fn size(state: &impl std::fmt::Debug) -> usize {
    format!("{state:?}").len()
}

fn cancel(stream: u32) -> Frame {
    Frame::Reset { stream, reason: CloseReason::Cancelled, detail: String::new() }
}

#[test]
fn t34_rapid_resets_leave_nothing_at_a_relay_whose_writer_stands_still() {
    let mut relay = Relay::new(10, 1 << 20);
    let begun = size(&relay.legs);
    let mut ended = None;
    for n in 0..20_000 {
        let stream = 1 + 2 * n;
        let round = [open(stream), data(stream, "x", false), cancel(stream)];
        ended = round.into_iter().find_map(|frame| relay.takes(0, frame).err());
        if ended.is_some() {
            break;
        }
    }
    assert!(ended.is_none_or(|reason| reason == CloseReason::LimitReached), "{ended:?}");
    let grown = size(&relay.legs) - begun;
    assert!(grown < 40_000, "the legs' state grew by {grown} characters");
}

#[test]
fn t34_rapid_resets_by_an_agent_leave_nothing_at_the_relay() {
    let mut relay = Relay::new(10, 1 << 20);
    for n in 0..20_000 {
        relay.takes(0, open(1 + 2 * n)).unwrap();
        relay.says(1);
        relay.takes(1, data(2 + 2 * n, "x", false)).unwrap();
        relay.takes(1, cancel(2 + 2 * n)).unwrap();
        // The client's leg stands still, but for the resets: they are all that its peer ever reads.
        let mut out = BytesMut::new();
        relay.legs[0].fill(&mut out, &mut Vec::new());
    }
    let size = size(&relay.legs);
    assert!(size < 40_000, "the legs' state is {size} characters");
}

#[test]
fn t34_rapid_resets_leave_nothing_at_an_end_whose_writer_stands_still() {
    let ledger = Ledger::new(1 << 20);
    let mut endpoint = endpoint(&ledger);
    let mut ended = false;
    for n in 0..20_000 {
        let stream = 1 + 2 * n;
        for frame in [open(stream), data(stream, "x", false), cancel(stream)] {
            ended |= endpoint.on_frame(frame, Instant::now()).is_err();
        }
        if ended {
            break;
        }
        while let Some((id, _)) = endpoint.accept() {
            let _taken = endpoint.write(id, b"an answer that nobody reads");
            endpoint.release(id);
        }
    }
    let size = size(&endpoint);
    assert!(size < 40_000, "the end's state is {size} characters");
}

#[test]
fn streams_that_come_and_go_leave_nothing_in_the_scheduler() {
    let mut scheduler = Scheduler::default();
    let begun = size(&scheduler);
    for stream in 0..100_000 {
        scheduler.activate(stream, u64::from(stream % 3));
        scheduler.remove(stream);
    }
    let grown = size(&scheduler) - begun;
    assert!(grown < 10_000, "the scheduler grew by {grown} characters");
}

#[test]
fn a_peer_that_gives_endless_credit_and_never_confirms_does_not_make_the_sender_hold_more() {
    let ledger = Ledger::new(64 << 20);
    let mut endpoint = endpoint(&ledger);
    let now = Instant::now();
    let mut generous = request();
    generous.limit = u64::MAX;
    endpoint.on_frame(Frame::Open { stream: 1, payload: generous.encode() }, now).unwrap();
    endpoint.on_frame(Frame::Credit { stream: 1, received: 0, limit: u64::MAX }, now).unwrap();
    let (id, _) = endpoint.accept().unwrap();
    let chunk = vec![7; 64 * 1024];
    for _ in 0..1_000 {
        let _taken = endpoint.write(id, &chunk).unwrap();
        let mut out = BytesMut::new();
        endpoint.fill(&mut out);
    }
    assert!(endpoint.held() <= MAX_WINDOW + (1 << 18), "{} bytes are held", endpoint.held());
    // Once the peer confirms, all goes on.
    let sent = endpoint.held() - endpoint.unsent(id);
    endpoint.on_frame(Frame::Credit { stream: 1, received: sent, limit: u64::MAX }, now).unwrap();
    assert!(endpoint.held() <= 1 << 18 && endpoint.has_output());
}

#[test]
fn a_connection_that_is_gone_keeps_no_promise_for_streams_that_nobody_took() {
    let ledger = Ledger::new(64 << 20);
    let mut endpoint = endpoint(&ledger);
    for frame in [open(1), data(1, "x", false), open(3)] {
        endpoint.on_frame(frame, Instant::now()).unwrap();
    }
    let (taken, _) = endpoint.accept().unwrap();
    endpoint.close(CloseReason::Detached, "");
    let mut byte = [0; 1];
    assert_eq!(endpoint.read(taken, &mut byte), Ok(Read::Bytes(1)), "what came can still be read");
    endpoint.release(taken);
    assert_eq!((endpoint.stream_count(), ledger.promised()), (0, 0));
}

#[test]
fn a_dribble_of_bytes_that_are_read_at_once_leaves_nothing_at_an_end() {
    let ledger = Ledger::new(1 << 20);
    let mut endpoint = endpoint(&ledger);
    endpoint.on_frame(open(1), Instant::now()).unwrap();
    for _ in 0..20_000 {
        endpoint.on_frame(data(1, "x", false), Instant::now()).unwrap();
        assert_eq!(endpoint.read(1, &mut [0; 9]), Ok(Read::Bytes(1)));
    }
    let size = size(&endpoint);
    assert!(size < 10_000, "the end's state is {size} characters");
}

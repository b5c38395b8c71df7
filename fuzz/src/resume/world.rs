//! Honest ends: two keepers, their connections, a few streams, and what was written and read.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, DuplexStream, ReadBuf, duplex},
    task::{AbortHandle, JoinSet, yield_now},
    time::advance,
};
use towline_tunnel::{
    ids::{ClusterId, InstanceId, StreamKey},
    mux::{Connection, EndpointConfig, Keeper, Ledger, MuxStream, OpenRequest, Owner, ResumeKey, Side},
    proto::{
        Frame, StreamId,
        frame::{decode, encode},
    },
};

use super::relay::Relay;

pub(super) const CLIENT: usize = 0;
pub(super) const AGENT: usize = 1;
pub(super) const STREAMS: usize = 3;
/// What the agent's `admit` refuses.
pub(super) const BAD_TICKET: &[u8] = b"no";

const KEEP_FOR: Duration = Duration::from_secs(60);
/// Longer than the keeper ever waits between attempts: so chance decides nothing here.
const ASKED_AGAIN: Duration = Duration::from_millis(2_500);
/// Connections that one script makes at most.
const MAX_LINKS: usize = 24;

/// One connection of an end's; the relay holds the other side of it.
pub(super) struct Link {
    connection: Connection,
    driver: AbortHandle,
    io: DuplexStream,
    read: BytesMut,
    pub(super) next: StreamId,
}

impl Link {
    pub(super) fn stands(&self) -> bool {
        !self.connection.is_closed()
    }

    pub(super) fn send(&mut self, frame: &Frame) {
        let mut bytes = BytesMut::new();
        encode(&mut bytes, frame);
        // There is always room, unless the connection is gone.
        let mut cx = Context::from_waker(Waker::noop());
        let _written = Pin::new(&mut self.io).poll_write(&mut cx, &bytes);
    }

    fn receive(&mut self) -> Vec<Frame> {
        let mut room = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut room);
            let mut cx = Context::from_waker(Waker::noop());
            match Pin::new(&mut self.io).poll_read(&mut cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.read.extend_from_slice(buffer.filled())
                }
                _ => break,
            }
        }
        std::iter::from_fn(|| decode(&mut self.read).expect("what is sent can be read")).collect()
    }
}

/// One stream, as its two applications see it.
#[derive(Default)]
struct Flow {
    ends: [Option<MuxStream>; 2],
    written: [u64; 2],
    read: [u64; 2],
    finished: [bool; 2],
}

pub(super) struct World {
    keepers: [Keeper; 2],
    ledger: Ledger,
    pub(super) links: [Vec<Link>; 2],
    flows: Vec<Flow>,
    /// Where the client's keeper takes streams up.
    session: Arc<Mutex<Option<Connection>>>,
    tasks: JoinSet<()>,
    pub(super) relay: Relay,
}

pub(super) fn cluster() -> ClusterId {
    ClusterId::from_bytes([0; 32])
}

pub(super) fn key(stream: usize) -> StreamKey {
    StreamKey::from_bytes([stream as u8; 16])
}

/// What stands at an offset of a direction: changes each byte, and with each turn of 251.
fn pattern(stream: usize, side: usize, at: u64) -> u8 {
    (at % 251 + at / 251 + (stream * 2 + side) as u64) as u8
}

impl World {
    /// Streams that are open and kept at both ends.
    pub(super) async fn new(ledger: &Ledger) -> Self {
        let keepers = [Keeper::new(KEEP_FOR, STREAMS), Keeper::new(KEEP_FOR, STREAMS)];
        let session: Arc<Mutex<Option<Connection>>> = Arc::default();
        let mut tasks = JoinSet::new();
        let [client, agent] = keepers.clone();
        let at = Arc::clone(&session);
        tasks.spawn(async move {
            let session = || async { at.lock().unwrap_or_else(PoisonError::into_inner).clone() };
            match client.run(session).await {}
        });
        tasks.spawn(async move { match agent.watch().await {} });
        let mut world = Self {
            keepers,
            ledger: ledger.clone(),
            links: [Vec::new(), Vec::new()],
            flows: Vec::new(),
            session,
            tasks,
            relay: Relay::default(),
        };
        world.lay(CLIENT);
        world.lay(AGENT);
        for stream in 0..STREAMS {
            let request = OpenRequest::new(key(stream), cluster());
            let near = world.links[CLIENT][0].connection.open(request).expect("the first streams open");
            world.pump().await;
            world.forward_all(0);
            let accepted = world.links[AGENT][0].connection.accept().await;
            let (_, far) = accepted.expect("the first streams are accepted");
            world.pump().await;
            world.forward_all(0);
            world.pump().await;
            let proofs = ResumeKey::new(&[stream as u8; 32]);
            near.keep(cluster(), proofs.clone(), None);
            let admit = |request: &towline_tunnel::mux::ResumeRequest| match request.ticket.as_deref() {
                Some(BAD_TICKET) => Err("not this one".to_owned()),
                _ => Ok(()),
            };
            far.keep(cluster(), proofs, Some(Owner { user: "alice".into(), admit: Box::new(admit) }));
            world.flows.push(Flow { ends: [Some(near), Some(far)], ..Flow::default() });
        }
        world
    }

    /// One more connection; the client takes streams up on its newest.
    pub(super) fn lay(&mut self, side: usize) {
        if self.links[side].len() >= MAX_LINKS {
            return;
        }
        let (ours, theirs) = duplex(4 << 20);
        let config = EndpointConfig {
            side: Side::Dialler,
            max_streams: 64,
            ledger: self.ledger.clone(),
            instance: InstanceId::from_bytes([side as u8; 16]),
            jitter: 0,
        };
        let (connection, driver) =
            Connection::kept(theirs, BytesMut::new(), config, self.keepers[side].clone());
        let driver = self.tasks.spawn(async move { drop(driver.run().await) });
        if side == CLIENT {
            *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection.clone());
        }
        self.links[side].push(Link { connection, driver, io: ours, read: BytesMut::new(), next: 2 });
    }

    /// Loses a connection. The relay says so on the other side if it is `told`, behind what it holds.
    pub(super) fn cut(&mut self, which: usize, side: usize, told: bool) {
        let links = &self.links[side];
        let at = links.len() - 1 - which % links.len();
        links[at].driver.abort();
        if told {
            self.relay.lost(side, at);
        }
    }

    pub(super) fn move_to_line(&mut self, which: usize, link: usize) {
        let links = &self.links[CLIENT];
        let line = &links[links.len() - 1 - link % links.len()].connection;
        let _moved = self.keepers[CLIENT].move_to(key(which % STREAMS), line);
    }

    pub(super) fn write(&mut self, which: usize, side: usize, bytes: usize) {
        let stream = which % STREAMS;
        let flow = &mut self.flows[stream];
        let (at, finished) = (flow.written[side], flow.finished[side]);
        let Some(end) = flow.ends[side].as_mut().filter(|_| !finished) else { return };
        let bytes: Vec<u8> = (at..at + bytes as u64).map(|at| pattern(stream, side, at)).collect();
        if let Poll::Ready(Ok(taken)) =
            Pin::new(end).poll_write(&mut Context::from_waker(Waker::noop()), &bytes)
        {
            flow.written[side] += taken as u64;
        }
    }

    pub(super) fn finish(&mut self, which: usize, side: usize) {
        let flow = &mut self.flows[which % STREAMS];
        if let Some(end) = flow.ends[side].as_mut() {
            let ended = Pin::new(end).poll_shutdown(&mut Context::from_waker(Waker::noop()));
            flow.finished[side] |= matches!(ended, Poll::Ready(Ok(())));
        }
    }

    pub(super) fn release(&mut self, which: usize, side: usize) {
        self.flows[which % STREAMS].ends[side] = None;
    }

    pub(super) fn read(&mut self, which: usize, side: usize, bytes: usize) {
        let stream = which % STREAMS;
        let flow = &mut self.flows[stream];
        let Some(end) = flow.ends[side].as_mut() else { return };
        let mut room = vec![0; bytes.max(1)];
        let mut buffer = ReadBuf::new(&mut room);
        let read = Pin::new(end).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer);
        let Poll::Ready(Ok(())) = read else { return };
        let (far, at) = (1 - side, flow.read[side]);
        let got = buffer.filled();
        if got.is_empty() {
            assert!(flow.finished[far] && at == flow.written[far], "an end that nobody made, at {at}");
        }
        let right = |(n, byte): (usize, &u8)| *byte == pattern(stream, far, at + n as u64);
        assert!(got.iter().enumerate().all(right), "bytes twice or out of order behind {at}");
        flow.read[side] += got.len() as u64;
        assert!(flow.read[side] <= flow.written[far], "bytes that nobody wrote");
    }

    /// Lets the ends do what they can, and takes what they send.
    pub(super) async fn pump(&mut self) {
        let mut quiet = 0;
        while quiet < 3 {
            yield_now().await;
            quiet += 1;
            for side in [CLIENT, AGENT] {
                for link in 0..self.links[side].len() {
                    for frame in self.links[side][link].receive() {
                        quiet = 0;
                        self.came(side, link, frame);
                    }
                }
            }
        }
        self.relay.settle();
    }

    /// So much time that what was refused or lost is asked for again.
    pub(super) async fn sleep_until_asked_again(&mut self) {
        advance(ASKED_AGAIN).await;
    }

    /// So much time that what waits is over.
    pub(super) async fn sleep_until_over(&mut self) {
        advance(KEEP_FOR).await;
    }

    /// All is let go of, and all connections end. Says how often a stream was taken up.
    pub(super) async fn settle(mut self) -> usize {
        for stream in 0..STREAMS {
            for side in [CLIENT, AGENT] {
                self.read(stream, side, 1 << 20);
            }
        }
        // One is let go of before its connections end; the others are still held when their time is over.
        self.flows[0] = Flow::default();
        self.pump().await;
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = None;
        for link in self.links.iter().flatten() {
            link.driver.abort();
        }
        self.pump().await;
        advance(KEEP_FOR).await;
        self.pump().await;
        let parked = self.keepers.each_ref().map(Keeper::parked);
        assert_eq!(parked, [0, 0], "parked though its time is over");
        self.flows.clear();
        self.pump().await;
        let keeps = |keeper: &Keeper| (0..STREAMS).filter(|stream| keeper.keeps(key(*stream))).count();
        assert_eq!(self.keepers.each_ref().map(keeps), [0, 0], "kept though all is over");
        self.tasks.shutdown().await;
        self.relay.taken_up
    }
}

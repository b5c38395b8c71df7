//! Who is seen to type: at the client, at the relay and at the agent of one journey.

use super::*;
use crate::{
    ids::ClusterId,
    proto::{
        frame,
        leg::{Leg, LegConfig, LegEvent, Progress},
    },
};
use bytes::BytesMut;

/// The user's share, as the relay writes it into OPEN, and somebody else's.
const SHARE: u64 = 7;
const ANOTHER: u64 = 8;
/// A leg at the relay, and a stream's id there.
type Hop = (usize, StreamId);

/// A client and an agent, with a relay between them that knows the client's user.
struct Journey {
    client: Endpoint<()>,
    agent: Endpoint<()>,
    legs: [Leg<Hop>; 2],
    at_client: Ledger,
    at_relay: Ledger,
    user: Ledger,
    now: Instant,
    near: StreamId,
    far: StreamId,
}

impl Journey {
    fn begin() -> Self {
        let now = Instant::now();
        let [at_client, at_relay, user] = [(); 3].map(|()| Ledger::new(64 << 20));
        let end = |ledger| {
            let config = EndpointConfig {
                side: Side::Dialler,
                max_streams: 10,
                ledger,
                instance: InstanceId::random(),
                jitter: 0,
            };
            Endpoint::new(config, now)
        };
        let leg =
            |ledger| Leg::new(LegConfig { side: Side::Acceptor, max_streams: 10, ledger, jitter: 0 }, now);
        let mut journey = Self {
            client: end(at_client.clone()),
            agent: end(Ledger::new(64 << 20)),
            legs: [leg(at_relay.child_with(&user, 64 << 20)), leg(at_relay.child(64 << 20))],
            at_client,
            at_relay,
            user,
            now,
            near: 0,
            far: 0,
        };
        let request = OpenRequest::new(StreamKey::random(), ClusterId::of_spki(b"cluster"));
        journey.near = journey.client.open(request).unwrap();
        journey.pass();
        journey.far = journey.agent.accept().unwrap().0;
        journey
    }

    fn carry(&mut self, from: usize, event: LegEvent<Hop>) {
        match event {
            LegEvent::Open { stream, mut request } => {
                request.share = SHARE;
                let id = self.legs[1].open_for(Some(&self.user), request, (from, stream)).unwrap();
                self.legs[from].bind(stream, (1, id), 0);
            }
            LegEvent::Opened { to, opened } => self.legs[to.0].opened(to.1, opened),
            LegEvent::Data { to, payload, fin, blocked } => {
                self.legs[to.0].forward(to.1, payload, fin, blocked);
            }
            LegEvent::Credit { to, received, limit } => self.legs[to.0].credit(to.1, received, limit),
            other => panic!("{other:?}"),
        }
    }

    /// Moves what the ends have to say until there is nothing more.
    fn pass(&mut self) {
        loop {
            let mut moved = false;
            for side in [0, 1] {
                let mut wire = BytesMut::new();
                let end = if side == 0 { &mut self.client } else { &mut self.agent };
                end.fill(&mut wire);
                while let Some(frame) = frame::decode(&mut wire).unwrap() {
                    moved = true;
                    if let Some(event) = self.legs[side].on_frame(frame, self.now).unwrap() {
                        self.carry(side, event);
                    }
                }
                let mut progress = Vec::new();
                self.legs[side].fill(&mut wire, &mut progress);
                for Progress { to, written } in progress {
                    self.legs[to.0].passed(to.1, written);
                }
                let end = if side == 0 { &mut self.client } else { &mut self.agent };
                while let Some(frame) = frame::decode(&mut wire).unwrap() {
                    moved = true;
                    end.on_frame(frame, self.now).unwrap();
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn carries(&mut self, up: bool, bytes: usize) {
        let block = vec![7; bytes];
        let mut room = vec![0; 1 << 20];
        let (mut sent, mut got) = (0, 0);
        while got < bytes {
            let mut ends = [(&mut self.client, self.near), (&mut self.agent, self.far)];
            if !up {
                ends.reverse();
            }
            let [(from, sends), (to, reads)] = ends;
            sent += from.write(sends, &block[sent..]).unwrap();
            if let Read::Bytes(n) = to.read(reads, &mut room).unwrap() {
                got += n;
            }
            self.pass();
        }
    }

    /// So much up and then so much down, a moment after the last.
    fn turn(&mut self, up: usize, down: usize) -> &mut Self {
        self.now += Duration::from_millis(100);
        self.carries(true, up);
        self.now += Duration::from_millis(20);
        self.carries(false, down);
        self
    }

    /// Whether somebody is seen to type at client, relay and agent.
    fn seen(&mut self) -> [bool; 3] {
        let of_user = self.agent.budgets.of(SHARE);
        [&self.at_client, &self.user, &of_user].map(|ledger| ledger.interactive().holds(self.now))
    }
}

#[test]
fn keys_and_their_echoes_are_seen_at_every_hop_and_forgotten_soon_after() {
    let mut journey = Journey::begin();
    assert_eq!(journey.turn(30, 30).seen(), [false; 3]);
    assert_eq!(journey.turn(30, 2_000).turn(30, 30).seen(), [true; 3]);
    journey.now += Duration::from_secs(3);
    assert_eq!(journey.seen(), [false; 3]);
}

#[test]
fn one_user_s_typing_is_nobody_else_s() {
    let mut journey = Journey::begin();
    assert_eq!(journey.turn(30, 30).turn(30, 30).turn(30, 30).seen(), [true; 3]);
    let (another, now) = (journey.agent.budgets.of(ANOTHER), journey.now);
    assert!(!another.interactive().holds(now) && !journey.at_relay.interactive().holds(now));
    let mut budgets = Budgets::new(journey.at_relay.child(1 << 20));
    assert!(!budgets.within(ANOTHER, Some(&Ledger::new(1 << 20))).interactive().holds(now));
    assert!(budgets.within(SHARE, Some(&journey.user)).interactive().holds(now), "on each of their sessions");
}

#[test]
fn a_get_and_its_bulk_a_watch_and_bulk_that_is_confirmed_are_no_typing() {
    let mut get = Journey::begin();
    assert_eq!(get.turn(400, 3 << 20).turn(400, 300).turn(400, 300).seen(), [false; 3]);
    let mut up = Journey::begin();
    assert_eq!(up.turn(3 << 20, 30).turn(3 << 20, 30).turn(3 << 20, 30).seen(), [false; 3]);
    let mut down = Journey::begin();
    assert_eq!(down.turn(30, 3 << 20).turn(30, 3 << 20).turn(30, 3 << 20).seen(), [false; 3]);
    let mut watch = Journey::begin();
    watch.turn(100, 300);
    for _ in 0..20 {
        watch.now += Duration::from_millis(100);
        watch.carries(false, 300);
    }
    assert_eq!(watch.seen(), [false; 3]);
}

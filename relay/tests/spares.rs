//! Two sessions of one agent with a relay: one carries, the other takes over.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod common;

use std::time::Duration;

use common::{Agent, Bench, Client, SOON, eventually, heard, limits};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use towline_tunnel::{
    ids::{ChannelId, StreamKey},
    mux::{CloseReason, Connection, OpenRequest},
    session::control::Control,
};

struct World {
    bench: Bench,
    agent: Agent,
    spare: Connection,
    spares_channel: ChannelId,
    client: Client,
}

impl World {
    async fn new() -> Self {
        let bench = Bench::new(limits()).await;
        let agent = bench.agent("edge").await;
        bench.allow("alice", agent.cluster()).await;
        let (spare, spares_channel) = bench.beside(&agent, &[agent.channel]).await;
        agent.connection.control(Control::Beside { channel: spares_channel }.encode(0));
        heard(&agent.connection).await;
        heard(&spare).await;
        let client = bench.client("alice").await;
        Self { bench, agent, spare, spares_channel, client }
    }

    /// A stream that a client opens arrives on this session.
    async fn opens_on(&self, connection: &Connection) {
        let request = OpenRequest::new(StreamKey::random(), self.agent.cluster());
        let key = request.key;
        let mut stream = self.client.connection.open(request).unwrap();
        stream.write_all(b"x").await.unwrap();
        let (found, mut taken) = timeout(SOON, connection.accept()).await.expect("it comes here").unwrap();
        assert_eq!(found.key, key);
        assert_eq!(timeout(SOON, taken.read_u8()).await.unwrap().unwrap(), b'x');
    }
}

#[tokio::test]
async fn a_spare_session_gets_no_stream_while_the_other_takes_them() {
    let world = World::new().await;
    for _ in 0..5 {
        world.opens_on(&world.agent.connection).await;
    }
    assert_eq!(world.spare.stream_count(), 0);
    assert_eq!(world.bench.metric("towline_relay_sessions{kind=\"agent\"}").await, 2);
}

#[tokio::test]
async fn a_spare_session_carries_as_soon_as_the_other_is_lost() {
    let world = World::new().await;
    world.opens_on(&world.agent.connection).await;
    // Its carrier ends without a word.
    world.agent.driver.abort();
    eventually("the relay sees it", async || {
        world.bench.metric("towline_relay_sessions{kind=\"agent\"}").await == 1
    })
    .await;
    for _ in 0..3 {
        world.opens_on(&world.spare).await;
    }
}

#[tokio::test]
async fn a_spare_session_carries_as_soon_as_the_other_is_told_to_go() {
    let world = World::new().await;
    world.agent.connection.go_away(CloseReason::Draining, Duration::ZERO, "another session took its place");
    heard(&world.agent.connection).await;
    world.opens_on(&world.spare).await;
    // And its own spare waits behind it.
    let (next, channel) = world.bench.beside(&world.agent, &[world.spares_channel]).await;
    world.spare.control(Control::Beside { channel }.encode(0));
    heard(&world.spare).await;
    world.opens_on(&world.spare).await;
    assert_eq!(next.stream_count(), 0);
}

/// A NAT that forgets a connection tells nobody; the relay would hold it for alive for ten seconds.
#[tokio::test]
async fn what_the_agent_has_lost_is_ended_at_the_relay_when_it_says_so() {
    let world = World::new().await;
    world.opens_on(&world.agent.connection).await;
    world.spare.control(Control::Gone { channel: world.agent.channel }.encode(0));
    heard(&world.spare).await;
    world.opens_on(&world.spare).await;
    timeout(SOON, world.agent.connection.closed()).await.expect("the relay has ended it");
}

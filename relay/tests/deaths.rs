//! Known ways in which relays have died, on a real one: delayed acknowledgements, tiny frames, streams that all go one
//! way, half-closed ones that never end, a reader that stands still, and everybody coming back at once.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::{Agent, Bench, Client, SOON, eventually, limits};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
    time::{sleep, timeout},
};
use towline_relay::{app, limits::Limits};
use towline_tunnel::{
    backoff::{self, Backoff},
    enrolment::JOIN,
    ids::InstanceId,
    keys::SigningKey,
    mux::{Connection, MuxStream},
    proto::{endpoint::SEND_QUEUE, window::MAX_WINDOW},
    session::{Identify, message::Secret},
};

/// For what takes many steps on a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// An agent of a cluster, and a client that is let in.
async fn journey() -> (Bench, Agent, Client) {
    let bench = Bench::new(limits()).await;
    let agent = bench.agent("edge").await;
    bench.allow("alice", agent.cluster()).await;
    let client = bench.client("alice").await;
    (bench, agent, client)
}

/// A stream of the client's, and its other end at the agent.
async fn stream(client: &Client, agent: &Agent) -> (MuxStream, MuxStream) {
    let near = client.open(agent.cluster());
    let (_, far) = timeout(SOON, agent.connection.accept()).await.unwrap().unwrap();
    (near, far)
}

async fn no_streams(bench: &Bench, connections: &[&Connection]) {
    eventually("nothing is left of the streams", async || {
        bench.metric("towline_relay_streams").await == 0
            && connections.iter().all(|connection| connection.stream_count() == 0)
    })
    .await;
}

#[tokio::test]
async fn keystrokes_in_two_pieces_do_not_wait_for_delayed_acknowledgements_on_any_leg() {
    const ROUNDS: usize = 60;
    let (_bench, agent, client) = journey().await;
    let (mut near, mut far) = stream(&client, &agent).await;
    let mut late = [0; 2];
    for _ in 0..ROUNDS {
        // Each way in turn: two pieces, the second once the first has come, and then an answer.
        for (way, late) in late.iter_mut().enumerate() {
            let (from, to) = if way == 0 { (&mut near, &mut far) } else { (&mut far, &mut near) };
            let begun = Instant::now();
            from.write_all(b"a").await.unwrap();
            timeout(SOON, to.read_u8()).await.unwrap().unwrap();
            from.write_all(b"b").await.unwrap();
            timeout(SOON, to.read_u8()).await.unwrap().unwrap();
            *late += usize::from(begun.elapsed() >= Duration::from_millis(35));
        }
    }
    assert!(late.iter().all(|late| *late < ROUNDS / 2), "{late:?} of {ROUNDS} were held back");
}

#[tokio::test]
async fn a_log_of_lines_of_one_byte_is_followed_to_its_end() {
    const LINES: usize = 100_000;
    let (bench, agent, client) = journey().await;
    let (mut near, mut far) = stream(&client, &agent).await;
    let writing = tokio::spawn(async move {
        for _ in 0..LINES {
            far.write_all(b"\n").await.unwrap();
            // The driver sends it before the next one is there.
            tokio::task::yield_now().await;
        }
        far.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    timeout(LONG, near.read_to_end(&mut got)).await.unwrap().unwrap();
    assert_eq!(got.len(), LINES);
    writing.await.unwrap();
    drop(near);
    no_streams(&bench, &[&client.connection, &agent.connection]).await;
    assert!(client.connection.is_open() && agent.connection.is_open());
}

/// A further instance of a cluster that is enrolled.
async fn joins(bench: &Bench, first: &Agent) -> Connection {
    let (key, instance, secret) = (SigningKey::generate(), InstanceId::random(), Secret::new(JOIN));
    let identify = Identify::Enrol { secret: &secret, cluster: &first.identity, instance, key: &key };
    let (connection, driver, _) = bench.session(identify, instance).await.unwrap();
    tokio::spawn(driver);
    connection
}

#[tokio::test]
async fn streams_to_a_cluster_are_spread_over_all_its_agents() {
    const STREAMS: usize = 120;
    let bench = Bench::new(limits()).await;
    let first = bench.agent("edge").await;
    let agents = [first.connection.clone(), joins(&bench, &first).await, joins(&bench, &first).await];
    for agent in agents.clone() {
        tokio::spawn(async move {
            while let Ok((_, mut stream)) = agent.accept().await {
                tokio::spawn(async move { stream.read_to_end(&mut Vec::new()).await });
            }
        });
    }
    bench.allow("alice", first.cluster()).await;
    let client = bench.client("alice").await;
    let streams: Vec<_> = (0..STREAMS).map(|_| client.open(first.cluster())).collect();
    eventually("all streams are at the agents", async || {
        agents.iter().map(Connection::stream_count).sum::<usize>() == STREAMS
    })
    .await;
    for agent in &agents {
        let part = agent.stream_count();
        assert!(part >= STREAMS / agents.len() / 2, "one of {} agents has {part} of {STREAMS}", agents.len());
    }
    // One that takes no more is passed over, and the others still share.
    agents[1].go_away(towline_tunnel::mux::CloseReason::Draining, Duration::ZERO, "a new version");
    drop(streams);
    no_streams(&bench, &[&client.connection, &agents[0], &agents[2]]).await;
    let _streams: Vec<_> = (0..STREAMS).map(|_| client.open(first.cluster())).collect();
    eventually("all streams are at the other agents", async || {
        agents[0].stream_count() + agents[2].stream_count() == STREAMS
    })
    .await;
    let part = agents[0].stream_count();
    assert!((STREAMS / 4..=STREAMS * 3 / 4).contains(&part), "{part} of {STREAMS}");
}

/// Whose turn it is must not depend on what other clusters do: one that is asked for between any two streams of this
/// one would otherwise send all of them to one agent.
#[tokio::test]
async fn streams_of_two_clusters_in_turn_are_spread_over_both_ones_agents() {
    const STREAMS: usize = 60;
    let bench = Bench::new(limits()).await;
    let client = bench.client("alice").await;
    let mut clusters = Vec::new();
    for name in ["a", "b"] {
        let first = bench.agent(name).await;
        let agents = [first.connection.clone(), joins(&bench, &first).await];
        bench.allow("alice", first.cluster()).await;
        clusters.push((first, agents));
    }
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.extend(clusters.iter().map(|(first, _)| client.open(first.cluster())));
    }
    for (_, agents) in &clusters {
        eventually("all streams are at the agents", async || {
            agents.iter().map(Connection::stream_count).sum::<usize>() == STREAMS
        })
        .await;
        let parts = agents.each_ref().map(Connection::stream_count);
        assert!(parts.iter().all(|part| *part >= STREAMS / 4), "{parts:?}");
    }
}

#[tokio::test]
async fn half_closed_streams_end_at_the_relay_however_they_end() {
    let (bench, agent, client) = journey().await;
    for ending in 0..4 {
        let mut near = client.open(agent.cluster());
        near.write_all(b"question").await.unwrap();
        near.shutdown().await.unwrap();
        let (_, mut far) = timeout(SOON, agent.connection.accept()).await.unwrap().unwrap();
        let mut asked = Vec::new();
        timeout(SOON, far.read_to_end(&mut asked)).await.unwrap().unwrap();
        far.write_all(&[1; 100_000]).await.unwrap();
        match ending {
            // The other half ends, too.
            0 => {
                far.shutdown().await.unwrap();
                let mut got = Vec::new();
                timeout(SOON, near.read_to_end(&mut got)).await.unwrap().unwrap();
                assert_eq!(got.len(), 100_000);
            }
            // Its reader leaves.
            1 => {
                drop(near);
                let writing = async { while far.write_all(&[1; 10_000]).await.is_ok() {} };
                timeout(SOON, writing).await.expect("it writes for nobody, and is not told");
            }
            // Its writer leaves.
            2 => {
                drop(far);
                assert!(timeout(SOON, near.read_to_end(&mut Vec::new())).await.unwrap().is_err());
            }
            // Nobody ever reads it.
            _ => far.shutdown().await.unwrap(),
        }
    }
    no_streams(&bench, &[&client.connection, &agent.connection]).await;
}

#[tokio::test]
async fn t36_a_reader_that_stands_still_among_a_thousand_streams_is_held_for_within_bounds_and_alone() {
    const OTHERS: usize = 999;
    const EACH: usize = 20_000;
    let bench = Bench::new(limits()).await;
    let agent = bench.agent("edge").await;
    let serving = agent.connection.clone();
    tokio::spawn(async move {
        let mut tasks = JoinSet::new();
        while let Ok((_, mut stream)) = serving.accept().await {
            tasks.spawn(async move {
                if stream.read_u8().await.ok() == Some(b'1') {
                    // 1 GiB waits for the reader that stands still.
                    let block = vec![1; 1 << 20];
                    for _ in 0..1024 {
                        if stream.write_all(&block).await.is_err() {
                            return;
                        }
                    }
                }
                let _written = stream.write_all(&[0; EACH]).await;
                let _ended = stream.shutdown().await;
            });
        }
    });
    bench.allow("alice", agent.cluster()).await;
    let client = bench.client("alice").await;
    let mut still = client.open(agent.cluster());
    still.write_all(b"1").await.unwrap();
    eventually("what waits for the reader is as much as it gets", async || {
        let before = client.connection.held();
        sleep(Duration::from_millis(200)).await;
        before > 0 && client.connection.held() == before
    })
    .await;
    let mut others = JoinSet::new();
    for _ in 0..OTHERS {
        let mut stream = client.open(agent.cluster());
        others.spawn(async move {
            stream.write_all(b"0").await.unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await.unwrap();
            got.len()
        });
    }
    let all = timeout(LONG, others.join_all()).await.expect("the others are held up");
    assert!(all.iter().all(|got| *got == EACH));
    eventually("only the one that stands still is left", async || {
        bench.metric("towline_relay_streams").await == 1
    })
    .await;
    // Its two directions.
    let relay = bench.metric("towline_relay_buffered_bytes").await;
    assert!(relay <= 2 * MAX_WINDOW, "the relay promises {relay}");
    let ends = [client.connection.held(), agent.connection.held()];
    assert!(ends.iter().all(|held| *held <= MAX_WINDOW + SEND_QUEUE), "{ends:?}");
}

/// How many come back: `TOWLINE_AGENTS` (8,000 in the load test), or few enough for every test run.
fn agents() -> usize {
    std::env::var("TOWLINE_AGENTS").ok().and_then(|agents| agents.parse().ok()).unwrap_or(250)
}

#[tokio::test(flavor = "multi_thread")]
async fn t37_all_agents_are_back_within_a_minute_of_a_restart() {
    // Far fewer may be on their way in at once than come.
    let many = Limits { max_sessions_per_address: 20_000, max_handshakes: 32, ..limits() };
    let bench = Bench::new(many).await;
    let mut fleet = Vec::new();
    for number in 0..agents() {
        fleet.push(bench.agent(&format!("edge-{number}")).await);
    }
    let count = u64::try_from(fleet.len()).unwrap();
    let online = async |bench: &Bench| bench.metric("towline_relay_sessions{kind=\"agent\"}").await;
    eventually("all agents are known", async || online(&bench).await == count).await;
    // All of them lose it in the same moment, without a word.
    let config = app::Config { listen: bench.relay.address(), ..bench.config.clone() };
    let Bench { folder, issuer, relay, ca, .. } = bench;
    drop(relay);
    for agent in &fleet {
        timeout(LONG, agent.connection.closed()).await.expect("an agent does not see that the relay is gone");
    }
    let bench = Bench { folder, issuer, relay: restarted(&config).await, config, ca };
    let begun = Instant::now();
    let bench = Arc::new(bench);
    let mut coming = JoinSet::new();
    for agent in fleet {
        let bench = Arc::clone(&bench);
        coming.spawn(async move { comes_back(&bench, &agent).await });
    }
    let mut sessions = Vec::new();
    while let Some(session) = timeout(LONG, coming.join_next()).await.expect("somebody stays away") {
        sessions.push(session.unwrap());
    }
    assert!(begun.elapsed() <= LONG, "{count} agents took {:?}", begun.elapsed());
    eventually("all agents are known again", async || online(&bench).await == count).await;
    assert!(sessions.iter().all(Connection::is_open));
}

/// The port is free once the old relay's tasks are gone.
async fn restarted(config: &app::Config) -> app::Running {
    let begun = Instant::now();
    loop {
        match app::start(config.clone()).await {
            Ok(running) => return running,
            Err(error) => assert!(begun.elapsed() < SOON, "{error}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// As an agent does it: at once, and after each failure later.
async fn comes_back(bench: &Bench, agent: &Agent) -> Connection {
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
    loop {
        match bench.session(agent.identify(false, &[]), agent.instance).await {
            Ok((connection, driver, _)) => {
                tokio::spawn(driver);
                return connection;
            }
            Err(report) => sleep(backoff.after_failure(report.delay(), backoff::random())).await,
        }
    }
}

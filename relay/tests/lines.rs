//! Lines beside the sessions of a client and an agent, through a real relay: what is bulk goes over them, and nothing else does.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod common;

use std::time::Duration;

use common::{Bench, SOON, eventually, limits};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use towline_relay::limits::Limits;
use towline_tunnel::{
    fault::{Fault, Report},
    ids::{ClusterId, InstanceId, StreamKey},
    keys::SigningKey,
    mux::{
        CloseReason, Closed, Connection, Keeper, LineSettings, MAX_LINES, MuxStream, OpenRequest, Owner,
        ResumeKey, StreamError,
    },
    session::{Identify, control::Control, message::Secret},
};

const KEEP_FOR: Duration = Duration::from_secs(60);
const BULK: u64 = 256 * 1024;

/// One session or line.
type Leg = (Connection, JoinHandle<Closed>);

/// A client and an agent that keep their streams, each with a session.
struct World {
    bench: Bench,
    agent: common::Agent,
    agent_keeper: Keeper,
    client_keeper: Keeper,
    token: Secret,
    run_key: SigningKey,
    session: Leg,
    tasks: JoinSet<()>,
}

impl World {
    async fn new(limits: Limits) -> Self {
        let bench = Bench::new(limits).await;
        // Enrolled, and then connected as one that keeps its streams.
        let mut agent = bench.agent("edge").await;
        bench.allow("alice", agent.cluster()).await;
        let (agent_keeper, client_keeper) =
            (Keeper::new(KEEP_FOR, 100), Keeper::with_lines(KEEP_FOR, 100, LineSettings::new(1, BULK)));
        let (connection, driver, _) =
            bench.begin(agent.identify(false, &[]), agent.instance, Some(&agent_keeper)).await.unwrap();
        let first = std::mem::replace(&mut agent.connection, connection);
        agent.driver = driver;
        first.close();
        first.closed().await;
        let (token, run_key) = (bench.token("alice", &[]), SigningKey::generate());
        let identify = Identify::Client { token: &token, run_key: &run_key, line: false };
        let (connection, driver, _) =
            bench.begin(identify, InstanceId::random(), Some(&client_keeper)).await.unwrap();
        let mut world = Self {
            agent_keeper,
            client_keeper: client_keeper.clone(),
            token,
            run_key,
            session: (connection.clone(), driver),
            tasks: JoinSet::new(),
            bench,
            agent,
        };
        world.echo(world.agent.connection.clone());
        world.tasks.spawn(async move {
            let session = || async { Some(connection.clone()) };
            match client_keeper.run(session).await {}
        });
        world
    }

    /// Sends back, on each stream that begins on this connection, what comes on it.
    fn echo(&mut self, connection: Connection) {
        let cluster = self.agent.cluster();
        self.tasks.spawn(async move {
            let mut streams = JoinSet::new();
            while let Ok((_, stream)) = connection.accept().await {
                keep(&stream, cluster);
                streams.spawn(async move {
                    let (mut reader, mut writer) = tokio::io::split(stream);
                    if tokio::io::copy(&mut reader, &mut writer).await.is_ok() {
                        let _gone = writer.shutdown().await;
                    }
                });
            }
            // They outlive their connection.
            while streams.join_next().await.is_some() {}
        });
    }

    async fn agent_line(&self) -> Result<Leg, Report> {
        let identify = self.agent.identify(true, &[]);
        let (connection, driver, _) =
            self.bench.begin(identify, self.agent.instance, Some(&self.agent_keeper)).await?;
        Ok((connection, driver))
    }

    async fn client_line(&self) -> Result<Leg, Report> {
        let identify = Identify::Client { token: &self.token, run_key: &self.run_key, line: true };
        let (connection, driver, _) =
            self.bench.begin(identify, InstanceId::random(), Some(&self.client_keeper)).await?;
        Ok((connection, driver))
    }

    /// A stream that is kept, over which a byte has passed.
    async fn open(&self) -> MuxStream {
        let cluster = self.agent.cluster();
        let mut stream = self.session.0.open(OpenRequest::new(StreamKey::random(), cluster)).unwrap();
        echoes(&mut stream, b"?").await;
        keep(&stream, cluster);
        stream
    }
}

/// As after an inner handshake.
fn keep(stream: &MuxStream, cluster: ClusterId) {
    stream.keep(
        cluster,
        ResumeKey::new(&[7; 32]),
        Some(Owner { user: "alice".into(), admit: Box::new(|_| Ok(())) }),
    );
}

async fn echoes(stream: &mut MuxStream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    let mut back = vec![0; bytes.len()];
    timeout(SOON, stream.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(back, bytes);
}

/// So many bytes there and back, each as it was; while that runs, `beside` does.
async fn transfer(stream: MuxStream, bytes: u32, beside: impl Future<Output = ()>) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let writing = async {
        let mut block = Vec::new();
        for at in 0..bytes / 4 {
            block.extend_from_slice(&at.to_le_bytes());
            if block.len() >= 16_384 {
                writer.write_all(&std::mem::take(&mut block)).await.unwrap();
            }
        }
        writer.write_all(&block).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let reading = async {
        let (mut word, mut reader) = ([0; 4], tokio::io::BufReader::new(&mut reader));
        for at in 0..bytes / 4 {
            reader.read_exact(&mut word).await.unwrap();
            assert_eq!(u32::from_le_bytes(word), at);
        }
        assert_eq!(reader.read(&mut word).await.unwrap(), 0, "the end");
    };
    let all = async { tokio::join!(writing, reading, beside) };
    timeout(4 * SOON, all).await.unwrap();
}

#[tokio::test]
async fn bulk_moves_to_lines_and_what_is_typed_stays_and_both_end_whole() {
    let world = World::new(limits()).await;
    let (client_line, agent_line) = (world.client_line().await.unwrap(), world.agent_line().await.unwrap());
    let (bulk, mut typed) = (world.open().await, world.open().await);
    let (key, keeper) = (bulk.key(), world.client_keeper.clone());
    let moving = async {
        assert_eq!(keeper.next_bulk().await, key, "told once it carried so much");
        assert!(keeper.move_to(key, &client_line.0));
        eventually("it is on both lines", async || {
            client_line.0.stream_count() == 1 && agent_line.0.stream_count() == 1
        })
        .await;
        assert!(!keeper.move_to(key, &world.session.0), "once");
        for _ in 0..50 {
            echoes(&mut typed, b"k").await;
        }
        assert_eq!(client_line.0.stream_count(), 1);
    };
    transfer(bulk, 40 << 20, moving).await;
    echoes(&mut typed, b"still").await;
    eventually("nothing is left on the lines", async || {
        client_line.0.stream_count() == 0 && agent_line.0.stream_count() == 0
    })
    .await;
}

#[tokio::test]
async fn a_line_that_is_cut_in_the_middle_costs_no_byte() {
    for cut_agents in [false, true] {
        let world = World::new(limits()).await;
        let (client_line, agent_line) =
            (world.client_line().await.unwrap(), world.agent_line().await.unwrap());
        let (bulk, mut typed) = (world.open().await, world.open().await);
        let keeper = world.client_keeper.clone();
        let cutting = async {
            assert!(keeper.move_to(keeper.next_bulk().await, &client_line.0));
            eventually("it is on both lines", async || {
                client_line.0.stream_count() == 1 && agent_line.0.stream_count() == 1
            })
            .await;
            if cut_agents {
                agent_line.1.abort()
            } else {
                client_line.1.abort()
            }
            echoes(&mut typed, b"k").await;
            // The client counts it from its question on, the agent once it has answered.
            eventually("it goes on, and a session leads to a session", async || {
                world.session.0.stream_count() == 2 && world.agent.connection.stream_count() == 2
            })
            .await;
        };
        transfer(bulk, 40 << 20, cutting).await;
        echoes(&mut typed, b"still").await;
    }
}

#[tokio::test]
async fn where_the_agent_has_no_line_its_session_takes_what_moves() {
    let world = World::new(limits()).await;
    let client_line = world.client_line().await.unwrap();
    let bulk = world.open().await;
    let keeper = world.client_keeper.clone();
    let moving = async {
        assert!(keeper.move_to(keeper.next_bulk().await, &client_line.0));
        eventually("it is on the line", async || client_line.0.stream_count() == 1).await;
    };
    transfer(bulk, 20 << 20, moving).await;
}

#[tokio::test]
async fn a_line_is_no_session_nothing_begins_on_it_and_its_number_is_bounded() {
    let world = World::new(Limits { max_sessions_per_user: 1, ..limits() }).await;
    let mut lines = Vec::new();
    for _ in 0..MAX_LINES {
        lines.push((world.client_line().await.unwrap(), world.agent_line().await.unwrap()));
    }
    assert_eq!(world.client_line().await.unwrap_err().fault, Fault::RelayLimit);
    assert_eq!(world.agent_line().await.unwrap_err().fault, Fault::RelayLimit);
    // Another process of the same user has no session, and could not have one.
    let run_key = SigningKey::generate();
    let line = Identify::Client { token: &world.token, run_key: &run_key, line: true };
    let refused = world.bench.begin(line, InstanceId::random(), None).await.unwrap_err();
    assert_eq!(refused.fault, CloseReason::Forbidden.fault());

    let request = OpenRequest::new(StreamKey::random(), world.agent.cluster());
    let mut begun = lines[0].0.0.open(request).unwrap();
    let error = timeout(SOON, begun.read(&mut [0])).await.unwrap().unwrap_err();
    let reason = error.get_ref().unwrap().downcast_ref::<StreamError>().unwrap().reason;
    assert_eq!(reason, CloseReason::Forbidden);

    world.agent.connection.close();
    world.agent.connection.closed().await;
    let connection = &world.session.0;
    eventually("lines alone are no agent", async || {
        connection.control(Control::Resolve { name: "edge".into() }.encode(1));
        let answer = timeout(SOON, connection.next_control()).await.unwrap().unwrap();
        matches!(Control::decode(&answer), Ok((1, Control::Resolved { online: false, .. })))
    })
    .await;
}

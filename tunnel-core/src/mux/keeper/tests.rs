use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use super::*;
use crate::{
    ids::{ClusterId, InstanceId},
    mux::{Closed, EndpointConfig, Ledger, LineSettings, MuxStream, OpenRequest, ResumeKey, Side},
};

const KEEP_FOR: Duration = Duration::from_secs(60);
const BULK: u64 = 100_000;

fn config(side: Side, ledger: &Ledger) -> EndpointConfig {
    EndpointConfig {
        side,
        max_streams: 100,
        ledger: ledger.clone(),
        instance: InstanceId::from_bytes([9; 16]),
        jitter: 0,
    }
}

/// A client and an agent without a relay between them, whose line can be cut and laid anew.
struct Pair {
    client: Keeper,
    agent: Keeper,
    line: Mutex<Option<(Connection, [JoinHandle<Closed>; 2])>>,
    accepted: tokio::sync::mpsc::Sender<MuxStream>,
    ledger: Ledger,
    laid: AtomicUsize,
}

impl Pair {
    fn new() -> (Arc<Self>, tokio::sync::mpsc::Receiver<MuxStream>, JoinSet<()>) {
        Self::keeping(100)
    }

    /// The agent keeps no more than so many that wait.
    fn keeping(max_parked: usize) -> (Arc<Self>, tokio::sync::mpsc::Receiver<MuxStream>, JoinSet<()>) {
        let (accepted, streams) = tokio::sync::mpsc::channel(10);
        let pair = Arc::new(Self {
            client: Keeper::with_lines(KEEP_FOR, 100, LineSettings::new(1, BULK)),
            agent: Keeper::new(KEEP_FOR, max_parked),
            line: Mutex::default(),
            accepted,
            ledger: Ledger::new(64 << 20),
            laid: AtomicUsize::new(0),
        });
        let mut tasks = JoinSet::new();
        let (client, agent, of) = (pair.client.clone(), pair.agent.clone(), Arc::clone(&pair));
        tasks.spawn(async move {
            let session = || async { of.connection() };
            match client.run(session).await {}
        });
        tasks.spawn(async move { match agent.watch().await {} });
        (pair, streams, tasks)
    }

    fn connection(&self) -> Option<Connection> {
        self.line.lock().unwrap().as_ref().map(|(connection, _)| connection.clone())
    }

    fn lay(&self) {
        let (connection, drivers) = self.another();
        *self.line.lock().unwrap() = Some((connection, drivers));
        self.laid.fetch_add(1, Ordering::Relaxed);
    }

    /// One more beside the line that is laid.
    fn another(&self) -> (Connection, [JoinHandle<Closed>; 2]) {
        let (near, far): (DuplexStream, DuplexStream) = duplex(64 * 1024);
        let (connection, driver) =
            Connection::kept(near, BytesMut::new(), config(Side::Dialler, &self.ledger), self.client.clone());
        let (other, other_driver) =
            Connection::kept(far, BytesMut::new(), config(Side::Acceptor, &self.ledger), self.agent.clone());
        let accepted = self.accepted.clone();
        tokio::spawn(async move {
            while let Ok((_, stream)) = other.accept().await {
                accepted.send(stream).await.unwrap();
            }
        });
        (connection, [tokio::spawn(driver.run()), tokio::spawn(other_driver.run())])
    }

    fn cut(&self) {
        if let Some((_, drivers)) = self.line.lock().unwrap().take() {
            drivers.iter().for_each(JoinHandle::abort);
        }
    }

    async fn open(&self, key: u8) -> MuxStream {
        Self::open_on(&self.connection().unwrap(), key).await
    }

    async fn open_on(connection: &Connection, key: u8) -> MuxStream {
        let stream = StreamKey::from_bytes([key; 16]);
        let request = OpenRequest::new(stream, ClusterId::of_spki(b"k"));
        let opened = connection.open(request).unwrap();
        // As after an inner handshake.
        while opened.opened().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        keep(&opened, 7, None);
        opened
    }
}

fn keep(stream: &MuxStream, proofs: u8, owner: Option<Owner>) {
    let proofs = ResumeKey::new(&[proofs; 32]);
    stream.keep(ClusterId::of_spki(b"k"), proofs, owner);
}

fn all() -> Option<Owner> {
    of("alice")
}

fn of(user: &str) -> Option<Owner> {
    Some(Owner { user: user.into(), admit: Box::new(|_| Ok(())) })
}

/// A pair with one stream that both ends keep.
struct One {
    pair: Arc<Pair>,
    near: MuxStream,
    far: MuxStream,
    _streams: tokio::sync::mpsc::Receiver<MuxStream>,
    _tasks: JoinSet<()>,
}

impl One {
    async fn kept() -> Self {
        let (pair, mut streams, tasks) = Pair::new();
        pair.lay();
        let near = pair.open(1).await;
        let far = streams.recv().await.unwrap();
        keep(&far, 7, all());
        Self { pair, near, far, _streams: streams, _tasks: tasks }
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_go_on_where_they_were_cut_in_both_directions() {
    let One { pair, mut near, mut far, _streams, _tasks } = One::kept().await;
    near.write_all(b"first").await.unwrap();
    let cutting = async {
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(70)).await;
            pair.cut();
            tokio::time::sleep(Duration::from_millis(30)).await;
            pair.lay();
        }
    };
    let pattern: Vec<u8> = (0..3_000_000u32).map(|at| (at / 7) as u8).collect();
    let echo = async {
        let (mut reader, mut writer) = tokio::io::split(&mut far);
        let mut block = vec![0; 10_000];
        loop {
            let n = reader.read(&mut block).await.unwrap();
            if n == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(4)).await;
            writer.write_all(&block[..n]).await.unwrap();
        }
        writer.shutdown().await.unwrap();
    };
    let (mut reader, mut writer) = tokio::io::split(&mut near);
    let writing = async {
        writer.write_all(&pattern).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let reading = reader.read_to_end(&mut back);
    let (_, (), (), read) = tokio::join!(cutting, writing, echo, reading);
    read.unwrap();
    assert!(back[..5] == *b"first" && back[5..] == pattern, "{} bytes", back.len());
    assert_eq!(pair.laid.load(Ordering::Relaxed), 21);
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_connection_does_not_come_back_ends_with_an_error_in_time() {
    let One { pair, mut near, mut far, _streams, _tasks } = One::kept().await;
    near.write_all(b"x").await.unwrap();
    let (mut byte, mut other) = ([0], [0]);
    far.read_exact(&mut byte).await.unwrap();
    pair.cut();
    let begun = Instant::now();
    let (near, far) = tokio::join!(near.read(&mut other), far.read(&mut byte));
    assert!(begun.elapsed() >= KEEP_FOR && begun.elapsed() < KEEP_FOR + Duration::from_secs(1));
    assert_eq!(near.unwrap_err().kind(), std::io::ErrorKind::ConnectionAborted);
    assert_eq!(far.unwrap_err().kind(), std::io::ErrorKind::ConnectionAborted);
    assert_eq!(pair.client.parked() + pair.agent.parked(), 0);
}

#[tokio::test(start_paused = true)]
async fn t50_a_resume_by_another_or_without_leave_is_refused_and_the_stream_stays() {
    let (pair, mut streams, _tasks) = Pair::new();
    pair.lay();
    let mut stolen = pair.open(1).await;
    stolen.write_all(b"x").await.unwrap();
    keep(&streams.recv().await.unwrap(), 8, all());
    let mut forbidden = pair.open(2).await;
    forbidden.write_all(b"y").await.unwrap();
    let far = streams.recv().await.unwrap();
    let admit: Admit = Box::new(|_| Err("the ticket is another's".into()));
    keep(&far, 7, Some(Owner { user: "alice".into(), admit }));
    pair.cut();
    pair.lay();
    for stream in [&mut stolen, &mut forbidden] {
        let error = timeout(Duration::from_secs(5), stream.read(&mut [0])).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    assert_eq!(pair.agent.parked(), 1, "who asked wrongly decides nothing about the stream");
}

#[tokio::test(start_paused = true)]
async fn what_was_finished_before_the_cut_is_delivered_after_it() {
    let One { pair, mut near, mut far, _streams, _tasks } = One::kept().await;
    near.write_all(b"question").await.unwrap();
    far.write_all(&vec![5; 100_000]).await.unwrap();
    far.shutdown().await.unwrap();
    pair.cut();
    drop(far);
    pair.lay();
    let mut back = Vec::new();
    near.shutdown().await.unwrap();
    near.read_to_end(&mut back).await.unwrap();
    assert_eq!(back, vec![5; 100_000]);
}

#[tokio::test(start_paused = true)]
async fn streams_that_ended_are_not_kept() {
    let (pair, mut streams, _tasks) = Pair::new();
    pair.lay();
    for key in 0..50 {
        let mut near = pair.open(key).await;
        near.write_all(b"x").await.unwrap();
        let mut far = streams.recv().await.unwrap();
        keep(&far, 7, all());
        if key % 2 == 0 {
            near.shutdown().await.unwrap();
            far.shutdown().await.unwrap();
            near.read_to_end(&mut Vec::new()).await.unwrap();
            far.read_to_end(&mut Vec::new()).await.unwrap();
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((pair.client.list().len(), pair.agent.list().len()), (0, 0));
    assert_eq!(pair.ledger.promised(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_second_stream_of_one_name_is_reset_and_the_first_is_not_forgotten() {
    let (pair, mut streams, _tasks) = Pair::new();
    pair.lay();
    let first = pair.open(1).await;
    let mut far = streams.recv().await.unwrap();
    keep(&far, 7, all());
    let key = StreamKey::from_bytes([1; 16]);
    let second = pair.connection().unwrap().open(OpenRequest::new(key, ClusterId::of_spki(b"k"))).unwrap();
    let mut second_far = streams.recv().await.unwrap();
    keep(&second_far, 8, all());
    let error = second_far.read(&mut [0; 8]).await.unwrap_err();
    assert!(error.to_string().contains("name"), "{error}");
    pair.cut();
    drop((first, second));
    // Nobody comes back for it.
    let error = far.read(&mut [0; 8]).await.unwrap_err();
    assert!(error.to_string().contains("not back within"), "{error}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(pair.agent.list().len(), 0);
}

/// Writes and reads back so much of a pattern.
async fn echoes(near: &mut MuxStream, far: &mut MuxStream, bytes: usize) {
    let sent: Vec<u8> = (0..bytes).map(|at| (at / 7) as u8).collect();
    let (mut there, mut back) = (vec![0; bytes], vec![0; bytes]);
    let near = async {
        let (mut reader, mut writer) = tokio::io::split(near);
        tokio::join!(writer.write_all(&sent), reader.read_exact(&mut back))
    };
    let far = async {
        far.read_exact(&mut there).await.unwrap();
        far.write_all(&there).await.unwrap();
    };
    let ((written, read), ()) = tokio::join!(near, far);
    written.unwrap();
    read.unwrap();
    assert!(back == sent && there == sent);
}

#[tokio::test(start_paused = true)]
async fn what_became_bulk_is_told_once_and_moves_once() {
    let (pair, mut streams, _tasks) = Pair::new();
    pair.lay();
    let (mut near, mut quiet) = (pair.open(1).await, pair.open(2).await);
    let (mut far, mut quiet_far) = (streams.recv().await.unwrap(), streams.recv().await.unwrap());
    keep(&far, 7, all());
    keep(&quiet_far, 7, all());
    echoes(&mut quiet, &mut quiet_far, 1000).await;
    let (line, drivers) = pair.another();
    let told = timeout(Duration::from_secs(1), pair.client.next_bulk());
    assert!(told.await.is_err(), "nobody carried so much");
    echoes(&mut near, &mut far, 200_000).await;
    assert_eq!(pair.client.next_bulk().await, near.key());
    assert!(pair.client.move_to(near.key(), &line) && near.view().has_moved());
    echoes(&mut near, &mut far, 200_000).await;
    assert_eq!((line.stream_count(), pair.connection().unwrap().stream_count()), (1, 1));
    drivers.iter().for_each(JoinHandle::abort);
    echoes(&mut near, &mut far, 200_000).await;
    assert!(!pair.client.move_to(near.key(), &pair.another().0), "it stays where it was taken up");
    echoes(&mut quiet, &mut quiet_far, 1000).await;
    assert!(timeout(Duration::from_secs(1), pair.client.next_bulk()).await.is_err());
    assert_eq!(pair.client.parked() + pair.agent.parked(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_move_to_a_line_that_does_not_answer_ends_where_it_began() {
    let (pair, mut streams, _tasks) = Pair::new();
    pair.lay();
    let mut near = pair.open(1).await;
    let mut far = streams.recv().await.unwrap();
    let (silent, _peer) = duplex(64 * 1024);
    let (line, driver) =
        Connection::kept(silent, BytesMut::new(), config(Side::Dialler, &pair.ledger), pair.client.clone());
    let _driving = tokio::spawn(driver.run());
    keep(&far, 7, all());
    assert!(pair.client.move_to(near.key(), &line));
    // It is found dead in time, and the stream goes on on the connection that it left.
    echoes(&mut near, &mut far, 200_000).await;
    assert!(line.is_closed() && !pair.client.move_to(StreamKey::from_bytes([9; 16]), &line));
}

#[tokio::test(start_paused = true)]
async fn where_too_many_wait_the_oldest_of_whoever_has_most_end() {
    let (pair, mut streams, _tasks) = Pair::keeping(4);
    let mut held = Vec::new();
    for users in [&["bob", "bob"][..], &["alice", "alice"], &["alice", "alice", "alice"]] {
        let (connection, drivers) = pair.another();
        for user in users {
            let near = Pair::open_on(&connection, held.len() as u8).await;
            let far = streams.recv().await.unwrap();
            keep(&far, 7, of(user));
            held.push((*user, near, far));
        }
        drivers.iter().for_each(JoinHandle::abort);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(pair.agent.parked(), 4);
    let waits: Vec<_> = held.iter().map(|(user, _, far)| (*user, far.view().is_waiting())).collect();
    assert_eq!(waits[..2], [("bob", true); 2], "he has fewer, though his wait longer");
    assert_eq!(waits[2..4], [("alice", false); 2], "the oldest of hers");
    assert_eq!(waits[4..].iter().filter(|(_, waits)| *waits).count(), 2, "{waits:?}");
    let error = held[2].2.read(&mut [0; 8]).await.unwrap_err();
    assert!(error.to_string().contains("too many streams wait"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_cut_whenever_it_was_taken_up_is_asked_for_less_and_less() {
    let One { pair, mut near, mut far, _streams, _tasks } = One::kept().await;
    let tick = Duration::from_millis(1);
    // One that stood, or moved a byte, is asked for at once; twice in a row it does not.
    let back_at_once = async |near: &MuxStream| {
        pair.cut();
        pair.lay();
        tokio::time::sleep(5 * tick).await;
        assert!(!near.view().is_waiting());
    };
    back_at_once(&near).await;
    let (begun, before) = (Instant::now(), pair.laid.load(Ordering::Relaxed));
    while begun.elapsed() < Duration::from_secs(30) {
        if !near.view().is_waiting() {
            pair.cut();
            pair.lay();
        }
        tokio::time::sleep(tick).await;
    }
    let times = pair.laid.load(Ordering::Relaxed) - before;
    assert!((5..=120).contains(&times), "taken up {times} times in 30 s");
    while near.view().is_waiting() {
        tokio::time::sleep(tick).await;
    }
    echoes(&mut near, &mut far, 1).await;
    back_at_once(&near).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    back_at_once(&near).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_became_bulk_and_waits_is_told_again_once_it_goes_on() {
    let One { pair, mut near, mut far, _streams, _tasks } = One::kept().await;
    echoes(&mut near, &mut far, 200_000).await;
    assert_eq!(pair.client.next_bulk().await, near.key());
    let (line, _drivers) = pair.another();
    pair.cut();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(near.view().is_waiting() && !pair.client.move_to(near.key(), &line));
    pair.lay();
    let told = timeout(Duration::from_secs(5), pair.client.next_bulk()).await;
    assert_eq!(told.unwrap(), near.key());
    assert!(pair.client.move_to(near.key(), &line));
    echoes(&mut near, &mut far, 200_000).await;
    assert_eq!(line.stream_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_was_refused_for_good_is_not_counted_among_those_that_wait() {
    let (pair, mut streams, _tasks) = Pair::new();
    pair.lay();
    let mut near = pair.open(1).await;
    let far = streams.recv().await.unwrap();
    keep(&far, 8, all());
    pair.cut();
    pair.lay();
    let error = timeout(Duration::from_secs(5), near.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    pair.cut();
    tokio::time::sleep(KEEP_FOR + Duration::from_secs(1)).await;
    assert_eq!(pair.client.parked(), 0, "its handle is still held");
}

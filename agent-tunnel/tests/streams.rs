//! Streams through the agent: upgrades, cuts, slow and foreign callers, ends.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use support::{
    Bench, Cap, KEEP_FOR, MAX_STREAMS_PER_USER, WITHIN, cap::CapConnection, fault, parts, read_to_end,
    read_until,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Notify,
    time::{Instant, timeout},
};
use towline_tunnel::{
    fault::{Fault, Report},
    ids::ClusterId,
    inner::InnerConnector,
    keys::SigningKey,
    mux::{CloseReason, StreamError},
    ticket::{MAX_LIFE, Ticket},
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\nConnection: Upgrade\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n";
const EXEC: &str = "POST /api/v1/namespaces/a/pods/p/exec?command=sh";

/// Whether an error says that what was read may be a part.
fn is_truncated(error: &std::io::Error) -> bool {
    let report = error.get_ref().and_then(|inner| inner.downcast_ref::<Report>());
    reason(error) == Some(CloseReason::Truncated)
        || report.is_some_and(|report| report.fault == Fault::StreamTruncated)
}

/// Why the stream below an error ended, if that is what it tells of.
fn reason(error: &std::io::Error) -> Option<CloseReason> {
    error.get_ref()?.downcast_ref::<StreamError>().map(|error| error.reason)
}

#[tokio::test]
async fn an_upgraded_connection_is_raw_bytes_and_each_direction_ends_on_its_own() {
    let cap = Cap::new(|mut connection: CapConnection| async move {
        connection.head().await?;
        // The first bytes come in one piece with the answer.
        connection.say(format!("{SWITCH}\0early").as_bytes()).await?;
        let got = connection.take(8).await?;
        connection.say(&got).await?;
        connection.drained().await?;
        connection.say(b"after its end").await?;
        connection.stream.shutdown().await
    })
    .await;
    let bench = Bench::new(cap).await;
    let mut stream = bench.connect().await;
    // So do the caller's.
    let head = bench.head(EXEC, UPGRADE);
    stream.write_all(format!("{head}\x01\x02GET / H").as_bytes()).await.unwrap();
    let answer = read_until(&mut stream, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let lower = answer.to_ascii_lowercase();
    for line in [
        "connection: upgrade\r\n",
        "upgrade: spdy/3.1\r\n",
        "x-stream-protocol-version: v4.channel.k8s.io\r\n",
    ] {
        assert!(lower.contains(line), "{answer}");
    }
    let mut got = [0; 14];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"\0early\x01\x02GET / ");
    stream.write_all(b"H").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut stream).await.unwrap(), "after its end");
    let seen = bench.cap.seen().concat();
    for line in ["connection: Upgrade\r\n", "upgrade: SPDY/3.1\r\n", "impersonate-user: alice\r\n"] {
        assert!(seen.contains(line), "{seen}");
    }
    support::eventually("nothing is left", || bench.metrics.page().contains("towline_agent_streams 0")).await;
}

#[tokio::test]
async fn a_hundred_megabytes_pass_an_upgraded_connection_both_ways() {
    const BYTES: usize = 100 << 20;
    let cap = Cap::new(|mut connection: CapConnection| async move {
        connection.head().await?;
        connection.say(SWITCH.as_bytes()).await?;
        let (mut reader, mut writer) = tokio::io::split(connection.stream);
        tokio::io::copy(&mut reader, &mut writer).await?;
        writer.shutdown().await
    })
    .await;
    let bench = Bench::new(cap).await;
    let mut stream = bench.connect().await;
    stream.write_all(bench.head(EXEC, UPGRADE).as_bytes()).await.unwrap();
    read_until(&mut stream, "\r\n\r\n").await;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let block: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
    let send = async {
        for _ in 0..BYTES / block.len() {
            writer.write_all(&block).await.unwrap();
        }
        writer.shutdown().await.unwrap();
    };
    let receive = async {
        let (mut got, mut total) = (vec![0; 1 << 20], 0);
        loop {
            let n = reader.read(&mut got).await.unwrap();
            if n == 0 {
                return total;
            }
            assert!(got[..n].iter().enumerate().all(|(at, byte)| *byte == block[(total + at) % block.len()]));
            total += n;
        }
    };
    let ((), total) = timeout(6 * WITHIN, async { tokio::join!(send, receive) }).await.unwrap();
    assert_eq!(total, BYTES);
}

#[tokio::test]
async fn t09_behind_an_upgrade_that_was_refused_nothing_more_is_taken() {
    let second = "GET /api/v1/secrets HTTP/1.1\r\nHost: a\r\nImpersonate-User: admin\r\n\r\n";
    for refusal in [
        "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nX-Own: 1\r\nContent-Length: 12\r\n\r\n{\"code\":403}",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        let bench = Bench::new(Cap::answering(refusal).await).await;
        for upgrade in [UPGRADE, "Upgrade: h2c\r\n"] {
            for early in [true, false] {
                let before = bench.cap.seen().concat().matches("HTTP/1.1").count();
                let mut stream = bench.connect().await;
                let head = bench.head(EXEC, upgrade);
                let sent = if early { format!("{head}{second}") } else { head };
                stream.write_all(sent.as_bytes()).await.unwrap();
                if !early {
                    read_until(&mut stream, "\r\n\r\n").await;
                    let _too_late = stream.write_all(second.as_bytes()).await;
                }
                let answer = read_to_end(&mut stream).await.unwrap();
                let is_whole = answer.ends_with("{\"code\":403}") || answer.ends_with("0\r\n\r\n");
                assert!(is_whole, "it is passed through as it came: {answer}");
                assert_eq!(early, answer.to_ascii_lowercase().contains("connection: close\r\n"));
                let seen = bench.cap.seen().concat();
                assert_eq!(seen.matches("HTTP/1.1").count(), before + 1, "{seen}");
                assert!(!seen.contains("secrets") && !seen.contains("admin"), "{seen}");
            }
        }
    }
}

#[tokio::test]
async fn t09_an_unasked_switch_of_protocols_is_no_way_past_the_agent() {
    for (answer, more) in [
        (SWITCH, ""),
        (SWITCH, "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", UPGRADE),
    ] {
        let bench = Bench::new(Cap::answering(answer).await).await;
        let answer = bench.ask(&bench.head("GET /x", &format!("{more}Connection: close\r\n"))).await;
        assert_eq!(fault(&answer), (502, "TL-API-003".into()));
    }
}

#[tokio::test]
async fn t50_an_answer_that_is_cut_short_is_never_a_whole_one() {
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    const LENGTH: &str = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello";
    const TO_THE_END: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello";
    for (answer, clean_tls_end) in
        [(CHUNKED, false), (CHUNKED, true), (LENGTH, false), (LENGTH, true), (TO_THE_END, false)]
    {
        let cap = Cap::new(move |mut connection: CapConnection| async move {
            connection.head().await?;
            connection.say(answer.as_bytes()).await?;
            if clean_tls_end { connection.stream.shutdown().await } else { connection.cut().await }
        })
        .await;
        let bench = Bench::new(cap).await;
        let mut stream = bench.connect().await;
        stream.write_all(bench.head("GET /log", "Connection: close\r\n").as_bytes()).await.unwrap();
        let error = read_to_end(&mut stream).await.unwrap_err();
        assert!(is_truncated(&error), "{answer}: {error}");
    }
    // The last one of them, ended as TLS ends, is whole.
    let cap = Cap::new(move |mut connection: CapConnection| async move {
        connection.head().await?;
        connection.say(TO_THE_END.as_bytes()).await?;
        connection.stream.shutdown().await
    })
    .await;
    let bench = Bench::new(cap).await;
    assert!(bench.get("/log", "").await.contains("hello"));
}

#[tokio::test]
async fn t50_an_upgraded_connection_that_is_cut_is_never_taken_for_ended() {
    let cap = Cap::new(move |mut connection: CapConnection| async move {
        connection.head().await?;
        connection.say(SWITCH.as_bytes()).await?;
        connection.say(b"half of it").await?;
        connection.cut().await
    })
    .await;
    let bench = Bench::new(cap).await;
    let mut stream = bench.connect().await;
    stream.write_all(bench.head(EXEC, UPGRADE).as_bytes()).await.unwrap();
    let error = read_to_end(&mut stream).await.unwrap_err();
    assert!(is_truncated(&error), "{error}");
}

#[tokio::test]
async fn an_upload_that_is_cut_never_reaches_the_apiserver_as_a_whole_one() {
    let (seen_end, told) = (Arc::new(Notify::new()), Arc::new(std::sync::Mutex::new(None)));
    let (notify, outcome) = (Arc::clone(&seen_end), Arc::clone(&told));
    let cap = Cap::new(move |mut connection: CapConnection| {
        let (notify, outcome) = (Arc::clone(&notify), Arc::clone(&outcome));
        async move {
            connection.head().await?;
            let end = connection.drained().await;
            *outcome.lock().unwrap() = Some(end.is_ok());
            notify.notify_one();
            Ok(())
        }
    })
    .await;
    let bench = Bench::new(cap).await;
    for clean_end in [false, true] {
        let mut stream = bench.connect().await;
        let head = bench.head("POST /api/v1/pods", "Transfer-Encoding: chunked\r\n");
        stream.write_all(format!("{head}5\r\nhello\r\n").as_bytes()).await.unwrap();
        support::eventually("it is on its way", || {
            bench.cap.seen().last().is_some_and(|seen| seen.ends_with("hello\r\n"))
        })
        .await;
        if clean_end {
            stream.shutdown().await.unwrap();
        }
        drop(stream);
        timeout(WITHIN, seen_end.notified()).await.unwrap();
        assert!(!bench.cap.seen().concat().contains("\r\n0\r\n\r\n"));
        assert_eq!(told.lock().unwrap().take(), Some(false), "the connection broke, and did not end");
    }
}

#[tokio::test]
async fn a_caller_that_leaves_ends_its_request_at_the_apiserver() {
    for (answer, more) in
        [("", ""), ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", ""), (SWITCH, UPGRADE)]
    {
        let gone = Arc::new(Notify::new());
        let told = Arc::clone(&gone);
        let cap = Cap::new(move |mut connection: CapConnection| {
            let told = Arc::clone(&told);
            async move {
                connection.head().await?;
                connection.say(answer.as_bytes()).await?;
                let _ended = connection.drained().await;
                told.notify_one();
                Ok(())
            }
        })
        .await;
        let bench = Bench::new(cap).await;
        let mut stream = bench.connect().await;
        stream.write_all(bench.head("GET /api/v1/pods?watch=true", more).as_bytes()).await.unwrap();
        support::eventually("it is asked", || bench.cap.seen().concat().ends_with("\r\n\r\n")).await;
        drop(stream);
        timeout(WITHIN, gone.notified()).await.expect("the apiserver learns that nobody waits");
        support::eventually("nothing is left", || bench.metrics.page().contains("towline_agent_streams 0"))
            .await;
    }
}

#[tokio::test]
async fn a_caller_that_only_ends_its_direction_still_gets_its_answer() {
    let go = Arc::new(Notify::new());
    let told = Arc::clone(&go);
    let cap = Cap::new(move |mut connection: CapConnection| {
        let told = Arc::clone(&told);
        async move {
            connection.head().await?;
            told.notified().await;
            connection.say(OK.as_bytes()).await
        }
    })
    .await;
    let bench = Bench::new(cap).await;
    let mut stream = bench.connect().await;
    stream.write_all(bench.head("GET /x", "").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    support::eventually("it is asked", || bench.cap.seen().len() == 1).await;
    go.notify_one();
    assert_eq!(parts(&read_to_end(&mut stream).await.unwrap()), (200, "{}"));
}

#[tokio::test]
async fn t45_ticket_token_and_key_must_be_one_users_and_this_clusters() {
    let bench = Bench::new(Cap::answering(OK).await).await;
    let (alice, now) = (bench.principal("alice"), SystemTime::now());
    let own = bench.run_key.public().hash();
    let other_key = SigningKey::generate();
    let elsewhere = ClusterId::of_spki(b"elsewhere");
    let sign = |ticket: Ticket| Some(ticket.sign(&bench.relay));
    let stale = now - 2 * MAX_LIFE;
    for ticket in [
        None,
        Some(bytes::Bytes::from_static(b"no ticket")),
        sign(Ticket::new(elsewhere, alice.clone(), own, now, MAX_LIFE)),
        sign(Ticket::new(bench.cluster, alice.clone(), other_key.public().hash(), now, MAX_LIFE)),
        sign(Ticket::new(bench.cluster, alice.clone(), own, stale, MAX_LIFE)),
        Some(Ticket::new(bench.cluster, alice.clone(), own, now, MAX_LIFE).sign(&SigningKey::generate())),
    ] {
        let connector = InnerConnector::new(bench.cluster, &bench.run_key).unwrap();
        let outcome: Result<String, std::io::Error> = async {
            let mut stream = connector
                .connect(bench.open(ticket))
                .await
                .map_err(|report: Report| std::io::Error::other(report))?;
            let _cut = stream.write_all(bench.head("GET /x", "").as_bytes()).await;
            read_to_end(&mut stream).await
        }
        .await;
        let error = outcome.unwrap_err();
        let report =
            error.get_ref().and_then(|inner| inner.downcast_ref::<Report>()).map(|report| report.fault);
        assert!(
            report == Some(Fault::TicketMismatch) || reason(&error) == Some(CloseReason::TicketInvalid),
            "{error:?}"
        );
    }
    // A token that mallory took off alice, or off another cluster, on a connection of mallory's own.
    let mallory =
        Ticket::new(bench.cluster, bench.principal("mallory"), own, now, MAX_LIFE).sign(&bench.relay);
    let connector = InnerConnector::new(bench.cluster, &bench.run_key).unwrap();
    let mut stream = connector.connect(bench.open(Some(mallory))).await.unwrap();
    stream.write_all(bench.head("GET /x", "Connection: close\r\n").as_bytes()).await.unwrap();
    let answer = read_to_end(&mut stream).await.unwrap();
    assert_eq!(fault(&answer), (401, "TL-IDN-004".into()));
    assert_eq!(bench.cap.connections(), 0);
}

/// Time stands still but for what waits on it; nothing here leaves the process.
#[tokio::test(start_paused = true)]
async fn t33_whoever_is_slow_is_let_go_within_ten_seconds() {
    let bench = Bench::new(Cap::answering(OK).await).await;
    let within = Duration::from_secs(11);
    // A stream on which nothing is said.
    let mut silent = bench.open(Some(bench.ticket()));
    let begun = Instant::now();
    let error = silent.read(&mut [0; 10]).await.unwrap_err();
    assert_eq!(reason(&error), Some(CloseReason::Timeout), "{error}");
    assert!(begun.elapsed() <= within, "{:?}", begun.elapsed());
    // A head that dribbles.
    let mut stream = bench.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let begun = Instant::now();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let drip = async {
        while begun.elapsed() < 3 * within {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let _ended = writer.write_all(b"A: b\r\n").await;
        }
    };
    let mut answer = String::new();
    let read = async {
        reader.read_to_string(&mut answer).await.unwrap();
        begun.elapsed()
    };
    let elapsed = tokio::select! { elapsed = read => elapsed, () = drip => panic!("it was never ended") };
    assert!(elapsed <= within, "{elapsed:?}");
    assert_eq!(fault(&answer), (504, "TL-HTP-003".into()));
}

#[tokio::test]
async fn when_the_agent_goes_requests_finish_watches_end_and_the_rest_is_cut_with_a_reason() {
    let go = Arc::new(Notify::new());
    let told = Arc::clone(&go);
    let cap = Cap::new(move |mut connection: CapConnection| {
        let told = Arc::clone(&told);
        async move {
            let head = connection.head().await?.unwrap_or_default();
            if head.starts_with("POST") {
                connection.say(SWITCH.as_bytes()).await?;
            } else if head.contains("slow") {
                told.notified().await;
                connection.say(OK.as_bytes()).await?;
            } else {
                let kind = if head.contains("watch=") { "application/json" } else { "text/plain" };
                let head =
                    format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n");
                connection.say(head.as_bytes()).await?;
                connection.say(b"3\r\n{}\n\r\n").await?;
            }
            connection.drained().await
        }
    })
    .await;
    let bench = Bench::new(cap).await;
    let mut streams = Vec::new();
    for (line, more) in
        [("GET /slow", ""), ("GET /api/v1/pods?watch=1", ""), ("GET /log?follow=true", ""), (EXEC, UPGRADE)]
    {
        let mut stream = bench.connect().await;
        stream.write_all(bench.head(line, more).as_bytes()).await.unwrap();
        streams.push(stream);
    }
    let mut idle = bench.connect().await;
    read_until(&mut streams[1], "{}\n\r\n").await;
    read_until(&mut streams[2], "{}\n\r\n").await;
    read_until(&mut streams[3], "\r\n\r\n").await;

    bench.ending.going.cancel();
    assert_eq!(read_to_end(&mut idle).await.unwrap(), "", "an idle connection ends cleanly");
    let mut late = bench.open(Some(bench.ticket()));
    assert_eq!(reason(&late.read(&mut [0]).await.unwrap_err()), Some(CloseReason::Draining));
    go.notify_one();
    assert_eq!(parts(&read_to_end(&mut streams[0]).await.unwrap()).0, 200, "a request is finished");

    bench.ending.cut.cancel();
    assert_eq!(read_to_end(&mut streams[1]).await.unwrap(), "0\r\n\r\n", "a watch ends as if by itself");
    for stream in &mut streams[2..] {
        let error = read_to_end(stream).await.unwrap_err();
        assert_eq!(reason(&error), Some(CloseReason::Draining), "{error}");
    }
}

#[tokio::test]
async fn no_user_takes_all_of_an_agents_streams() {
    let cap = Cap::new(|mut connection: CapConnection| async move {
        connection.head().await?;
        connection.say(OK.as_bytes()).await
    })
    .await;
    let bench = Bench::new(cap).await;
    // Inner handshakes that do not go on: each holds its place for as long as the agent waits for it.
    let mut held: Vec<_> = (0..MAX_STREAMS_PER_USER).map(|_| bench.open(Some(bench.ticket()))).collect();
    let mut beyond = bench.open(Some(bench.ticket()));
    let error = timeout(WITHIN, beyond.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(reason(&error), Some(CloseReason::AgentLimitReached), "{error}");
    assert_eq!(CloseReason::AgentLimitReached.fault(), Fault::AgentLimit, "the flag is the agent's");
    let bob_key = SigningKey::generate();
    let bob = Ticket::new(
        bench.cluster,
        bench.principal("bob"),
        bob_key.public().hash(),
        SystemTime::now(),
        MAX_LIFE,
    );
    let connector = InnerConnector::new(bench.cluster, &bob_key).unwrap();
    let bob = connector.connect(bench.open(Some(bob.sign(&bench.relay)))).await;
    assert!(bob.is_ok(), "another user is let in: {:?}", bob.err());
    drop(held.pop());
    support::eventually("the place is free", || {
        bench.metrics.page().contains(&format!("towline_agent_streams {MAX_STREAMS_PER_USER}"))
    })
    .await;
    timeout(WITHIN, bench.connect()).await.unwrap();
}

#[tokio::test]
async fn a_stream_whose_end_its_client_never_confirms_ends_in_time_and_gives_back_what_it_held() {
    let asked = Arc::new(Notify::new());
    let told = Arc::clone(&asked);
    let cap = Cap::new(move |mut connection: CapConnection| {
        let told = Arc::clone(&told);
        async move {
            connection.head().await?;
            told.notify_one();
            connection.say(OK.as_bytes()).await
        }
    })
    .await;
    let mut bench = Bench::new(cap).await;
    let mut left = bench.connect().await;
    left.write_all(bench.head("GET /version", "Connection: close\r\n").as_bytes()).await.unwrap();
    timeout(WITHIN, asked.notified()).await.unwrap();
    let begun = Instant::now();
    bench.lose_session();
    support::eventually("it waits", || bench.keeper.parked() == 1).await;

    // It counts among its user's streams while it waits.
    let mut others: Vec<_> = (1..MAX_STREAMS_PER_USER).map(|_| bench.open(Some(bench.ticket()))).collect();
    let mut beyond = bench.open(Some(bench.ticket()));
    let error = timeout(WITHIN, beyond.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(reason(&error), Some(CloseReason::AgentLimitReached), "{error}");

    support::eventually("its time is over", || bench.keeper.parked() == 0).await;
    assert!(begun.elapsed() >= KEEP_FOR, "{:?}", begun.elapsed());
    timeout(WITHIN, bench.connect()).await.expect("its place is another's");
    others.clear();
    drop(left);
    support::eventually("nothing is left", || {
        let page = bench.metrics.page();
        page.contains("towline_agent_streams 0") && page.contains("towline_agent_buffered_bytes 0")
    })
    .await;
}

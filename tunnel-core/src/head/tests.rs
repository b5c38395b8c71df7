use std::time::Duration;

use bytes::BytesMut;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

/// What passes, and how it ended, when the bytes come in pieces of this size.
fn feed(bytes: &[u8], piece: usize) -> (Vec<u8>, Result<RequestGuard, HeadError>) {
    let (mut guard, mut input, mut passed) = (RequestGuard::new(), BytesMut::new(), BytesMut::new());
    for chunk in bytes.chunks(piece) {
        input.extend_from_slice(chunk);
        if let Err(error) = guard.feed(&mut input, &mut passed) {
            return (passed.to_vec(), Err(error));
        }
    }
    (passed.to_vec(), Ok(guard))
}

fn refused(head: &str) -> HeadError {
    for piece in [1, 7, 100_000] {
        let (passed, end) = feed(head.as_bytes(), piece);
        assert!(passed.is_empty(), "nothing of {head:?} may pass");
        if piece == 100_000 {
            return end.map(|_| ()).expect_err(head);
        }
        assert!(end.is_err(), "{head:?} in pieces of {piece}");
    }
    unreachable!("the last piece size returns")
}

fn accepted(head: &str) {
    for piece in [1, 7, 100_000] {
        let (passed, end) = feed(head.as_bytes(), piece);
        assert_eq!(String::from_utf8_lossy(&passed), head, "{:?}", end.map(|_| ()));
    }
}

#[test]
fn t11_two_lengths_hosts_or_encodings_are_refused() {
    use HeadError::*;
    for (head, error) in [
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", BothLengths),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            TransferEncoding,
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", TransferEncoding),
        ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", TransferEncoding),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", ContentLength),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", ContentLength),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", ContentLength),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\n", ContentLength),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n", ContentLength),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Host),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Host),
        ("GET / HTTP/1.1\r\nAccept: a\r\n\r\n", Host),
        ("GET / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", RequestLine),
    ] {
        assert_eq!(refused(head), error, "{head:?}");
    }
}

#[test]
fn t11_lines_end_with_cr_lf_and_nothing_else() {
    use HeadError::*;
    for (head, error) in [
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", LineEnd),
        ("GET / HTTP/1.1\r\nHost: a\n\n", LineEnd),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n", LineEnd),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n", LineEnd),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n", LineEnd),
        ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
        ("GET / HTTP/1.1\r\nHost: a\r\n folded: x\r\n\r\n", Header),
        ("GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", Header),
        ("GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", Header),
        ("GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", Header),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: \u{1}\r\n\r\n", Header),
    ] {
        assert_eq!(refused(head), error, "{head:?}");
    }
}

#[test]
fn t13_only_a_path_can_be_asked_for() {
    for line in [
        "GET http://169.254.169.254/latest HTTP/1.1",
        "CONNECT apiserver:443 HTTP/1.1",
        "CONNECT / HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET / HTTP/2.0",
        "GET /a b HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET /\u{e9} HTTP/1.1",
        "G(T / HTTP/1.1",
        "GET /",
    ] {
        assert_eq!(refused(&format!("{line}\r\nHost: a\r\n\r\n")), HeadError::RequestLine, "{line}");
    }
}

#[test]
fn what_kubernetes_clients_send_passes_as_it_is() {
    accepted(
        "GET /api/v1/namespaces/a%2Fb/pods//x/../y?watch=true&a=&&b HTTP/1.1\r\nHost: 127.0.0.1:6443\r\nAccept: a;b=\"c\", */*\r\nX:\r\n\r\n",
    );
    accepted(
        "POST /a HTTP/1.1\r\nhOsT: a\r\ncontent-length:5\r\nExpect: 100-Continue\r\n\r\nhelloGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    accepted(
        "PATCH /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    );
}

#[test]
fn t11_chunks_are_read_in_one_way_only() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "5;ext=1\r\n",
        "5 \r\n",
        "+5\r\n",
        "-1\r\n",
        "\r\n",
        "5\n",
        "0x5\r\n",
        "ffffffffffffffffff\r\n",
        "1\r\nab\r\n",
        "1\r\na\n",
        "0\r\nTrailer: x\r\n\r\n",
    ] {
        let (passed, end) = feed(format!("{head}{body}").as_bytes(), 1);
        assert_eq!(end.map(|_| ()), Err(HeadError::Chunk), "{body:?}");
        assert!(!passed.ends_with(b"\n\r\n0\r\nTrailer: x\r\n\r\n"));
    }
}

#[test]
fn heads_are_bounded() {
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(MAX_REQUEST_LINE));
    assert_eq!(refused(&long), HeadError::TooLarge);
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(MAX_HEADERS));
    assert_eq!(refused(&many), HeadError::TooLarge);
    let (mut guard, mut passed) = (RequestGuard::new(), BytesMut::new());
    let mut input = BytesMut::from(&vec![b'a'; MAX_HEAD][..]);
    assert_eq!(guard.feed(&mut input, &mut passed), Err(HeadError::TooLarge));
}

/// To the byte, in one piece and in several.
#[test]
fn heads_may_be_as_large_as_is_said_and_no_larger() {
    let begin = "GET / HTTP/1.1\r\nHost: a\r\nX: ";
    let head = |length: usize| format!("{begin}{}\r\n\r\n", "y".repeat(length - begin.len() - 4));
    accepted(&head(65_536));
    assert_eq!(refused(&head(65_537)), HeadError::TooLarge);
    let line = |length: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(length - 14));
    accepted(&line(16_384));
    assert_eq!(refused(&line(16_385)), HeadError::TooLarge);
    let headers = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count - 1));
    accepted(&headers(100));
    assert_eq!(refused(&headers(101)), HeadError::TooLarge);
}

#[test]
fn where_in_a_request_it_stands_is_known() {
    let stands = |bytes: &str| {
        let (_, guard) = feed(bytes.as_bytes(), 1);
        let guard = guard.unwrap();
        (guard.is_between_requests(), guard.is_inside_head(), guard.is_undecided())
    };
    let (between, inside, neither) = ((true, false, false), (false, true, false), (false, false, false));
    let head = "POST / HTTP/1.1\r\nHost: a\r\n";
    assert_eq!((stands(""), stands("P"), stands(head)), (between, inside, inside));
    assert_eq!(stands(&format!("{head}\r\n")), between);
    assert_eq!(stands(&format!("{head}Content-Length: 2\r\n\r\na")), neither);
    assert_eq!(stands(&format!("{head}Content-Length: 2\r\n\r\nab")), between);
    assert_eq!(stands(&format!("{head}Transfer-Encoding: chunked\r\n\r\n0\r\n")), neither);
    assert_eq!(stands(&format!("{head}Upgrade: x\r\n\r\n")), (false, false, true));
}

#[test]
fn whoever_is_refused_is_told_by_a_fault_of_its_own() {
    for (error, fault) in [
        (HeadError::TooLarge, Fault::RequestTooLarge),
        (HeadError::TooSlow, Fault::RequestTimeout),
        (HeadError::Host, Fault::RequestHeadRefused),
    ] {
        let report = Report::from(error);
        assert_eq!((report.fault, report.detail), (fault, error.to_string()));
    }
}

#[test]
fn t09_nothing_passes_behind_an_upgrade_until_it_is_accepted() {
    let upgrade = "GET /exec HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
    let second = "GET /secrets HTTP/1.1\r\nHost: a\r\n\r\n";
    for accepted in [false, true] {
        let (mut guard, mut passed) = (RequestGuard::new(), BytesMut::new());
        let mut input = BytesMut::from(format!("{upgrade}{second}").as_bytes());
        guard.feed(&mut input, &mut passed).unwrap();
        assert_eq!(passed, upgrade);
        guard.answered(accepted);
        guard.feed(&mut input, &mut passed).unwrap();
        assert_eq!(passed, if accepted { format!("{upgrade}{second}") } else { upgrade.to_owned() });
        assert_eq!((guard.is_raw(), guard.has_ended()), (accepted, !accepted));
    }
    assert_eq!(
        refused("POST / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nContent-Length: 1\r\n\r\n"),
        HeadError::UpgradeBody
    );
}

fn patience() -> Patience {
    Patience { head: Duration::from_secs(10), idle: Duration::from_secs(60) }
}

#[tokio::test(start_paused = true)]
async fn t33_a_head_that_dribbles_is_answered_and_ended_within_ten_seconds() {
    let (mut client, server) = duplex(1024);
    let (mut guard, handle) = HeadGuard::new(server, patience());
    let begun = tokio::time::Instant::now();
    let drip = async {
        for byte in b"GET / HTTP/1.1\r\nHost: a".iter().cycle() {
            if client.write_all(&[*byte]).await.is_err() || begun.elapsed() > Duration::from_secs(30) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
    };
    let mut got = String::new();
    let read = async {
        guard.read_to_string(&mut got).await.unwrap();
        begun.elapsed()
    };
    let elapsed = tokio::select! { elapsed = read => elapsed, () = drip => panic!("it was never ended") };
    assert!(elapsed <= Duration::from_secs(11), "{elapsed:?}");
    let nonce = got.split("refused-head: ").nth(1).unwrap().split('\r').next().unwrap();
    let mut headers = http::HeaderMap::new();
    headers.insert("towline-refused-head", nonce.parse().unwrap());
    assert_eq!(handle.refusal(&headers), Some(HeadError::TooSlow));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_without_an_answer() {
    let (_client, server) = duplex(1024);
    let (mut guard, _handle) = HeadGuard::new(server, patience());
    let begun = tokio::time::Instant::now();
    assert_eq!(guard.read(&mut [0; 10]).await.unwrap(), 0);
    assert_eq!(begun.elapsed().as_secs(), 60);
}

#[tokio::test]
async fn a_stand_in_can_not_be_forged() {
    let (mut client, server) = duplex(1024);
    let (mut guard, handle) = HeadGuard::new(server, patience());
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\ntowline-refused-head: guess\r\n\r\n").await.unwrap();
    let mut got = [0; 100];
    assert!(guard.read(&mut got).await.unwrap() > 0);
    let mut headers = http::HeaderMap::new();
    headers.insert("towline-refused-head", "guess".parse().unwrap());
    assert_eq!(handle.refusal(&headers), None);
}

#[tokio::test]
async fn bytes_after_an_accepted_upgrade_pass_raw_though_they_came_early() {
    let (mut client, server) = duplex(64 * 1024);
    let (mut guard, handle) = HeadGuard::new(server, patience());
    let head = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n";
    client.write_all(head).await.unwrap();
    client.write_all(b"\x00\x01early").await.unwrap();
    let mut got = vec![0; head.len()];
    guard.read_exact(&mut got).await.unwrap();
    let early = async {
        let mut got = [0; 7];
        guard.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"\x00\x01early");
    };
    let answer = async {
        tokio::task::yield_now().await;
        handle.answered_upgrade(true);
    };
    tokio::join!(early, answer);
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_give_the_same_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300), piece in 1usize..50) {
        let (whole, end) = feed(&bytes, bytes.len().max(1));
        let (pieces, other) = feed(&bytes, piece);
        prop_assert_eq!(whole, pieces);
        prop_assert_eq!(end.is_ok(), other.is_ok());
    }

    #[test]
    fn valid_requests_pass_in_any_pieces(bodies in proptest::collection::vec((any::<bool>(), 0usize..100), 1..5), piece in 1usize..50) {
        let mut bytes = Vec::new();
        for (chunked, length) in bodies {
            if chunked {
                bytes.extend_from_slice(b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
                if length > 0 {
                    bytes.extend_from_slice(format!("{length:x}\r\n").as_bytes());
                    bytes.extend_from_slice(&vec![b'\n'; length]);
                    bytes.extend_from_slice(b"\r\n");
                }
                bytes.extend_from_slice(b"0\r\n\r\n");
            } else {
                bytes.extend_from_slice(format!("PUT /y HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n").as_bytes());
                bytes.extend_from_slice(&vec![b'\r'; length]);
            }
        }
        let (passed, end) = feed(&bytes, piece);
        prop_assert!(end.is_ok());
        prop_assert_eq!(passed, bytes);
    }
}

use std::time::Duration;

use proptest::prelude::*;
use tokio::io::duplex;

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// What a proxy that answers these bytes, and then ends or not, makes of a CONNECT; and what it was asked.
async fn asked(answer: &[u8], ends: bool) -> (Result<Answer, Refusal>, String) {
    let (mut near, mut far) = duplex(64 * 1024);
    let to = Destination::new("2001:db8::1", 443);
    let proxy = async {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert!(far.read_buf(&mut request).await.unwrap() > 0);
        }
        // As a network may cut it.
        for piece in answer.chunks(7) {
            far.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        (String::from_utf8(request).unwrap(), (!ends).then_some(far))
    };
    let question = ask(&mut near, &to, Some("Basic canary"), Instant::now() + SOON);
    let (answer, (request, _far)) = tokio::join!(question, proxy);
    (answer, request)
}

async fn refused(answer: &str, ends: bool) -> Refusal {
    asked(answer.as_bytes(), ends).await.0.expect_err("it was refused")
}

#[tokio::test(start_paused = true)]
async fn the_question_is_one_connect_and_what_comes_behind_the_answer_is_kept() {
    let (answer, request) = asked(b"HTTP/1.1 200 Connection established\r\n\r\n\x16\x03early", false).await;
    let Ok(Answer::Open(early)) = answer else { panic!("{answer:?}") };
    assert!(b"\x16\x03early".starts_with(&early), "{early:?}");
    let mut read = BytesMut::from(&b"HTTP/1.1 200 Connection established\r\n\r\n\x16\x03early"[..]);
    let whole = understand(&mut read, false).unwrap();
    assert!(matches!(whole, Some(Answer::Open(early)) if early[..] == *b"\x16\x03early"));
    assert!(
        request.starts_with("CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n"),
        "{request}"
    );
    assert!(request.contains("\r\nProxy-Authorization: Basic canary\r\n"), "{request}");
}

#[tokio::test(start_paused = true)]
async fn interim_answers_and_lengths_without_meaning_do_not_disturb() {
    let text =
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\nContent-Length: 12\r\nProxy-Agent: x\r\n\r\n";
    assert!(matches!(asked(text, false).await.0, Ok(Answer::Open(early)) if early.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn each_refusal_has_a_fault_of_its_own() {
    for (answer, fault, seen) in [
        (
            "HTTP/1.1 403 Forbidden\r\nX-Squid-Error: ERR_ACCESS_DENIED 0\r\n\r\n",
            Fault::ProxyForbids,
            "ACCESS_DENIED",
        ),
        ("HTTP/1.1 502 Bad Gateway\r\n\r\n", Fault::ProxyFailed, "502"),
        ("HTTP/1.1 503 Service Unavailable\r\nServer: squid/5.7\r\n\r\n", Fault::ProxyFailed, "squid/5.7"),
        ("HTTP/1.1 504 Gateway Timeout\r\n\r\n", Fault::ProxyFailed, "504"),
        ("HTTP/1.1 405 Method Not Allowed\r\n\r\n", Fault::ProxyRefused, "405"),
        ("HTTP/1.1 400 Bad Request\r\n\r\n", Fault::ProxyRefused, "400"),
        ("HTTP/1.1 401 Unauthorized\r\n\r\n", Fault::ProxyCredentialsRefused, "401"),
        (
            "HTTP/1.1 302 Found\r\nLocation: http://portal.example/login?session=canary\r\n\r\n",
            Fault::ProxyLoginPage,
            "http://portal.example/login",
        ),
        ("HTTP/1.1 511 Network Authentication Required\r\n\r\n", Fault::ProxyLoginPage, "511"),
        (
            "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 9\r\n\r\n<html>hi!",
            Fault::ProxyLoginPage,
            "200",
        ),
        ("SSH-2.0-OpenSSH_9.2\r\n", Fault::ProxyNotHttp, "SSH-2.0"),
        ("\u{15}\u{3}\u{1}\u{0}\u{2}", Fault::ProxyNotHttp, "https://"),
        ("\u{5}\u{ff}", Fault::ProxyNotHttp, "SOCKS"),
        ("HTTP/2 200\r\n\r\n", Fault::ProxyNotHttp, "HTTP/2"),
        ("HTTP/1.1 two hundred\r\n\r\n", Fault::ProxyNotHttp, "malformed"),
    ] {
        let refusal = refused(answer, false).await;
        assert_eq!(refusal.0, fault, "{answer}");
        assert!(refusal.1.contains(seen) && !refusal.1.contains("canary"), "{refusal:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_without_a_name_behind_a_200_is_a_page() {
    // All at once: the first bytes behind the head are what tells.
    let mut read = BytesMut::from(&b"HTTP/1.1 200 OK\r\n\r\n<!DOCTYPE html>"[..]);
    assert_eq!(understand(&mut read, false).unwrap_err().0, Fault::ProxyLoginPage);
}

#[tokio::test(start_paused = true)]
async fn silence_an_early_end_and_an_endless_head_end_in_time() {
    let begun = Instant::now();
    assert_eq!(refused("", false).await.0, Fault::ProxySilent);
    assert_eq!(refused("HTTP/1.1 200 OK\r\nX:", false).await.0, Fault::ProxySilent);
    assert!(begun.elapsed() <= 2 * SOON + Duration::from_secs(1));
    assert_eq!(refused("", true).await.0, Fault::ProxyCut);
    assert_eq!(refused("HTTP/1.1 200 OK\r\nX:", true).await.0, Fault::ProxyCut);
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(20 * 1024));
    let refusal = refused(&endless, false).await;
    assert!(refusal.0 == Fault::ProxyNotHttp && refusal.1.contains("16 KiB"), "{refusal:?}");
}

#[tokio::test(start_paused = true)]
async fn a_407_is_read_for_what_it_offers() {
    let text = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Negotiate\r\n\
                 Proxy-Authenticate: Basic realm=\"p\"\r\nContent-Length: 5\r\n\r\nsorry";
    let Ok(Answer::Authenticate(offers)) = asked(text, false).await.0 else { panic!() };
    assert_eq!(offers.names(), "Negotiate, Basic");
}

proptest! {
    #[test]
    fn no_bytes_break_the_reading_of_an_answer(bytes: Vec<u8>, whole: bool) {
        let mut read = BytesMut::new();
        if whole {
            read.extend_from_slice(b"HTTP/1.1 ");
        }
        read.extend_from_slice(&bytes);
        // Words that came from the peer are bounded.
        if let Err((_, seen)) = understand(&mut read, false) {
            prop_assert!(seen.len() < 4096);
        }
    }
}

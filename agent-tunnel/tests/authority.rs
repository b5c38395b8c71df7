//! What is open lives as long as its user's token, and no longer.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::time::{Duration, SystemTime};

use serde_json::json;
use support::{Bench, Cap, WITHIN, cap::CapConnection, fault, parts, read_to_end, read_until};
use tokio::{io::AsyncWriteExt as _, time::timeout};
use towline_agent::forward::Access;
use towline_tunnel::{
    inner::InnerStream,
    mux::{CloseReason, MuxStream, StreamError},
};

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\nConnection: Upgrade\r\n\r\n";
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n";
const WATCH: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
const ISSUER: &str = "https://kubernetes.default.svc";
const RENEW: &str = "POST /.towline/authority";

/// Answers exec with an upgrade, a watch with its first event, and whatever else with bytes that have no end; then nothing more.
async fn cap() -> Cap {
    Cap::new(|mut connection: CapConnection| async move {
        let head = connection.head().await?.unwrap_or_default();
        let answer = match head.as_str() {
            exec if exec.contains("/exec") => SWITCH.to_owned(),
            watch if watch.contains("watch=true") => format!("{WATCH}3\r\n{{}}\n\r\n"),
            slow if slow.contains("/slow") => String::new(),
            account if account.contains("/.well-known/") => {
                support::cap::json("200 OK", &json!({"issuer": ISSUER}).to_string())
            }
            _ => format!("{WATCH}4\r\nmore\r\n"),
        };
        connection.say(answer.as_bytes()).await?;
        connection.drained().await
    })
    .await
}

fn seconds(from_now: i64) -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    i64::try_from(now).unwrap() + from_now
}

/// A token of alice's that the agent takes for 2 s more: it ended a while ago by the issuer's clock, as far as clocks may differ.
fn short(bench: &Bench) -> String {
    bench.token_with(&json!({"exp": seconds(2 - 45), "iat": seconds(-600)}))
}

fn head(line: &str, token: &str, more: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: cluster\r\nAuthorization: Bearer {token}\r\n{more}\r\n")
}

async fn opened(bench: &Bench, line: &str, token: &str, more: &str, begin: &str) -> InnerStream<MuxStream> {
    let mut stream = bench.connect().await;
    stream.write_all(head(line, token, more).as_bytes()).await.unwrap();
    read_until(&mut stream, begin).await;
    stream
}

async fn exec(bench: &Bench, token: &str) -> InnerStream<MuxStream> {
    opened(bench, "POST /api/v1/namespaces/a/pods/p/exec?command=sh", token, UPGRADE, "\r\n\r\n").await
}

/// Posts a newer token on a connection of its own; the answer.
async fn renew(bench: &Bench, token: &str) -> String {
    bench.ask(&head(RENEW, token, "Connection: close\r\nContent-Length: 0\r\n")).await
}

async fn why_it_ends(stream: &mut InnerStream<MuxStream>) -> Option<CloseReason> {
    let error = read_to_end(stream).await.err()?;
    Some(error.get_ref().unwrap().downcast_ref::<StreamError>().unwrap().reason)
}

#[tokio::test]
async fn what_is_open_ends_with_its_token_and_says_so() {
    let bench = Bench::new(cap().await).await;
    let token = short(&bench);
    let mut exec = exec(&bench, &token).await;
    let mut logs =
        opened(&bench, "GET /api/v1/namespaces/a/pods/p/log?follow=true", &token, "", "more\r\n").await;
    let mut watch =
        opened(&bench, "GET /api/v1/pods?watch=true", &token, "Connection: close\r\n", "{}\n\r\n").await;
    assert_eq!(why_it_ends(&mut exec).await, Some(CloseReason::AuthorityEnded));
    assert_eq!(why_it_ends(&mut logs).await, Some(CloseReason::AuthorityEnded));
    // A client watches on, and is told then.
    assert_eq!(why_it_ends(&mut watch).await, None);
    let mut again = bench.connect().await;
    again
        .write_all(head("GET /api/v1/pods?watch=true", &token, "Connection: close\r\n").as_bytes())
        .await
        .unwrap();
    assert_eq!(fault(&read_to_end(&mut again).await.unwrap()), (401, "TL-IDN-003".to_owned()));
}

#[tokio::test]
async fn a_newer_token_keeps_what_is_open_and_nothing_of_it_reaches_kube_apiserver() {
    let bench = Bench::new(cap().await).await;
    let mut exec = exec(&bench, &short(&bench)).await;
    let seen = bench.cap.seen().len();
    assert_eq!(parts(&renew(&bench, &bench.token()).await).0, 204);
    let ends = timeout(Duration::from_secs(4), why_it_ends(&mut exec)).await;
    assert!(ends.is_err(), "{ends:?}");
    assert_eq!(bench.cap.seen().len(), seen);
    exec.shutdown().await.unwrap();
}

/// Neither another person nor another run of the same person's client keeps it.
#[tokio::test]
async fn only_the_same_users_token_over_the_same_run_counts() {
    let mut bench = Bench::new(cap().await).await;
    let mut exec = exec(&bench, &short(&bench)).await;
    assert_eq!(fault(&renew(&bench, &bench.token_of("bob", &[])).await), (401, "TL-IDN-004".to_owned()));
    assert_eq!(parts(&renew(&bench, "nonsense").await).0, 401);
    let other = towline_tunnel::keys::SigningKey::generate();
    let own = std::mem::replace(&mut bench.run_key, other);
    assert_eq!(parts(&renew(&bench, &bench.token()).await).0, 204);
    bench.run_key = own;
    let ended = timeout(WITHIN, why_it_ends(&mut exec)).await.unwrap();
    assert_eq!(ended, Some(CloseReason::AuthorityEnded));
}

#[tokio::test]
async fn a_token_may_be_older_than_is_allowed() {
    let access = Access { max_token_age: Some(Duration::from_secs(3600)), ..Access::default() };
    let bench = Bench::with(cap().await, access).await;
    let old = bench.token_with(&json!({"iat": seconds(-3600 - 60), "exp": seconds(9000)}));
    let answer = renew(&bench, &old).await;
    assert_eq!(fault(&answer), (401, "TL-IDN-003".to_owned()));
    assert!(answer.contains("--max-token-age"), "{answer}");
    // For 2 s more.
    let old = bench.token_with(&json!({"iat": seconds(2 - 3600 - 45), "exp": seconds(9000)}));
    let mut exec = exec(&bench, &old).await;
    assert_eq!(why_it_ends(&mut exec).await, Some(CloseReason::AuthorityEnded));
}

/// kube-apiserver may take its time, and so may a caller: neither makes a token last.
#[tokio::test]
async fn what_is_not_answered_or_not_read_ends_with_its_token_too() {
    let bench = Bench::new(cap().await).await;
    let token = short(&bench);
    let mut slow = bench.connect().await;
    slow.write_all(head("GET /api/v1/slow", &token, "Connection: close\r\n").as_bytes()).await.unwrap();
    // Its body has no end, and its answer is whole at once; then it is read no more.
    let sends = opened(
        &bench,
        "POST /api/v1/namespaces/a/services/s/proxy/upload",
        &token,
        "Transfer-Encoding: chunked\r\n",
        "more\r\n",
    );
    let sends = sends.await;
    assert_eq!(fault(&read_to_end(&mut slow).await.unwrap()), (401, "TL-IDN-003".to_owned()));
    support::eventually("both are gone", || bench.metrics.page().contains("towline_agent_streams 0")).await;
    drop(sends);
}

/// The agent can't tell a service account's token from a forged one; kube-apiserver can.
#[tokio::test]
async fn a_token_that_nobody_has_judged_moves_no_end() {
    let access = Access { service_accounts: true, ..Access::default() };
    let bench = Bench::with(cap().await, access).await;
    let of_account = |exp: i64| {
        let claims = json!({"iss": ISSUER, "sub": "system:serviceaccount:ci:deployer", "exp": exp});
        let part = |text: &str| data_encoding::BASE64URL_NOPAD.encode(text.as_bytes());
        format!("{}.{}.Zm9yZ2Vk", part(r#"{"alg":"RS256","kid":"k"}"#), part(&claims.to_string()))
    };
    let mut exec = exec(&bench, &of_account(seconds(3))).await;
    let answer = renew(&bench, &of_account(253_402_300_000)).await;
    assert_eq!(fault(&answer), (401, "TL-IDN-025".to_owned()));
    assert_eq!(why_it_ends(&mut exec).await, Some(CloseReason::AuthorityEnded));
}

/// The provider is asked each second here; a no ends what is open well before the token does.
#[tokio::test]
async fn what_the_provider_no_longer_stands_by_ends_within_a_minute_and_nothing_new_begins() {
    let bench = Bench::with_verifier(cap().await, Access::default(), None, support::asking_verifier).await;
    let token = bench.token();
    let mut exec = exec(&bench, &token).await;
    let mut watch =
        opened(&bench, "GET /api/v1/pods?watch=true", &token, "Connection: close\r\n", "{}\n\r\n").await;
    let asked = bench.issuer.introspections();
    assert!(asked > 0);
    support::eventually("it is asked again", || bench.issuer.introspections() > asked + 1).await;
    bench.issuer.set_active("alice", false);
    assert_eq!(why_it_ends(&mut exec).await, Some(CloseReason::AuthorityEnded));
    assert_eq!(why_it_ends(&mut watch).await, None);
    let seen = bench.cap.seen().len();
    let answer = bench.get("/api/v1/pods?watch=true", "").await;
    assert_eq!(fault(&answer), (401, "TL-IDN-026".to_owned()));
    assert!(answer.contains("the account may be disabled"), "{answer}");
    assert_eq!(parts(&renew(&bench, &bench.token()).await).0, 401);
    assert_eq!(bench.cap.seen().len(), seen);
    bench.issuer.set_active("alice", true);
    let mut again = self::exec(&bench, &bench.token()).await;
    again.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_provider_that_is_away_ends_nothing_and_refuses_nobody() {
    let bench = Bench::with_verifier(cap().await, Access::default(), None, support::asking_verifier).await;
    let mut exec = exec(&bench, &bench.token()).await;
    bench.issuer.set_away(true);
    let asked = bench.issuer.introspections();
    support::eventually("it is asked", || bench.issuer.introspections() > asked).await;
    assert_eq!(parts(&renew(&bench, &bench.token_with(&json!({"jti": "newer"}))).await).0, 204);
    let ends = timeout(Duration::from_secs(2), why_it_ends(&mut exec)).await;
    assert!(ends.is_err(), "{ends:?}");
    exec.shutdown().await.unwrap();
}

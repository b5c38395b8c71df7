//! Requests through the agent, judged by the bytes that reach kube-apiserver's stand-in.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::sync::Arc;

use serde_json::json;
use support::{Bench, Cap, fault, parts, read_to_end, read_until};
use tokio::{io::AsyncWriteExt as _, sync::Notify};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";

/// Header lines of a captured head, sorted, without those that differ each time.
fn lines(head: &str) -> Vec<String> {
    let mut lines: Vec<String> = head
        .lines()
        .skip(1)
        .filter(|line| !line.is_empty() && !line.starts_with("audit-id") && !line.starts_with("host"))
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn a_request_arrives_as_the_verified_user_byte_for_byte_where_it_is_the_callers_own() {
    let bench = Bench::new(Cap::answering(OK).await).await;
    let target =
        "/api/v1/namespaces/a%2Fb/pods//x/./../y;z?labelSelector=a%20in%20(b,c)&x=%7B%22a%22:1%7D&&empty=";
    let answer =
        bench.get(target, "Accept: application/json;as=Table\r\nKubectl-Command: kubectl get\r\n").await;
    assert_eq!(parts(&answer), (200, "{}"));
    let seen = bench.cap.seen();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{}", seen[0]);
    assert!(seen[0].contains(&format!("host: {}\r\n", bench.cap.address)), "{}", seen[0]);
    assert_eq!(
        lines(&seen[0]),
        [
            "accept: application/json;as=Table",
            "authorization: Bearer agent-token",
            "impersonate-group: dev",
            "impersonate-group: system:authenticated",
            "impersonate-user: alice",
            "kubectl-command: kubectl get",
        ]
    );
}

#[tokio::test]
async fn t02_what_connection_nominates_changes_nothing_about_who_it_is() {
    let bench = Bench::new(Cap::answering(OK).await).await;
    for nominated in ["Authorization", "Audit-Id, Host", "X-Remote-User", "Content-Type"] {
        let head = bench
            .head("GET /api/v1/pods", &format!("Connection: close, {nominated}\r\nX-Remote-User: admin\r\n"));
        assert_eq!(parts(&bench.ask(&head).await).0, 200, "{nominated}");
    }
    for nominated in ["Impersonate-User", "impersonate-group, Authorization"] {
        let head = bench.head("GET /api/v1/pods", &format!("Connection: close, {nominated}\r\n"));
        assert_eq!(fault(&bench.ask(&head).await), (403, "TL-IDN-006".into()), "{nominated}");
    }
    // Kept alive: one connection, four requests.
    let seen = bench.cap.seen().concat();
    assert_eq!(seen.matches("GET /api/v1/pods HTTP/1.1").count(), 4);
    assert_eq!(seen.matches("impersonate-user: alice\r\n").count(), 4);
    assert_eq!(seen.matches("authorization: Bearer agent-token\r\n").count(), 4);
    assert!(!seen.contains("connection:") && !seen.contains("admin"), "{seen}");
}

#[tokio::test]
async fn t04_t06_t07_claims_that_name_nobody_or_somebody_reserved_reach_nobody() {
    let bench = Bench::new(Cap::answering(OK).await).await;
    for changes in [
        json!({ "sub": "" }),
        json!({ "sub": "  " }),
        json!({ "groups": [""] }),
        json!({ "groups": ["dev", " "] }),
        json!({ "sub": "a\r\nImpersonate-Group: system:masters" }),
        json!({ "groups": ["a\nb"] }),
        json!({ "groups": ["a\0b"] }),
        json!({ "groups": ["system:masters"] }),
        json!({ "groups": ["dev,system:masters"] }),
        json!({ "groups": ["towline:role:admin"] }),
        json!({ "groups": [" system:masters"] }),
        json!({ "sub": "system:serviceaccount:kube-system:default" }),
        json!({ "sub": "system:node:a" }),
        json!({ "groups": ["dev "] }),
    ] {
        let token = bench.token_with(&changes);
        let head = format!(
            "GET /api/v1/pods HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        assert_eq!(fault(&bench.ask(&head).await).0, 401, "{changes}");
    }
    assert_eq!(bench.cap.connections(), 0);
}

#[tokio::test]
async fn t05_without_exactly_one_good_token_nothing_goes_out() {
    let bench = Bench::new(Cap::answering(OK).await).await;
    let token = bench.token();
    let stranger =
        bench.issuer.mint(&towline_identity::dev::TokenRequest::new("alice", &[], "other")).unwrap();
    for (lines, code) in [
        (String::new(), "TL-IDN-001"),
        ("Authorization: Bearer \r\n".into(), "TL-IDN-001"),
        ("Authorization: Basic YTpi\r\n".into(), "TL-IDN-001"),
        (format!("Authorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n"), "TL-IDN-001"),
        (format!("Authorization: Bearer {token}, Bearer {token}\r\n"), "TL-IDN-001"),
        (
            format!(
                "Authorization: Bearer {token}\r\nSec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.YQ\r\n"
            ),
            "TL-IDN-001",
        ),
        ("Authorization: Bearer abc\r\n".into(), "TL-IDN-002"),
        (format!("Authorization: Bearer {stranger}\r\n"), "TL-IDN-002"),
        (format!("Authorization: Bearer {}\r\n", bench.token_with(&json!({ "exp": 1 }))), "TL-IDN-003"),
    ] {
        let head = format!("GET /api/v1/pods HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{lines}\r\n");
        assert_eq!(fault(&bench.ask(&head).await), (401, code.to_owned()), "{lines}");
    }
    assert_eq!(bench.cap.connections(), 0);
}

#[tokio::test]
async fn t11_a_head_that_can_be_read_in_two_ways_is_refused_here_too() {
    let bench = Bench::new(Cap::answering(OK).await).await;
    for (line, more) in [
        ("GET /", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"),
        ("GET /", "Host: second\r\n"),
        ("GET /", "A: b\nC: d\r\n"),
        ("GET /", "Transfer-Encoding: gzip, chunked\r\n"),
    ] {
        assert_eq!(fault(&bench.ask(&bench.head(line, more)).await), (400, "TL-HTP-001".into()), "{more:?}");
    }
    assert_eq!(bench.cap.connections(), 0);
}

#[tokio::test]
async fn t12_a_redirect_is_passed_back_and_never_followed() {
    let elsewhere = Cap::answering(OK).await;
    let location = format!("https://{}/stolen", elsewhere.address);
    for code in [301, 302, 303, 307, 308] {
        let answer = format!("HTTP/1.1 {code} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
        let bench = Bench::new(Cap::answering(answer.leak()).await).await;
        let answer = bench.get("/api/v1/pods", "").await;
        assert_eq!(parts(&answer).0, code);
        assert!(answer.contains(&format!("location: {location}\r\n")), "{answer}");
        assert_eq!(bench.cap.seen().len(), 1);
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn t13_nothing_in_a_request_chooses_the_server_that_is_dialled() {
    let elsewhere = Cap::answering(OK).await;
    let bench = Bench::new(Cap::answering(OK).await).await;
    let to = elsewhere.address;
    for line in [
        format!("GET https://{to}/api"),
        format!("GET http://{to}/api"),
        format!("CONNECT {to}"),
        "CONNECT 169.254.169.254:80".to_owned(),
        format!("GET {to}/api"),
        "OPTIONS *".to_owned(),
    ] {
        assert_eq!(fault(&bench.ask(&bench.head(&line, "")).await), (400, "TL-HTP-001".into()), "{line}");
    }
    assert_eq!(bench.cap.connections(), 0);
    let token = bench.token();
    let head = format!(
        "GET //{to}/api HTTP/1.1\r\nHost: {to}\r\nX-Forwarded-Host: {to}\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    assert_eq!(parts(&bench.ask(&head).await).0, 200);
    let seen = bench.cap.seen().concat();
    assert!(seen.starts_with(&format!("GET //{to}/api HTTP/1.1\r\n")), "{seen}");
    assert!(seen.contains(&format!("host: {}\r\n", bench.cap.address)), "{seen}");
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn an_audit_id_is_the_agents_own_and_new_for_each_request() {
    let bench = Bench::new(Cap::answering(OK).await).await;
    bench.get("/a", "Audit-ID: mine\r\n").await;
    bench.get("/b", "Audit-ID: mine\r\n").await;
    let seen = bench.cap.seen().concat();
    let ids: Vec<_> = seen.lines().filter_map(|line| line.strip_prefix("audit-id: ")).collect();
    assert_eq!(ids.len(), 2);
    assert!(ids[0] != ids[1] && ids.iter().all(|id| id.len() == 36), "{ids:?}");
}

#[tokio::test]
async fn requests_of_one_connection_follow_each_other_and_share_a_connection_onwards() {
    let bench = Bench::new(Cap::answering(OK).await).await;
    let mut stream = bench.connect().await;
    for n in 0..5 {
        stream.write_all(bench.head(&format!("GET /{n}"), "").as_bytes()).await.unwrap();
        assert_eq!(parts(&read_until(&mut stream, "{}").await).0, 200);
    }
    assert_eq!(bench.cap.seen().len(), 1, "kept alive");
    stream.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut stream).await.unwrap(), "");
}

#[tokio::test]
async fn a_connection_that_died_while_it_was_idle_costs_nobody_a_request() {
    let cap = Cap::new(|mut connection| async move {
        // One answer a connection, and it does not say that it closes.
        connection.head().await?;
        connection.say(OK.as_bytes()).await?;
        connection.stream.shutdown().await
    })
    .await;
    let bench = Bench::new(cap).await;
    for n in 0..20 {
        assert_eq!(parts(&bench.get(&format!("/{n}"), "").await).0, 200, "request {n}");
    }
    assert_eq!(bench.cap.seen().len(), 20);
}

#[tokio::test]
async fn a_body_reaches_the_apiserver_while_it_is_being_sent() {
    let got_some = Arc::new(Notify::new());
    let told = Arc::clone(&got_some);
    let cap = Cap::new(move |mut connection| {
        let told = Arc::clone(&told);
        async move {
            connection.head().await?;
            connection.take(4).await?;
            told.notify_one();
            connection.take(6).await?;
            connection.say(OK.as_bytes()).await
        }
    })
    .await;
    let bench = Bench::new(cap).await;
    let mut stream = bench.connect().await;
    let head = bench.head("POST /api/v1/pods", "Content-Length: 10\r\nContent-Type: application/json\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(b"head").await.unwrap();
    tokio::time::timeout(support::WITHIN, got_some.notified()).await.expect("bodies are not gathered");
    stream.write_all(b"-tail-").await.unwrap();
    assert_eq!(parts(&read_until(&mut stream, "{}").await).0, 200);
    let seen = bench.cap.seen().concat();
    assert!(seen.contains("content-length: 10\r\n") && seen.ends_with("head-tail-"), "{seen}");
}

#[tokio::test]
async fn expect_continue_is_answered_once_the_request_is_allowed_and_not_before() {
    let cap = Cap::new(|mut connection| async move {
        connection.head().await?;
        connection.take(2).await?;
        connection.say(OK.as_bytes()).await
    })
    .await;
    let bench = Bench::new(cap).await;
    let mut stream = bench.connect().await;
    let expect = "Content-Length: 2\r\nExpect: 100-continue\r\n";
    stream.write_all(bench.head("POST /api/v1/pods", expect).as_bytes()).await.unwrap();
    assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"{}").await.unwrap();
    assert_eq!(parts(&read_until(&mut stream, "{}").await).0, 200);
    // Not allowed: the answer comes instead, and the body need not be sent.
    let refused = format!("POST /api/v1/pods HTTP/1.1\r\nHost: a\r\n{expect}\r\n");
    let mut stream = bench.connect().await;
    stream.write_all(refused.as_bytes()).await.unwrap();
    assert!(read_until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 401 "));
}

#[tokio::test]
async fn an_event_of_a_watch_arrives_when_it_happens() {
    let next = Arc::new(Notify::new());
    let told = Arc::clone(&next);
    let cap = Cap::new(move |mut connection| {
        let told = Arc::clone(&told);
        async move {
            connection.head().await?;
            connection
                .say(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await?;
            for _ in 0..3 {
                told.notified().await;
                connection.say(b"3\r\n{}\n\r\n").await?;
            }
            connection.say(b"0\r\n\r\n").await
        }
    })
    .await;
    let bench = Bench::new(cap).await;
    let mut stream = bench.connect().await;
    stream.write_all(bench.head("GET /api/v1/pods?watch=true", "").as_bytes()).await.unwrap();
    read_until(&mut stream, "\r\n\r\n").await;
    for _ in 0..3 {
        // The next one happens only after this one was seen.
        next.notify_one();
        assert_eq!(read_until(&mut stream, "{}\n\r\n").await, "3\r\n{}\n\r\n");
    }
    assert_eq!(read_until(&mut stream, "0\r\n\r\n").await, "0\r\n\r\n");
}

#[tokio::test]
async fn an_apiserver_that_is_away_is_told_as_such_and_found_again() {
    let cap = Cap::answering(OK).await;
    let bench = Bench::new(cap).await;
    assert_eq!(parts(&bench.get("/api/v1/pods", "").await).0, 200);
    bench.cap.kill();
    support::eventually("the apiserver is away", || std::net::TcpStream::connect(bench.cap.address).is_err())
        .await;
    assert_eq!(fault(&bench.get("/api/v1/pods", "").await), (503, "TL-API-001".into()));
    let page = bench.metrics.page();
    assert!(page.contains(r#"towline_agent_refusals_total{fault="TL-API-001"} 1"#), "{page}");
    assert!(page.contains(r#"towline_agent_answers_total{code="200"} 1"#), "{page}");
}

#[tokio::test]
async fn an_apiserver_with_another_authority_gets_no_credential() {
    let bench = Bench::new(Cap::answering(OK).await).await;
    // Another server takes over the address that the kubeconfig names, with a certificate of its own.
    let other = Cap::answering(OK).await;
    let path = other.kubeconfig(&bench.folder);
    std::fs::write(bench.folder.path().join("apiserver-ca.pem"), bench.issuer.ca_pem()).unwrap();
    let config = towline_agent::dial::ApiserverConfig::Kubeconfig { path, context: None };
    let apiserver = towline_agent::dial::Apiserver::new(&config, None).unwrap();
    let report = apiserver.call(http::Method::GET, "/version", "", Vec::new()).await.unwrap_err();
    assert_eq!(report.fault, towline_tunnel::fault::Fault::ApiserverUntrusted);
    assert_eq!(other.tls_connections(), 0);
}

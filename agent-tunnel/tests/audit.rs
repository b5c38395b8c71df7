//! One line for each request, from which an auditor finds it in kube-apiserver's log and in the relay's.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::{fs, time::SystemTime};

use serde_json::{Value, json};
use support::{Bench, Cap, eventually, parts, read_to_end};
use tokio::io::AsyncWriteExt as _;
use towline_agent::forward::Access;
use towline_identity::{TrustSettings, Verifier, dev::DevEntra};
use towline_tunnel::ticket::{MAX_LIFE, Ticket};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

fn lines(bench: &Bench) -> Vec<Value> {
    let text = fs::read_to_string(bench.folder.path().join("audit.log")).unwrap_or_default();
    // The last one may be half written.
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[tokio::test]
async fn each_request_is_one_line_with_who_what_and_how_it_ended() {
    let bench = Bench::new(Cap::answering(OK).await).await;
    let path = "/apis/apps/v1/namespaces/a/deployments/d/scale?pretty=canary-query";
    assert_eq!(parts(&bench.get(path, "").await).0, 200);
    let refused = bench.get("/api/v1/pods", "Impersonate-User: towline:somebody\r\n").await;
    assert_eq!(parts(&refused).0, 403);
    assert_eq!(
        parts(&bench.ask("GET /version HTTP/1.1\r\nHost: cluster\r\nConnection: close\r\n\r\n").await).0,
        401
    );
    eventually("three lines", || lines(&bench).len() == 3).await;

    let [allowed, refused, nobody] = lines(&bench).try_into().unwrap();
    let seen = bench.cap.seen().concat();
    let audit_id = allowed["auditId"].as_str().unwrap();
    assert!(seen.contains(&format!("audit-id: {audit_id}\r\n")), "{seen}");
    for (field, value) in [
        ("user", "alice"),
        ("verb", "get"),
        ("apiGroup", "apps"),
        ("apiVersion", "v1"),
        ("resource", "deployments"),
        ("namespace", "a"),
        ("name", "d"),
        ("subresource", "scale"),
        ("principal", bench.principal("alice").as_str()),
    ] {
        assert_eq!(allowed[field], value, "{allowed}");
    }
    assert_eq!((&allowed["groups"], &allowed["code"]), (&serde_json::json!(["dev"]), &200.into()));
    assert_eq!(allowed["channel"].as_str().unwrap().len(), 16);
    assert!(allowed["fault"].is_null() && allowed["millis"].is_u64());

    assert_eq!((&refused["user"], &refused["code"]), (&"alice".into(), &403.into()));
    assert!(refused["fault"].as_str().unwrap().starts_with("TL-IDN-"), "{refused}");
    assert!(nobody["user"].is_null() && nobody["code"] == 401 && nobody["path"] == "/version", "{nobody}");

    let all = fs::read_to_string(bench.folder.path().join("audit.log")).unwrap();
    assert!(!all.contains("canary-query") && !all.contains(&bench.token()[..20]), "{all}");
}

/// kube-apiserver may have done what was asked, and its audit log has it then.
#[tokio::test]
async fn a_caller_who_does_not_wait_for_the_answer_leaves_a_line_too() {
    let bench = Bench::new(Cap::answering("").await).await;
    let asking = bench.get("/api/v1/namespaces/a/pods", "");
    tokio::select! {
        _answer = asking => panic!("there is no answer"),
        () = eventually("the request", || bench.cap.seen().concat().contains("\r\n\r\n")) => {}
    }
    eventually("a line", || lines(&bench).len() == 1).await;
    let [left] = lines(&bench).try_into().unwrap();
    let audit_id = left["auditId"].as_str().unwrap();
    assert!(bench.cap.seen().concat().contains(&format!("audit-id: {audit_id}\r\n")));
    assert_eq!((&left["user"], &left["code"], &left["verb"]), (&"alice".into(), &0.into(), &"list".into()));
}

/// Groups overage with a hostile endpoint in the token: nobody asks that, and the auditor reads why the user had no groups.
#[tokio::test]
async fn t22_the_line_of_a_user_whose_groups_are_not_known_says_why() {
    let (tenant, audience) = ("11111111-1111-4111-8111-111111111111", "44444444-4444-4444-8444-444444444444");
    let alice = (tenant, "55555555-5555-4555-8555-555555555555");
    let entra = DevEntra::start().await.unwrap();
    let cap = Cap::answering(OK).await;
    let bench = Bench::with_verifier(cap, Access::default(), None, |_, folder| {
        let path = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let ca = path("entra-ca.pem", entra.ca_pem());
        let config = path("entra.yaml", &entra.config(tenant, audience, &ca, ""));
        let settings = TrustSettings { entra_config: Some(config), ..TrustSettings::default() };
        Verifier::new(settings.load().unwrap()).unwrap()
    })
    .await;
    let evil = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}/getMemberObjects", evil.local_addr().unwrap());
    let changes = json!({
        "_claim_names": {"groups": "src1"}, "_claim_sources": {"src1": {"endpoint": endpoint, "access_token": "bait"}},
    });
    let token = entra.mint(2, alice, audience, &changes).unwrap();
    let (principal, run_key) = (entra.principal(alice.0, alice.1), bench.run_key.public().hash());
    let ticket =
        Ticket::new(bench.cluster, principal, run_key, SystemTime::now(), MAX_LIFE).sign(&bench.relay);
    let mut stream = bench.inner(bench.open(Some(ticket))).await;
    let head = format!(
        "GET /api/v1/pods HTTP/1.1\r\nHost: cluster\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(parts(&read_to_end(&mut stream).await.unwrap()).0, 200);
    eventually("a line", || lines(&bench).len() == 1).await;
    let [line] = lines(&bench).try_into().unwrap();
    assert_eq!(line["user"], format!("entra:{}/{}", alice.0, alice.1));
    assert!(line["groups"].is_null(), "{line}");
    assert_eq!(
        line["notes"],
        json!(["no groups: the token has too many, and no credential for Graph is configured"])
    );
    let seen = bench.cap.seen().concat();
    assert_eq!(seen.to_ascii_lowercase().matches("impersonate-group:").count(), 1, "{seen}");
    let asked = tokio::time::timeout(std::time::Duration::from_millis(1), evil.accept()).await;
    assert!(asked.is_err() && entra.asked_of_graph() == 0, "the token's endpoint was asked");
}

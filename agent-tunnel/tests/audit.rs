//! One line for each request, from which an auditor finds it in kube-apiserver's log and in the relay's.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::fs;

use serde_json::Value;
use support::{Bench, Cap, eventually, parts};

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

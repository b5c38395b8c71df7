//! `kubectl --as` through the agent, judged by the bytes that reach kube-apiserver's stand-in.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};
use support::{
    Bench, Cap,
    cap::{self, verdict},
    fault, parts,
};
use tokio::io::AsyncWriteExt as _;
use towline_agent::forward::{Access, Mode};

const BOB: &str = "Impersonate-User: bob\r\n";

/// The requests that were no reviews: their heads, one after the other.
fn forwarded(cap: &Cap) -> Vec<String> {
    let seen = cap.seen().concat();
    // Bodies are JSON objects, and end where the next request begins.
    let heads = seen.split("\r\n\r\n").map(|head| head.trim_start_matches(|c| c != 'G').to_owned());
    heads.filter(|head| head.starts_with("GET ")).collect()
}

fn identity(head: &str) -> Vec<String> {
    let mut lines: Vec<String> = head
        .lines()
        .filter(|line| line.starts_with("impersonate-") || line.starts_with("authorization"))
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

/// A stand-in that allows all of these names, and keeps what it was asked.
async fn allowing(names: &'static [&'static str]) -> (Cap, Arc<Mutex<Vec<Value>>>) {
    let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
    let keep = Arc::clone(&asked);
    let cap = Cap::judging(move |review| {
        keep.lock().unwrap().push(review["spec"].clone());
        let name = review["spec"]["resourceAttributes"]["name"].as_str().unwrap();
        verdict(names.contains(&name))
    });
    (cap.await, asked)
}

#[tokio::test]
async fn t01_every_part_is_reviewed_for_the_verified_user_and_goes_on_with_their_name() {
    let (cap, asked) = allowing(&["bob", "ops", "7", "view"]).await;
    let bench = Bench::new(cap).await;
    let wish = "IMPERSONATE-USER: bob\r\nimpersonate-Group: ops\r\nImpersonate-Uid: 7\r\n\
                Impersonate-Extra-Example.org%2Fscope%20s: view\r\n";
    assert_eq!(parts(&bench.get("/api/v1/pods", wish).await).0, 200);
    let mut asked: Vec<Value> = asked.lock().unwrap().clone();
    for review in &asked {
        assert_eq!(review["user"], "alice");
        assert_eq!(review["groups"], json!(["dev", "system:authenticated"]));
        assert_eq!(review["resourceAttributes"]["verb"], "impersonate");
    }
    asked.sort_by_key(|review| review["resourceAttributes"]["resource"].to_string());
    let about: Vec<_> = asked
        .iter()
        .map(|review| {
            let of = &review["resourceAttributes"];
            ["group", "resource", "subresource", "name"].map(|field| of[field].as_str().unwrap())
        })
        .collect();
    assert_eq!(
        about,
        [
            ["", "groups", "", "ops"],
            ["authentication.k8s.io", "uids", "", "7"],
            ["authentication.k8s.io", "userextras", "example.org/scope s", "view"],
            ["", "users", "", "bob"],
        ]
    );
    let heads = forwarded(&bench.cap);
    assert_eq!(heads.len(), 1);
    assert_eq!(
        identity(&heads[0]),
        [
            "authorization: Bearer agent-token",
            "impersonate-extra-example.org%2fscope%20s: view",
            "impersonate-extra-towline.dev%2foriginal-user: alice",
            "impersonate-group: ops",
            "impersonate-uid: 7",
            "impersonate-user: bob",
        ]
    );
}

#[tokio::test]
async fn t01_one_part_that_is_denied_denies_all_and_nothing_goes_out() {
    let (cap, _) = allowing(&["bob", "ops"]).await;
    let bench = Bench::new(cap).await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for more in [
        "Impersonate-User: carol\r\n",
        "iMPERSONATE-user: carol\r\n",
        "Impersonate-User: bob\r\nImpersonate-Group: ops\r\nImpersonate-Group: admins\r\n",
        "Impersonate-User: bob\r\nImpersonate-Uid: 1\r\n",
        "Impersonate-User: bob\r\nImpersonate-Extra-Scopes: all\r\n",
        "Impersonate-User: system:serviceaccount:kube-system:default\r\n",
        "Impersonate-User: system:node:a\r\n",
        "Impersonate-User: system:admin\r\n",
    ] {
        for upgrade in ["", upgrade] {
            let answer = bench.get("/api/v1/pods", &format!("{upgrade}{more}")).await;
            assert_eq!(fault(&answer), (403, "TL-IDN-020".into()), "{more}");
        }
    }
    assert_eq!(forwarded(&bench.cap), Vec::<String>::new());
}

#[tokio::test]
async fn t01_t53_what_is_malformed_or_nobodys_to_be_is_refused_before_anybody_is_asked() {
    let bench = Bench::new(Cap::judging(|_| verdict(true)).await).await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";
    let thirty_three = format!("{BOB}{}", "Impersonate-Group: g\r\n".repeat(32));
    for (more, expected) in [
        ("Impersonate-User: bob\r\nImpersonate-User: alice\r\n", (400, "TL-IDN-021")),
        ("Impersonate-User: bob\r\nimpersonate-user: bob\r\n", (400, "TL-IDN-021")),
        ("Impersonate-Group: dev\r\n", (400, "TL-IDN-021")),
        ("Impersonate-User:\r\n", (400, "TL-IDN-021")),
        ("Impersonate-Uid: 1\r\n", (400, "TL-IDN-021")),
        ("Impersonate-User: bob\r\nImpersonate-Extra-%41: x\r\n", (400, "TL-IDN-021")),
        (&thirty_three, (400, "TL-IDN-021")),
        ("Impersonate-User: bob\r\nImpersonate-Group: system:masters\r\n", (403, "TL-IDN-006")),
        ("Impersonate-User: bob\r\nImpersonate-Group: dev,system:masters\r\n", (403, "TL-IDN-006")),
        ("Impersonate-User: bob\r\nImpersonate-Group: towline:role:admin\r\n", (403, "TL-IDN-006")),
        (
            "Impersonate-User: bob\r\nImpersonate-Extra-towline.dev%2Foriginal-user: x\r\n",
            (403, "TL-IDN-006"),
        ),
        ("Impersonate-User: bob\r\nImpersonate-Sudo: x\r\n", (403, "TL-IDN-006")),
    ] {
        for upgrade in ["", upgrade] {
            let answer = bench.get("/api/v1/pods", &format!("{upgrade}{more}")).await;
            assert_eq!(fault(&answer), (expected.0, expected.1.to_owned()), "{more}");
        }
    }
    let many = format!("{BOB}{}", "Impersonate-Group: g\r\n".repeat(10_000));
    assert_eq!(fault(&bench.get("/api/v1/pods", &many).await).0, 400, "more headers than any client sends");
    for nominated in ["Impersonate-User", "impersonate-group, Authorization"] {
        let head = bench.head("GET /api/v1/pods", &format!("{BOB}Connection: close, {nominated}\r\n"));
        assert_eq!(fault(&bench.ask(&head).await), (403, "TL-IDN-006".into()), "{nominated}");
    }
    assert_eq!(bench.cap.connections(), 0);
}

#[tokio::test]
async fn t01_system_masters_is_asked_for_where_the_agent_allows_it_and_judged_like_any_other() {
    let (cap, asked) = allowing(&["bob", "system:masters"]).await;
    let bench = Bench::with(cap, Access { system_masters: true, ..Access::default() }).await;
    let wish = format!("{BOB}Impersonate-Group: system:masters\r\n");
    assert_eq!(parts(&bench.get("/api/v1/pods", &wish).await).0, 200);
    assert_eq!(asked.lock().unwrap().len(), 2);
    let wish = format!("{BOB}Impersonate-Group: system:masters\r\nImpersonate-Group: other\r\n");
    assert_eq!(fault(&bench.get("/api/v1/pods", &wish).await), (403, "TL-IDN-020".into()));
}

#[tokio::test]
async fn t01_anything_but_a_clear_yes_is_a_no() {
    for (answer, expected) in [
        (cap::json("403 Forbidden", r#"{"kind":"Status","message":"not yours"}"#), (503, "TL-IDN-022")),
        (cap::json("500 Internal Server Error", "{}"), (503, "TL-IDN-022")),
        (cap::json("302 Found", r#"{"status":{"allowed":true}}"#), (503, "TL-IDN-022")),
        (cap::json("201 Created", "{}"), (503, "TL-IDN-022")),
        (cap::json("201 Created", r#"{"status":{"allowed":"true"}}"#), (503, "TL-IDN-022")),
        (cap::json("201 Created", "allowed"), (503, "TL-IDN-022")),
        (cap::json("201 Created", r#"{"status":{"allowed":true,"denied":true}}"#), (403, "TL-IDN-020")),
        (cap::json("201 Created", r#"{"status":{"allowed":false,"reason":"?"}}"#), (403, "TL-IDN-020")),
    ] {
        let said = answer.clone();
        let bench = Bench::new(Cap::judging(move |_| said.clone()).await).await;
        let refused = bench.get("/api/v1/pods", BOB).await;
        assert_eq!(fault(&refused), (expected.0, expected.1.to_owned()), "{answer}");
        assert!(!refused.contains("not yours"), "what the agent's own account may not do is for its log");
        assert_eq!(forwarded(&bench.cap), Vec::<String>::new());
    }
}

#[tokio::test]
async fn t01_an_apiserver_that_does_not_answer_a_review_in_time_allows_nothing() {
    let cap = Cap::new(|mut connection| async move { connection.drained().await }).await;
    let bench = Bench::new(cap).await;
    assert_eq!(fault(&bench.get("/api/v1/pods", BOB).await), (503, "TL-IDN-022".into()));
    assert!(!bench.cap.seen().concat().contains("GET "));
}

/// Each review is answered in its own time, and all of them together too late.
#[tokio::test]
async fn t01_reviews_that_take_too_long_together_allow_nothing() {
    let cap = Cap::new(|mut connection| async move {
        while let Some(head) = connection.head().await? {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            connection.take(length.map_or(0, |length| length.parse().unwrap())).await?;
            // An apiserver that is slow.
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            connection.say(verdict(true).as_bytes()).await?;
        }
        Ok(())
    });
    let bench = Bench::new(cap.await).await;
    let groups: String = (0..31).map(|n| format!("Impersonate-Group: g{n}\r\n")).collect();
    let answer = bench.get("/api/v1/pods", &format!("{BOB}{groups}")).await;
    assert_eq!(fault(&answer), (503, "TL-IDN-022".into()));
    assert!(!bench.cap.seen().concat().contains("GET "));
}

#[tokio::test]
async fn t01_a_yes_is_asked_for_once_and_a_no_each_time() {
    let (counted, allow) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(false)));
    let (count, allowed) = (Arc::clone(&counted), Arc::clone(&allow));
    let cap = Cap::judging(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        verdict(*allowed.lock().unwrap())
    });
    let bench = Bench::new(cap.await).await;
    for n in 1..=3 {
        assert_eq!(fault(&bench.get("/api/v1/pods", BOB).await).0, 403);
        assert_eq!(counted.load(Ordering::Relaxed), n, "a no is not remembered");
    }
    *allow.lock().unwrap() = true;
    for _ in 0..3 {
        assert_eq!(parts(&bench.get("/api/v1/pods", BOB).await).0, 200);
    }
    assert_eq!(counted.load(Ordering::Relaxed), 4, "a yes is");
    // The same user with other groups is asked about anew.
    let token = bench.token_of("alice", &["dev", "ops"]);
    let head = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n{BOB}\r\n"
    );
    *allow.lock().unwrap() = false;
    assert_eq!(fault(&bench.ask(&head).await).0, 403);
}

#[tokio::test]
async fn t53_reviews_are_asked_side_by_side_and_not_all_at_once() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let most_seen = Arc::clone(&most);
    let cap = Cap::new(move |mut connection| {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        async move {
            while let Some(head) = connection.head().await? {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                connection.take(length.map_or(0, |length| length.parse().unwrap())).await?;
                // Of one user a request that was allowed may go on beside another's reviews.
                if head.starts_with("POST ") {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    // Those beside it come within this, if they come.
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    now.fetch_sub(1, Ordering::SeqCst);
                }
                connection.say(verdict(true).as_bytes()).await?;
            }
            Ok(())
        }
    });
    let bench = Bench::new(cap.await).await;
    let asks = async |of: &str| {
        let groups: String = (0..31).map(|n| format!("Impersonate-Group: {of}{n}\r\n")).collect();
        parts(&bench.get("/api/v1/pods", &format!("Impersonate-User: {of}\r\n{groups}")).await).0
    };
    let most = || most_seen.swap(0, Ordering::SeqCst);
    assert_eq!(asks("bob").await, 201);
    let one = most();
    assert!((2..=4).contains(&one), "{one} at once");
    assert_eq!(bench.cap.seen().concat().matches("POST ").count(), 32);
    // Whoever asks for more on several streams does not have more places by that.
    assert_eq!(tokio::join!(asks("carol"), asks("dave"), asks("erin")), (201, 201, 201));
    let three = most();
    assert!((2..=4).contains(&three), "{three} at once");
    assert_eq!(bench.cap.seen().concat().matches("POST ").count(), 4 * 32);
}

#[tokio::test]
async fn t01_an_upgrade_goes_out_as_the_one_who_was_allowed() {
    let (cap, _) = allowing(&["bob"]).await;
    let bench = Bench::new(cap).await;
    let exec = format!("{BOB}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n");
    let mut stream = bench.connect().await;
    let head = bench.head("GET /api/v1/namespaces/n/pods/p/exec", &exec);
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(parts(&support::read_to_end(&mut stream).await.unwrap()).0, 200);
    let heads = forwarded(&bench.cap);
    assert!(heads[0].contains("upgrade: websocket"), "{}", heads[0]);
    let lines = identity(&heads[0]);
    assert!(
        lines.contains(&"impersonate-user: bob".to_owned()) && !heads[0].contains("system:authenticated")
    );
}

fn pass_through() -> Access {
    Access { mode: Mode::PassThrough, ..Access::default() }
}

#[tokio::test]
async fn passed_through_the_verified_token_goes_on_itself_and_what_it_asks_for_stays_whole() {
    let bench = Bench::with(Cap::judging(|_| panic!("nobody asks")).await, pass_through()).await;
    let token = bench.token();
    let head = format!(
        "GET /api/v1/pods HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: bEARER  {token}\r\n\
         Impersonate-User: bob\r\nImpersonate-Group: system:masters\r\nImpersonate-Group: b\r\nX-Remote-User: admin\r\n\
         Impersonate-Extra-a%2Fb: c\r\nAudit-Id: mine\r\n\r\n"
    );
    assert_eq!(parts(&bench.ask(&head).await).0, 200);
    let heads = forwarded(&bench.cap);
    assert_eq!(
        identity(&heads[0]),
        [
            format!("authorization: Bearer {token}"),
            "impersonate-extra-a%2fb: c".into(),
            "impersonate-group: b".into(),
            "impersonate-group: system:masters".into(),
            "impersonate-user: bob".into(),
        ]
    );
    assert!(!heads[0].contains("agent-token") && !heads[0].contains("x-remote"), "{}", heads[0]);
    assert!(heads[0].contains("audit-id: ") && !heads[0].contains("mine"), "{}", heads[0]);
}

#[tokio::test]
async fn t02_t05_t45_passing_through_lets_nothing_by_that_is_refused_otherwise() {
    let bench = Bench::with(Cap::judging(|_| verdict(true)).await, pass_through()).await;
    let nominated = format!("{BOB}Connection: close, Impersonate-User\r\n");
    let head = bench.head("GET /api/v1/pods", &nominated);
    assert_eq!(fault(&bench.ask(&head).await), (403, "TL-IDN-006".into()));
    for (token, code) in [
        (bench.token_of("mallory", &[]), "TL-IDN-004"),
        (bench.token_with(&json!({ "exp": 1 })), "TL-IDN-003"),
        (bench.token_with(&json!({ "groups": ["system:masters"] })), "TL-IDN-007"),
        ("agent-token".into(), "TL-IDN-002"),
    ] {
        let head = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        assert_eq!(fault(&bench.ask(&head).await), (401, code.to_owned()));
    }
    assert_eq!(bench.cap.connections(), 0);
}

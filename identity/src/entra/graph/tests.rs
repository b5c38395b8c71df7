use std::sync::atomic::{AtomicUsize, Ordering};

use http::Response;
use serde_json::json;

use super::*;
use crate::Pending;

const TENANT: &str = "77777777-7777-4777-8777-777777777777";

/// Graph and the machine's metadata service in one.
#[derive(Default)]
struct Scripted {
    /// How many tokens were given.
    tokens: AtomicUsize,
    /// How long one lives, in seconds.
    life: u64,
    /// How many groups users have.
    groups: usize,
    /// The token that is withdrawn.
    withdrawn: Option<usize>,
}

impl Fetch for Scripted {
    fn send(&self, request: Request<Bytes>) -> Pending<'_, Result<Response<Bytes>, crate::FetchError>> {
        let token =
            request.headers().get(header::AUTHORIZATION).map(|token| token.to_str().unwrap().to_owned());
        let (status, body) = match token {
            None => {
                let number = self.tokens.fetch_add(1, Ordering::Relaxed);
                (200, json!({ "access_token": format!("t{number}"), "expires_in": self.life.to_string() }))
            }
            Some(token) if self.withdrawn.is_some_and(|number| token == format!("Bearer t{number}")) => {
                (401, json!({}))
            }
            Some(_) => {
                let id = |n: usize| json!({ "id": format!("99999999-9999-4999-8999-{n:012}") });
                (200, json!({ "value": (0..self.groups).map(id).collect::<Vec<_>>() }))
            }
        };
        let answer = Response::builder().status(status).body(body.to_string().into()).unwrap();
        Box::pin(async move { Ok(answer) })
    }
}

fn cloud() -> Cloud {
    let host = |host: &str| format!("https://{host}.example");
    Cloud { login: host("login"), sts: host("sts"), graph: host("graph") }
}

fn graph(scripted: &Arc<Scripted>) -> Graph {
    let credential = Credential::ManagedIdentity { client: None, authority: "http://169.254.169.254".into() };
    Graph::new(cloud(), credential, Arc::clone(scripted) as Arc<dyn Fetch>)
}

/// Another user each time: nothing is remembered but the credential's token.
async fn groups(graph: &Graph, user: usize) -> Result<usize, String> {
    let object = format!("66666666-6666-4666-8666-{user:012}");
    let (groups, _) = graph.groups(TENANT, &object, false, SystemTime::UNIX_EPOCH).await;
    groups.map(|groups| groups.len())
}

#[test]
fn what_is_printed_of_it_is_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let credential = Credential::Secret { client: "canary".into(), file: folder.path().join("canary") };
    let graph = Graph::new(cloud(), credential, Arc::new(Scripted::default()));
    assert_eq!(format!("{graph:?}"), "Graph(https://graph.example)");
}

#[tokio::test]
async fn a_thousand_groups_are_taken_and_one_more_is_too_many() {
    let with = |groups| Arc::new(Scripted { life: 3600, groups, ..Scripted::default() });
    assert_eq!(groups(&graph(&with(1000)), 0).await, Ok(1000));
    assert!(groups(&graph(&with(1001)), 0).await.unwrap_err().contains("more than 1,000"));
}

/// Five minutes before its end, or half-way for one that lives for less than ten.
#[tokio::test(start_paused = true)]
async fn the_credentials_token_is_asked_for_anew_in_time_and_no_sooner() {
    for (life, until) in [(3600, 3300), (600, 300), (400, 200), (10, 5)] {
        let scripted = Arc::new(Scripted { life, groups: 1, ..Scripted::default() });
        let graph = graph(&scripted);
        groups(&graph, 0).await.unwrap();
        tokio::time::advance(Duration::from_secs(until) - Duration::from_millis(1)).await;
        groups(&graph, 1).await.unwrap();
        assert_eq!(scripted.tokens.load(Ordering::Relaxed), 1, "{life}");
        tokio::time::advance(Duration::from_millis(1)).await;
        groups(&graph, 2).await.unwrap();
        assert_eq!(scripted.tokens.load(Ordering::Relaxed), 2, "{life}");
    }
}

#[tokio::test]
async fn a_token_that_graph_refuses_is_not_shown_again() {
    let scripted = Arc::new(Scripted { life: 3600, groups: 2, withdrawn: Some(0), ..Scripted::default() });
    let graph = graph(&scripted);
    assert!(groups(&graph, 0).await.unwrap_err().contains("401"));
    assert_eq!(groups(&graph, 1).await, Ok(2), "by another token");
    assert_eq!(scripted.tokens.load(Ordering::Relaxed), 2);
}

#[test]
fn no_more_is_known_than_there_is_room_for_and_what_is_over_goes_first() {
    let now = Instant::now();
    let known = |until| Known { groups: Ok(Vec::new()), until };
    let after = |over: usize, live: usize| {
        let mut all: HashMap<String, Known> = (0..over).map(|n| (format!("over {n}"), known(now))).collect();
        all.extend((0..live).map(|n| (format!("live {n}"), known(now + KEEP))));
        remember(&mut all, "newest".to_owned(), known(now + KEEP), now);
        assert!(all.contains_key("newest"));
        all.len()
    };
    assert_eq!(after(0, CAPACITY - 1), CAPACITY);
    assert_eq!(after(10, CAPACITY - 11), CAPACITY, "there is room");
    assert_eq!(after(10, CAPACITY - 10), CAPACITY - 9, "those that are over");
    assert_eq!(after(0, CAPACITY), 1, "all");
    assert!(!known(now).holds(now) && known(now + KEEP).holds(now));
}

#[test]
fn users_take_turns_with_a_few_others_and_not_with_all() {
    let turns: std::collections::HashSet<usize> =
        (0..200).map(|user| turn(&format!("{TENANT}/66666666-6666-4666-8666-{user:012}"))).collect();
    assert_eq!(turns.len(), TURNS);
    assert!(turns.iter().all(|turn| *turn < TURNS));
}

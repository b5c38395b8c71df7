//! Roles that an organisation signs and a relay carries, judged by the bytes that reach kube-apiserver's stand-in.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde_json::{Value, json};
use support::{
    Bench, Cap,
    cap::{CapConnection, verdict},
    parts, read_to_end, read_until,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use towline_agent::{
    forward::Access,
    roles::{FRESH_FOR, RoleSettings},
};
use towline_tunnel::{
    ids::ClusterId,
    inner::InnerStream,
    keys::SigningKey,
    mux::{CloseReason, MuxStream, StreamError},
    role::{Document, RoleName, Statement, Subject, hash_offer, write_offer},
    ticket::{MAX_LIFE, Ticket},
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";

struct World {
    bench: Bench,
    organisation: SigningKey,
}

impl World {
    async fn new(cap: Cap, ceiling: RoleName) -> Self {
        Self::fresh_for(cap, ceiling, FRESH_FOR).await
    }

    async fn fresh_for(cap: Cap, ceiling: RoleName, fresh_for: Duration) -> Self {
        let organisation = SigningKey::generate();
        let settings = RoleSettings { ceiling, keys: vec![organisation.public()], fresh_for };
        let bench = Bench::with_roles(cap, Access::default(), Some(settings)).await;
        Self { bench, organisation }
    }

    fn sign(&self, statement: Statement) -> Document {
        Document::new(statement, SystemTime::now(), None)
    }

    /// Alice has this role there.
    fn assignment(&self, role: RoleName, scope: &str) -> Document {
        self.of(Subject::Principal(self.bench.principal("alice")), role, scope)
    }

    fn of(&self, subject: Subject, role: RoleName, scope: &str) -> Document {
        self.sign(Statement::Assignment { subject, role, scope: scope.parse().unwrap() })
    }

    fn placement(&self, cluster: ClusterId, group: &str) -> Document {
        self.sign(Statement::Placement { cluster, group: group.parse().unwrap() })
    }

    fn signed(&self, document: Document) -> Bytes {
        document.sign(&self.organisation).bytes().clone()
    }

    fn ticket(&self, offer: Option<&Bytes>, issued: SystemTime) -> Bytes {
        let run_key = self.bench.run_key.public().hash();
        let mut ticket =
            Ticket::new(self.bench.cluster, self.bench.principal("alice"), run_key, issued, MAX_LIFE);
        ticket.offer = offer.map(|offer| hash_offer(offer));
        ticket.sign(&self.bench.relay)
    }

    /// An inner connection of alice's, with these documents.
    async fn connect(&self, documents: &[Bytes]) -> InnerStream<MuxStream> {
        let offer = write_offer(documents);
        let ticket = self.ticket(offer.as_ref(), SystemTime::now());
        self.bench.inner(self.bench.open_with(Some(ticket), offer)).await
    }

    async fn get_on(&self, mut stream: InnerStream<MuxStream>, more: &str) -> String {
        let head = self.bench.head("GET /api/v1/pods", &format!("Connection: close\r\n{more}"));
        stream.write_all(head.as_bytes()).await.unwrap();
        read_to_end(&mut stream).await.unwrap()
    }

    async fn get(&self, documents: &[Bytes], more: &str) -> String {
        self.get_on(self.connect(documents).await, more).await
    }

    /// The groups of the last request that came to kube-apiserver.
    fn groups(&self) -> Vec<String> {
        let seen = self.bench.cap.seen().concat();
        let last = seen.rsplit("GET /api/v1/pods").next().unwrap();
        let lines = last.lines().filter_map(|line| line.strip_prefix("impersonate-group: "));
        lines.map(str::to_owned).collect()
    }

    fn group(&self, role: RoleName) -> String {
        self.bench.groups.group(role).unwrap()
    }
}

#[tokio::test]
async fn a_signed_role_is_one_group_more_and_the_audit_names_it() {
    let world = World::new(Cap::answering(OK).await, RoleName::Admin).await;
    let assignment = world.assignment(RoleName::Writer, "group:eu");
    let id = assignment.id.to_string();
    let documents =
        [world.signed(assignment), world.signed(world.placement(world.bench.cluster, "eu/retail"))];
    assert_eq!(parts(&world.get(&documents, "").await).0, 200);
    let writer = world.group(RoleName::Writer);
    assert_eq!(world.groups(), ["dev", writer.as_str(), "system:authenticated"]);
    let group = world.of(Subject::Group("dev".into()), RoleName::Viewer, "organisation");
    world.get(&[world.signed(group)], "").await;
    assert_eq!(world.groups(), ["dev", world.group(RoleName::Viewer).as_str(), "system:authenticated"]);
    world.get(&[], "").await;
    assert_eq!(world.groups(), ["dev", "system:authenticated"]);

    let log = world.bench.folder.path().join("audit.log");
    let mut lines = Vec::new();
    support::eventually("three lines are written", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect();
        lines.len() == 3
    })
    .await;
    assert_eq!(lines[0]["role"], json!({"role": "writer", "scope": "group:eu", "document": id}));
    assert_eq!((&lines[1]["role"]["role"], &lines[2]["role"]), (&json!("viewer"), &Value::Null));
}

#[tokio::test]
async fn t51_a_relay_gives_no_role_and_raises_none() {
    let world = World::new(Cap::answering(OK).await, RoleName::ClusterAdmin).await;
    let here = world.bench.cluster;
    let elsewhere = ClusterId::of_spki(b"another cluster");
    let relay = &world.bench.relay;
    let forged = world.assignment(RoleName::Admin, "organisation").sign(relay).bytes().clone();
    let raised = {
        let signed = world.assignment(RoleName::Viewer, "organisation").sign(&world.organisation);
        let Statement::Assignment { subject, scope, .. } = signed.document().statement.clone() else {
            panic!("an assignment")
        };
        let statement = Statement::Assignment { subject, scope, role: RoleName::Admin };
        let unsigned = Document { statement, ..signed.document().clone() };
        let other = unsigned.sign(relay);
        Bytes::from([&signed.bytes()[..64], &other.bytes()[64..]].concat())
    };
    let unsigned = Bytes::from(
        [&[0; 64][..], &world.signed(world.assignment(RoleName::Admin, "organisation"))[64..]].concat(),
    );
    let ended = Document {
        expires: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)),
        ..world.assignment(RoleName::Admin, "organisation")
    };
    let early = Document {
        not_before: SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000),
        ..world.assignment(RoleName::Admin, "organisation")
    };
    let principal = |name: &str| Subject::Principal(name.to_owned());
    let admin = |subject| world.of(subject, RoleName::Admin, "organisation");
    let in_eu = || world.signed(world.assignment(RoleName::Admin, "group:eu"));
    let hostile: Vec<(&str, Vec<Bytes>)> = vec![
        ("signed by the relay", vec![forged]),
        ("raised", vec![raised]),
        ("not signed", vec![unsigned]),
        ("of bob", vec![world.signed(admin(principal(&world.bench.principal("bob"))))]),
        ("of a group she is not in", vec![world.signed(admin(Subject::Group("ops".into())))]),
        ("of her group as a principal", vec![world.signed(admin(principal("dev")))]),
        (
            "of her principal as a group",
            vec![world.signed(admin(Subject::Group(world.bench.principal("alice"))))],
        ),
        ("of another issuer's alice", vec![world.signed(admin(principal("https://other#alice")))]),
        (
            "of another cluster",
            vec![world.signed(world.assignment(RoleName::Admin, &format!("cluster:{elsewhere}")))],
        ),
        ("of a group of clusters without a placement", vec![in_eu()]),
        ("with another cluster's placement", vec![in_eu(), world.signed(world.placement(elsewhere, "eu"))]),
        (
            "with a placement of the relay's",
            vec![in_eu(), world.placement(here, "eu").sign(relay).bytes().clone()],
        ),
        ("with a placement elsewhere", vec![in_eu(), world.signed(world.placement(here, "us"))]),
        ("ended", vec![world.signed(ended)]),
        ("not begun", vec![world.signed(early)]),
        ("no document", vec![Bytes::from_static(b"nonsense")]),
    ];
    for (what, documents) in hostile {
        assert_eq!(parts(&world.get(&documents, "").await).0, 200, "{what}");
        assert_eq!(world.groups(), ["dev", "system:authenticated"], "{what}");
    }
    assert!(!world.bench.cap.seen().concat().contains("towline:"));
}

#[tokio::test]
async fn t51_documents_count_only_with_a_fresh_ticket_that_vouches_for_them() {
    let world = World::new(Cap::answering(OK).await, RoleName::ClusterAdmin).await;
    let documents = [world.signed(world.assignment(RoleName::Admin, "organisation"))];
    let offer = write_offer(&documents).unwrap();
    let other = write_offer(&[world.signed(world.assignment(RoleName::Admin, "organisation"))]).unwrap();
    let now = SystemTime::now();
    for (what, ticket) in [
        ("without a word of them", world.ticket(None, now)),
        ("for others", world.ticket(Some(&other), now)),
        ("old", world.ticket(Some(&offer), now - FRESH_FOR - Duration::from_secs(5))),
    ] {
        let stream = world.bench.inner(world.bench.open_with(Some(ticket), Some(offer.clone()))).await;
        assert_eq!(parts(&world.get_on(stream, "").await).0, 200, "{what}");
        assert_eq!(world.groups(), ["dev", "system:authenticated"], "{what}");
    }
    let ticket = world.ticket(Some(&offer), now);
    let stream = world.bench.inner(world.bench.open_with(Some(ticket), Some(offer))).await;
    world.get_on(stream, "").await;
    assert_eq!(world.groups().len(), 3, "it would have been one");
}

#[tokio::test]
async fn t51_above_the_ceiling_a_role_counts_as_the_ceiling() {
    let world = World::new(Cap::answering(OK).await, RoleName::Viewer).await;
    for role in [RoleName::Viewer, RoleName::Writer, RoleName::Admin, RoleName::ClusterAdmin] {
        world.get(&[world.signed(world.assignment(role, "organisation"))], "").await;
        assert_eq!(world.groups(), ["dev", world.group(RoleName::Viewer).as_str(), "system:authenticated"]);
    }
    let off = Bench::new(Cap::answering(OK).await).await;
    let offer = write_offer(&[world.signed(world.assignment(RoleName::Viewer, "organisation"))]);
    let run_key = off.run_key.public().hash();
    let ticket = Ticket::new(off.cluster, off.principal("alice"), run_key, SystemTime::now(), MAX_LIFE);
    let ticket = Ticket { offer: offer.as_deref().map(hash_offer), ..ticket };
    let mut stream = off.inner(off.open_with(Some(ticket.sign(&off.relay)), offer)).await;
    let head = off.head("GET /api/v1/pods", "Connection: close\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(parts(&read_to_end(&mut stream).await.unwrap()).0, 200);
    assert!(!off.cap.seen().concat().contains("towline:"), "an agent without a ceiling knows no roles");
}

#[tokio::test]
async fn reviews_see_the_role_and_whom_it_lets_a_caller_be_does_not_get_it() {
    let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
    let keep = Arc::clone(&asked);
    let cap = Cap::judging(move |review| {
        keep.lock().unwrap().push(review["spec"]["groups"].clone());
        verdict(true)
    });
    let world = World::new(cap.await, RoleName::Admin).await;
    let admin = world.signed(world.assignment(RoleName::Admin, "organisation"));
    assert_eq!(parts(&world.get(&[admin], "Impersonate-User: bob\r\n").await).0, 200);
    let group = world.group(RoleName::Admin);
    assert_eq!(*asked.lock().unwrap(), [json!(["dev", group, "system:authenticated"])]);
    assert_eq!(world.groups(), Vec::<String>::new());
}

#[tokio::test]
async fn a_denial_of_kube_apiservers_comes_with_the_role_that_was_not_enough() {
    const DENIED: &str = "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nWarning: 299 - \"its own\"\r\nContent-Length: 2\r\n\r\n{}";
    let world = World::new(Cap::answering(DENIED).await, RoleName::Writer).await;
    let warning = |answer: &str| {
        let lines = answer.lines().filter_map(|line| line.strip_prefix("warning: "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let answer = world.get(&[], "").await;
    let told = warning(&answer);
    assert_eq!((parts(&answer), told.len(), told[0].as_str()), ((403, "{}"), 2, "299 - \"its own\""));
    let principal = world.bench.principal("alice");
    assert!(told[1].contains("no role") && told[1].contains(&principal), "{told:?}");
    let viewer = world.signed(world.assignment(RoleName::Viewer, "organisation"));
    let told = warning(&world.get(&[viewer], "").await);
    assert!(told[1].contains("viewer (organisation)") && told[1].contains("towline role assign"), "{told:?}");
    let admin = world.signed(world.assignment(RoleName::Admin, "organisation"));
    let told = warning(&world.get(&[admin], "").await);
    assert!(told[1].contains("admin") && told[1].contains("--max-relay-role"), "{told:?}");
    let without_roles = Bench::new(Cap::answering(DENIED).await).await.get("/api/v1/pods", "").await;
    let told = warning(&without_roles);
    assert!(
        told[1].contains("the cluster's RBAC") && told[1].contains("create clusterrolebinding"),
        "{told:?}"
    );
}

/// Answers exec with an upgrade, and then says nothing more.
async fn silent() -> Cap {
    Cap::new(|mut connection: CapConnection| async move {
        connection.head().await?;
        let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\nConnection: Upgrade\r\n\r\n";
        connection.say(switch.as_bytes()).await?;
        connection.drained().await
    })
    .await
}

#[tokio::test]
async fn what_is_open_ends_with_the_document_that_it_hangs_on() {
    let world = World::new(silent().await, RoleName::Admin).await;
    let until = SystemTime::now() + Duration::from_secs(3);
    let short = Document { expires: Some(until), ..world.assignment(RoleName::Admin, "organisation") };
    let mut exec = world.connect(&[world.signed(short)]).await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n";
    let head = world.bench.head("POST /api/v1/namespaces/a/pods/p/exec?command=sh", upgrade);
    exec.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut exec, "\r\n\r\n").await;
    let ended = timeout(support::WITHIN, exec.read_u8()).await.expect("it ends with the role").unwrap_err();
    let reason = ended.get_ref().unwrap().downcast_ref::<StreamError>().unwrap().reason;
    assert_eq!(reason, CloseReason::RoleEnded);
    assert!(SystemTime::now() >= until - Duration::from_secs(1));
}

/// What the relay says of roles is as old as the connection: callers come back for what it says then.
#[tokio::test]
async fn a_connection_takes_no_new_request_once_the_relays_word_is_old() {
    let world = World::fresh_for(Cap::answering(OK).await, RoleName::Admin, Duration::from_millis(300)).await;
    let mut stream = world.connect(&[]).await;
    stream.write_all(world.bench.head("GET /api/v1/pods", "").as_bytes()).await.unwrap();
    read_until(&mut stream, "{}").await;
    assert_eq!(read_to_end(&mut stream).await.unwrap(), "", "it ends as a connection ends");
}

//! What people may ask the relay on their session, and what comes of it.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod common;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use common::{Bench, Client, SOON, eventually, limits};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use towline_relay::registry::{
    AuditFilter, Duty, DutyAssignment, EnrolmentOffer, Registry, Revocation, SubjectKind,
};
use towline_tunnel::{
    ids::{ClusterId, InstanceId},
    keys::SigningKey,
    mux::{CloseReason, MuxStream, StreamError},
    session::{
        Identify,
        control::Control,
        message::Secret,
        question::{AuditQuestion, ClusterItem, MAX_BODY, RevokeAnswer, RevokeQuestion, Topic, Whom},
    },
};

async fn exchange(client: &Client, id: u32, ask: Control) -> Control {
    assert!(client.connection.control(ask.encode(id)));
    loop {
        let payload = timeout(SOON, client.connection.next_control()).await.unwrap().unwrap();
        let (of, answer) = Control::decode(&payload).unwrap();
        if of == id {
            return answer;
        }
    }
}

fn question(topic: Topic, question: &impl Serialize, cursor: Bytes) -> Control {
    Control::Ask { topic, cursor, body: serde_json::to_vec(question).unwrap().into() }
}

async fn ask<A: DeserializeOwned>(client: &Client, topic: Topic, asked: &impl Serialize) -> A {
    match exchange(client, 1, question(topic, asked, Bytes::new())).await {
        Control::Answer { body, .. } => serde_json::from_slice(&body).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// All parts, and how many there were.
async fn list<A: DeserializeOwned>(client: &Client, topic: Topic, asked: &impl Serialize) -> (Vec<A>, u32) {
    let (mut items, mut cursor, mut parts) = (Vec::new(), Bytes::new(), 0);
    loop {
        parts += 1;
        let Control::Answer { cursor: next, body } =
            exchange(client, parts, question(topic, asked, cursor)).await
        else {
            panic!("no answer");
        };
        assert!(body.len() <= MAX_BODY);
        items.append(&mut serde_json::from_slice::<Vec<A>>(&body).unwrap());
        cursor = next;
        if cursor.is_empty() {
            return (items, parts);
        }
    }
}

async fn refused(client: &Client, topic: Topic, asked: &impl Serialize) -> (CloseReason, String) {
    match exchange(client, 1, question(topic, asked, Bytes::new())).await {
        Control::Failed { reason, detail } => (reason, detail),
        other => panic!("{other:?}"),
    }
}

fn revoke(whom: Whom) -> RevokeQuestion {
    RevokeQuestion { whom, cluster: None, for_seconds: None }
}

async fn answers(stream: &mut MuxStream) {
    stream.write_all(b"x").await.unwrap();
    assert_eq!(timeout(SOON, stream.read_u8()).await.unwrap().unwrap(), b'x');
}

async fn ends(stream: &mut MuxStream) -> CloseReason {
    let ended = timeout(SOON, stream.read_u8()).await.expect("it ends").unwrap_err();
    ended.get_ref().and_then(|error| error.downcast_ref::<StreamError>()).unwrap().reason
}

impl Bench {
    async fn duty(&self, user: &str, duty: Duty, cluster: Option<ClusterId>) {
        let held =
            DutyAssignment { kind: SubjectKind::User, subject: user.into(), duty, cluster, expires_at: None };
        assert!(self.relay.registry().assign_duty(&held, SystemTime::now()).await.unwrap());
    }

    fn principal(&self, user: &str) -> String {
        format!("{}#{user}", self.issuer.url())
    }

    /// A token that says it was issued so many seconds from now; none where it does not say.
    fn issued(&self, user: &str, from_now: Option<i64>) -> Secret {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let mut claims =
            json!({ "iss": self.issuer.url(), "sub": user, "aud": "towline-relay", "exp": now + 3600 });
        if let Some(from_now) = from_now {
            claims["iat"] = now.saturating_add_signed(from_now).into();
        }
        let header = json!({ "alg": "ES256", "typ": "JWT" });
        Secret::new(self.issuer.sign(&header, &claims.to_string()).unwrap())
    }

    async fn with(&self, token: &Secret) -> Result<Client, CloseReason> {
        let run_key = SigningKey::generate();
        let identify = Identify::Client { token, run_key: &run_key, line: false };
        match self.session(identify, InstanceId::random()).await {
            Ok((connection, driver, _)) => Ok(Client { connection, driver }),
            Err(report) => Err(reason(&report)),
        }
    }
}

fn reason(report: &towline_tunnel::fault::Report) -> CloseReason {
    *CloseReason::ALL.iter().find(|reason| reason.fault() == report.fault).unwrap()
}

#[tokio::test]
async fn somebody_sees_what_they_may_open_however_much_that_is() {
    let bench = Bench::new(limits()).await;
    let agent = bench.echo("online").await;
    bench.allow("alice", agent.cluster()).await;
    let now = SystemTime::now();
    let registry = bench.relay.registry();
    for n in 0..120_u8 {
        let offer = EnrolmentOffer {
            secret_hash: [n; 32],
            name: format!("c{n:03}-with-quite-a-long-name-of-a-cluster").parse().unwrap(),
            replaces: false,
            expires_at: now + Duration::from_secs(60),
        };
        registry.offer_enrolment(&offer, now).await.unwrap();
        let key = SigningKey::generate().public();
        registry.enrol(&offer.secret_hash, &key, now).await.unwrap();
        if n % 10 != 0 {
            bench.allow("alice", key.cluster_id()).await;
        }
    }
    let (alice, bob) = (bench.client("alice").await, bench.client("bob").await);
    let (items, parts): (Vec<ClusterItem>, _) = list(&alice, Topic::CLUSTERS, &()).await;
    assert_eq!(items.len(), 109);
    assert!(parts > 1, "so many don't fit into one frame");
    assert!(items.is_sorted_by(|a, b| a.name < b.name), "each once");
    assert!(items.iter().all(|item| !item.name.starts_with("c010")), "nothing that she may not open");
    let online: Vec<_> = items.iter().filter(|item| item.online).collect();
    let [only] = online[..] else { panic!("{online:?}") };
    assert_eq!((only.name.as_str(), only.id.clone()), ("online", agent.cluster().to_string()));
    assert!(only.online_since.is_some() && only.until.is_none());
    let (none, _): (Vec<ClusterItem>, _) = list(&bob, Topic::CLUSTERS, &()).await;
    assert!(none.is_empty());
}

#[tokio::test]
async fn everybody_sees_their_own_audit_and_auditors_that_of_their_clusters_or_all() {
    let bench = Bench::new(limits()).await;
    let (a, b) = (bench.echo("a").await, bench.echo("b").await);
    for user in ["alice", "bob"] {
        for agent in [&a, &b] {
            bench.allow(user, agent.cluster()).await;
        }
    }
    bench.duty("carol", Duty::Auditor, Some(a.cluster())).await;
    bench.duty("dora", Duty::Auditor, None).await;
    bench.duty("erin", Duty::Operator, None).await;
    let mut open = Vec::new();
    let clients = [bench.client("alice").await, bench.client("bob").await];
    for client in &clients {
        for agent in [&a, &b] {
            let mut stream = client.open(agent.cluster());
            answers(&mut stream).await;
            open.push(stream);
        }
    }
    let all = AuditFilter { limit: 100, ..AuditFilter::default() };
    eventually("all is written", async || bench.relay.registry().audit(&all).await.unwrap().len() == 4).await;
    let seen = async |user: &str, asked: AuditQuestion| {
        let client = bench.client(user).await;
        let (records, _): (Vec<serde_json::Value>, _) = list(&client, Topic::AUDIT, &asked).await;
        let of =
            |record: &serde_json::Value| format!("{}@{}", record["user"], record["cluster"]).replace('"', "");
        let mut seen: Vec<_> = records.iter().map(of).collect();
        seen.sort();
        seen
    };
    let any = AuditQuestion::default;
    assert_eq!(seen("alice", any()).await, ["alice@a", "alice@b"]);
    assert_eq!(seen("carol", any()).await, ["alice@a", "bob@a"]);
    assert_eq!(seen("dora", any()).await, ["alice@a", "alice@b", "bob@a", "bob@b"]);
    assert!(seen("erin", any()).await.is_empty(), "an operator is no auditor");
    // What is asked for narrows what may be seen, and never widens it.
    assert!(seen("alice", AuditQuestion { user: Some("bob".into()), ..any() }).await.is_empty());
    let of_bob = AuditQuestion { user: Some("bob".into()), cluster: Some("b".into()), ..any() };
    assert_eq!(seen("dora", of_bob).await, ["bob@b"]);
    let later = AuditQuestion { since: Some(u64::from(u32::MAX)), ..any() };
    assert_eq!(seen("dora", later).await.len(), 4, "they go on");
}

#[tokio::test]
async fn an_operator_ends_somebodys_streams_at_once_and_their_tokens_stay_out() {
    let bench = Bench::new(limits()).await;
    let agent = bench.echo("edge").await;
    bench.allow("alice", agent.cluster()).await;
    bench.allow("bob", agent.cluster()).await;
    bench.duty("olga", Duty::Operator, None).await;
    let (old, silent) = (bench.issued("alice", Some(-100)), bench.issued("alice", None));
    let hers = [bench.with(&old).await.unwrap(), bench.with(&silent).await.unwrap()];
    let (bob, olga) = (bench.client("bob").await, bench.client("olga").await);
    let mut streams = hers.each_ref().map(|client| client.open(agent.cluster()));
    let mut his = bob.open(agent.cluster());
    for stream in streams.iter_mut().chain([&mut his]) {
        answers(stream).await;
    }
    let principal = bench.principal("alice");
    let answer: RevokeAnswer = ask(&olga, Topic::REVOKE, &revoke(Whom::Principal(principal.clone()))).await;
    assert_eq!((answer.sessions, answer.streams), (2, 2));
    assert_eq!(answer.whom, format!("principal {principal}"));
    for stream in &mut streams {
        assert_eq!(ends(stream).await, CloseReason::UserRevoked);
    }
    for client in &hers {
        timeout(SOON, client.connection.closed()).await.expect("the session ends");
        assert_eq!(client.connection.goaway().map(|said| said.reason), Some(CloseReason::UserRevoked));
    }
    for token in [&old, &silent] {
        assert_eq!(bench.with(token).await.map(|_| ()).unwrap_err(), CloseReason::UserRevoked);
    }
    let new = bench.with(&bench.issued("alice", Some(5))).await.expect("who logs in again is let in");
    answers(&mut new.open(agent.cluster())).await;
    answers(&mut his).await;

    let all = AuditFilter { user: Some(principal.clone()), limit: 100, ..AuditFilter::default() };
    eventually("the audit tells of it, and how her sessions ended", async || {
        let records = bench.relay.registry().audit(&all).await.unwrap();
        let told =
            records.iter().any(|of| of.verdict == "revoked" && of.why.contains(&bench.principal("olga")));
        let ended = records.iter().filter(|of| of.ending == CloseReason::UserRevoked.text()).count();
        told && ended == 2
    })
    .await;
}

#[tokio::test]
async fn whoever_is_locked_out_gets_in_with_no_token_of_that_time() {
    let bench = Bench::new(limits()).await;
    bench.duty("olga", Duty::Operator, None).await;
    let olga = bench.client("olga").await;
    let locked = RevokeQuestion { for_seconds: Some(3600), ..revoke(Whom::User("alice".into())) };
    let _answer: RevokeAnswer = ask(&olga, Topic::REVOKE, &locked).await;
    for from_now in [-5, 5, 3000] {
        let token = bench.issued("alice", Some(from_now));
        assert_eq!(bench.with(&token).await.map(|_| ()).unwrap_err(), CloseReason::UserRevoked, "{from_now}");
    }
    // A shorter one that comes later does not unlock.
    let _answer: RevokeAnswer = ask(&olga, Topic::REVOKE, &revoke(Whom::User("alice".into()))).await;
    let token = bench.issued("alice", Some(3000));
    assert_eq!(bench.with(&token).await.map(|_| ()).unwrap_err(), CloseReason::UserRevoked);
    bench.with(&bench.issued("alice", Some(3700))).await.expect("an issuer's later token");
    assert!(bench.relay.registry().forgive(SubjectKind::User, "alice", None).await.unwrap());
    bench.with(&token).await.expect("taken back");
    let too_long = RevokeQuestion { for_seconds: Some(31 * 86_400), ..revoke(Whom::User("alice".into())) };
    assert_eq!(refused(&olga, Topic::REVOKE, &too_long).await.0, CloseReason::QuestionInvalid);
}

#[tokio::test]
async fn one_ends_ones_own_sessions_everywhere_and_is_answered_first() {
    let bench = Bench::new(limits()).await;
    let agent = bench.echo("edge").await;
    bench.allow("alice", agent.cluster()).await;
    let token = bench.issued("alice", Some(-1));
    let (here, stolen) = (bench.with(&token).await.unwrap(), bench.with(&token).await.unwrap());
    let mut stream = stolen.open(agent.cluster());
    answers(&mut stream).await;
    let answer: RevokeAnswer = ask(&here, Topic::REVOKE, &revoke(Whom::Me)).await;
    assert_eq!((answer.sessions, answer.streams), (2, 1));
    assert_eq!(ends(&mut stream).await, CloseReason::UserRevoked);
    for client in [&here, &stolen] {
        timeout(SOON, client.connection.closed()).await.expect("the session ends");
    }
    assert_eq!(bench.with(&token).await.map(|_| ()).unwrap_err(), CloseReason::UserRevoked);
}

#[tokio::test]
async fn whoever_is_no_operator_ends_nobody_elses_sessions() {
    let bench = Bench::new(limits()).await;
    let (a, b) = (bench.echo("a").await, bench.echo("b").await);
    for agent in [&a, &b] {
        bench.allow("bob", agent.cluster()).await;
    }
    bench.duty("alice", Duty::Auditor, None).await;
    bench.duty("olga", Duty::Operator, Some(a.cluster())).await;
    let (alice, bob, olga) =
        (bench.client("alice").await, bench.client("bob").await, bench.client("olga").await);
    let (mut at_a, mut at_b) = (bob.open(a.cluster()), bob.open(b.cluster()));
    for stream in [&mut at_a, &mut at_b] {
        answers(stream).await;
    }
    let of_bob = || revoke(Whom::Principal(bench.principal("bob")));
    let at = |name: &str| RevokeQuestion { cluster: Some(name.into()), ..of_bob() };
    for (client, asked) in [(&alice, of_bob()), (&alice, at("a")), (&olga, of_bob()), (&olga, at("b"))] {
        let (reason, detail) = refused(client, Topic::REVOKE, &asked).await;
        assert_eq!(reason, CloseReason::QuestionForbidden, "{asked:?}");
        assert!(detail.starts_with("towline-relay role assign --user "), "{detail}");
    }
    // A username that looks like one's own is a name that anybody may choose.
    let mine_by_name = revoke(Whom::User("alice".into()));
    assert_eq!(refused(&alice, Topic::REVOKE, &mine_by_name).await.0, CloseReason::QuestionForbidden);
    assert_eq!(refused(&olga, Topic::REVOKE, &at("nowhere")).await.0, CloseReason::ClusterUnknown);
    let nobody = revoke(Whom::Principal("a\nb".into()));
    assert_eq!(refused(&olga, Topic::REVOKE, &nobody).await.0, CloseReason::QuestionInvalid);

    let answer: RevokeAnswer = ask(&olga, Topic::REVOKE, &at("a")).await;
    assert_eq!((answer.cluster.as_deref(), answer.streams), (Some("a"), 1));
    assert_eq!(ends(&mut at_a).await, CloseReason::UserRevoked);
    answers(&mut at_b).await;
    assert_eq!(ends(&mut bob.open(a.cluster())).await, CloseReason::UserRevoked, "nor is another one opened");
    let (items, _): (Vec<ClusterItem>, _) = list(&bob, Topic::CLUSTERS, &()).await;
    assert_eq!(items.iter().map(|item| item.name.as_str()).collect::<Vec<_>>(), ["b"]);
}

/// Each revocation has the relay read its registry again.
#[tokio::test]
async fn ones_own_sessions_are_revoked_where_one_may_go_and_not_all_the_time() {
    let bench = Bench::new(limits()).await;
    let (a, b) = (bench.echo("a").await, bench.echo("b").await);
    bench.allow("alice", a.cluster()).await;
    bench.duty("olga", Duty::Operator, None).await;
    let alice = bench.client("alice").await;
    let at = |name: &str| RevokeQuestion { cluster: Some(name.into()), ..revoke(Whom::Me) };
    let (reason, detail) = refused(&alice, Topic::REVOKE, &at("b")).await;
    assert_eq!(reason, CloseReason::Forbidden);
    assert!(detail.contains("--role cluster-user --cluster b"), "{detail}");
    assert!(bench.relay.registry().revocations().await.unwrap().is_empty());
    let _answer: RevokeAnswer = ask(&alice, Topic::REVOKE, &at("a")).await;
    let (reason, detail) = refused(&alice, Topic::REVOKE, &at("a")).await;
    assert_eq!(reason, CloseReason::LimitReached, "{detail}");
    assert_eq!(bench.relay.registry().revocations().await.unwrap().len(), 1);
    // An operator may at any time, and what is towards one cluster holds up nothing towards all.
    let olga = bench.client("olga").await;
    let hers =
        RevokeQuestion { cluster: Some("b".into()), ..revoke(Whom::Principal(bench.principal("alice"))) };
    for _ in 0..2 {
        let _answer: RevokeAnswer = ask(&olga, Topic::REVOKE, &hers).await;
    }
    let _answer: RevokeAnswer = ask(&alice, Topic::REVOKE, &revoke(Whom::Me)).await;
    drop(b);
}

/// `towline-relay revoke` writes to the file while the relay serves from it.
#[tokio::test]
async fn what_another_process_revokes_ends_too_and_a_restart_does_not_forget_it() {
    let bench = Bench::new(limits()).await;
    let agent = bench.echo("edge").await;
    bench.allow("alice", agent.cluster()).await;
    let token = bench.issued("alice", Some(-1));
    let alice = bench.with(&token).await.unwrap();
    let mut stream = alice.open(agent.cluster());
    answers(&mut stream).await;
    let elsewhere = Registry::open(&bench.config.data_dir).await.unwrap();
    let now = SystemTime::now();
    let revocation = Revocation {
        kind: SubjectKind::User,
        subject: "alice".into(),
        cluster: None,
        issued_until: now,
        revoked_at: now,
        revoked_by: "a test".into(),
    };
    assert!(elsewhere.revoke(&revocation).await.unwrap());
    elsewhere.close().await;
    assert_eq!(ends(&mut stream).await, CloseReason::UserRevoked);
    let Bench { folder, issuer, relay, config, ca } = bench;
    relay.drain().await;
    let relay = towline_relay::app::start(config.clone()).await.unwrap();
    std::fs::write(&ca, relay.public().ca_pem.as_ref().unwrap()).unwrap();
    let bench = Bench { folder, issuer, relay, config, ca };
    assert_eq!(bench.with(&token).await.map(|_| ()).unwrap_err(), CloseReason::UserRevoked);
}

#[tokio::test]
async fn what_is_no_question_is_refused_and_too_many_at_once_too() {
    let bench = Bench::new(limits()).await;
    let alice = bench.client("alice").await;
    let broken = Control::Ask { topic: Topic::AUDIT, cursor: Bytes::new(), body: Bytes::from_static(b"{") };
    let Control::Failed { reason, .. } = exchange(&alice, 1, broken).await else { panic!() };
    assert_eq!(reason, CloseReason::QuestionInvalid);
    let strange =
        question(Topic::AUDIT, &AuditQuestion::default(), Bytes::from_static(b"'; DROP TABLE audit"));
    let Control::Failed { reason, .. } = exchange(&alice, 2, strange).await else { panic!() };
    assert_eq!(reason, CloseReason::QuestionInvalid);
    assert_eq!(refused(&alice, Topic(19), &()).await.0, CloseReason::FrameUnknown);

    // All are answered, one way or the other, and the session goes on.
    for id in 10..60 {
        let asked = question(Topic::AUDIT, &AuditQuestion::default(), Bytes::new());
        assert!(alice.connection.control(asked.encode(id)));
    }
    let (mut answered, mut too_many) = (0, 0);
    for _ in 10..60 {
        let payload = timeout(SOON, alice.connection.next_control()).await.unwrap().unwrap();
        match Control::decode(&payload).unwrap().1 {
            Control::Answer { .. } => answered += 1,
            Control::Failed { reason: CloseReason::LimitReached, .. } => too_many += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answered + too_many, 50);
    assert!(answered >= 4 && too_many > 0, "{answered} answered, {too_many} too many");
    let agent = bench.agent("edge").await;
    assert!(agent.connection.control(question(Topic::CLUSTERS, &(), Bytes::new()).encode(7)));
    let payload = timeout(SOON, agent.connection.next_control()).await.unwrap().unwrap();
    assert!(
        matches!(Control::decode(&payload), Ok((7, Control::Failed { reason: CloseReason::Forbidden, .. }))),
        "agents ask nothing of this kind"
    );
}

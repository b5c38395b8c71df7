//! Documents that an organisation signed go with streams, and streams go with documents.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod common;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use common::{Agent, Bench, Client, SOON, limits};
use data_encoding::BASE64;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use towline_relay::registry::{Duty, DutyAssignment, Stored, SubjectKind};
use towline_tunnel::{
    ids::{ClusterId, StreamKey},
    keys::SigningKey,
    mux::{CloseReason, MuxStream, OpenRequest, StreamError},
    role::{
        Document, DocumentId, RoleName, Scope, SignedDocument, Statement, Subject, hash_offer,
        question::{LIST, ListQuestion, PUT, PutQuestion},
        read_offer, write_offer,
    },
    session::{control::Control, question::Topic},
};

struct World {
    bench: Bench,
    organisation: SigningKey,
    agent: Agent,
}

impl World {
    async fn new() -> Self {
        let bench = Bench::new(limits()).await;
        let organisation = SigningKey::generate();
        let registry = bench.relay.registry();
        registry.trust_key(&organisation.public(), SystemTime::now()).await.unwrap();
        let agent = bench.agent("edge").await;
        Self { bench, organisation, agent }
    }

    async fn put(&self, statement: Statement, life: Option<Duration>) -> DocumentId {
        let now = SystemTime::now();
        let signed = Document::new(statement, now, life).sign(&self.organisation);
        let signer = self.organisation.public();
        let stored = self.bench.relay.registry().store_document(&signed, &signer, "", now).await.unwrap();
        assert_eq!(stored, Stored::New);
        signed.document().id
    }

    async fn assign(&self, user: &str, role: RoleName, scope: &str, life: Option<Duration>) -> DocumentId {
        let subject = Subject::Principal(format!("{}#{user}", self.bench.issuer.url()));
        self.put(Statement::Assignment { subject, role, scope: scope.parse().unwrap() }, life).await
    }

    /// A stream that this user opened, with a byte on it, at both ends.
    async fn opened(&self, user: &str) -> (MuxStream, OpenRequest, MuxStream) {
        let client = self.bench.client(user).await;
        let mut stream = client.open(self.agent.cluster());
        stream.write_all(b"x").await.unwrap();
        let (request, mut far) = timeout(SOON, self.agent.connection.accept()).await.unwrap().unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'x');
        // The session is to live as long as the test.
        tokio::spawn(async move { client.connection.closed().await });
        (stream, request, far)
    }
}

fn ids(offer: Option<&Bytes>) -> Vec<DocumentId> {
    let documents = offer.map(|offer| read_offer(offer).unwrap()).unwrap_or_default();
    documents.into_iter().map(|bytes| SignedDocument::read(bytes).unwrap().document().id).collect()
}

async fn why_it_ends(stream: &mut MuxStream) -> CloseReason {
    let ended = timeout(SOON, stream.read_u8()).await.expect("it ends in time").unwrap_err();
    ended.get_ref().and_then(|error| error.downcast_ref::<StreamError>()).unwrap().reason
}

#[tokio::test]
async fn documents_go_with_the_streams_that_they_concern_and_the_ticket_vouches_for_them() {
    let world = World::new().await;
    let cluster = world.agent.cluster();
    let writer = world.assign("alice", RoleName::Writer, "group:eu", None).await;
    let placed = world.put(Statement::Placement { cluster, group: "eu/retail".parse().unwrap() }, None).await;
    let elsewhere = format!("cluster:{}", ClusterId::of_spki(b"other"));
    world.assign("alice", RoleName::Admin, &elsewhere, None).await;
    world.assign("carol", RoleName::Admin, "organisation", None).await;
    // A signed role opens the way: nobody assigned her any other.
    let (_near, request, _far) = world.opened("alice").await;
    assert_eq!(ids(request.offer.as_ref()), [placed, writer]);
    let ticket = request.ticket.unwrap();
    let hash = hash_offer(request.offer.as_ref().unwrap());
    assert!(ticket.windows(32).any(|part| part == hash), "the ticket has the offer's hash");

    world.bench.allow("bob", cluster).await;
    let (_near, request, _far) = world.opened("bob").await;
    assert_eq!(request.offer, None);
}

#[tokio::test]
async fn what_a_client_offers_for_itself_goes_nowhere() {
    let world = World::new().await;
    world.bench.allow("bob", world.agent.cluster()).await;
    let client = world.bench.client("bob").await;
    let mut request = OpenRequest::new(StreamKey::random(), world.agent.cluster());
    request.offer = write_offer(&[Bytes::from_static(b"a document of his own")]);
    let _stream = client.connection.open(request).unwrap();
    let (request, _far) = timeout(SOON, world.agent.connection.accept()).await.unwrap().unwrap();
    assert_eq!(request.offer, None);
}

#[tokio::test]
async fn streams_end_at_both_ends_when_a_document_goes_and_others_go_on() {
    let world = World::new().await;
    let cluster = world.agent.cluster();
    let hers = world.assign("alice", RoleName::Viewer, "organisation", None).await;
    world.assign("bob", RoleName::Viewer, "organisation", None).await;
    let (mut near, _, mut far) = world.opened("alice").await;
    let (mut others, _, mut others_far) = world.opened("bob").await;
    // The way stays open: it is the role that goes.
    world.bench.allow("alice", cluster).await;
    assert!(world.bench.relay.registry().withdraw_document(hers, "", SystemTime::now()).await.unwrap());
    assert_eq!(why_it_ends(&mut near).await, CloseReason::RoleEnded);
    assert_eq!(why_it_ends(&mut far).await, CloseReason::RoleEnded);
    others.write_all(b"y").await.unwrap();
    assert_eq!(timeout(SOON, others_far.read_u8()).await.unwrap().unwrap(), b'y');
    let (_near, request, _far) = world.opened("alice").await;
    assert_eq!(request.offer, None, "it is offered no longer");
}

#[tokio::test]
async fn streams_end_with_the_documents_time() {
    let world = World::new().await;
    world.assign("alice", RoleName::Viewer, "organisation", Some(Duration::from_secs(3))).await;
    world.bench.allow("alice", world.agent.cluster()).await;
    let (mut near, _, _far) = world.opened("alice").await;
    assert_eq!(why_it_ends(&mut near).await, CloseReason::RoleEnded);
}

async fn asked(client: &Client, topic: u16, body: &impl Serialize) -> Result<Value, CloseReason> {
    let body = serde_json::to_vec(body).unwrap().into();
    let ask = Control::Ask { topic: Topic(topic), cursor: Bytes::new(), body };
    assert!(client.connection.control(ask.encode(1)));
    let payload = timeout(SOON, client.connection.next_control()).await.unwrap().unwrap();
    match Control::decode(&payload).unwrap().1 {
        Control::Answer { body, .. } => Ok(serde_json::from_slice(&body).unwrap()),
        Control::Failed { reason, .. } => Err(reason),
        other => panic!("{other:?}"),
    }
}

fn put(signed: &SignedDocument) -> PutQuestion {
    PutQuestion { document: BASE64.encode(signed.bytes()) }
}

#[tokio::test]
async fn whoever_brings_a_signed_document_may_and_sees_what_names_them() {
    let world = World::new().await;
    let (alice, bob) = (world.bench.client("alice").await, world.bench.client("bob").await);
    let subject = Subject::Principal(format!("{}#alice", world.bench.issuer.url()));
    let statement = Statement::Assignment { subject, role: RoleName::Viewer, scope: Scope::Organisation };
    let document = Document::new(statement, SystemTime::now(), None);
    let forged = document.clone().sign(&SigningKey::generate());
    assert_eq!(asked(&bob, PUT, &put(&forged)).await, Err(CloseReason::DocumentRefused));
    let signed = document.sign(&world.organisation);
    assert_eq!(asked(&bob, PUT, &put(&signed)).await, Ok(json!("stored")));
    assert_eq!(asked(&bob, PUT, &put(&signed)).await, Ok(json!("known")));

    let own = ListQuestion { own: true };
    assert_eq!(asked(&alice, LIST, &own).await, Ok(json!([BASE64.encode(signed.bytes())])));
    assert_eq!(asked(&bob, LIST, &own).await, Ok(json!([])));
    let all = ListQuestion { own: false };
    assert_eq!(asked(&bob, LIST, &all).await, Err(CloseReason::QuestionForbidden));
    let duty = DutyAssignment {
        kind: SubjectKind::User,
        subject: "bob".into(),
        duty: Duty::Auditor,
        cluster: None,
        expires_at: None,
    };
    world.bench.relay.registry().assign_duty(&duty, SystemTime::now()).await.unwrap();
    assert_eq!(asked(&bob, LIST, &all).await, Ok(json!([BASE64.encode(signed.bytes())])));

    let removal = Statement::Removal { of: signed.document().id };
    let removal = Document::new(removal, SystemTime::now(), None).sign(&world.organisation);
    assert_eq!(asked(&alice, PUT, &put(&removal)).await, Ok(json!("removed")));
    assert_eq!(asked(&bob, PUT, &put(&removal)).await, Ok(json!("nothingToRemove")));
    assert_eq!(asked(&bob, PUT, &put(&signed)).await, Err(CloseReason::DocumentRefused));
    assert_eq!(asked(&alice, LIST, &own).await, Ok(json!([])));
}

#[tokio::test]
async fn where_a_cluster_stands_is_told_to_who_may_open_it() {
    let world = World::new().await;
    let cluster = world.agent.cluster();
    world.put(Statement::Placement { cluster, group: "eu/retail".parse().unwrap() }, None).await;
    let elsewhere = ClusterId::of_spki(b"elsewhere");
    world.put(Statement::Placement { cluster: elsewhere, group: "us".parse().unwrap() }, None).await;
    let seen = async |user: &str| {
        let client = world.bench.client(user).await;
        let listed = asked(&client, LIST, &ListQuestion { own: true }).await.unwrap();
        listed.as_array().unwrap().len()
    };
    assert_eq!(seen("alice").await, 0);
    world.bench.allow("alice", cluster).await;
    assert_eq!(seen("alice").await, 1, "hers, and not that of a cluster that she may not open");
    // By a signed role, which the placement itself lets count: both documents.
    world.assign("bob", RoleName::Viewer, "group:eu", None).await;
    assert_eq!(seen("bob").await, 2);
}

#[tokio::test]
async fn a_relay_that_knows_no_organisation_takes_nothing() {
    let bench = Bench::new(limits()).await;
    let client = bench.client("alice").await;
    let statement = Statement::Removal { of: DocumentId::random() };
    let signed = Document::new(statement, SystemTime::now(), None).sign(&SigningKey::generate());
    assert_eq!(asked(&client, PUT, &put(&signed)).await, Err(CloseReason::OrganisationKeyMissing));
}

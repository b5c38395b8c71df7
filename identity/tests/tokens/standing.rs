//! Whether a token or account is still good: a scripted endpoint for introspection, a scripted Graph, and everything that goes wrong there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use crate::support::{
    Reply, Scripted,
    entra::{ALICE, Cloud, TENANT},
    sign::{encode, seconds},
};
use bytes::Bytes;
use http::{Request, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use towline_identity::{
    Fetch, FetchError, IssuerSettings, Pending, Question, Standing, TrustSettings, Verifier,
};

/// A token that is well-formed: who asks about it has verified it before.
fn token(issuer: &str, mark: u32) -> String {
    let claims =
        json!({ "iss": issuer, "sub": "alice", "aud": "cluster", "exp": seconds(3600), "mark": mark });
    format!("{}.{}.c2ln", encode(r#"{"alg":"RS256"}"#), encode(claims.to_string()))
}

fn settings(folder: &TempDir, issuer: &str, ca: Option<&str>, more: &str) -> TrustSettings {
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let secret = path("secret", "s3cret:&more\n");
    let file = format!(
        "apiVersion: towline.dev/v1\nkind: IntrospectionConfiguration\nissuers:\n\
         - {{url: '{issuer}', clientId: agent, clientSecretFile: {}{more}}}\n",
        secret.display()
    );
    TrustSettings {
        oidc: Some(IssuerSettings {
            issuer_url: issuer.to_owned(),
            client_id: "cluster".into(),
            ca_file: ca.map(|pem| path("ca.pem", pem)),
            ..IssuerSettings::default()
        }),
        introspection_config: Some(path("introspection.yaml", &file)),
        ..TrustSettings::default()
    }
}

struct Bench {
    server: Scripted,
    verifier: Verifier,
    _folder: TempDir,
}

impl Bench {
    async fn start(more: &str) -> Self {
        let server = Scripted::start().await;
        server.on_json(
            "/.well-known/openid-configuration",
            json!({ "issuer": server.origin(), "jwks_uri": format!("{}/keys", server.origin()),
                "introspection_endpoint": format!("{}/introspect", server.origin()) }),
        );
        server.on_json("/introspect", json!({ "active": true }));
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(&folder, &server.origin(), Some(&server.ca_pem), more);
        let verifier = Verifier::new(settings.load().unwrap()).unwrap();
        Self { server, verifier, _folder: folder }
    }

    fn question(&self, mark: u32) -> Question {
        self.verifier.question(&token(&self.server.origin(), mark)).unwrap()
    }

    async fn standing(&self, mark: u32) -> Standing {
        self.verifier.standing(&self.question(mark), SystemTime::now()).await.0
    }
}

async fn advance(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

fn why(standing: Standing) -> String {
    match standing {
        Standing::Unknown(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_issuer_is_asked_where_its_metadata_says_as_rfc_7662_has_it() {
    let bench = Bench::start(", tokenTypeHint: access_token").await;
    assert_eq!(bench.standing(1).await, Standing::Good);
    let asked = bench.server.asked();
    let asked = asked.iter().find(|asked| asked.target == "/introspect").unwrap();
    let pair = data_encoding::BASE64.encode(b"agent:s3cret%3A%26more");
    assert_eq!(asked.method, "POST");
    assert_eq!(asked.authorization.as_deref(), Some(format!("Basic {pair}").as_str()));
    let sent = token(&bench.server.origin(), 1);
    assert_eq!(asked.body, format!("token={sent}&token_type_hint=access_token"));
    let told = format!("{:?}", bench.question(1));
    assert!(!told.contains(&sent) && told.contains("#alice"), "{told}");
}

#[tokio::test]
async fn an_endpoint_can_be_given_and_the_secret_can_stand_in_the_body() {
    let bench = Bench::start(", authentication: post").await;
    assert_eq!(bench.standing(1).await, Standing::Good);
    let asked = bench.server.asked();
    let asked = asked.last().unwrap();
    assert!(asked.body.ends_with("&client_id=agent&client_secret=s3cret%3A%26more"), "{}", asked.body);
    assert_eq!(asked.authorization, None);
    let server = Scripted::start().await;
    server.on_json("/other?x=y", json!({ "active": true }));
    let folder = tempfile::tempdir().unwrap();
    let more = format!(", endpoint: '{}/other?x=y'", server.origin());
    let settings = settings(&folder, &server.origin(), Some(&server.ca_pem), &more);
    let verifier = Verifier::new(settings.load().unwrap()).unwrap();
    let question = verifier.question(&token(&server.origin(), 1)).unwrap();
    assert_eq!(verifier.standing(&question, SystemTime::now()).await.0, Standing::Good);
    assert_eq!(server.count("/.well-known"), 0);
}

#[tokio::test]
async fn an_answer_is_believed_for_its_time_and_a_no_is_one() {
    let bench = Bench::start("").await;
    for _ in 0..10 {
        assert_eq!(bench.standing(1).await, Standing::Good);
    }
    assert_eq!(bench.server.count("/introspect"), 1);
    bench.server.on_json("/introspect", json!({ "active": false }));
    assert_eq!(bench.standing(1).await, Standing::Good);
    advance(20).await;
    assert_eq!(bench.verifier.known_standing(&bench.question(1)), None);
    let Standing::Ended(told) = bench.standing(1).await else { panic!("it goes on") };
    assert!(told.contains("the account may be disabled"), "{told}");
    assert_eq!(bench.verifier.known_standing(&bench.question(1)), Some(Standing::Ended(told)));
    assert_eq!(bench.server.count("/introspect"), 2);
}

/// Whatever is no answer says nothing of the user, and the next question comes soon.
#[tokio::test]
async fn only_a_definite_answer_counts() {
    let bench = Bench::start("").await;
    let refused = |status: u16, body: &str| Reply { status, retry_after: None, body: body.to_owned() };
    for (number, (reply, expected)) in [
        (Reply::status(503), "503"),
        (refused(401, r#"{"error":"invalid_client"}"#), "invalid_client"),
        (refused(400, r#"{"error":"unsupported_token_type"}"#), "unsupported_token_type"),
        (refused(401, r#"{"active":false}"#), "401"),
        (refused(302, ""), "302"),
        (refused(200, "<html>"), "no introspection"),
        (refused(200, r#"{"active":"false"}"#), "no introspection"),
        (refused(200, "{}"), "no introspection"),
    ]
    .into_iter()
    .enumerate()
    {
        let mark = u32::try_from(number).unwrap();
        bench.server.on("/introspect", move |_| reply.clone());
        let (standing, again) = bench.verifier.standing(&bench.question(mark), SystemTime::now()).await;
        let told = why(standing);
        assert!(told.contains(expected), "{told}");
        assert!(again <= Duration::from_secs(10), "{again:?}");
        bench.server.on_json("/introspect", json!({ "active": false }));
        why(bench.standing(mark).await);
        advance(10).await;
        assert!(matches!(bench.standing(mark).await, Standing::Ended(_)));
    }
    bench.server.on("/introspect", |_| Reply { retry_after: Some("25".into()), ..Reply::status(429) });
    let again = bench.verifier.standing(&bench.question(99), SystemTime::now()).await.1;
    assert!(again > Duration::from_secs(24), "{again:?}");
}

/// Answers when it is told to, and counts how many wait.
struct Held {
    now: AtomicUsize,
    most: AtomicUsize,
    all: AtomicUsize,
}

impl Fetch for Held {
    fn send(&self, request: Request<Bytes>) -> Pending<'_, Result<Response<Bytes>, FetchError>> {
        assert_eq!(request.uri().path(), "/introspect");
        Box::pin(async move {
            self.all.fetch_add(1, Ordering::Relaxed);
            let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
            self.most.fetch_max(now, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
            self.now.fetch_sub(1, Ordering::Relaxed);
            Ok(Response::new(Bytes::from_static(br#"{"active":true}"#)))
        })
    }
}

#[tokio::test(start_paused = true)]
async fn about_one_token_there_is_one_question_and_not_too_many_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let issuer = "https://idp.example";
    let settings = settings(&folder, issuer, None, ", endpoint: 'https://idp.example/introspect'");
    let held = Arc::new(Held { now: 0.into(), most: 0.into(), all: 0.into() });
    let fetch: Arc<dyn Fetch> = held.clone();
    let verifier = Arc::new(Verifier::with_fetch(settings.load().unwrap(), fetch).unwrap());
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..1000 {
        let verifier = Arc::clone(&verifier);
        asking.spawn(async move {
            let question = verifier.question(&token(issuer, number % 200)).unwrap();
            verifier.standing(&question, SystemTime::UNIX_EPOCH).await.0
        });
    }
    while let Some(standing) = asking.join_next().await {
        assert_eq!(standing.unwrap(), Standing::Good);
    }
    assert_eq!(held.all.load(Ordering::Relaxed), 200);
    let most = held.most.load(Ordering::Relaxed);
    assert!((16..=32).contains(&most), "{most}");
}

#[tokio::test]
async fn an_issuer_that_is_not_named_is_not_asked() {
    let bench = Bench::start("").await;
    assert_eq!(bench.verifier.question(&token("https://elsewhere.example", 1)), None);
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(&folder, "https://idp.example", None, "");
    let without = TrustSettings { introspection_config: None, ..settings.clone() };
    let question = token("https://idp.example", 1);
    assert_eq!(Verifier::new(without.load().unwrap()).unwrap().question(&question), None);
    settings.oidc.as_mut().unwrap().issuer_url = "https://idp.example/misspelt".into();
    let error = settings.load().unwrap_err().to_string();
    assert!(error.contains("introspection.yaml: \"https://idp.example\" is none of the trusted"), "{error}");
}

const CLIENT: &str = "88888888-8888-4888-8888-888888888888";

async fn entra(more: &str) -> (Cloud, Verifier) {
    let cloud = Cloud::start().await;
    let secret = cloud.folder.path().join("secret");
    std::fs::write(&secret, "s").unwrap();
    let verifier = cloud
        .verifier(&format!("graph: {{clientId: {CLIENT}, clientSecretFile: {}}}\n{more}", secret.display()));
    let path = format!("/{TENANT}/oauth2/v2.0/token");
    cloud.server.on_json(&path, json!({ "access_token": "graph-token", "expires_in": 3600 }));
    (cloud, verifier)
}

#[tokio::test]
async fn graph_says_whether_an_account_is_enabled() {
    let (cloud, verifier) = entra("checkAccounts: true\n").await;
    let standing = |changes: Value| {
        let question = verifier.question(&cloud.token(changes)).unwrap();
        let verifier = &verifier;
        async move { verifier.standing(&question, SystemTime::now()).await.0 }
    };
    cloud.server.on_json("/v1.0/users/", json!({ "accountEnabled": true }));
    assert_eq!(standing(json!({})).await, Standing::Good);
    // It is about the account: another token of the same is no other question.
    assert_eq!(standing(json!({ "mark": 1 })).await, Standing::Good);
    let asked = cloud.server.asked();
    let asked: Vec<_> = asked.iter().filter(|asked| asked.target.starts_with("/v1.0")).collect();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].target, format!("/v1.0/users/{ALICE}?$select=accountEnabled"));
    assert_eq!(asked[0].authorization.as_deref(), Some("Bearer graph-token"));
    cloud.server.on_json("/v1.0/users/", json!({ "accountEnabled": false }));
    advance(20).await;
    assert_eq!(
        standing(json!({})).await,
        Standing::Ended("Microsoft Entra ID says that the account is disabled".into())
    );
}

#[tokio::test]
async fn a_deleted_account_is_a_definite_answer_and_a_404_on_the_way_is_none() {
    let refused = |status: u16, body: Value| Reply { status, retry_after: None, body: body.to_string() };
    for (reply, ends) in [
        (refused(404, json!({ "error": { "code": "Request_ResourceNotFound" } })), true),
        (refused(404, json!({ "error": { "code": "UnknownError" } })), false),
        (Reply::status(404), false),
        (Reply::status(401), false),
        (refused(403, json!({ "error": { "code": "Authorization_RequestDenied" } })), false),
        (refused(200, json!({ "accountEnabled": null })), false),
        (refused(200, json!({})), false),
        (refused(200, json!([])), false),
        (Reply::status(500), false),
    ] {
        let (cloud, verifier) = entra("checkAccounts: true\n").await;
        let told = format!("{reply:?}");
        cloud.server.on("/v1.0/users/", move |_| reply.clone());
        let question = verifier.question(&cloud.token(json!({}))).unwrap();
        let (standing, _) = verifier.standing(&question, SystemTime::now()).await;
        assert_eq!(matches!(standing, Standing::Ended(_)), ends, "{told}: {standing:?}");
        assert_eq!(matches!(standing, Standing::Unknown(_)), !ends, "{told}: {standing:?}");
    }
}

#[tokio::test]
async fn an_application_is_a_service_principal_and_nobody_is_asked_unless_configured() {
    let (cloud, verifier) = entra("checkAccounts: true\n").await;
    cloud.server.on_json("/v1.0/servicePrincipals/", json!({ "accountEnabled": false }));
    let question = verifier.question(&cloud.app_token(json!({}))).unwrap();
    assert!(matches!(verifier.standing(&question, SystemTime::now()).await.0, Standing::Ended(_)));
    let (cloud, verifier) = entra("").await;
    assert_eq!(verifier.question(&cloud.token(json!({}))), None);
}

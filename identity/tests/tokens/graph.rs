//! Groups that a token can't hold: a scripted Microsoft Graph, with every credential, and everything that goes wrong.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use crate::support::{
    Reply, Scripted,
    entra::{ALICE, Cloud, GROUP, TENANT},
};
use serde_json::{Value, json};
use towline_identity::{Accepted, Note, Verifier};

const CLIENT: &str = "88888888-8888-4888-8888-888888888888";

fn overage() -> Value {
    json!({ "groups": null, "_claim_names": { "groups": "src1" },
        "_claim_sources": { "src1": { "endpoint": "https://graph.windows.net/x/getMemberObjects" } } })
}

fn group(number: usize) -> String {
    format!("99999999-9999-4999-8999-{number:012}")
}

fn page(cloud: &Cloud, from: usize, count: usize, next: bool) -> Value {
    let value: Vec<Value> = (from..from + count).map(|number| json!({ "id": group(number) })).collect();
    let mut page = json!({ "value": value });
    if next {
        page["@odata.nextLink"] = json!(format!("{}/v1.0/next?from={}", cloud.server.origin(), from + count));
    }
    page
}

struct Bench {
    cloud: Cloud,
    verifier: Verifier,
}

impl Bench {
    /// Graph by a client secret, with 3 groups.
    async fn start() -> Self {
        let cloud = Cloud::start().await;
        let secret = cloud.folder.path().join("secret");
        std::fs::write(&secret, "s3cret&more\n").unwrap();
        let verifier = cloud
            .verifier(&format!("graph: {{clientId: {CLIENT}, clientSecretFile: {}}}\n", secret.display()));
        cloud.server.on_json(&token_path(), json!({ "access_token": "graph-token", "expires_in": 3600 }));
        cloud.server.on_json("/v1.0/users/", page(&cloud, 0, 3, false));
        Self { cloud, verifier }
    }

    async fn check(&self, changes: Value) -> Accepted {
        self.verifier.check(&self.cloud.token(changes), SystemTime::now()).await.unwrap()
    }

    async fn alice(&self) -> Accepted {
        self.check(overage()).await
    }

    /// Another token of Alice's, as overage: nothing of it is remembered but what Graph said.
    async fn alice_again(&self, mark: u32) -> Accepted {
        let mut changes = overage();
        changes["mark"] = json!(mark);
        self.check(changes).await
    }
}

fn token_path() -> String {
    format!("/{TENANT}/oauth2/v2.0/token")
}

fn no_groups(accepted: &Accepted) -> String {
    assert_eq!(accepted.identity.groups, Vec::<String>::new());
    match accepted.notes.as_slice() {
        [Note::NoGroups(why)] => why.clone(),
        notes => panic!("{notes:?}"),
    }
}

#[tokio::test]
async fn groups_beyond_a_token_come_from_graph_page_by_page() {
    let bench = Bench::start().await;
    let pages: Vec<Value> = (0..3).map(|number| page(&bench.cloud, number * 100, 100, number < 2)).collect();
    bench.cloud.server.on_json("/v1.0/users/", pages[0].clone());
    bench.cloud.server.on_json("/v1.0/next?from=100", pages[1].clone());
    bench.cloud.server.on_json("/v1.0/next?from=200", pages[2].clone());
    let accepted = bench.alice().await;
    assert_eq!(accepted.notes, []);
    assert_eq!(accepted.identity.groups.len(), 300);
    assert_eq!(accepted.identity.groups[299], format!("entra:{}", group(299)));
    let asked = bench.cloud.server.asked();
    let first = asked.iter().find(|asked| asked.target.starts_with("/v1.0/users/")).unwrap();
    assert!(
        first.target.contains(&format!("/{ALICE}/transitiveMemberOf/microsoft.graph.group?")),
        "{first:?}"
    );
    assert_eq!(first.authorization.as_deref(), Some("Bearer graph-token"));
    let token = asked.iter().find(|asked| asked.target == token_path()).unwrap();
    assert_eq!((first.method.as_str(), token.method.as_str()), ("GET", "POST"));
    assert!(token.body.contains(&format!("client_id={CLIENT}")), "{}", token.body);
    assert!(token.body.contains("client_secret=s3cret%26more"), "{}", token.body);
    assert!(token.body.contains(".default"), "{}", token.body);
}

#[tokio::test]
async fn every_sign_of_overage_asks_graph_and_an_application_is_a_service_principal() {
    for changes in [overage(), json!({ "hasgroups": true }), json!({ "hasgroups": "true", "groups": null })] {
        let bench = Bench::start().await;
        assert_eq!(bench.check(changes.clone()).await.identity.groups.len(), 3, "{changes}");
    }
    let bench = Bench::start().await;
    let app = bench.cloud.verifier(&format!(
        "apps: {{ids: ['33333333-3333-4333-8333-333333333333']}}\ngraph: {{clientId: {CLIENT}, clientSecretFile: {}}}\n",
        bench.cloud.folder.path().join("secret").display()
    ));
    bench.cloud.server.on_json("/v1.0/servicePrincipals/", page(&bench.cloud, 7, 1, false));
    let token = bench.cloud.app_token(overage());
    let accepted = app.check(&token, SystemTime::now()).await.unwrap();
    assert_eq!(accepted.identity.groups, [format!("entra:{}", group(7))]);
}

#[tokio::test]
async fn t22_the_endpoint_that_a_token_names_is_never_asked() {
    let cloud = Cloud::start().await;
    let evil = Scripted::start().await;
    evil.on_json("/", json!({ "value": [GROUP] }));
    let verifier = cloud.verifier("");
    for endpoint in [format!("{}/getMemberObjects", evil.origin()), "http://169.254.169.254/".to_owned()] {
        let changes = json!({ "groups": null, "_claim_names": { "groups": "src1" },
            "_claim_sources": { "src1": { "endpoint": endpoint, "access_token": "bait" } } });
        let accepted = verifier.check(&cloud.token(changes), SystemTime::now()).await.unwrap();
        assert!(no_groups(&accepted).contains("no credential for Graph"));
    }
    assert_eq!(evil.asked().len(), 0);
    assert_eq!(cloud.server.count("/v1.0"), 0);
}

#[tokio::test]
async fn t22_with_a_credential_graph_is_asked_at_the_configured_host_only() {
    let bench = Bench::start().await;
    let evil = Scripted::start().await;
    let mut changes = overage();
    changes["_claim_sources"]["src1"]["endpoint"] = json!(format!("{}/x", evil.origin()));
    assert_eq!(bench.check(changes).await.identity.groups.len(), 3);
    // A next page elsewhere would carry the agent's token there.
    for next in [
        format!("{}/v1.0/next", evil.origin()),
        format!("{}.evil.example/v1.0/next", bench.cloud.server.origin()),
        format!("{}@evil.example/v1.0/next", bench.cloud.server.origin()),
    ] {
        let bench = Bench::start().await;
        bench.cloud.server.on_json("/v1.0/users/", json!({ "value": [], "@odata.nextLink": next }));
        assert!(no_groups(&bench.alice().await).contains("elsewhere"));
    }
    assert_eq!(evil.asked().len(), 0);
}

#[tokio::test]
async fn a_429_is_waited_for_if_it_is_short() {
    let bench = Bench::start().await;
    let good = page(&bench.cloud, 0, 3, false);
    let tries = Arc::new(Mutex::new(0));
    let count = Arc::clone(&tries);
    bench.cloud.server.on("/v1.0/users/", move |_| {
        *count.lock().unwrap() += 1;
        if *count.lock().unwrap() == 1 {
            Reply { retry_after: Some("1".into()), ..Reply::status(429) }
        } else {
            Reply::json(&good)
        }
    });
    assert_eq!(bench.alice().await.identity.groups.len(), 3);
    assert_eq!(*tries.lock().unwrap(), 2);
}

#[tokio::test]
async fn a_long_429_means_no_groups_and_no_question_before_its_time() {
    let bench = Bench::start().await;
    bench
        .cloud
        .server
        .on("/v1.0/users/", |_| Reply { retry_after: Some("120".into()), ..Reply::status(429) });
    assert!(no_groups(&bench.alice().await).contains("429"));
    let asked = bench.cloud.server.count("/v1.0");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(100)).await;
    tokio::time::resume();
    no_groups(&bench.alice_again(1).await);
    assert_eq!(bench.cloud.server.count("/v1.0"), asked);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(30)).await;
    tokio::time::resume();
    bench.cloud.server.on_json("/v1.0/users/", page(&bench.cloud, 0, 3, false));
    assert_eq!(bench.alice_again(2).await.identity.groups.len(), 3);
}

#[tokio::test]
async fn whatever_goes_wrong_at_graph_is_no_groups_and_a_line_in_the_audit() {
    let many = |cloud: &Cloud| page(cloud, 0, 1001, false);
    let endless = |cloud: &Cloud| json!({ "value": [], "@odata.nextLink": format!("{}/v1.0/users/again", cloud.server.origin()) });
    for (number, reply) in [
        Box::new(|_: &Cloud| Reply::status(500)) as Box<dyn Fn(&Cloud) -> Reply>,
        Box::new(|_| Reply::status(403)),
        Box::new(|_| Reply::status(302)),
        Box::new(|_| Reply { body: "<html>".into(), ..Reply::status(200) }),
        Box::new(|_| Reply::json(&json!({ "value": [{ "id": "system:masters" }] }))),
        Box::new(|_| Reply::json(&json!({ "value": "x" }))),
        Box::new(move |cloud| Reply::json(&many(cloud))),
        Box::new(move |cloud| Reply::json(&endless(cloud))),
    ]
    .into_iter()
    .enumerate()
    {
        let bench = Bench::start().await;
        let reply = reply(&bench.cloud);
        bench.cloud.server.on("/v1.0/users/", move |_| reply.clone());
        let why = no_groups(&bench.alice().await);
        assert!(!why.contains("graph-token"), "{number}: {why}");
    }
    let bench = Bench::start().await;
    bench.cloud.server.on(&token_path(), |_| Reply::status(401));
    assert!(no_groups(&bench.alice().await).contains("401"));
    let bench = Bench::start().await;
    std::fs::remove_file(bench.cloud.folder.path().join("secret")).unwrap();
    no_groups(&bench.alice().await);
}

#[tokio::test]
async fn groups_are_believed_for_five_minutes_and_the_credentials_token_longer() {
    let bench = Bench::start().await;
    assert_eq!(bench.alice().await.identity.groups.len(), 3);
    bench.cloud.server.on_json("/v1.0/users/", page(&bench.cloud, 0, 1, false));
    for mark in 0..5 {
        assert_eq!(bench.alice_again(mark).await.identity.groups.len(), 3);
    }
    assert_eq!(bench.cloud.server.count("/v1.0"), 1);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(301)).await;
    tokio::time::resume();
    assert_eq!(bench.alice_again(9).await.identity.groups.len(), 1);
    assert_eq!(bench.cloud.server.count(&token_path()), 1);
}

#[tokio::test]
async fn a_remembered_token_does_not_outlive_its_groups() {
    let bench = Bench::start().await;
    let token = bench.cloud.token(overage());
    let now = SystemTime::now();
    assert_eq!(bench.verifier.verify(&token, now).await.unwrap().groups.len(), 3);
    bench.cloud.server.on_json("/v1.0/users/", page(&bench.cloud, 0, 1, false));
    assert_eq!(bench.verifier.verify(&token, now).await.unwrap().groups.len(), 3);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(301)).await;
    tokio::time::resume();
    let later = now + Duration::from_secs(301);
    assert_eq!(bench.verifier.verify(&token, later).await.unwrap().groups.len(), 1);
}

#[tokio::test]
async fn a_certificate_a_federated_token_and_the_machine_itself_are_credentials() {
    let cloud = Cloud::start().await;
    let path = |name: &str| cloud.folder.path().join(name);
    cloud.server.on_json(&token_path(), json!({ "access_token": "graph-token", "expires_in": 3600 }));
    cloud.server.on_json("/v1.0/users/", page(&cloud, 0, 2, false));
    let machine = Scripted::start_plain().await;
    machine.on_json(
        "/metadata/identity/oauth2/token",
        json!({ "access_token": "machine-token", "expires_in": "3599" }),
    );

    let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let der = aws_lc_rs::encoding::AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&pair).unwrap();
    let pem = |kind: &str, der: &[u8]| {
        let text = data_encoding::BASE64.encode(der);
        format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
    };
    std::fs::write(path("key.pem"), pem("PRIVATE KEY", der.as_ref())).unwrap();
    std::fs::write(path("cert.pem"), pem("CERTIFICATE", b"a certificate is only hashed here")).unwrap();
    std::fs::write(path("federated"), "federated.token.text\n").unwrap();

    let ways = [
        format!(
            "clientId: {CLIENT}, certificateFile: {}, keyFile: {}",
            path("cert.pem").display(),
            path("key.pem").display()
        ),
        format!("clientId: {CLIENT}, federatedTokenFile: {}", path("federated").display()),
        format!("clientId: {CLIENT}, managedIdentity: true, managedIdentityEndpoint: '{}'", machine.address),
    ];
    for way in ways {
        let verifier = cloud.verifier(&format!("graph: {{{way}}}\n"));
        let accepted = verifier.check(&cloud.token(overage()), SystemTime::now()).await.unwrap();
        assert_eq!((accepted.identity.groups.len(), accepted.notes.len()), (2, 0), "{way}: {accepted:?}");
    }
    let asked = cloud.server.asked();
    let bodies: Vec<&String> =
        asked.iter().filter(|asked| asked.target == token_path()).map(|asked| &asked.body).collect();
    let assertion = |body: &str| {
        let (_, rest) = body.split_once("client_assertion=").unwrap();
        rest.split('&').next().unwrap().to_owned()
    };
    let signed = assertion(bodies[0]);
    let [header, claims, signature] = signed.split('.').collect::<Vec<_>>().try_into().unwrap();
    let part = |text: &str| -> Value {
        serde_json::from_slice(&data_encoding::BASE64URL_NOPAD.decode(text.as_bytes()).unwrap()).unwrap()
    };
    assert_eq!(part(header)["alg"], "PS256");
    assert_eq!(part(claims)["iss"], CLIENT);
    assert_eq!(part(claims)["aud"], format!("{}{}", cloud.server.origin(), token_path()));
    let public = aws_lc_rs::signature::KeyPair::public_key(&pair).as_ref().to_vec();
    aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::RSA_PSS_2048_8192_SHA256, public)
        .verify(
            format!("{header}.{claims}").as_bytes(),
            &data_encoding::BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap(),
        )
        .unwrap();
    assert_eq!(assertion(bodies[1]), "federated.token.text");
    let machine = machine.asked();
    assert_eq!(machine[0].metadata.as_deref(), Some("true"));
    assert!(machine[0].target.contains(&format!("client_id={CLIENT}")), "{machine:?}");
    assert!(asked.iter().any(|asked| asked.authorization.as_deref() == Some("Bearer machine-token")));
}

const PLATFORM: &str = "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa";
const RETAIL: &str = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb";

/// A directory: groups by id and name, as `getByIds` and a filter by name see it.
fn directory(cloud: &Cloud, groups: &[(&str, &str)]) {
    let groups: Vec<(String, String)> =
        groups.iter().map(|(id, name)| ((*id).to_owned(), (*name).to_owned())).collect();
    let known = groups.clone();
    cloud.server.on("/v1.0/directoryObjects/getByIds", move |asked| {
        let ids: Value = serde_json::from_str(&asked.body).unwrap();
        assert_eq!(ids["types"], json!(["group"]));
        let of = |id: &Value| {
            let (_, name) = known.iter().find(|(known, _)| Some(known.as_str()) == id.as_str())?;
            Some(json!({ "@odata.type": "#microsoft.graph.group", "id": id, "displayName": name }))
        };
        let value: Vec<Value> = ids["ids"].as_array().unwrap().iter().filter_map(of).collect();
        Reply::json(&json!({ "value": value }))
    });
    cloud.server.on("/v1.0/$batch", move |asked| {
        let batch: Value = serde_json::from_str(&asked.body).unwrap();
        let requests = batch["requests"].as_array().unwrap();
        assert!(requests.len() <= 20, "Graph takes no more");
        let answer = |request: &Value| {
            let url = request["url"].as_str().unwrap();
            let filter = url.strip_prefix("/groups?$filter=").unwrap().split('&').next().unwrap();
            let name = decoded(filter);
            let name = name.strip_prefix("displayName eq '").unwrap().strip_suffix('\'').unwrap();
            let name = name.replace("''", "'");
            // Graph compares without regard to case.
            let same = groups.iter().filter(|(_, known)| known.to_lowercase() == name.to_lowercase());
            let value: Vec<Value> = same.take(2).map(|(id, _)| json!({ "id": id })).collect();
            json!({ "id": request["id"], "status": 200, "body": { "value": value } })
        };
        // In any order.
        let answers: Vec<Value> = requests.iter().rev().map(answer).collect();
        Reply::json(&json!({ "responses": answers }))
    });
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut parts = text.split('%');
    bytes.extend(parts.next().unwrap().bytes());
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend(part[2..].bytes());
    }
    String::from_utf8(bytes).unwrap()
}

impl Bench {
    /// The same, where groups are called by their names.
    async fn named(groups: &[(&str, &str)]) -> Self {
        let Self { cloud, .. } = Self::start().await;
        let secret = cloud.folder.path().join("secret");
        let graph = format!("graph: {{clientId: {CLIENT}, clientSecretFile: {}}}", secret.display());
        let verifier = cloud.verifier(&format!("groupNames: true\n{graph}\n"));
        directory(&cloud, groups);
        Self { cloud, verifier }
    }

    /// A token of Alice's with these groups in it.
    async fn with(&self, ids: &[&str]) -> Accepted {
        self.check(json!({ "groups": ids })).await
    }
}

fn left_out(accepted: &Accepted) -> String {
    match accepted.notes.as_slice() {
        [Note::FewerGroups(which)] => which.clone(),
        notes => panic!("{notes:?}"),
    }
}

#[tokio::test]
async fn groups_are_called_by_their_names_where_that_is_wanted() {
    let bench = Bench::named(&[(PLATFORM, "Platform Team"), (RETAIL, "O'Reilly & Söhne 100%")]).await;
    let accepted = bench.with(&[RETAIL, PLATFORM]).await;
    assert_eq!(accepted.notes, []);
    assert_eq!(accepted.identity.groups, ["entra:O'Reilly & Söhne 100%", "entra:Platform Team"]);
    let asked = bench.cloud.server.asked();
    let graph: Vec<_> = asked.iter().filter(|asked| asked.target.starts_with("/v1.0")).collect();
    assert_eq!(graph.len(), 2, "{graph:?}");
    assert!(graph.iter().all(|asked| asked.authorization.as_deref() == Some("Bearer graph-token")));
    // A token without groups needs no question.
    assert!(bench.with(&[]).await.identity.groups.is_empty());
    assert_eq!(bench.cloud.server.count("/v1.0"), 2);
}

#[tokio::test]
async fn names_of_groups_beyond_a_token_come_in_batches() {
    let groups: Vec<(String, String)> =
        (0..45).map(|number| (group(number), format!("team {number}"))).collect();
    let borrowed: Vec<(&str, &str)> = groups.iter().map(|(id, name)| (id.as_str(), name.as_str())).collect();
    let bench = Bench::named(&borrowed).await;
    bench.cloud.server.on_json("/v1.0/users/", page(&bench.cloud, 0, 45, false));
    let accepted = bench.alice().await;
    assert_eq!(accepted.notes, []);
    assert_eq!(
        (accepted.identity.groups.len(), accepted.identity.groups[44].as_str()),
        (45, "entra:team 44")
    );
    assert_eq!(bench.cloud.server.count("/v1.0/directoryObjects"), 1);
    assert_eq!(bench.cloud.server.count("/v1.0/$batch"), 3);
}

/// Whoever may make groups in a tenant would otherwise be in any.
#[tokio::test]
async fn a_name_that_another_group_has_too_is_nobodys() {
    let other = group(1);
    let bench = Bench::named(&[(PLATFORM, "platform"), (&other, "Platform"), (RETAIL, "retail")]).await;
    let accepted = bench.with(&[PLATFORM, RETAIL]).await;
    assert_eq!(accepted.identity.groups, ["entra:retail"]);
    let said = left_out(&accepted);
    assert!(said.contains(PLATFORM) && said.contains("another group has the same name"), "{said}");
    let accepted = bench.with(&[&other]).await;
    assert_eq!(accepted.identity.groups, Vec::<String>::new());
    left_out(&accepted);
}

#[tokio::test]
async fn a_name_that_can_be_taken_for_something_else_is_left_out() {
    for (name, why) in [
        ("  ", "blank"),
        (" platform", "white space"),
        ("plat\nform", "control character"),
        (&*PLATFORM.to_uppercase(), "like an id"),
        (&"x".repeat(1024), "too long"),
        ("x,system:masters", "reserved"),
        ("x, towline:role:admin:abc", "reserved"),
    ] {
        let bench = Bench::named(&[(PLATFORM, name), (RETAIL, "retail")]).await;
        let accepted = bench.with(&[PLATFORM, RETAIL]).await;
        assert_eq!(accepted.identity.groups, ["entra:retail"], "{name:?}");
        let said = left_out(&accepted);
        assert!(said.contains(why), "{name:?}: {said}");
    }
    // Without a prefix the beginning counts, too; and a group that is gone has no name.
    let bench = Bench::named(&[(RETAIL, "SYSTEM:masters")]).await;
    let secret = bench.cloud.folder.path().join("secret");
    let bare = bench.cloud.verifier(&format!(
        "groupNames: true\ngroupsPrefix: ''\ngraph: {{clientId: {CLIENT}, clientSecretFile: {}}}\n",
        secret.display()
    ));
    let token = bench.cloud.token(json!({ "groups": [RETAIL, PLATFORM] }));
    let accepted = bare.check(&token, SystemTime::now()).await.unwrap();
    assert_eq!(accepted.identity.groups, Vec::<String>::new());
    let said = left_out(&accepted);
    assert!(said.contains("reserved") && said.contains("no such group"), "{said}");
}

#[tokio::test]
async fn without_names_there_are_no_groups_and_a_line_in_the_audit() {
    let page = |value: Value| move |_: &_| Reply::json(&json!({ "value": value }));
    let next = json!({ "value": [], "@odata.nextLink": "https://evil.example/v1.0/next" });
    type Script = Box<dyn Fn(&crate::support::Asked) -> Reply + Send>;
    let ids: Vec<(&str, Script)> = vec![
        ("403", Box::new(|_| Reply::status(403))),
        ("429", Box::new(|_| Reply { retry_after: Some("60".into()), ..Reply::status(429) })),
        ("no list", Box::new(|_| Reply { body: "<html>".into(), ..Reply::status(200) })),
        ("not asked for", Box::new(page(json!([{ "id": RETAIL, "displayName": "cluster-admins" }])))),
        ("elsewhere", Box::new(move |_| Reply::json(&next))),
    ];
    for (expected, script) in ids {
        let bench = Bench::named(&[(PLATFORM, "platform")]).await;
        bench.cloud.server.on("/v1.0/directoryObjects/getByIds", script);
        let why = no_groups(&bench.with(&[PLATFORM]).await);
        assert!(why.contains(expected) && !why.contains("graph-token"), "{expected}: {why}");
    }
    let of = |status: u16| json!({ "responses": [{ "id": "0", "status": status, "headers": { "Retry-After": "60" } }] });
    for (expected, body) in [
        ("answered 403 in a batch", of(403)),
        ("answered 429 in a batch", of(429)),
        ("unanswered", json!({ "responses": [] })),
        ("no list", json!({ "responses": [{ "id": "0", "status": 200, "body": { "value": "x" } }] })),
        ("no batch", json!([])),
    ] {
        let bench = Bench::named(&[(PLATFORM, "platform")]).await;
        bench.cloud.server.on_json("/v1.0/$batch", body);
        let why = no_groups(&bench.with(&[PLATFORM]).await);
        assert!(why.contains(expected), "{expected}: {why}");
        // Nor is Graph asked again for each token.
        let asked = bench.cloud.server.count("/v1.0");
        no_groups(&bench.check(json!({ "groups": [PLATFORM], "mark": 1 })).await);
        assert_eq!(bench.cloud.server.count("/v1.0"), asked);
    }
}

#[tokio::test]
async fn a_429_within_a_batch_is_waited_for_if_it_is_short() {
    let bench = Bench::named(&[(PLATFORM, "platform")]).await;
    let tries = Arc::new(Mutex::new(0));
    let count = Arc::clone(&tries);
    bench.cloud.server.on("/v1.0/$batch", move |_| {
        *count.lock().unwrap() += 1;
        let answer = match *count.lock().unwrap() {
            1 => json!({ "id": "0", "status": 429, "headers": { "retry-after": "1" } }),
            _ => json!({ "id": "0", "status": 200, "body": { "value": [{ "id": PLATFORM }] } }),
        };
        Reply::json(&json!({ "responses": [answer] }))
    });
    assert_eq!(bench.with(&[PLATFORM]).await.identity.groups, ["entra:platform"]);
    assert_eq!(*tries.lock().unwrap(), 2);
}

/// A group that was given another name is another group to RBAC.
#[tokio::test]
async fn names_are_believed_for_five_minutes_and_a_remembered_token_no_longer() {
    let bench = Bench::named(&[(PLATFORM, "platform"), (RETAIL, "retail")]).await;
    let token = bench.cloud.token(json!({ "groups": [PLATFORM] }));
    let now = SystemTime::now();
    assert_eq!(bench.verifier.verify(&token, now).await.unwrap().groups, ["entra:platform"]);
    let asked = bench.cloud.server.count("/v1.0");
    directory(&bench.cloud, &[(PLATFORM, "former"), (RETAIL, "retail")]);
    // Another user's token with the same group: nothing is asked.
    let bobs = json!({ "groups": [PLATFORM], "oid": "77777777-7777-4777-8777-777777777777" });
    assert_eq!(bench.check(bobs).await.identity.groups, ["entra:platform"]);
    assert_eq!(bench.cloud.server.count("/v1.0"), asked);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(301)).await;
    tokio::time::resume();
    let later = now + Duration::from_secs(301);
    assert_eq!(bench.verifier.verify(&token, later).await.unwrap().groups, ["entra:former"]);
}

//! Service accounts through the agent: tokens of theirs, and the agent's own two.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::{sync::Arc, time::Duration};

use data_encoding::BASE64URL_NOPAD;
use rustls::{RootCertStore, server::WebPkiClientVerifier};
use serde_json::{Value, json};
use support::{Bench, Cap, cap, fault, parts};
use tokio_util::task::AbortOnDropHandle;
use towline_agent::{
    dial::{Account, Apiserver, ApiserverConfig},
    forward::{Access, Mode},
    metrics::Metrics,
    rights::{Duties, Findings},
};
use towline_tunnel::mux::Ledger;

const ISSUER: &str = "https://kubernetes.default.svc";

/// A service account's token, as far as the agent can tell: kube-apiserver alone checks its signature.
fn account_token(changes: &Value) -> String {
    let mut claims = json!({
        "iss": ISSUER, "sub": "system:serviceaccount:ci:deployer", "exp": 253_402_300_000_u64,
        "aud": ["https://kubernetes.default.svc"],
    });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    let part = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
    format!("{}.{}.c2lnbmF0dXJl", part(r#"{"alg":"RS256","kid":"k"}"#), part(&claims.to_string()))
}

async fn cluster() -> Cap {
    Cap::new(|mut connection| async move {
        while let Some(head) = connection.head().await? {
            let answer = match head.starts_with("GET /.well-known/openid-configuration ") {
                true => cap::json("200 OK", &json!({ "issuer": ISSUER }).to_string()),
                false => cap::json("200 OK", "{}"),
            };
            connection.say(answer.as_bytes()).await?;
        }
        Ok(())
    })
    .await
}

fn head(token: &str, more: &str) -> String {
    format!(
        "GET /api/v1/pods HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n{more}\r\n"
    )
}

fn allowed() -> Access {
    Access { service_accounts: true, ..Access::default() }
}

#[tokio::test]
async fn a_service_accounts_token_goes_on_as_it_is_where_the_cluster_allows_it() {
    for mode in [Mode::Impersonate, Mode::PassThrough] {
        let bench = Bench::with(cluster().await, Access { mode, ..allowed() }).await;
        let token = account_token(&json!({}));
        for _ in 0..2 {
            let more = "Impersonate-User: bob\r\nX-Remote-User: admin\r\n";
            assert_eq!(parts(&bench.ask(&head(&token, more)).await).0, 200);
        }
        let seen = bench.cap.seen().concat();
        let requests: Vec<_> = seen.split("\r\n\r\n").filter(|head| head.contains("/api/v1/pods")).collect();
        assert_eq!(requests.len(), 2);
        for request in requests {
            assert!(request.contains(&format!("authorization: Bearer {token}")), "{request}");
            assert!(request.contains("impersonate-user: bob"), "kube-apiserver judges it itself: {request}");
            assert!(!request.contains("agent-token") && !request.contains("x-remote"), "{request}");
            assert!(!request.contains("impersonate-group") && !request.contains("alice"), "{request}");
        }
        assert_eq!(seen.matches("GET /.well-known").count(), 1, "the cluster's issuer is remembered");
        // Who opened the stream still calls as themselves.
        assert_eq!(parts(&bench.get("/api/v1/pods", "").await).0, 200);
    }
}

#[tokio::test]
async fn t07_a_service_accounts_token_reaches_nobody_where_nobody_allowed_it() {
    let bench = Bench::new(cluster().await).await;
    let answer = bench.ask(&head(&account_token(&json!({})), "")).await;
    assert_eq!(fault(&answer), (401, "TL-IDN-025".into()));
    assert_eq!(bench.cap.connections(), 0);
}

#[tokio::test]
async fn t05_t07_what_is_not_this_clusters_own_service_account_is_not_passed_on() {
    let bench = Bench::with(cluster().await, allowed()).await;
    let configured = bench.token_with(&json!({ "sub": "system:serviceaccount:ci:deployer" }));
    for (token, code) in [
        (account_token(&json!({ "iss": "https://other.example" })), "TL-IDN-025"),
        (account_token(&json!({ "iss": "kubernetes/serviceaccount" })), "TL-IDN-025"),
        (account_token(&json!({ "exp": null })), "TL-IDN-025"),
        (account_token(&json!({ "exp": 1 })), "TL-IDN-025"),
        (account_token(&json!({ "sub": "alice" })), "TL-IDN-002"),
        (account_token(&json!({ "sub": "system:node:a" })), "TL-IDN-002"),
        (account_token(&json!({ "sub": ["system:serviceaccount:a:b"] })), "TL-IDN-002"),
        (account_token(&json!({ "iss": bench.issuer.url() })), "TL-IDN-002"),
        (configured, "TL-IDN-007"),
        ("agent-token".to_owned(), "TL-IDN-002"),
    ] {
        assert_eq!(fault(&bench.ask(&head(&token, "")).await), (401, code.to_owned()));
    }
    let nominated = "Connection: impersonate-user\r\nImpersonate-User: bob\r\n";
    let answer = bench.ask(&head(&account_token(&json!({})), nominated)).await;
    assert_eq!(fault(&answer), (403, "TL-IDN-006".into()));
    let seen = bench.cap.seen().concat();
    assert!(!seen.contains("/api/v1/pods"), "{seen}");
}

#[tokio::test]
async fn an_unknown_cluster_issuer_lets_nothing_by() {
    let bench =
        Bench::with(Cap::answering("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\n{}").await, allowed()).await;
    let answer = bench.ask(&head(&account_token(&json!({})), "")).await;
    assert_eq!(fault(&answer), (503, "TL-IDN-005".into()));
    assert!(!bench.cap.seen().concat().contains("/api/v1/pods"));
}

/// kube-apiserver believes a client certificate before any token: whose right a request uses is then the certificate's.
#[tokio::test]
async fn only_the_agents_own_requests_show_its_client_certificate() {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let client_ca = authority.self_signed(&authority_key).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let issuer = rcgen::Issuer::from_params(&authority, &authority_key);
    let params = rcgen::CertificateParams::new(vec!["agent".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(client_ca.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = verifier.allow_unauthenticated().build().unwrap();
    let cap = Cap::with_clients(verifier, |mut connection| async move {
        while let Some(head) = connection.head().await? {
            let has = connection.stream.get_ref().1.peer_certificates().is_some();
            let answer = match head.contains("/deputy/token ") {
                true => json!({ "status": { "token": "deputy-token", "expirationTimestamp": "2999-01-01T00:00:00Z" } }),
                false => json!({ "certificate": has }),
            };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            connection.take(length.unwrap_or(0)).await?;
            connection.say(cap::json("200 OK", &answer.to_string()).as_bytes()).await?;
        }
        Ok(())
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = cap.kubeconfig(&folder);
    std::fs::write(folder.path().join("client.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.path().join("client.key"), key.serialize_pem()).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let user = "client-certificate: client.pem, client-key: client.key";
    std::fs::write(&path, text.replace("token: agent-token", user)).unwrap();
    let config = ApiserverConfig::Kubeconfig { path, context: None };
    let asked = async |apiserver: &Apiserver, account: Account| {
        let answer = apiserver.call_as(account, http::Method::GET, "/x", "", Vec::new()).await.unwrap().1;
        serde_json::from_slice::<Value>(&answer).unwrap()["certificate"].as_bool().unwrap()
    };
    let two = Apiserver::new(&config, Some("towline/deputy")).unwrap();
    let caller = Account::Caller("Bearer theirs".parse().unwrap());
    for _ in 0..2 {
        // Again and again: connections that wait are not mixed up either.
        assert!(asked(&two, Account::Own).await);
        assert!(!asked(&two, Account::Impersonator).await);
        assert!(!asked(&two, caller.clone()).await);
    }
    let one = Apiserver::new(&config, None).unwrap();
    assert!(asked(&one, Account::Impersonator).await, "there is no other account");
    assert!(!asked(&one, caller).await);
}

fn duties() -> Duties {
    Duties {
        mode: Mode::Impersonate,
        impersonator: Some("towline/deputy".into()),
        state_secret: Some("towline/state".into()),
        role_groups: Vec::new(),
    }
}

/// Proves these rights against a stand-in in whose place `allows` says what an account may.
async fn proven(
    duties: Duties,
    allows: fn(account: &str, attributes: &Value) -> bool,
    rules: fn(account: &str) -> Value,
) -> (String, String) {
    let cap = Cap::new(move |mut connection| async move {
        while let Some(head) = connection.head().await? {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let body: Value = serde_json::from_slice(&connection.take(length.unwrap_or(0)).await?).unwrap();
            let account = if head.contains("Bearer deputy-token") { "impersonator" } else { "own" };
            let status = if head.contains("/deputy/token ") {
                json!({ "token": "deputy-token", "expirationTimestamp": "2999-01-01T00:00:00Z" })
            } else if head.contains("selfsubjectaccessreviews") {
                json!({ "allowed": allows(account, &body["spec"]["resourceAttributes"]) })
            } else {
                rules(account)
            };
            connection
                .say(cap::json("201 Created", &json!({ "status": status }).to_string()).as_bytes())
                .await?;
        }
        Ok(())
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let config = ApiserverConfig::Kubeconfig { path: cap.kubeconfig(&folder), context: None };
    let apiserver = Apiserver::new(&config, duties.impersonator.as_deref()).unwrap();
    let (metrics, findings) = (Metrics::new(Ledger::new(1)), Findings::default());
    let (counted, found) = (metrics.clone(), findings.clone());
    let _proving = AbortOnDropHandle::new(tokio::spawn(async move {
        duties.keep_proving(&apiserver, &metrics, &findings).await;
    }));
    support::eventually("it is proven", || counted.page().contains("towline_agent_rights{")).await;
    // Lines come right after the numbers.
    let total: i64 = counts(&counted.page()).iter().sum();
    support::eventually("it is told", || found.to_string().lines().count() as i64 == total).await;
    (counted.page(), found.to_string())
}

fn counts(page: &str) -> Vec<i64> {
    let lines = page.lines().filter(|line| line.starts_with("towline_agent_rights{"));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
}

fn nothing(_: &str) -> Value {
    json!({ "resourceRules": [], "nonResourceRules": [], "incomplete": false })
}

#[tokio::test]
async fn rights_that_are_as_they_should_be_are_proven_and_nothing_is_told() {
    let (page, told) = proven(duties(), |_, _| true, nothing).await;
    assert_eq!((counts(&page), told.as_str()), (vec![0; 4], ""));
    for account in ["own", "impersonator"] {
        assert!(
            page.contains(&format!(r#"towline_agent_rights{{account="{account}",verdict="missing"}} 0"#))
        );
    }
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_and_either_form_of_impersonation_will_do() {
    let before_1_36 = |_: &str, attributes: &Value| attributes["verb"] != "impersonate:user-info";
    assert_eq!(proven(duties(), before_1_36, nothing).await.1, "");
    let from_1_36 = |_: &str, attributes: &Value| attributes["verb"] != "impersonate";
    assert_eq!(proven(duties(), from_1_36, nothing).await.1, "");
    let none = |account: &str, attributes: &Value| {
        account == "own" && attributes["resource"] != "subjectaccessreviews"
    };
    let (page, told) = proven(duties(), none, nothing).await;
    assert!(page.contains(r#"towline_agent_rights{account="impersonator",verdict="missing"} 4"#), "{page}");
    for line in told.lines() {
        assert!(line.contains("TL-IDN-023") && line.contains("deploy/agent.yaml"), "{line}");
    }
    for what in [
        "create subjectaccessreviews.authorization.k8s.io",
        "impersonate users",
        "uids",
        "towline.dev/original-user",
    ] {
        assert!(told.contains(what), "{what} is missing in {told}");
    }
    let passing =
        Duties { mode: Mode::PassThrough, impersonator: None, state_secret: None, role_groups: Vec::new() };
    assert_eq!(proven(passing, |_, _| false, nothing).await.1, "", "nothing is needed then");
}

#[tokio::test]
async fn a_right_that_is_too_much_is_named_and_ends_nothing() {
    let rules = |account: &str| match account {
        "own" => json!({ "resourceRules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }] }),
        _ => json!({
            "resourceRules": [{ "verbs": ["impersonate"], "apiGroups": [""], "resources": ["users", "groups"] }],
            "nonResourceRules": [{ "verbs": ["get"], "nonResourceURLs": ["/version"] }],
        }),
    };
    let (page, told) = proven(duties(), |_, _| true, rules).await;
    assert_eq!(counts(&page).iter().sum::<i64>(), 2, "{page}");
    for what in ["own: * * of *", "impersonator: impersonate users,groups", "TL-IDN-024"] {
        assert!(told.contains(what), "{what} is missing in {told}");
    }
}

#[tokio::test(start_paused = true)]
async fn rights_that_can_not_be_asked_for_are_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let cap = cluster().await;
    let config = ApiserverConfig::Kubeconfig { path: cap.kubeconfig(&folder), context: None };
    cap.kill();
    let apiserver = Apiserver::new(&config, None).unwrap();
    let (metrics, findings) = (Metrics::new(Ledger::new(1)), Findings::default());
    let alone = Duties { impersonator: None, ..duties() };
    let proving = alone.keep_proving(&apiserver, &metrics, &findings);
    let ended = tokio::time::timeout(Duration::from_secs(600), proving).await;
    assert!(ended.is_err() && findings.to_string().is_empty());
    assert!(!metrics.page().contains("towline_agent_rights{"), "nothing is known");
}

//! The verifier against a real issuer over TLS, with good and hostile tokens.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use serde_json::json;
use towline_identity::{
    IssuerConfig, IssuerSettings, Verifier, VerifyError,
    dev::{DevIssuer, TokenRequest},
};

struct Bench {
    issuer: DevIssuer,
    verifier: Verifier,
    ca: PathBuf,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.ca);
    }
}

fn settings(issuer: &DevIssuer, ca: &std::path::Path) -> IssuerSettings {
    IssuerSettings {
        issuer_url: issuer.url(),
        client_id: "cluster".into(),
        username_prefix: Some("-".into()),
        groups_claim: Some("groups".into()),
        ca_file: Some(ca.into()),
        signing_algs: vec!["ES256".into()],
        ..IssuerSettings::default()
    }
}

async fn bench() -> Bench {
    let issuer = DevIssuer::start(0).await.unwrap();
    let ca = std::env::temp_dir().join(format!(
        "towline-issuer-{}-{}.pem",
        std::process::id(),
        issuer.url().rsplit(':').next().unwrap()
    ));
    std::fs::write(&ca, issuer.ca_pem()).unwrap();
    let verifier = Verifier::new(IssuerConfig::parse(settings(&issuer, &ca)).unwrap()).unwrap();
    Bench { issuer, verifier, ca }
}

impl Bench {
    async fn claims(&self, claims: &str) -> Result<towline_identity::Identity, VerifyError> {
        let token = self.issuer.sign(&json!({ "alg": "ES256" }), claims).unwrap();
        self.verifier.verify(&token, SystemTime::now()).await
    }

    /// Sound claims with some changed.
    async fn changed(&self, changes: serde_json::Value) -> Result<towline_identity::Identity, VerifyError> {
        let mut request = TokenRequest::new("alice", &["dev"], "cluster");
        request.claims = changes.as_object().unwrap().clone().into_iter().collect();
        let token = self.issuer.mint(&request).unwrap();
        self.verifier.verify(&token, SystemTime::now()).await
    }
}

#[tokio::test]
async fn a_good_token_becomes_its_user_and_costs_the_network_once() {
    let bench = bench().await;
    for _ in 0..50 {
        let token = bench.issuer.mint(&TokenRequest::new("alice", &["dev", "ops"], "cluster")).unwrap();
        let identity = bench.verifier.verify(&token, SystemTime::now()).await.unwrap();
        assert_eq!(
            (identity.username.as_str(), identity.groups),
            ("alice", vec!["dev".to_owned(), "ops".to_owned()])
        );
        assert_eq!(identity.principal.to_string(), format!("{}#alice", bench.issuer.url()));
    }
    assert_eq!(bench.issuer.requests(), 2);
}

#[tokio::test]
async fn t04_a_blank_name_or_group_is_nobody() {
    let bench = bench().await;
    for changes in [
        json!({"sub": ""}),
        json!({"sub": "  "}),
        json!({"sub": 7}),
        json!({"sub": null}),
        json!({"groups": [""]}),
        json!({"groups": ["dev", " "]}),
        json!({"groups": [7]}),
        json!({"groups": {"a": 1}}),
    ] {
        assert!(matches!(bench.changed(changes.clone()).await, Err(VerifyError::Claim(..))), "{changes}");
    }
}

#[tokio::test]
async fn t06_control_characters_in_names_are_refused() {
    let bench = bench().await;
    for bad in ["a\r\nX: y", "a\nb", "a\0b", "a\u{7f}"] {
        assert!(matches!(bench.changed(json!({"sub": bad})).await, Err(VerifyError::Claim(..))));
        assert!(matches!(bench.changed(json!({"groups": [bad]})).await, Err(VerifyError::Claim(..))));
    }
}

#[tokio::test]
async fn t07_reserved_names_are_never_a_tokens_to_give() {
    let bench = bench().await;
    for changes in [
        json!({"sub": "system:admin"}),
        json!({"sub": "system:serviceaccount:kube-system:default"}),
        json!({"groups": ["system:masters"]}),
        json!({"groups": ["dev,system:masters"]}),
        json!({"groups": ["SYSTEM:masters"]}),
        json!({"groups": ["towline:role:admin"]}),
    ] {
        assert!(matches!(bench.changed(changes.clone()).await, Err(VerifyError::Reserved(_))), "{changes}");
    }
}

#[tokio::test]
async fn t16_forged_signatures_and_algorithms_are_refused_without_asking_anyone() {
    let bench = bench().await;
    let good = bench.issuer.mint(&TokenRequest::new("alice", &[], "cluster")).unwrap();
    bench.verifier.verify(&good, SystemTime::now()).await.unwrap();
    let asked = bench.issuer.requests();
    let verify = |token: String| async { bench.verifier.verify(&{ token }, SystemTime::now()).await };

    let (body, _) = good.rsplit_once('.').unwrap();
    assert_eq!(verify(format!("{body}.{}", "A".repeat(86))).await, Err(VerifyError::Signature));
    assert!(matches!(verify(format!("{body}.")).await, Err(VerifyError::Signature)));
    let hmac = bench.issuer.sign(&json!({"alg": "HS256"}), "{}").unwrap();
    assert!(matches!(verify(hmac).await, Err(VerifyError::Malformed(_))));
    let none = bench.issuer.sign(&json!({"alg": "none"}), "{}").unwrap();
    assert!(matches!(verify(none).await, Err(VerifyError::Malformed(_))));
    let jku = bench.issuer.sign(&json!({"alg": "ES256", "jku": "https://evil"}), "{}").unwrap();
    assert!(matches!(verify(jku).await, Err(VerifyError::Malformed(_))));
    assert_eq!(bench.issuer.requests(), asked);

    let stranger = DevIssuer::start(0).await.unwrap();
    let mut forged = TokenRequest::new("alice", &[], "cluster");
    forged.claims.insert("iss".into(), json!(bench.issuer.url()));
    let forged = stranger.mint(&forged).unwrap();
    assert_eq!(verify(forged).await, Err(VerifyError::Signature));
}

#[tokio::test]
async fn t17_times_must_be_whole_numbers_and_now() {
    let bench = bench().await;
    for changes in [
        json!({"exp": "1900000000"}),
        json!({"exp": -1}),
        json!({"exp": 1.5e9}),
        json!({"exp": null}),
        json!({"nbf": "1"}),
    ] {
        assert!(matches!(bench.changed(changes.clone()).await, Err(VerifyError::Claim(..))), "{changes}");
    }
    assert!(matches!(
        bench.claims(&format!(r#"{{"iss":"{}","aud":"cluster","sub":"a"}}"#, bench.issuer.url())).await,
        Err(VerifyError::Claim("exp", _))
    ));
    assert!(matches!(bench.claims(r#"{"exp":1,"exp":2}"#).await, Err(VerifyError::Malformed(_))));
    assert_eq!(bench.changed(json!({"exp": 1_000_000_000, "nbf": 1})).await, Err(VerifyError::Expired));
    assert_eq!(
        bench.changed(json!({"nbf": 4_000_000_000u64, "exp": 4_000_000_001u64})).await,
        Err(VerifyError::NotYetValid)
    );
}

#[tokio::test]
async fn a_token_that_was_accepted_is_refused_once_it_is_over() {
    let bench = bench().await;
    let token = bench.issuer.mint(&TokenRequest::new("alice", &[], "cluster")).unwrap();
    let now = SystemTime::now();
    bench.verifier.verify(&token, now).await.unwrap();
    let later = now + Duration::from_secs(3600 + 61);
    assert_eq!(bench.verifier.verify(&token, later).await, Err(VerifyError::Expired));
}

#[tokio::test]
async fn tokens_for_other_audiences_and_issuers_are_refused() {
    let bench = bench().await;
    assert!(matches!(bench.changed(json!({"aud": "relay"})).await, Err(VerifyError::Audience(_))));
    assert!(matches!(bench.changed(json!({"aud": []})).await, Err(VerifyError::Audience(_))));
    assert!(matches!(bench.changed(json!({"aud": ["cluster", 7]})).await, Err(VerifyError::Audience(_))));
    assert!(bench.changed(json!({"aud": ["cluster", "other"]})).await.is_ok());
    assert_eq!(bench.changed(json!({"iss": "https://other"})).await, Err(VerifyError::Issuer));
}

#[tokio::test]
async fn t42_metadata_under_another_authority_is_refused() {
    let bench = bench().await;
    let other = DevIssuer::start(0).await.unwrap();
    let verifier = Verifier::new(IssuerConfig::parse(settings(&other, &bench.ca)).unwrap()).unwrap();
    let token = other.mint(&TokenRequest::new("alice", &[], "cluster")).unwrap();
    let error = verifier.verify(&token, SystemTime::now()).await.unwrap_err();
    assert!(matches!(&error, VerifyError::IssuerUnreachable(_)), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test]
async fn t49_a_token_bound_to_a_key_is_no_bearer_token() {
    let bench = bench().await;
    assert!(matches!(bench.changed(json!({"cnf": {"jkt": "x"}})).await, Err(VerifyError::Claim("cnf", _))));
}

#[tokio::test]
async fn a_rotated_key_is_found_and_unknown_keys_ask_the_issuer_once() {
    let bench = bench().await;
    bench.changed(json!({})).await.unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(301)).await;
    tokio::time::resume();
    bench.issuer.rotate().unwrap();
    bench.changed(json!({})).await.unwrap();
    let asked = bench.issuer.requests();
    for number in 0..500 {
        let token = bench
            .issuer
            .sign(
                &json!({"alg": "ES256", "kid": format!("random-{number}")}),
                &format!(r#"{{"iss":"{}"}}"#, bench.issuer.url()),
            )
            .unwrap();
        assert_eq!(bench.verifier.verify(&token, SystemTime::now()).await, Err(VerifyError::UnknownKey));
    }
    assert_eq!(bench.issuer.requests(), asked);
}

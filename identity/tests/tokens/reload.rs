//! The configuration changes while the program runs.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use crate::support::{
    Reply, Scripted,
    sign::{Signer, seconds},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use towline_identity::{Algorithm, TrustSettings, Verifier, VerifyError};

fn claims(issuer: &str) -> Value {
    json!({ "iss": issuer, "aud": "cluster", "sub": "alice", "exp": seconds(3600) })
}

fn write(path: &Path, server: &Scripted, prefix: &str) {
    let pem = server.ca_pem.replace('\n', "\n      ");
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer:\n    url: {}\n    \
         audiences: [cluster]\n    certificateAuthority: |\n      {pem}\n  claimMappings:\n    username: {{claim: sub, prefix: '{prefix}'}}\n",
        server.origin(),
    );
    std::fs::write(path, text).unwrap();
}

/// An issuer that a file trusts, and a token of its.
struct Trusted {
    server: Scripted,
    path: PathBuf,
    settings: TrustSettings,
    verifier: Arc<Verifier>,
    token: String,
    _folder: TempDir,
}

async fn trusted() -> Trusted {
    let server = Scripted::start().await;
    let signer = Signer::new("k", Algorithm::ES256);
    server.publish("", &server.origin(), &[signer.jwk()]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("authentication.yaml");
    write(&path, &server, "one:");
    let settings = TrustSettings { authentication_config: Some(path.clone()), ..TrustSettings::default() };
    let verifier = Arc::new(Verifier::new(settings.load().unwrap()).unwrap());
    let token = signer.token(&claims(&server.origin()));
    Trusted { server, path, settings, verifier, token, _folder: folder }
}

#[tokio::test]
async fn a_changed_file_is_taken_up_and_a_bad_one_keeps_the_good_one() {
    let Trusted { server, path, settings, verifier, token, _folder } = trusted().await;
    let username = || async { verifier.verify(&token, SystemTime::now()).await.map(|user| user.username) };
    assert_eq!(username().await.as_deref(), Ok("one:alice"));
    // From here on the issuer is away: a change of the rules must not cost its keys.
    server.on("/", |_| Reply::status(503));

    let (owner, told) = (Arc::clone(&verifier), settings.clone());
    let _keeping = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        owner.keep_loaded(&told).await;
    }));
    let look = || async {
        tokio::task::yield_now().await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(11)).await;
        tokio::time::resume();
        tokio::task::yield_now().await;
    };
    look().await;
    write(&path, &server, "two:");
    let deadline = Instant::now() + Duration::from_secs(5);
    while username().await.as_deref() != Ok("two:alice") {
        assert!(Instant::now() < deadline, "the change was not taken up");
        look().await;
    }
    for bad in
        ["", "jwt: [", "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt: []\n"]
    {
        std::fs::write(&path, bad).unwrap();
        assert!(settings.load().is_err());
        look().await;
        look().await;
        assert_eq!(username().await.as_deref(), Ok("two:alice"));
    }
    std::fs::remove_file(&path).unwrap();
    look().await;
    assert_eq!(username().await.as_deref(), Ok("two:alice"));
    write(&path, &server, "three:");
    let deadline = Instant::now() + Duration::from_secs(5);
    while username().await.as_deref() != Ok("three:alice") {
        assert!(Instant::now() < deadline, "the change was not taken up");
        look().await;
    }
}

#[tokio::test]
async fn an_issuer_that_is_no_longer_trusted_is_refused_at_once() {
    let Trusted { path, settings, verifier, token, .. } = &trusted().await;
    assert!(verifier.verify(token, SystemTime::now()).await.is_ok());
    let other = Scripted::start().await;
    write(path, &other, "one:");
    verifier.replace(settings.load().unwrap()).unwrap();
    assert_eq!(verifier.verify(token, SystemTime::now()).await, Err(VerifyError::Issuer));
}

#[test]
fn flags_and_a_file_exclude_each_other_and_faults_name_their_file() {
    let settings = TrustSettings {
        oidc: Some(towline_identity::IssuerSettings {
            issuer_url: "https://idp".into(),
            client_id: "c".into(),
            ..Default::default()
        }),
        authentication_config: Some("/nowhere/authentication.yaml".into()),
        entra_config: Some("/nowhere/entra.yaml".into()),
        ..TrustSettings::default()
    };
    let error = settings.load().unwrap_err().to_string();
    assert!(error.contains("exclude each other"), "{error}");
    assert!(error.contains("--authentication-config /nowhere/authentication.yaml: "), "{error}");
    assert!(error.contains("--entra-config /nowhere/entra.yaml: "), "{error}");
}

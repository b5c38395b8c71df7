//! Keys of every kind, several issuers at once, key sets that come and go, and how often issuers are asked.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use crate::support::{
    Reply, Scripted,
    sign::{Signer, encode, seconds, with},
};
use serde_json::{Value, json};
use towline_identity::{
    Algorithm, ByteStream, Dial, IssuerConfig, IssuerSettings, Pending, Trust, Verifier, VerifyError,
};

fn claims(issuer: &str) -> Value {
    json!({ "iss": issuer, "aud": "cluster", "sub": "alice", "exp": seconds(3600) })
}

fn config(server: &Scripted, path: &str, prefix: &str, algorithms: &[Algorithm]) -> IssuerConfig {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &server.ca_pem).unwrap();
    IssuerConfig::parse(IssuerSettings {
        issuer_url: format!("{}{path}", server.origin()),
        client_id: "cluster".into(),
        username_prefix: Some(prefix.into()),
        ca_file: Some(file.path().into()),
        signing_algs: algorithms.iter().map(ToString::to_string).collect(),
        ..IssuerSettings::default()
    })
    .unwrap()
}

struct Bench {
    server: Scripted,
    signer: Signer,
    verifier: Verifier,
}

impl Bench {
    async fn start(algorithm: Algorithm) -> Self {
        let server = Scripted::start().await;
        let signer = Signer::new("k1", algorithm);
        server.publish("", &server.origin(), &[signer.jwk()]);
        let verifier = Verifier::new(config(&server, "", "-", &[algorithm])).unwrap();
        Self { server, signer, verifier }
    }

    async fn verify(&self, token: &str) -> Result<String, VerifyError> {
        self.verifier.verify(token, SystemTime::now()).await.map(|identity| identity.username)
    }

    fn token(&self) -> String {
        self.signer.token(&claims(&self.server.origin()))
    }
}

#[tokio::test]
async fn each_algorithm_verifies_its_own_signatures_and_no_other() {
    for algorithm in Algorithm::ALL {
        let bench = Bench::start(algorithm).await;
        let token = bench.token();
        assert_eq!(bench.verify(&token).await.as_deref(), Ok("alice"), "{algorithm}");
        let (text, signature) = token.rsplit_once('.').unwrap();
        let mut bytes = data_encoding::BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap();
        bytes[10] ^= 1;
        assert_eq!(bench.verify(&format!("{text}.{}", encode(&bytes))).await, Err(VerifyError::Signature));
        for other in Algorithm::ALL.into_iter().filter(|other| *other != algorithm) {
            let lie = json!({ "alg": other.name(), "kid": "k1" });
            let forged = bench.signer.sign(&lie, &claims(&bench.server.origin()));
            assert_eq!(bench.verify(&forged).await, Err(VerifyError::Algorithm), "{algorithm} as {other}");
        }
    }
}

#[tokio::test]
async fn t16_a_key_is_for_one_kind_of_algorithm_whatever_is_configured() {
    let server = Scripted::start().await;
    let signer = Signer::new("k1", Algorithm::RS256);
    server.publish("", &server.origin(), &[with(signer.jwk(), json!({ "alg": "RS256" }))]);
    let verifier = Verifier::new(config(&server, "", "-", &Algorithm::ALL)).unwrap();
    let now = SystemTime::now();
    assert!(verifier.verify(&signer.token(&claims(&server.origin())), now).await.is_ok());
    for other in ["ES256", "PS256", "RS512", "EdDSA"] {
        let forged = signer.sign(&json!({ "alg": other, "kid": "k1" }), &claims(&server.origin()));
        assert_eq!(verifier.verify(&forged, now).await, Err(VerifyError::Algorithm), "{other}");
    }
}

#[tokio::test]
async fn t16_hmac_with_the_public_key_is_no_signature() {
    let bench = Bench::start(Algorithm::RS256).await;
    bench.verify(&bench.token()).await.unwrap();
    let asked = bench.server.asked().len();
    let jwk = bench.signer.jwk();
    for secret in [jwk.to_string(), jwk["n"].as_str().unwrap().to_owned()] {
        let text = format!(
            "{}.{}",
            encode(json!({ "alg": "HS256", "kid": "k1" }).to_string()),
            encode(claims(&bench.server.origin()).to_string())
        );
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
        let signature = aws_lc_rs::hmac::sign(&key, text.as_bytes());
        let forged = format!("{text}.{}", encode(signature.as_ref()));
        assert!(matches!(bench.verify(&forged).await, Err(VerifyError::Malformed(_))));
    }
    assert_eq!(bench.server.asked().len(), asked);
}

#[tokio::test]
async fn t16_a_key_that_a_token_brings_along_is_never_looked_at() {
    let bench = Bench::start(Algorithm::RS256).await;
    let own = Signer::new("own", Algorithm::RS256);
    let evil = Scripted::start().await;
    let place = format!("{}/keys", evil.origin());
    for (name, value) in [
        ("jwk", own.jwk()),
        ("jku", json!(place)),
        ("x5u", json!(place)),
        ("crit", json!(["exp"])),
        ("b64", json!(false)),
        ("enc", json!("A128GCM")),
    ] {
        let mut header = json!({ "alg": "RS256", "kid": "own" });
        header[name] = value;
        let forged = own.sign(&header, &claims(&bench.server.origin()));
        assert!(matches!(bench.verify(&forged).await, Err(VerifyError::Malformed(_))), "{name}");
    }
    assert_eq!((bench.server.asked().len(), evil.asked().len()), (0, 0));
}

#[tokio::test]
async fn t16_a_token_of_a_million_dots_is_refused_in_under_5_ms() {
    let bench = Bench::start(Algorithm::RS256).await;
    // As many claims as a token holds, each another: to find one twice must not take the square of their number.
    let many: Vec<String> = (0..1500).map(|number| format!(r#""{number:x}":0"#)).collect();
    let header = encode(r#"{"alg":"RS256","kid":"k1"}"#);
    let crowd = format!("{header}.{}.AAAA", encode(format!("{{{}}}", many.join(","))));
    for hostile in [".".repeat(1_000_000), ".".repeat(16_384), crowd] {
        let mut quickest = Duration::MAX;
        for _try in 0..5 {
            let begun = Instant::now();
            assert!(bench.verify(&hostile).await.is_err());
            quickest = quickest.min(begun.elapsed());
        }
        assert!(quickest < Duration::from_millis(5), "{quickest:?} for {} bytes", hostile.len());
    }
    assert_eq!(bench.server.asked().len(), 0);
}

#[tokio::test]
async fn ten_thousand_random_key_ids_cause_one_fetch() {
    let bench = Bench::start(Algorithm::RS256).await;
    bench.verify(&bench.token()).await.unwrap();
    // The first five minutes began with the first question.
    assert_eq!(bench.server.count("/keys"), 1);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(301)).await;
    tokio::time::resume();
    let body = encode(claims(&bench.server.origin()).to_string());
    for number in 0..10_000 {
        let header = encode(format!(r#"{{"alg":"RS256","kid":"random-{number}"}}"#));
        let token = format!("{header}.{body}.AAAA");
        assert_eq!(bench.verify(&token).await, Err(VerifyError::UnknownKey));
    }
    assert_eq!(bench.server.count("/keys"), 2);
    assert!(bench.verify(&bench.token()).await.is_ok());
}

#[tokio::test]
async fn the_cool_down_begins_before_the_question_and_stays_when_it_fails() {
    let bench = Bench::start(Algorithm::ES256).await;
    bench.verify(&bench.token()).await.unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(301)).await;
    tokio::time::resume();
    bench.server.on("/.well-known", |_| Reply::status(500));
    let stranger = Signer::new("other", Algorithm::ES256).token(&claims(&bench.server.origin()));
    let before = bench.server.asked().len();
    assert!(matches!(bench.verify(&stranger).await, Err(VerifyError::IssuerUnreachable(_))));
    for _again in 0..20 {
        assert_eq!(bench.verify(&stranger).await, Err(VerifyError::UnknownKey));
    }
    assert_eq!(bench.server.asked().len(), before + 1);
}

#[tokio::test]
async fn the_last_good_keys_serve_for_a_day_and_no_longer() {
    let bench = Bench::start(Algorithm::ES256).await;
    bench.verify(&bench.token()).await.unwrap();
    bench.server.on("/", |_| Reply::status(503));
    bench.server.on("/.well-known", |_| Reply::status(503));
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(23 * 3600)).await;
    tokio::time::resume();
    assert!(bench.verifier.refresh().await.is_err());
    // Another token: the first one's verdict is remembered.
    let second = bench.signer.token(&with(claims(&bench.server.origin()), json!({ "sub": "bob" })));
    assert_eq!(bench.verify(&second).await.as_deref(), Ok("bob"));
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(3601)).await;
    tokio::time::resume();
    let third = bench.signer.token(&with(claims(&bench.server.origin()), json!({ "sub": "carol" })));
    assert!(matches!(bench.verify(&third).await, Err(VerifyError::IssuerUnreachable(_))));
}

#[tokio::test]
async fn a_key_that_was_withdrawn_verifies_nothing_after_the_next_refresh() {
    let bench = Bench::start(Algorithm::ES256).await;
    let token = bench.token();
    bench.verify(&token).await.unwrap();
    let next = Signer::new("k2", Algorithm::ES256);
    bench.server.publish("", &bench.server.origin(), &[next.jwk()]);
    bench.verifier.refresh().await.unwrap();
    assert_eq!(bench.verify(&token).await, Err(VerifyError::UnknownKey));
    assert_eq!(bench.verify(&next.token(&claims(&bench.server.origin()))).await.as_deref(), Ok("alice"));
}

#[tokio::test]
async fn keys_are_asked_for_each_hour() {
    let bench = Bench::start(Algorithm::ES256).await;
    bench.verify(&bench.token()).await.unwrap();
    let verifier = Arc::new(bench.verifier);
    let owner = Arc::clone(&verifier);
    tokio::time::pause();
    let keeping = tokio::spawn(async move { owner.keep_fresh().await });
    tokio::task::yield_now().await;
    tokio::time::advance(Duration::from_secs(3601)).await;
    tokio::time::resume();
    let deadline = Instant::now() + Duration::from_secs(5);
    while bench.server.count("/keys") < 2 {
        assert!(Instant::now() < deadline, "nobody asked");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    keeping.abort();
}

#[tokio::test]
async fn several_issuers_are_trusted_each_for_its_own_users() {
    let server = Scripted::start().await;
    let (a, b) = (Signer::new("same-id", Algorithm::ES256), Signer::new("same-id", Algorithm::ES256));
    let url = |path: &str| format!("{}{path}", server.origin());
    server.publish("/a", &url("/a"), &[a.jwk()]);
    server.publish("/b", &url("/b"), &[b.jwk()]);
    let algorithms = [Algorithm::ES256];
    let trust =
        Trust::new(vec![config(&server, "/a", "a:", &algorithms), config(&server, "/b", "b:", &algorithms)]);
    let verifier = Verifier::new(trust.unwrap()).unwrap();
    let verify = |token: String| async {
        verifier.verify(&{ token }, SystemTime::now()).await.map(|identity| identity.username)
    };
    assert_eq!(verify(a.token(&claims(&url("/a")))).await.as_deref(), Ok("a:alice"));
    assert_eq!(verify(b.token(&claims(&url("/b")))).await.as_deref(), Ok("b:alice"));
    assert_eq!(verify(a.token(&claims(&url("/b")))).await, Err(VerifyError::Signature));
    assert_eq!(verify(a.token(&claims(&url("/c")))).await, Err(VerifyError::Issuer));
    assert_eq!(verify(a.token(&claims(&url("/a/")))).await, Err(VerifyError::Issuer));
}

#[tokio::test]
async fn metadata_that_names_another_issuer_or_plain_http_is_refused() {
    let bench = Bench::start(Algorithm::ES256).await;
    let origin = bench.server.origin();
    for (metadata, why) in [
        (json!({ "issuer": "https://evil", "jwks_uri": format!("{origin}/keys") }), "is the issuer"),
        (json!({ "issuer": origin, "jwks_uri": origin.replace("https", "http") }), "not https"),
        (json!({ "issuer": origin, "jwks_uri": "keys" }), "not https"),
        (json!({ "issuer": origin }), "not OpenID metadata"),
    ] {
        bench.server.on_json("/.well-known", metadata);
        let error = bench.verifier.refresh().await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[tokio::test]
async fn an_explanation_tells_each_rule_and_never_the_token() {
    let bench = Bench::start(Algorithm::ES256).await;
    let token = bench.token();
    let good = bench.verifier.explain(&token, SystemTime::now()).await;
    assert!(good.verdict.is_ok());
    let rules: Vec<&str> = good.steps.iter().map(|step| step.rule).collect();
    assert_eq!(rules, ["form", "issuer", "signature", "audience", "time", "subject", "username", "groups"]);
    let text = good.to_string();
    assert!(text.contains("accepted as \"alice\""), "{text}");
    for part in token.split('.') {
        assert!(!text.contains(part), "{text}");
    }

    let hostile = "eve\u{1b}[2J\r\nok  everything";
    let late = with(claims(&bench.server.origin()), json!({ "exp": 1_000_000_000, "sub": hostile }));
    let token = bench.signer.token(&late);
    let bad = bench.verifier.explain(&token, SystemTime::now()).await;
    let last = bad.steps.last().unwrap();
    assert_eq!((last.rule, last.held), ("time", false));
    assert!(bad.to_string().ends_with("refused: the token is expired\n"), "{bad}");
    let named = with(claims(&bench.server.origin()), json!({ "sub": format!("system:{}", "x".repeat(500)) }));
    let refused = bench.verifier.explain(&bench.signer.token(&named), SystemTime::now()).await;
    assert!(!refused.to_string().contains('\u{1b}') && refused.to_string().len() < 3000, "{refused}");
}

/// Carries bytes to one server, whatever host was asked for.
struct Carrier(std::net::SocketAddr, std::sync::Mutex<Vec<(String, u16)>>);

impl Dial for Carrier {
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> Pending<'a, std::io::Result<Box<dyn ByteStream>>> {
        self.1.lock().unwrap().push((host.to_owned(), port));
        Box::pin(
            async move { Ok(Box::new(tokio::net::TcpStream::connect(self.0).await?) as Box<dyn ByteStream>) },
        )
    }
}

#[tokio::test]
async fn t42_whoever_carries_the_bytes_to_the_issuer_is_not_trusted() {
    let server = Scripted::start().await;
    let signer = Signer::new("k1", Algorithm::ES256);
    server.publish("", &server.origin(), &[signer.jwk()]);
    let token = signer.token(&claims(&server.origin()));
    let trust = || config(&server, "", "-", &[Algorithm::ES256]);
    let honest = Arc::new(Carrier(server.address, std::sync::Mutex::default()));
    let verifier = Verifier::over(trust(), Arc::clone(&honest) as Arc<dyn Dial>).unwrap();
    assert!(verifier.verify(&token, SystemTime::now()).await.is_ok());
    assert_eq!(honest.1.lock().unwrap()[0], ("127.0.0.1".to_owned(), server.address.port()));

    // One that leads elsewhere, to forged keys under another authority.
    let forger = Scripted::start().await;
    let forged = Signer::new("k1", Algorithm::ES256);
    forger.publish("", &server.origin(), &[forged.jwk()]);
    let liar = Arc::new(Carrier(forger.address, std::sync::Mutex::default()));
    let verifier = Verifier::over(trust(), liar).unwrap();
    let error =
        verifier.verify(&forged.token(&claims(&server.origin())), SystemTime::now()).await.unwrap_err();
    assert!(matches!(&error, VerifyError::IssuerUnreachable(_)), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    assert_eq!(forger.asked().len(), 0);
}

#[tokio::test]
async fn t30_an_issuer_whose_certificate_is_of_another_name_fails_closed_and_says_so() {
    let server = Scripted::start().await;
    let port = server.address.port();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &server.ca_pem).unwrap();
    // Its certificate is for 127.0.0.1.
    let issuer = format!("https://localhost:{port}");
    let config = IssuerConfig::parse(IssuerSettings {
        issuer_url: issuer.clone(),
        client_id: "cluster".into(),
        ca_file: Some(file.path().into()),
        ..IssuerSettings::default()
    });
    let carrier = Arc::new(Carrier(server.address, std::sync::Mutex::default()));
    let verifier = Verifier::over(config.unwrap(), carrier).unwrap();
    let token = Signer::new("k1", Algorithm::RS256).token(&claims(&issuer));
    let error = verifier.verify(&token, SystemTime::now()).await.unwrap_err().to_string();
    assert!(error.contains("not valid for name"), "{error}");
    assert_eq!(server.asked().len(), 0);
}

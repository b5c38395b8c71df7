//! What a token costs: one whose key is known (bound: 60 µs at the median for RS256), one that was seen before, and
//! hostile ones.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that fails here says where")]

#[path = "../tests/tokens/support/sign.rs"]
#[allow(dead_code, unreachable_pub, reason = "tests use the rest")]
mod sign;

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{Request, Response};
use serde_json::{Value, json};
use sign::{Signer, seconds};
use towline_identity::{
    Algorithm, Fetch, FetchError, IssuerConfig, IssuerSettings, Pending, TrustSettings, Verifier,
};

const ISSUER: &str = "https://idp.example";

/// An issuer in memory: what is measured has no network in it.
struct Memory {
    jwks: Value,
}

impl Fetch for Memory {
    fn send(&self, request: Request<Bytes>) -> Pending<'_, Result<Response<Bytes>, FetchError>> {
        let body = if request.uri().path().ends_with("openid-configuration") {
            json!({ "issuer": ISSUER, "jwks_uri": format!("{ISSUER}/keys") })
        } else {
            self.jwks.clone()
        };
        Box::pin(async move { Ok(Response::new(Bytes::from(body.to_string()))) })
    }
}

fn token(signer: &Signer) -> String {
    signer.token(&json!({
        "iss": ISSUER, "aud": "cluster", "sub": "alice", "exp": seconds(3600), "iat": seconds(0),
        "name": "Alice", "email": "alice@corp.example",
        "groups": ["dev", "ops", "oncall", "6a3f8d52-4c3b-4d3c-9a55-0d2b5a7a7f10"], "roles": "dev|ops",
    }))
}

fn verifier(signer: &Signer) -> Verifier {
    let config = IssuerConfig::parse(IssuerSettings {
        issuer_url: ISSUER.into(),
        client_id: "cluster".into(),
        groups_claim: Some("groups".into()),
        signing_algs: vec![signer.algorithm.to_string()],
        ..IssuerSettings::default()
    });
    let fetch = Arc::new(Memory { jwks: json!({ "keys": [signer.jwk()] }) });
    Verifier::with_fetch(config.unwrap(), fetch).unwrap()
}

/// The same issuer by a file, with CEL for everything.
fn cel_verifier(signer: &Signer) -> Verifier {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n\
         - issuer: {{url: '{ISSUER}', audiences: [cluster]}}\n  claimValidationRules:\n\
         \x20 - expression: \"claims.exp - claims.iat <= 86400.0\"\n  claimMappings:\n\
         \x20   username: {{expression: \"'idp:' + claims.sub\"}}\n\
         \x20   groups: {{expression: \"claims.roles.split('|').map(r, 'idp:' + r)\"}}\n"
    );
    std::fs::write(file.path(), text).unwrap();
    let settings =
        TrustSettings { authentication_config: Some(file.path().into()), ..TrustSettings::default() };
    let fetch = Arc::new(Memory { jwks: json!({ "keys": [signer.jwk()] }) });
    Verifier::with_fetch(settings.load().unwrap(), fetch).unwrap()
}

/// The bound is on the median, which other work on the machine moves less than the mean.
#[allow(clippy::print_stdout, reason = "it is what the benchmark is for")]
fn print_median(runtime: &tokio::runtime::Runtime, verifier: &Verifier, token: &str) {
    let now = SystemTime::now();
    let one = || {
        let begun = Instant::now();
        assert!(runtime.block_on(verifier.explain(black_box(token), now)).verdict.is_ok());
        begun.elapsed()
    };
    let mut times: Vec<Duration> = (0..20_000).map(|_| one()).collect();
    times.sort_unstable();
    println!(
        "RS256, known key: p50 {:.1?}, p99 {:.1?} of {} verifications (bound: p50 60 µs)",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        times.len()
    );
}

fn verify(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let now = SystemTime::now();
    let mut group = criterion.benchmark_group("verify");
    group.measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    for algorithm in
        [Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::ES512, Algorithm::EdDSA]
    {
        let signer = Signer::new("k", algorithm);
        let (verifier, token) = (verifier(&signer), token(&signer));
        runtime.block_on(verifier.refresh()).unwrap();
        if algorithm == Algorithm::RS256 {
            print_median(&runtime, &verifier, &token);
        }
        // An explanation remembers nothing: each costs the signature.
        group.bench_function(format!("{algorithm}, known key"), |bench| {
            bench.iter(|| {
                let told = runtime.block_on(verifier.explain(black_box(&token), now));
                assert!(told.verdict.is_ok());
            });
        });
    }
    let signer = Signer::new("k", Algorithm::RS256);
    let (plain, cel, token) = (verifier(&signer), cel_verifier(&signer), token(&signer));
    group.bench_function("RS256, known key, CEL", |bench| {
        bench.iter(|| assert!(runtime.block_on(cel.explain(black_box(&token), now)).verdict.is_ok()));
    });
    group.bench_function("a token seen before", |bench| {
        bench.iter(|| runtime.block_on(plain.verify(black_box(&token), now)).unwrap());
    });
    let dots = ".".repeat(1_000_000);
    group.bench_function("a million dots", |bench| {
        bench.iter(|| assert!(runtime.block_on(plain.verify(black_box(&dots), now)).is_err()));
    });
    group.finish();
}

criterion_group!(benches, verify);
criterion_main!(benches);

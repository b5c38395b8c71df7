//! Proofs of possession: a token inside a request that its caller's key signed.

use std::time::{Duration, SystemTime};

use crate::support::{
    entra::{ALICE, Cloud, TENANT},
    sign::{Signer, encode, seconds, with},
};
use serde_json::{Value, json};
use towline_identity::{Algorithm, Verifier, VerifyError};

const HOST: &str = "cluster.example";

struct Bench {
    cloud: Cloud,
    caller: Signer,
    verifier: Verifier,
}

fn thumbprint(signer: &Signer) -> String {
    let jwk = signer.jwk();
    let canonical = format!(r#"{{"e":{},"kty":"RSA","n":{}}}"#, jwk["e"], jwk["n"]);
    encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, canonical.as_bytes()))
}

impl Bench {
    async fn start(required: bool) -> Self {
        let cloud = Cloud::start().await;
        let verifier = cloud.verifier(&format!("pop: {{hosts: [{HOST}], required: {required}}}\n"));
        Self { cloud, caller: Signer::new("caller", Algorithm::RS256), verifier }
    }

    fn inner(&self) -> String {
        self.cloud.token(json!({ "cnf": { "kid": thumbprint(&self.caller) } }))
    }

    fn body(&self, nonce: &str) -> Value {
        json!({ "at": self.inner(), "ts": seconds(0), "u": HOST, "nonce": nonce,
            "cnf": { "jwk": self.caller.jwk() } })
    }

    fn proof(&self, body: &Value) -> String {
        self.caller.sign(&json!({ "typ": "pop", "alg": "RS256", "kid": "caller" }), body)
    }

    async fn verify(&self, token: &str) -> Result<String, VerifyError> {
        self.verifier.verify(token, SystemTime::now()).await.map(|identity| identity.username)
    }
}

#[tokio::test]
async fn a_proof_by_the_tokens_own_key_is_taken() {
    let bench = Bench::start(true).await;
    let username = bench.verify(&bench.proof(&bench.body("n1"))).await.unwrap();
    assert_eq!(username, format!("entra:{TENANT}/{ALICE}"));
    let cased = with(bench.body("n2"), json!({ "u": HOST.to_ascii_uppercase() }));
    assert!(bench.verify(&bench.proof(&cased)).await.is_ok());
}

#[tokio::test]
async fn t24_a_replayed_nonce_is_refused() {
    let bench = Bench::start(false).await;
    let proof = bench.proof(&bench.body("n1"));
    bench.verify(&proof).await.unwrap();
    assert_eq!(bench.verify(&proof).await, Err(VerifyError::Proof("was used before")));
    // Another proof with the same nonce is a replay as well; a proof that failed used nothing up.
    let again = with(bench.body("n1"), json!({ "ts": seconds(-1) }));
    assert_eq!(bench.verify(&bench.proof(&again)).await, Err(VerifyError::Proof("was used before")));
    let failed = with(bench.body("n2"), json!({ "u": "other.example" }));
    assert!(bench.verify(&bench.proof(&failed)).await.is_err());
    assert!(bench.verify(&bench.proof(&bench.body("n2"))).await.is_ok());
    for nonce in [json!(""), Value::Null, json!(7), json!("n".repeat(257))] {
        let bad = with(bench.body("x"), json!({ "nonce": nonce }));
        assert_eq!(bench.verify(&bench.proof(&bad)).await, Err(VerifyError::Proof("has no nonce")));
    }
}

#[tokio::test]
async fn t24_an_old_or_future_ts_is_refused() {
    let bench = Bench::start(false).await;
    for (ts, why) in [
        (json!(seconds(-301)), "is more than 5 minutes old"),
        (json!(seconds(90)), "is from the future"),
        (Value::Null, "has no time"),
    ] {
        let proof = bench.proof(&with(bench.body("n"), json!({ "ts": ts })));
        assert_eq!(bench.verify(&proof).await, Err(VerifyError::Proof(why)));
    }
    let proof = bench.proof(&with(bench.body("n"), json!({ "ts": seconds(0).to_string() })));
    assert!(matches!(bench.verify(&proof).await, Err(VerifyError::Claim("ts", _))));
    // A clock may be a minute ahead, and no second more.
    let now = seconds(0);
    for (ahead, taken) in [(60, true), (61, false)] {
        let proof = bench.proof(&with(bench.body("ahead"), json!({ "ts": now + ahead })));
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(now.try_into().unwrap());
        let verified = bench.verifier.verify(&proof, at).await;
        assert_eq!(verified.is_ok(), taken, "{ahead}: {verified:?}");
    }
}

#[tokio::test]
async fn t24_a_wrong_u_is_refused() {
    let bench = Bench::start(false).await;
    for host in [json!("other.example"), json!(""), Value::Null, json!([HOST]), json!(format!("{HOST}:443"))]
    {
        let proof = bench.proof(&with(bench.body("n"), json!({ "u": host })));
        assert_eq!(bench.verify(&proof).await, Err(VerifyError::Proof("is for another host")), "{host}");
    }
}

#[tokio::test]
async fn t24_a_wrong_cnf_is_refused() {
    let bench = Bench::start(false).await;
    let thief = Signer::new("thief", Algorithm::RS256);
    let stolen = with(bench.body("n"), json!({ "cnf": { "jwk": thief.jwk() } }));
    // The thief's key in the proof, and the thief's signature: but the token is bound to the caller's.
    let header = json!({ "typ": "pop", "alg": "RS256" });
    assert_eq!(
        bench.verify(&thief.sign(&header, &stolen)).await,
        Err(VerifyError::Proof("is by another key than the token's"))
    );
    // The caller's key in the proof, and the thief's signature.
    assert_eq!(bench.verify(&thief.sign(&header, &bench.body("n"))).await, Err(VerifyError::Signature));
    // A token that is bound to nothing, or to no thumbprint.
    for cnf in [Value::Null, json!({}), json!({ "jwk": bench.caller.jwk() }), json!("x")] {
        let body = with(bench.body("n"), json!({ "at": bench.cloud.token(json!({ "cnf": cnf })) }));
        assert_eq!(
            bench.verify(&bench.proof(&body)).await,
            Err(VerifyError::Proof("is by another key than the token's"))
        );
    }
    for cnf in [Value::Null, json!({ "kid": "x" }), json!({ "jwk": { "kty": "oct", "k": "AA" } })] {
        let body = with(bench.body("n"), json!({ "cnf": cnf }));
        assert!(matches!(bench.verify(&bench.proof(&body)).await, Err(VerifyError::Proof(_))), "{cnf}");
    }
}

#[tokio::test]
async fn t24_what_is_inside_a_proof_is_judged_like_any_token() {
    let bench = Bench::start(false).await;
    let bound = json!({ "kid": thumbprint(&bench.caller) });
    let inside = |changes: Value| {
        let token = bench.cloud.token(with(changes, json!({ "cnf": bound })));
        bench.proof(&with(bench.body("n"), json!({ "at": token })))
    };
    assert_eq!(bench.verify(&inside(json!({ "exp": seconds(-100) }))).await, Err(VerifyError::Expired));
    assert!(matches!(bench.verify(&inside(json!({ "aud": "x" }))).await, Err(VerifyError::Audience(_))));
    assert_eq!(bench.verify(&inside(json!({ "iss": "https://x" }))).await, Err(VerifyError::Issuer));
    let nested = with(bench.body("n"), json!({ "at": bench.proof(&json!({})) }));
    assert_eq!(bench.verify(&bench.proof(&nested)).await, Err(VerifyError::Proof("is around another proof")));
    let other = bench.caller.sign(&json!({ "typ": "pop", "alg": "RS512" }), &bench.body("n"));
    assert_eq!(bench.verify(&other).await, Err(VerifyError::Algorithm));
}

#[tokio::test]
async fn t49_where_proofs_are_needed_a_plain_bearer_is_refused() {
    let bench = Bench::start(true).await;
    let error = bench.verify(&bench.cloud.token(json!({}))).await.unwrap_err();
    assert!(matches!(error, VerifyError::Proof(_)), "{error}");
    let lax = Bench::start(false).await;
    assert!(lax.verify(&lax.cloud.token(json!({}))).await.is_ok());
    // A bound token without its proof is refused even where proofs are optional.
    assert!(matches!(lax.verify(&lax.inner()).await, Err(VerifyError::Claim("cnf", _))));
    let without = lax.cloud.verifier("");
    let error = without.verify(&lax.proof(&lax.body("n")), SystemTime::now()).await.unwrap_err();
    assert_eq!(error, VerifyError::Proof("is not taken from this issuer"));
}

//! What expressions give here, and in kube-apiserver: `cel-oracle/goldens.json` is what its own code says, and
//! `go run . -check` there says that it still does.

use std::{collections::BTreeMap, time::SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};

use super::parse;
use crate::{Identity, VerifyError, config::Rules, token::Object, trace::Trace};

#[derive(Deserialize)]
struct Cases {
    claims: Vec<serde_json::Map<String, Value>>,
}

#[derive(Deserialize)]
struct Golden {
    place: String,
    expression: String,
    loads: bool,
    #[serde(default)]
    users: Vec<String>,
}

const ISSUER: &str = "https://issuer.example";

fn file(place: &str, expression: &str) -> String {
    let plain = json!({ "claim": "sub", "prefix": "" });
    let mut jwt = json!({
        "issuer": { "url": ISSUER, "audiences": ["cluster"] },
        "claimMappings": { "username": plain },
    });
    match place {
        "rule" => jwt["claimValidationRules"] = json!([{ "expression": expression }]),
        "extra" => {
            jwt["claimMappings"]["extra"] =
                json!([{ "key": "example.org/x", "valueExpression": expression }]);
        }
        "user" => {
            jwt["claimMappings"]["groups"] = json!({ "claim": "groups", "prefix": "" });
            jwt["claimMappings"]["extra"] =
                json!([{ "key": "example.org/x", "valueExpression": "claims.?x.orValue([])" }]);
            jwt["userValidationRules"] = json!([{ "expression": expression }]);
        }
        place => jwt["claimMappings"][place] = json!({ "expression": expression }),
    }
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": [jwt],
    })
    .to_string()
}

fn told(identity: &Identity) -> String {
    let mut text = format!(
        "user={};groups={};uid={}",
        identity.username,
        identity.groups.join("|"),
        identity.uid.as_deref().unwrap_or_default()
    );
    for (key, values) in &identity.extra {
        text.push_str(&format!(";{key}={}", values.join("|")));
    }
    text
}

/// Names that kube-apiserver takes and we never do: blank ones, and ones that end a line.
fn is_stricter(error: &VerifyError) -> bool {
    matches!(error, VerifyError::Claim(_, "is empty or blank" | "has a control character"))
}

#[test]
fn what_loads_here_means_what_it_means_in_kube_apiserver() {
    let cases: Cases = serde_json::from_str(include_str!("../../cel-oracle/cases.json")).unwrap();
    let goldens: Vec<Golden> = serde_json::from_str(include_str!("../../cel-oracle/goldens.json")).unwrap();
    let mut wrong = Vec::new();
    let mut outside = Vec::new();
    let mut compared = 0;
    for golden in &goldens {
        let Golden { place, expression, .. } = golden;
        let config = match parse(&file(place, expression)) {
            Ok(configs) => configs.into_iter().next().unwrap(),
            Err(_) => {
                if golden.loads {
                    outside.push(format!("{place}: {expression}"));
                }
                continue;
            }
        };
        if !golden.loads {
            wrong.push(format!("{place} {expression:?} loads here, and not in kube-apiserver"));
            continue;
        }
        let Rules::Oidc { rules, .. } = &config.rules else { panic!("it is an OIDC issuer") };
        for (claims, wanted) in cases.claims.iter().zip(&golden.users) {
            let mut full: BTreeMap<&str, Value> = BTreeMap::from([
                ("iss", json!(ISSUER)),
                ("aud", json!("cluster")),
                ("exp", json!(4_000_000_000_u64)),
                ("sub", json!("alice")),
            ]);
            full.extend(claims.iter().map(|(name, value)| (name.as_str(), value.clone())));
            let object: Object = serde_json::from_value(json!(full)).unwrap();
            let judged = rules.identity(&object, SystemTime::now(), &mut Trace::off());
            compared += 1;
            let found = match &judged {
                Ok(accepted) => told(&accepted.identity),
                Err(error) if is_stricter(error) => continue,
                Err(_) => "refused".to_owned(),
            };
            if found != *wanted {
                let why = judged.err().map(|error| error.to_string()).unwrap_or_default();
                wrong.push(format!(
                    "{place} {expression:?} with {}: {found} ({why}), there {wanted}",
                    json!(claims)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    // What kube-apiserver reads and we don't is known, each.
    let known: Vec<&str> = include_str!("../../cel-oracle/outside.txt").lines().collect();
    assert_eq!(outside, known, "outside the subset:\n{}", outside.join("\n"));
    assert!(compared > 2000, "{compared}");
}

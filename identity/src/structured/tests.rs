//! What is refused in a file, and what is taken.

use serde_json::{Value, json};

use super::*;

fn jwt() -> Value {
    json!({
        "issuer": { "url": "https://idp.example", "audiences": ["cluster"] },
        "claimMappings": { "username": { "claim": "sub", "prefix": "" } },
    })
}

fn file(jwt: Value) -> Value {
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": jwt,
    })
}

fn faults(file: &Value) -> Vec<String> {
    parse(&file.to_string()).err().map(|error| error.0).unwrap_or_default()
}

/// The faults of a file with one authenticator, in which the value at this pointer is another.
fn changed(pointer: &str, value: Value) -> Vec<String> {
    let mut one = jwt();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    one.pointer_mut(parent).unwrap()[name] = value;
    faults(&file(json!([one])))
}

#[test]
fn the_documented_file_for_people_and_ci_is_taken() {
    let page = include_str!("../../../docs/identity.md");
    let file = page
        .split("```yaml\n")
        .filter_map(|rest| rest.split("```").next())
        .find(|block| block.contains("kind: AuthenticationConfiguration"))
        .expect("docs/identity.md shows a file");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("authentication.yaml");
    let load = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let settings =
            crate::TrustSettings { authentication_config: Some(path.clone()), ..Default::default() };
        crate::TrustSource::load(settings).map(|source| source.trust.audiences().len())
    };
    assert_eq!(load(file).unwrap(), 2);
    // What it has beyond the least is needed.
    let unclaimed = file.replace("repository_owner_id", "repository_owner");
    assert!(load(&unclaimed).unwrap_err().to_string().contains("repository_owner_id"));
    assert!(load(&file.replace("github:", "people:")).is_err());
}

#[test]
fn the_smallest_file_and_one_with_everything_are_taken() {
    assert_eq!(faults(&file(json!([jwt()]))), Vec::<String>::new());
    let everything = json!({
        "issuer": {
            "url": "https://idp.example/realm", "discoveryURL": "https://idp.example/inside/.well-known/openid-configuration",
            "audiences": ["cluster", "other"], "audienceMatchPolicy": "MatchAny", "egressSelectorType": "cluster",
        },
        "claimValidationRules": [
            { "claim": "hd", "requiredValue": "corp.example" },
            { "expression": "claims.exp > 1", "message": "m" },
        ],
        "claimMappings": {
            "username": { "expression": "'idp:' + claims.sub" },
            "groups": { "claim": "groups", "prefix": "idp:" },
            "uid": { "claim": "sub" },
            "extra": [{ "key": "example.org/team", "valueExpression": "claims.team" }],
        },
        "userValidationRules": [{ "expression": "!user.username.startsWith('system:')", "message": "m" }],
    });
    let mut whole = file(json!([everything]));
    whole["anonymous"] = json!({ "enabled": false });
    assert_eq!(faults(&whole), Vec::<String>::new());
    let issuers = parse(&whole.to_string()).unwrap();
    assert_eq!(issuers[0].audiences(), ["cluster", "other"]);
    assert_eq!(
        issuers[0].sources()[0].metadata,
        "https://idp.example/inside/.well-known/openid-configuration"
    );
}

#[test]
fn a_misspelt_field_refuses_the_file() {
    for (pointer, name) in [
        ("/claimMappings/userName", "userName"),
        ("/issuer/audience", "audience"),
        ("/claimValidationRule", "claimValidationRule"),
        ("/claimMappings/username/Claim", "Claim"),
    ] {
        let faults = changed(pointer, json!([]));
        assert!(faults[0].contains("unknown field") && faults[0].contains(name), "{faults:?}");
    }
}

#[test]
fn what_kube_apiserver_refuses_is_refused() {
    let mapping = |value: Value| changed("/claimMappings/username", value);
    let rules = |value: Value| changed("/claimValidationRules", value);
    let extra = |key: &str| {
        changed("/claimMappings/extra", json!([{ "key": key, "valueExpression": "claims.team" }]))
    };
    for (what, faults) in [
        ("http", changed("/issuer/url", json!("http://idp.example"))),
        ("a query", changed("/issuer/url", json!("https://idp.example?a"))),
        ("a user", changed("/issuer/url", json!("https://a@idp.example"))),
        ("discovery is the URL", changed("/issuer/discoveryURL", json!("https://idp.example/"))),
        ("no audience", changed("/issuer/audiences", json!([]))),
        ("an empty audience", changed("/issuer/audiences", json!([""]))),
        ("an audience twice", {
            let mut one = jwt();
            one["issuer"]["audiences"] = json!(["a", "a"]);
            one["issuer"]["audienceMatchPolicy"] = json!("MatchAny");
            faults(&file(json!([one])))
        }),
        ("several without a policy", changed("/issuer/audiences", json!(["a", "b"]))),
        ("another policy", changed("/issuer/audienceMatchPolicy", json!("MatchAll"))),
        ("another selector", changed("/issuer/egressSelectorType", json!("etcd"))),
        ("no certificate", changed("/issuer/certificateAuthority", json!("-----BEGIN"))),
        ("no username", mapping(json!({}))),
        ("no prefix", mapping(json!({ "claim": "sub" }))),
        ("both", mapping(json!({ "claim": "sub", "expression": "claims.sub" }))),
        ("a prefix of an expression", mapping(json!({ "expression": "claims.sub", "prefix": "" }))),
        ("an unverified address", mapping(json!({ "expression": "claims.email" }))),
        ("a rule of nothing", rules(json!([{}]))),
        ("a rule of both", rules(json!([{ "claim": "a", "expression": "true" }]))),
        ("a message of a claim", rules(json!([{ "claim": "a", "message": "m" }]))),
        ("a value of an expression", rules(json!([{ "expression": "true", "requiredValue": "v" }]))),
        ("a rule twice", rules(json!([{ "claim": "a" }, { "claim": "a" }]))),
        ("a rule that is no boolean", rules(json!([{ "expression": "claims.flag" }]))),
        ("uid by both", changed("/claimMappings/uid", json!({ "claim": "a", "expression": "claims.a" }))),
        (
            "a user rule twice",
            changed("/userValidationRules", json!([{ "expression": "true" }, { "expression": "true" }])),
        ),
        (
            "claims in a user rule",
            changed("/userValidationRules", json!([{ "expression": "claims.sub == 'a'" }])),
        ),
        ("an extra key without a domain", extra("team")),
        ("an extra key in capitals", extra("example.org/Team")),
        ("Kubernetes' own key", extra("authentication.kubernetes.io/credential-id")),
        ("Kubernetes' own domain", extra("k8s.io/x")),
        ("the agent's own key", extra("towline.dev/original-user")),
        ("no path", extra("example.org/")),
        ("a path with a space", extra("example.org/a b")),
        ("an issuer twice", faults(&file(json!([jwt(), jwt()])))),
        ("no issuer", faults(&file(json!([])))),
    ] {
        assert!(!faults.is_empty(), "{what} is taken");
    }
    let mut other = file(json!([jwt()]));
    other["apiVersion"] = json!("apiserver.config.k8s.io/v2");
    other["kind"] = json!("EncryptionConfiguration");
    other["anonymous"] = json!({ "enabled": true });
    assert_eq!(faults(&other).len(), 3);
}

#[test]
fn faults_name_their_place_and_come_together() {
    let mut one = jwt();
    one["issuer"]["url"] = json!("idp");
    one["claimMappings"]["groups"] = json!({ "expression": "claims.groups.map(g, g)" });
    one["claimValidationRules"] = json!([{ "expression": "int(claims.n) == 1" }]);
    let faults = faults(&file(json!([jwt(), one])));
    assert_eq!(faults.len(), 3, "{faults:#?}");
    for place in ["jwt[1].issuer.url", "jwt[1].claimValidationRules[0]", "jwt[1].claimMappings.groups"] {
        assert!(faults.iter().any(|fault| fault.starts_with(place)), "{place}: {faults:#?}");
    }
}

#[test]
fn the_algorithms_are_kube_apiservers_unless_the_flag_names_some() {
    let mut issuers = parse(&file(json!([jwt()])).to_string()).unwrap();
    assert_eq!(issuers[0].algorithms.len(), 9);
    assert!(!issuers[0].algorithms.contains(&Algorithm::EdDSA));
    restrict(&mut issuers, &["EdDSA".into(), "ES256".into()]).unwrap();
    assert_eq!(issuers[0].algorithms, [Algorithm::EdDSA, Algorithm::ES256]);
    assert!(restrict(&mut issuers, &["HS256".into()]).is_err());
}

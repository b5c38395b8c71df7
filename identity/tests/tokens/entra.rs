//! Entra's tokens, good and hostile, of both versions, from an issuer shaped like Entra.

use std::time::SystemTime;

use crate::support::{
    entra::{ALICE, APP, AUDIENCE, CONSUMERS, Cloud, GROUP, OTHER_TENANT, TENANT},
    sign::{seconds, with},
};
use serde_json::{Value, json};
use towline_identity::{Accepted, Verifier, VerifyError};

async fn check(verifier: &Verifier, token: &str) -> Result<Accepted, VerifyError> {
    verifier.check(token, SystemTime::now()).await
}

async fn refused(verifier: &Verifier, token: &str) -> VerifyError {
    check(verifier, token).await.unwrap_err()
}

#[tokio::test]
async fn a_user_is_tenant_and_object_in_both_versions() {
    let cloud = Cloud::start().await;
    let verifier = cloud.verifier("");
    let mut principals = Vec::new();
    for version in [1, 2] {
        let accepted = check(&verifier, &cloud.signer.token(&cloud.claims(version))).await.unwrap();
        assert_eq!(accepted.identity.username, format!("entra:{TENANT}/{ALICE}"));
        assert_eq!(accepted.identity.groups, [format!("entra:{GROUP}")]);
        assert_eq!(accepted.identity.uid.as_deref(), Some(ALICE));
        assert_eq!(accepted.notes, []);
        principals.push(accepted.identity.principal.to_string());
    }
    // Relay and cluster may get tokens of different versions for one person.
    assert_eq!(principals[0], principals[1]);
    assert_eq!(principals[0], format!("{}#{ALICE}", cloud.issuer(TENANT, 2)));
}

#[tokio::test]
async fn t18_a_token_for_graph_or_arm_or_with_several_audiences_is_refused() {
    let cloud = Cloud::start().await;
    let verifier = cloud.verifier("");
    for audience in [
        json!("https://graph.microsoft.com"),
        json!("00000003-0000-0000-c000-000000000000"),
        json!("https://management.azure.com/"),
        json!("6256c85f-0aad-4d50-b960-e6e9b21efe35"),
        json!([AUDIENCE]),
        json!([AUDIENCE, "https://graph.microsoft.com"]),
        json!(""),
        Value::Null,
    ] {
        let error = refused(&verifier, &cloud.token(json!({ "aud": audience }))).await;
        assert!(matches!(error, VerifyError::Audience(_)), "{audience}: {error}");
    }
}

#[tokio::test]
async fn t18_an_id_token_is_refused() {
    let cloud = Cloud::start().await;
    let verifier = cloud.verifier("apps: {ids: ['33333333-3333-4333-8333-333333333333']}\n");
    // As a client that is its own audience gets it: no scp, no azp.
    let id_token = cloud.token(json!({ "scp": null, "azp": null, "nonce": "n", "name": "Alice" }));
    let error = refused(&verifier, &id_token).await;
    assert!(error.to_string().contains("ID token"), "{error}");
}

#[tokio::test]
async fn t19_a_foreign_tenant_is_refused() {
    let cloud = Cloud::start().await;
    let verifier = cloud.verifier("");
    for version in [1, 2] {
        let issuer = cloud.issuer(OTHER_TENANT, version);
        let changes = json!({ "iss": issuer, "tid": OTHER_TENANT });
        let token = cloud.signer.token(&with(cloud.claims(version), changes));
        assert_eq!(refused(&verifier, &token).await, VerifyError::Issuer);
    }
    assert_eq!(cloud.server.asked().len(), 0);
}

#[tokio::test]
async fn t19_literal_tenantid_is_nobodys_issuer() {
    let cloud = Cloud::start().await;
    let verifier = cloud.verifier("");
    for version in [1, 2] {
        let changes = json!({ "iss": cloud.issuer("{tenantid}", version), "tid": "{tenantid}" });
        let token = cloud.signer.token(&with(cloud.claims(version), changes));
        assert_eq!(refused(&verifier, &token).await, VerifyError::Issuer);
    }
}

#[tokio::test]
async fn t19_versions_of_ver_and_iss_do_not_mix() {
    let cloud = Cloud::start().await;
    let verifier = cloud.verifier("");
    for (version, changes) in [
        (1, json!({ "ver": "2.0" })),
        (2, json!({ "ver": "1.0" })),
        (2, json!({ "ver": null })),
        (2, json!({ "ver": 2 })),
        (1, json!({ "ver": "1.0 " })),
    ] {
        let token = cloud.signer.token(&with(cloud.claims(version), changes.clone()));
        let error = refused(&verifier, &token).await;
        assert!(matches!(error, VerifyError::Claim("ver", _)), "{changes}: {error}");
    }
}

#[tokio::test]
async fn t19_a_tid_that_is_not_the_issuers_tenant_is_refused() {
    let cloud = Cloud::start().await;
    let verifier = cloud.verifier(&format!("tenants: [{TENANT}, {OTHER_TENANT}]\n"));
    for tid in
        [json!(OTHER_TENANT), json!(TENANT.to_ascii_uppercase().replace('1', "A")), json!(""), Value::Null]
    {
        let error = refused(&verifier, &cloud.token(json!({ "tid": tid }))).await;
        assert!(matches!(error, VerifyError::Tenant(_)), "{tid}: {error}");
    }
}

#[tokio::test]
async fn t19_a_key_of_another_tenant_signs_for_nobody_else() {
    let cloud = Cloud::start().await;
    cloud.publish(TENANT, &[cloud.jwk(OTHER_TENANT)]);
    let verifier = cloud.verifier("");
    let error = refused(&verifier, &cloud.token(json!({}))).await;
    assert!(matches!(error, VerifyError::Tenant(_)), "{error}");
    cloud.publish(TENANT, &[cloud.jwk(TENANT)]);
    verifier.refresh().await.unwrap();
    assert!(check(&verifier, &cloud.token(json!({}))).await.is_ok());
}

#[tokio::test]
async fn t19_keys_of_the_consumer_tenant_must_say_so() {
    let cloud = Cloud::start().await;
    let verifier = cloud.verifier(&format!("tenants: [{CONSUMERS}]\n"));
    let token = cloud.token(json!({ "iss": cloud.issuer(CONSUMERS, 2), "tid": CONSUMERS }));
    // A template would fit every tenant, and a key without an issuer as well.
    for keys in [cloud.jwk("{tenantid}"), cloud.signer.jwk(), cloud.jwk(TENANT)] {
        cloud.publish(CONSUMERS, &[keys]);
        verifier.refresh().await.unwrap();
        assert!(matches!(refused(&verifier, &token).await, VerifyError::Tenant(_)));
    }
    cloud.publish(CONSUMERS, &[cloud.jwk(CONSUMERS)]);
    verifier.refresh().await.unwrap();
    assert!(check(&verifier, &token).await.is_ok());
}

#[tokio::test]
async fn t19_keys_are_taken_from_the_clouds_own_host_only() {
    let cloud = Cloud::start().await;
    let elsewhere = format!("https://localhost:{}/{TENANT}/v2.0/keys", cloud.server.address.port());
    cloud.server.on_json(
        &format!("/{TENANT}/v2.0/.well-known/openid-configuration"),
        json!({ "issuer": cloud.issuer(TENANT, 2), "jwks_uri": elsewhere }),
    );
    let verifier = cloud.verifier("");
    let error = refused(&verifier, &cloud.token(json!({}))).await;
    assert!(error.to_string().contains("elsewhere"), "{error}");
}

#[tokio::test]
async fn t21_an_attackers_tenant_with_the_victims_email_is_never_the_victim() {
    let cloud = Cloud::start().await;
    let victim = json!({ "email": "alice@corp.example", "upn": "alice@corp.example",
        "preferred_username": "alice@corp.example", "unique_name": "alice@corp.example" });
    let attacker = with(
        victim.clone(),
        json!({ "iss": cloud.issuer(OTHER_TENANT, 2), "tid": OTHER_TENANT,
        "oid": "77777777-7777-4777-8777-777777777777" }),
    );
    let stranger = cloud.verifier("");
    assert_eq!(refused(&stranger, &cloud.token(attacker.clone())).await, VerifyError::Issuer);
    // Where both tenants are let in, names are objects', whatever the tokens say beside.
    let both = cloud.verifier(&format!("tenants: [{TENANT}, {OTHER_TENANT}]\n"));
    let one = check(&both, &cloud.token(victim)).await.unwrap().identity;
    let two = check(&both, &cloud.token(attacker)).await.unwrap().identity;
    assert_ne!((one.username, one.principal), (two.username.clone(), two.principal));
    assert_eq!(two.username, format!("entra:{OTHER_TENANT}/77777777-7777-4777-8777-777777777777"));
}

#[tokio::test]
async fn t21_a_upn_is_taken_within_one_tenant_and_of_its_own_members() {
    let cloud = Cloud::start().await;
    let several = cloud.settings(&format!("tenants: [{TENANT}, {OTHER_TENANT}]\nusername: upn\n"));
    assert!(several.load().unwrap_err().to_string().contains("use oid"));
    let verifier = cloud.verifier("username: upn\n");
    let member = check(&verifier, &cloud.token(json!({ "upn": "alice@corp.example" }))).await.unwrap();
    assert_eq!(member.identity.username, "entra:alice@corp.example");
    let own = json!({ "upn": "alice@corp.example", "idp": cloud.issuer(TENANT, 1), "acct": 0 });
    assert!(check(&verifier, &cloud.token(own)).await.is_ok());
    for guest in [
        json!({ "upn": "alice@corp.example", "acct": 1 }),
        json!({ "upn": "alice@corp.example", "idp": cloud.issuer(OTHER_TENANT, 1) }),
        json!({ "upn": "alice@corp.example", "idp": "live.com" }),
        json!({ "upn": "alice_corp.example#EXT#@evil.example" }),
        json!({ "upn": "alice" }),
        json!({ "upn": format!("{TENANT}/{ALICE}@x") }),
        json!({ "upn": "" }),
        json!({ "upn": "a@b\r\nImpersonate-Group: x" }),
        json!({ "email": "alice@corp.example", "preferred_username": "alice@corp.example" }),
    ] {
        let error = refused(&verifier, &cloud.token(guest.clone())).await;
        assert!(matches!(error, VerifyError::Claim("upn", _)), "{guest}: {error}");
    }
}

#[tokio::test]
async fn t23_an_applications_own_token_is_refused_unless_allowed_by_id_or_role() {
    let cloud = Cloud::start().await;
    let plain = cloud.app_token(json!({}));
    let without_type = cloud.app_token(json!({ "idtyp": null }));
    let both = cloud.token(json!({ "idtyp": "app" }));
    let with_role = cloud.app_token(json!({ "roles": ["Cluster.Access", "Other"] }));
    let nobody = cloud.verifier("");
    for token in [&plain, &without_type, &both, &with_role] {
        assert_eq!(refused(&nobody, token).await, VerifyError::AppToken(APP.into()));
    }
    let by_id = cloud.verifier(&format!("apps: {{ids: [{APP}]}}\n"));
    let accepted = check(&by_id, &plain).await.unwrap().identity;
    assert_eq!(accepted.username, format!("entra:{TENANT}/{ALICE}"));
    assert!(check(&by_id, &without_type).await.is_ok());
    let by_role = cloud.verifier("apps: {roles: [Cluster.Access]}\n");
    assert!(check(&by_role, &with_role).await.is_ok());
    assert!(matches!(refused(&by_role, &plain).await, VerifyError::AppToken(_)));
    for roles in [json!(["cluster.access"]), json!("Cluster.Access"), json!([])] {
        let token = cloud.app_token(json!({ "roles": roles }));
        assert!(matches!(refused(&by_role, &token).await, VerifyError::AppToken(_)), "{roles}");
    }
}

#[tokio::test]
async fn a_managed_identity_is_an_application_and_has_no_upn() {
    let cloud = Cloud::start().await;
    let verifier = cloud.verifier(&format!("username: upn\napps: {{ids: [{APP}]}}\n"));
    let token = cloud.app_token(json!({ "xms_mirid": "/subscriptions/x", "groups": null }));
    let accepted = check(&verifier, &token).await.unwrap();
    assert_eq!(accepted.identity.username, format!("entra:{TENANT}/{ALICE}"));
}

#[tokio::test]
async fn t17_exp_and_nbf_are_whole_numbers_and_both_are_needed() {
    let cloud = Cloud::start().await;
    let verifier = cloud.verifier("");
    for changes in [
        json!({ "exp": null }),
        json!({ "nbf": null }),
        json!({ "exp": seconds(3600).to_string() }),
        json!({ "nbf": "0" }),
        json!({ "exp": 1.9e9 }),
        json!({ "nbf": -1 }),
    ] {
        let error = refused(&verifier, &cloud.token(changes.clone())).await;
        assert!(matches!(error, VerifyError::Claim("exp" | "nbf", _)), "{changes}: {error}");
    }
    assert_eq!(refused(&verifier, &cloud.token(json!({ "exp": seconds(-61) }))).await, VerifyError::Expired);
    assert_eq!(
        refused(&verifier, &cloud.token(json!({ "nbf": seconds(310) }))).await,
        VerifyError::NotYetValid
    );
    assert!(check(&verifier, &cloud.token(json!({ "exp": seconds(-50) }))).await.is_ok());
    assert!(check(&verifier, &cloud.token(json!({ "nbf": seconds(290) }))).await.is_ok());
}

#[tokio::test]
async fn objects_scopes_and_groups_are_what_they_must_be() {
    let cloud = Cloud::start().await;
    let verifier = cloud.verifier("scopes: [user_impersonation]\n");
    for changes in [
        json!({ "oid": null }),
        json!({ "oid": "alice" }),
        json!({ "oid": ALICE.to_ascii_uppercase().replace('5', "A") }),
        json!({ "scp": "openid profile" }),
        json!({ "azp": "me" }),
        json!({ "groups": "66666666-6666-4666-8666-666666666666" }),
        json!({ "groups": ["system:masters"] }),
        json!({ "groups": [GROUP, 7] }),
        json!({ "groups": {} }),
    ] {
        let error = refused(&verifier, &cloud.token(changes.clone())).await;
        assert!(matches!(error, VerifyError::Claim(..)), "{changes}: {error}");
    }
    let roles = cloud.token(json!({ "groups": null, "wids": [GROUP], "roles": ["x"] }));
    assert_eq!(check(&verifier, &roles).await.unwrap().identity.groups, Vec::<String>::new());
}

#[tokio::test]
async fn t16_entra_signs_with_rs256_only() {
    let cloud = Cloud::start().await;
    let verifier = cloud.verifier("");
    for other in ["PS256", "RS512", "ES256"] {
        let header = json!({ "alg": other, "kid": "entra-1" });
        let token = cloud.signer.sign(&header, &cloud.claims(2));
        assert_eq!(refused(&verifier, &token).await, VerifyError::Algorithm);
    }
}

#[tokio::test]
async fn t49_a_bound_token_is_no_bearer_token() {
    let cloud = Cloud::start().await;
    let verifier = cloud.verifier("");
    let error = refused(&verifier, &cloud.token(json!({ "cnf": { "kid": "x" } }))).await;
    assert!(matches!(error, VerifyError::Claim("cnf", _)), "{error}");
}

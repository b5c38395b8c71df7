//! An Entra-shaped issuer: tenants with metadata of both versions, tokens of both, and a scripted Graph.

use serde_json::{Value, json};
use towline_identity::{Algorithm, TrustSettings, Verifier};

use super::{
    Scripted,
    sign::{Signer, seconds, with},
};

pub const TENANT: &str = "11111111-1111-4111-8111-111111111111";
pub const OTHER_TENANT: &str = "22222222-2222-4222-8222-222222222222";
pub const CONSUMERS: &str = "9188040d-6c67-4c5b-b112-36a304b66dad";
pub const APP: &str = "33333333-3333-4333-8333-333333333333";
pub const AUDIENCE: &str = "44444444-4444-4444-8444-444444444444";
pub const ALICE: &str = "55555555-5555-4555-8555-555555555555";
pub const GROUP: &str = "66666666-6666-4666-8666-666666666666";

pub struct Cloud {
    pub server: Scripted,
    pub signer: Signer,
    pub folder: tempfile::TempDir,
}

impl Cloud {
    pub async fn start() -> Self {
        let server = Scripted::start().await;
        let signer = Signer::new("entra-1", Algorithm::RS256);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), &server.ca_pem).unwrap();
        let cloud = Self { server, signer, folder };
        for tenant in [TENANT, OTHER_TENANT, CONSUMERS] {
            cloud.publish(tenant, &[cloud.jwk("{tenantid}")]);
        }
        cloud
    }

    /// The key, marked for this tenant.
    pub fn jwk(&self, tenant: &str) -> Value {
        with(self.signer.jwk(), json!({ "issuer": format!("{}/{tenant}/v2.0", self.server.origin()) }))
    }

    pub fn issuer(&self, tenant: &str, version: u8) -> String {
        match version {
            1 => format!("{}/{tenant}/", self.sts()),
            _ => format!("{}/{tenant}/v2.0", self.server.origin()),
        }
    }

    /// The host of version 1's issuer: a name only, nobody asks it.
    pub fn sts(&self) -> String {
        "https://sts.cloud.test".to_owned()
    }

    pub fn publish(&self, tenant: &str, keys: &[Value]) {
        self.server.publish(&format!("/{tenant}"), &self.issuer(tenant, 1), keys);
        self.server.publish(&format!("/{tenant}/v2.0"), &self.issuer(tenant, 2), keys);
    }

    /// Settings with some more lines in the file.
    pub fn settings(&self, more: &str) -> TrustSettings {
        let path = self.folder.path().join("entra.yaml");
        let origin = self.server.origin();
        let tenants =
            if more.contains("tenants:") { String::new() } else { format!("tenants: [{TENANT}]\n") };
        let text = format!(
            "apiVersion: towline.dev/v1\nkind: EntraConfiguration\n\
             cloud: {{login: '{origin}', sts: '{}', graph: '{origin}'}}\n\
             audiences: ['{AUDIENCE}']\ncaFile: {}\n{tenants}{more}",
            self.sts(),
            self.folder.path().join("ca.pem").display(),
        );
        std::fs::write(&path, text).unwrap();
        TrustSettings { entra_config: Some(path), ..TrustSettings::default() }
    }

    pub fn verifier(&self, more: &str) -> Verifier {
        Verifier::new(self.settings(more).load().unwrap()).unwrap()
    }

    /// A user's access token.
    pub fn claims(&self, version: u8) -> Value {
        let mut claims = json!({
            "iss": self.issuer(TENANT, version),
            "ver": format!("{version}.0"),
            "tid": TENANT,
            "aud": AUDIENCE,
            "oid": ALICE,
            "sub": "pairwise",
            "scp": "user_impersonation",
            "nbf": seconds(-60),
            "iat": seconds(-60),
            "exp": seconds(3600),
            "groups": [GROUP],
        });
        claims[if version == 1 { "appid" } else { "azp" }] = json!(APP);
        claims
    }

    /// A user's token of version 2 with changes.
    pub fn token(&self, changes: Value) -> String {
        self.signer.token(&with(self.claims(2), changes))
    }

    /// An application's own token.
    pub fn app_token(&self, changes: Value) -> String {
        self.token(
            with(json!({ "idtyp": "app" }), changes)
                .as_object()
                .map(|changes| {
                    let mut changes = changes.clone();
                    changes.insert("scp".into(), Value::Null);
                    Value::Object(changes)
                })
                .unwrap(),
        )
    }
}

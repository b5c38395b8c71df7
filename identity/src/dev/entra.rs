//! The shape of Microsoft Entra ID on loopback: tenants with metadata of both versions, tokens of both, and a Microsoft Graph that says what
//! it is told to. For tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    rsa::KeySize,
    signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair},
};
use data_encoding::BASE64URL_NOPAD;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::{Answer, certificates, other, serve};

/// A host of version 1's issuers, which nobody asks.
const STS: &str = "https://sts.dev.invalid";
/// The application through which users call.
const CLIENT: &str = "33333333-3333-4333-8333-333333333333";
/// What Graph is asked with.
const GRAPH_TOKEN: &str = "dev-graph-token";

/// What Graph says.
#[derive(Debug, Default)]
struct Directory {
    /// Of each object, the ids of its groups.
    groups: BTreeMap<String, Vec<String>>,
    disabled: BTreeSet<String>,
    asked: u64,
}

/// A key, as others may know it (RFC 7517).
fn public(key: &RsaKeyPair) -> Value {
    let public = key.public_key();
    let (n, e) = (public.modulus(), public.exponent());
    json!({
        "kty": "RSA",
        "n": BASE64URL_NOPAD.encode(n.big_endian_without_leading_zero()),
        "e": BASE64URL_NOPAD.encode(e.big_endian_without_leading_zero()),
    })
}

/// Other claims in place of some; `null` takes one out.
fn change(claims: &mut Value, changes: &Value) {
    for (name, value) in changes.as_object().into_iter().flatten() {
        match value {
            Value::Null => drop(claims.as_object_mut().and_then(|claims| claims.remove(name))),
            value => claims[name] = value.clone(),
        }
    }
}

/// RS256 (RFC 7518, section 3.3).
fn sign(key: &RsaKeyPair, header: &Value, claims: &Value) -> io::Result<String> {
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let signed = format!("{}.{}", part(header), part(claims));
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).map_err(other)?;
    Ok(format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature)))
}

/// Somebody with a key of their own, who signs each request: proofs of possession, as Entra's libraries make them.
pub struct DevCaller {
    key: RsaKeyPair,
}

impl fmt::Debug for DevCaller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DevCaller(…)")
    }
}

impl DevCaller {
    /// With a new key.
    ///
    /// # Errors
    /// If none can be made.
    pub fn generate() -> io::Result<Self> {
        Ok(Self { key: RsaKeyPair::generate(KeySize::Rsa2048).map_err(other)? })
    }

    /// `cnf` of a token that is bound to the key (RFC 7638).
    pub fn confirmation(&self) -> Value {
        let jwk = public(&self.key);
        let canonical = format!(r#"{{"e":{},"kty":"RSA","n":{}}}"#, jwk["e"], jwk["n"]);
        json!({ "kid": BASE64URL_NOPAD.encode(digest(&SHA256, canonical.as_bytes()).as_ref()) })
    }

    /// `cnf` of a proof by the key.
    pub fn key(&self) -> Value {
        json!({ "jwk": public(&self.key) })
    }

    /// A proof around a token, now and for this host, with other claims in place of some; `null` takes one out.
    ///
    /// # Errors
    /// If it can't be signed.
    pub fn prove(&self, token: &str, host: &str, nonce: &str, changes: &Value) -> io::Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut claims = json!({ "at": token, "ts": now, "u": host, "nonce": nonce, "cnf": self.key() });
        change(&mut claims, changes);
        sign(&self.key, &json!({ "alg": "RS256", "typ": "pop" }), &claims)
    }
}

/// The cloud; it stops when it is dropped.
pub struct DevEntra {
    address: SocketAddr,
    ca_pem: String,
    key: RsaKeyPair,
    directory: Arc<Mutex<Directory>>,
    _serving: AbortOnDropHandle<()>,
}

impl fmt::Debug for DevEntra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DevEntra({})", self.address)
    }
}

fn held(directory: &Mutex<Directory>) -> MutexGuard<'_, Directory> {
    directory.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DevEntra {
    /// Starts on any free port of loopback.
    ///
    /// # Errors
    /// If there is none, or no key can be made.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (ca_pem, acceptor) = certificates()?;
        let key = RsaKeyPair::generate(KeySize::Rsa2048).map_err(other)?;
        let mut jwk = public(&key);
        (jwk["use"], jwk["kid"]) = (json!("sig"), json!("entra-1"));
        let directory = Arc::new(Mutex::new(Directory::default()));
        let known = Arc::clone(&directory);
        let answer = move |request: Request<Incoming>, own: SocketAddr| {
            let answered = answer(&request, &format!("https://{own}"), &jwk, &known);
            async move { answered }
        };
        let serving = AbortOnDropHandle::new(tokio::spawn(serve(listener, acceptor, answer)));
        Ok(Self { address, ca_pem, key, directory, _serving: serving })
    }

    /// Where its hosts for logging in and Graph are.
    pub fn origin(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The authority of its certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Who somebody is, for relay and agent.
    pub fn principal(&self, tenant: &str, object: &str) -> String {
        format!("{}/{tenant}/v2.0#{object}", self.origin())
    }

    /// A file for `--entra-config` that trusts one tenant, for one audience; `more` are further lines of it.
    pub fn config(&self, tenant: &str, audience: &str, ca_file: &Path, more: &str) -> String {
        let origin = self.origin();
        format!(
            "apiVersion: towline.dev/v1\nkind: EntraConfiguration\n\
             cloud: {{login: '{origin}', sts: '{STS}', graph: '{origin}'}}\n\
             tenants: ['{tenant}']\naudiences: ['{audience}']\ncaFile: '{}'\n{more}",
            ca_file.display()
        )
    }

    /// A user's access token of version 1 or 2, with other claims in place of some; `null` takes one out.
    ///
    /// # Errors
    /// If it can't be signed.
    pub fn mint(
        &self,
        version: u8,
        (tenant, object): (&str, &str),
        audience: &str,
        changes: &Value,
    ) -> io::Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut claims = json!({
            "iss": issuer(&self.origin(), tenant, version), "ver": format!("{version}.0"), "tid": tenant, "aud": audience,
            "oid": object, "sub": "pairwise", "scp": "user_impersonation", "nbf": now, "iat": now, "exp": now + 3600,
        });
        claims[if version == 1 { "appid" } else { "azp" }] = json!(CLIENT);
        change(&mut claims, changes);
        sign(&self.key, &json!({ "alg": "RS256", "kid": "entra-1", "typ": "JWT" }), &claims)
    }

    /// What Graph says of an object's groups from now on.
    pub fn set_groups(&self, object: &str, groups: &[&str]) {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        held(&self.directory).groups.insert(object.to_owned(), groups);
    }

    /// Whether Graph says from now on that an account is enabled.
    pub fn set_enabled(&self, object: &str, is_enabled: bool) {
        let mut directory = held(&self.directory);
        if is_enabled {
            directory.disabled.remove(object);
        } else {
            directory.disabled.insert(object.to_owned());
        }
    }

    /// How often Graph was asked.
    pub fn asked_of_graph(&self) -> u64 {
        held(&self.directory).asked
    }
}

fn issuer(origin: &str, tenant: &str, version: u8) -> String {
    if version == 1 { format!("{STS}/{tenant}/") } else { format!("{origin}/{tenant}/v2.0") }
}

fn answer(request: &Request<Incoming>, origin: &str, jwk: &Value, directory: &Mutex<Directory>) -> Answer {
    let parts: Vec<&str> = request.uri().path().trim_matches('/').split('/').collect();
    let metadata = |tenant: &str, version: u8| json!({ "issuer": issuer(origin, tenant, version), "jwks_uri": format!("{origin}/{tenant}/keys") });
    let by_graph = |object: &str, say: &dyn Fn(&Directory, &str) -> Value| {
        let token = format!("Bearer {GRAPH_TOKEN}");
        let is_known = request.headers().get("authorization").is_some_and(|value| value == token.as_str());
        let mut directory = held(directory);
        directory.asked += 1;
        is_known.then(|| say(&directory, object))
    };
    let body = match parts.as_slice() {
        [tenant, ".well-known", "openid-configuration"] => Some(metadata(tenant, 1)),
        [tenant, "v2.0", ".well-known", "openid-configuration"] => Some(metadata(tenant, 2)),
        [_, "keys"] => Some(json!({ "keys": [jwk] })),
        [_, "oauth2", "v2.0", "token"] => Some(json!({ "access_token": GRAPH_TOKEN, "expires_in": 3600 })),
        ["v1.0", "users" | "servicePrincipals", object, "transitiveMemberOf", _] => {
            by_graph(object, &|directory, object| {
                let groups = directory.groups.get(object).into_iter().flatten();
                json!({ "value": groups.map(|id| json!({ "id": id })).collect::<Vec<_>>() })
            })
        }
        ["v1.0", "users" | "servicePrincipals", object] => by_graph(
            object,
            &|directory, object| json!({ "accountEnabled": !directory.disabled.contains(object) }),
        ),
        _ => return Response::builder().status(404).body(Full::default()),
    };
    match body {
        Some(body) => {
            Response::builder().header("content-type", "application/json").body(Full::from(body.to_string()))
        }
        None => Response::builder().status(401).body(Full::default()),
    }
}

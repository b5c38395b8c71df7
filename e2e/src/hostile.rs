//! Hostile tokens and heads, one after the other, at an agent in front of the real kube-apiserver: each is answered as it must be, and
//! kube-apiserver's own audit log has nothing in the agent's name but the agent's own questions and requests of the verified users.

pub mod over_h2;

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use tempfile::TempDir;
use towline_agent::forward::Access;
use towline_identity::{
    IssuerSettings, TrustSettings, Verifier,
    dev::{DevCaller, DevEntra, DevIssuer, TokenRequest},
};
use towline_tunnel::{fault::Fault, ids::StreamKey};
use xtask::cluster::Cluster;

use crate::table::direct_kubeconfig;

#[path = "../../agent-tunnel/tests/support/mod.rs"]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    missing_debug_implementations,
    reason = "it belongs to the agent's tests: what is not as it should be panics, and the check fails"
)]
mod support;

use support::{Bench, Cap, parts};

const AUDIENCE: &str = "towline-cluster";
const TENANT: &str = "11111111-1111-4111-8111-111111111111";
const OTHER_TENANT: &str = "22222222-2222-4222-8222-222222222222";
const ENTRA_AUDIENCE: &str = "44444444-4444-4444-8444-444444444444";
const OBJECT: &str = "55555555-5555-4555-8555-555555555555";
/// Proofs of possession are for it.
const HOST: &str = "cluster.example";
/// kube-apiserver leads from there to a path behind it.
const REDIRECTED: &str = "/debug/pprof";
/// Nothing of it may be asked for.
const CANARY: &str = "/api/v1/namespaces/canary";
/// kube-apiserver writes its audit log a moment later.
const WRITTEN_WITHIN: Duration = Duration::from_secs(15);

/// What was asked, and what kube-apiserver saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Requests that had to be refused.
    pub hostile: usize,
    /// Requests of verified users that had to come through.
    pub sound: usize,
    /// Events of the agent's own requests.
    pub own: usize,
}

/// A request, and how it has to be answered.
struct Row {
    what: String,
    /// Whose connection it comes on; alice's if nothing is said.
    principal: Option<String>,
    /// At the agent that puts nothing before names.
    is_plain: bool,
    bytes: String,
    /// The agent's own refusal, or one of the statuses that kube-apiserver may answer.
    expected: Result<&'static [u16], (u16, Fault)>,
}

struct Rows<'a> {
    bench: &'a Bench,
    plain: &'a Bench,
    entra: &'a DevEntra,
    all: Vec<Row>,
}

/// Asks everything, and reads kube-apiserver's audit log.
///
/// # Errors
/// What was answered otherwise than it must be, or reached kube-apiserver.
pub async fn run(cluster: &Cluster) -> anyhow::Result<Seen> {
    let folder = tempfile::tempdir()?;
    let agent = format!("towline-hostile-{}", StreamKey::random());
    let kubeconfig = direct_kubeconfig(cluster, folder.path(), &agent, &["system:masters"])?;
    let entra = DevEntra::start().await?;
    let trust = |issuer: &DevIssuer, folder: &TempDir| verifier(issuer, &entra, folder);
    let cap = Cap::answering("").await;
    let bench = Bench::towards(cap, Some(kubeconfig.clone()), Access::default(), None, trust).await?;
    // Where nothing is put before names, what is reserved must be kept out.
    let cap = Cap::answering("").await;
    let plain = Bench::towards(cap, Some(kubeconfig), Access::default(), None, unprefixed).await?;
    let binding = agent.to_lowercase();
    let (named, binds) = (binding.as_str(), "--user=dev:alice");
    let role = ["create", "clusterrole", named, "--verb=get", "--non-resource-url=/debug/pprof*"];
    cluster.kubectl_output(&role)?;
    let bind = ["create", "clusterrolebinding", named, &format!("--clusterrole={named}"), binds];
    cluster.kubectl_output(&bind)?;
    // kube-apiserver knows of it a moment later.
    let may = ["auth", "can-i", "get", REDIRECTED, "--as=dev:alice"];
    let since = Instant::now();
    while cluster.kubectl_output(&may).is_err() {
        ensure!(since.elapsed() < WRITTEN_WITHIN, "alice may not get {REDIRECTED}");
        crate::process::pause(Duration::from_millis(100));
    }
    let mut rows = Rows { bench: &bench, plain: &plain, entra: &entra, all: Vec::new() };
    rows.heads()?;
    rows.tokens()?;
    rows.entras()?;
    rows.proofs()?;
    let (mut seen, mut faults) = (Seen::default(), Vec::new());
    for row in &rows.all {
        let at = if row.is_plain { &plain } else { &bench };
        let principal = row.principal.clone().unwrap_or_else(|| at.principal("alice"));
        let answer = at.ask_as(principal, &row.bytes).await;
        match row.expected {
            Ok(_) => seen.sound += 1,
            Err(_) => seen.hostile += 1,
        }
        if let Err(error) = row.check(&answer) {
            faults.push(format!("{}: {error:#}", row.what));
        }
    }
    cluster.kubectl_output(&["delete", "clusterrolebinding", named])?;
    cluster.kubectl_output(&["delete", "clusterrole", named])?;
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    ensure!(
        bench.cap.connections() + plain.cap.connections() == 0,
        "something was dialled that is no kube-apiserver"
    );
    seen.own = judge(cluster, &agent, seen.sound)?;
    Ok(seen)
}

/// The development issuer, and Entra's stand-in, without a credential for Graph.
fn verifier(issuer: &DevIssuer, entra: &DevEntra, folder: &TempDir) -> anyhow::Result<Verifier> {
    let file = |name: &str, text: &str| -> anyhow::Result<PathBuf> {
        let path = folder.path().join(name);
        fs::write(&path, text)?;
        Ok(path)
    };
    let entra_ca = file("entra-ca.pem", entra.ca_pem())?;
    let proofs = format!("pop: {{hosts: [{HOST}], required: false}}\n");
    let settings = TrustSettings {
        oidc: Some(IssuerSettings {
            issuer_url: issuer.url(),
            client_id: AUDIENCE.into(),
            username_prefix: Some("dev:".into()),
            groups_claim: Some("groups".into()),
            groups_prefix: Some("dev:".into()),
            signing_algs: vec!["ES256".into()],
            ca_file: Some(file("issuer-ca.pem", issuer.ca_pem())?),
            ..IssuerSettings::default()
        }),
        entra_config: Some(file("entra.yaml", &entra.config(TENANT, ENTRA_AUDIENCE, &entra_ca, &proofs))?),
        ..TrustSettings::default()
    };
    let trust = settings.load().context("the issuers can't be trusted")?;
    Verifier::new(trust).context("the issuers can't be trusted")
}

/// The development issuer alone, whose names stay as they are.
fn unprefixed(issuer: &DevIssuer, folder: &TempDir) -> anyhow::Result<Verifier> {
    Verifier::new(support::issuer_config(issuer, folder)).context("the issuer can't be trusted")
}

impl Row {
    fn check(&self, answer: &str) -> anyhow::Result<()> {
        ensure!(answers(answer) == 1, "not one answer: {answer:?}");
        let (status, body) = parts(answer);
        match self.expected {
            Ok(statuses) => ensure!(statuses.contains(&status), "{status} and not {statuses:?}: {answer}"),
            Err((wanted, fault)) => {
                let body: Value =
                    serde_json::from_str(body).with_context(|| format!("no Status: {answer}"))?;
                let code = &body["details"]["causes"][0]["reason"];
                ensure!(
                    status == wanted && code == fault.code(),
                    "{status} {code}, not {wanted} {}",
                    fault.code()
                );
            }
        }
        Ok(())
    }
}

/// How many status lines there are. Our own words name the protocol, too.
fn answers(text: &str) -> usize {
    let is_line = |rest: &&str| rest.bytes().take(3).filter(u8::is_ascii_digit).count() == 3;
    text.split("HTTP/1.1 ").skip(1).filter(is_line).count()
}

fn head(line: &str, lines: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: cluster\r\nConnection: close\r\n{lines}\r\n")
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

fn encode(text: &str) -> String {
    BASE64URL_NOPAD.encode(text.as_bytes())
}

impl Rows<'_> {
    fn refused(&mut self, what: &str, bytes: String, status: u16, fault: Fault) {
        self.all.push(Row {
            what: what.to_owned(),
            principal: None,
            is_plain: false,
            bytes,
            expected: Err((status, fault)),
        });
    }

    fn passes(&mut self, what: &str, user: &str, bytes: String, statuses: &'static [u16]) {
        let principal = Some(self.bench.principal(user));
        self.all.push(Row {
            what: what.to_owned(),
            principal,
            is_plain: false,
            bytes,
            expected: Ok(statuses),
        });
    }

    /// Who has a sound token says something hostile with it.
    fn heads(&mut self) -> anyhow::Result<()> {
        let alice = bearer(&self.bench.token());
        let pods = format!("GET {CANARY}/pods");
        let with = |more: &str| head(&pods, &format!("{alice}{more}"));
        self.passes("a sound request", "alice", head("GET /version", &alice), &[200]);
        for (more, status, fault) in [
            ("Impersonate-User: dev:bob\r\n", 403, Fault::ActingDenied),
            ("iMPERSONATE-uSER: dev:bob\r\n", 403, Fault::ActingDenied),
            ("Impersonate-User: dev:bob\r\nImpersonate-User: dev:carol\r\n", 400, Fault::ActingMalformed),
            ("Impersonate-Group: dev\r\n", 400, Fault::ActingMalformed),
            ("Impersonate-Uid: 7\r\n", 400, Fault::ActingMalformed),
            ("Impersonate-Extra-Scopes: a\r\n", 400, Fault::ActingMalformed),
            (
                "Impersonate-User: dev:bob\r\nImpersonate-Group: system:masters\r\n",
                403,
                Fault::ImpersonationUnsupported,
            ),
        ] {
            self.refused(&format!("T1 {more:?}"), with(more), status, fault);
        }
        let upgrade = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n";
        let exec =
            format!("POST {CANARY}/pods/p/exec?command=sh HTTP/1.1\r\nHost: cluster\r\n{upgrade}{alice}");
        let acts = format!("{exec}Impersonate-User: dev:bob\r\n\r\n");
        self.refused("T1 on an upgrade", acts, 403, Fault::ActingDenied);

        let nominates = |names: &str| {
            format!("GET /version HTTP/1.1\r\nHost: cluster\r\nConnection: close, {names}\r\n{alice}\r\n")
        };
        self.refused("T2", nominates("Impersonate-User"), 403, Fault::ImpersonationUnsupported);
        self.passes("T2 nominated Authorization", "alice", nominates("Authorization"), &[200]);

        let two = format!("{alice}{alice}");
        for (what, lines) in [
            ("T5 no token", ""),
            ("T5 an empty token", "Authorization: Bearer \r\n"),
            ("T5 two tokens", two.as_str()),
        ] {
            self.refused(what, head(&pods, lines), 401, Fault::ClusterTokenMissing);
        }

        // kube-apiserver refuses the upgrade by its own rules, and what follows on the connection is never read.
        let second = format!("GET {CANARY}-second HTTP/1.1\r\nHost: cluster\r\n{alice}\r\n");
        let refused = format!(
            "POST /api/v1/namespaces/default/pods/none/exec?command=sh HTTP/1.1\r\nHost: cluster\r\n{upgrade}{alice}\r\n{second}"
        );
        self.passes("T9", "alice", refused, &[403]);

        for more in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Host: second\r\n",
            "A: b\nC: d\r\n",
        ] {
            self.refused(&format!("T11 {more:?}"), with(more), 400, Fault::RequestHeadRefused);
        }
        let old =
            format!("POST {CANARY}/pods HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{alice}\r\n");
        self.refused("T11 HTTP/1.0", old, 400, Fault::RequestHeadRefused);

        for line in [
            "GET https://169.254.169.254/latest/meta-data",
            "GET http://169.254.169.254/latest/meta-data",
            "CONNECT 169.254.169.254:80",
            "GET 169.254.169.254/latest",
            "OPTIONS *",
        ] {
            self.refused(&format!("T13 {line}"), head(line, &alice), 400, Fault::RequestHeadRefused);
        }
        let elsewhere = format!(
            "GET /version HTTP/1.1\r\nHost: 169.254.169.254\r\nX-Forwarded-Host: evil\r\nConnection: close\r\n{alice}\r\n"
        );
        self.passes("T13 another Host", "alice", elsewhere, &[200]);

        // Were it followed, there would be one request more in the log than was asked for.
        self.passes("T12", "alice", head(&format!("GET {REDIRECTED}"), &alice), &[301, 302]);

        let groups = |count: usize| "Impersonate-Group: g\r\n".repeat(count);
        let many = with(&format!("Impersonate-User: dev:bob\r\n{}", groups(32)));
        self.refused("T53 33 parts", many, 400, Fault::ActingMalformed);
        let most = with(&format!("Impersonate-User: dev:bob\r\n{}", groups(10_000)));
        self.refused("T53 10,000 groups", most, 400, Fault::RequestTooLarge);
        Ok(())
    }

    /// Tokens of the development issuer, most of them rightly signed.
    fn tokens(&mut self) -> anyhow::Result<()> {
        let issuer = &self.bench.issuer;
        let pods = format!("GET {CANARY}/pods");
        let refused = Fault::ClusterTokenRefused;
        let mut all: Vec<(String, String, Fault)> = Vec::new();
        for (ids, changes, fault) in [
            ("T4", json!({"sub": ""}), refused),
            ("T4", json!({"sub": "  "}), refused),
            ("T4", json!({"groups": [""]}), refused),
            ("T6", json!({"sub": "a\r\nImpersonate-Group: system:masters"}), refused),
            ("T6", json!({"groups": ["a\nb"]}), refused),
            ("T6", json!({"groups": ["a\u{0}b"]}), refused),
            ("T17", json!({"exp": "9999999999"}), refused),
            ("T17", json!({"exp": -1}), refused),
            ("T17", json!({"exp": null}), refused),
            ("T17", json!({"nbf": "0"}), refused),
            ("T18", json!({"aud": "https://graph.microsoft.com"}), refused),
            ("T18", json!({"aud": ["https://management.azure.com", "another"]}), refused),
            ("T49", json!({"cnf": {"kid": "k"}}), refused),
        ] {
            let token = self.bench.token_with(&changes);
            all.push((format!("{ids} {changes}"), token, fault));
        }
        for changes in [
            json!({"groups": ["system:masters"]}),
            json!({"groups": ["dev,system:masters"]}),
            json!({"groups": ["towline:role:admin"]}),
            json!({"sub": "system:serviceaccount:kube-system:default"}),
        ] {
            let token = self.plain.token_with(&changes);
            self.all.push(Row {
                what: format!("T7 {changes}"),
                principal: None,
                is_plain: true,
                bytes: head(&pods, &bearer(&token)),
                expected: Err((401, Fault::IdentityForbidden)),
            });
        }
        let claims = |more: &str| {
            format!(r#"{{"iss":"{}","sub":"alice","aud":"{AUDIENCE}","exp":9999999999{more}}}"#, issuer.url())
        };
        let twice = issuer.sign(&json!({"alg": "ES256"}), &claims(r#","exp":9999999998"#))?;
        all.push(("T17 exp twice".into(), twice, refused));
        for name in ["jku", "jwk", "x5u", "crit"] {
            let token = issuer.sign(&json!({"alg": "ES256", name: "https://evil.example"}), &claims(""))?;
            all.push((format!("T16 {name}"), token, refused));
        }
        for (algorithm, signature) in [("none", ""), ("none", "c2ln"), ("HS256", "c2ln")] {
            let header = format!(r#"{{"alg":"{algorithm}","kid":"dev-1"}}"#);
            let token = format!("{}.{}.{signature}", encode(&header), encode(&claims("")));
            all.push((format!("T16 {algorithm} {signature:?}"), token, refused));
        }
        all.push(("T16 JWE".into(), "a.b.c.d.e".into(), refused));
        all.push(("T16 dots".into(), ".".repeat(15_000), refused));
        let proof = format!("{}.{}.c2ln", encode(r#"{"alg":"RS256","typ":"pop"}"#), encode(&claims("")));
        all.push(("T24 a proof where none is taken".into(), proof, refused));
        all.push(("T45 another user's".into(), self.bench.token_of("bob", &[]), Fault::TicketMismatch));
        let elsewhere = issuer.mint(&TokenRequest::new("alice", &[], "another-cluster"))?;
        all.push(("T45 for another cluster".into(), elsewhere, refused));
        for (what, token, fault) in all {
            self.refused(&what, head(&pods, &bearer(&token)), 401, fault);
        }
        Ok(())
    }

    /// Tokens of Entra's shape, on a connection of whoever they pretend to be of.
    fn entras(&mut self) -> anyhow::Result<()> {
        let entra = self.entra;
        let user = (TENANT, OBJECT);
        let sound = bearer(&entra.mint(2, user, ENTRA_AUDIENCE, &json!({}))?);
        let principal = Some(entra.principal(TENANT, OBJECT));
        self.all.push(Row {
            what: "a sound token of Entra's".into(),
            principal: principal.clone(),
            is_plain: false,
            bytes: head("GET /version", &sound),
            expected: Ok(&[200]),
        });
        let other = (OTHER_TENANT, OBJECT);
        let victims =
            json!({"upn": "alice@victim.example", "email": "alice@victim.example", "tid": OTHER_TENANT});
        for (what, token) in [
            ("T18 for Graph", entra.mint(2, user, "https://graph.microsoft.com", &json!({}))?),
            ("T18 an ID token", entra.mint(2, user, ENTRA_AUDIENCE, &json!({"azp": null}))?),
            (
                "T18 several audiences",
                entra.mint(2, user, ENTRA_AUDIENCE, &json!({"aud": [ENTRA_AUDIENCE, "x"]}))?,
            ),
            ("T19 another tenant", entra.mint(2, other, ENTRA_AUDIENCE, &json!({}))?),
            ("T19 {tenantid}", entra.mint(2, ("{tenantid}", OBJECT), ENTRA_AUDIENCE, &json!({}))?),
            ("T19 versions mixed", entra.mint(2, user, ENTRA_AUDIENCE, &json!({"ver": "1.0"}))?),
            ("T19 tid of another", entra.mint(2, user, ENTRA_AUDIENCE, &json!({"tid": OTHER_TENANT}))?),
            ("T21", entra.mint(2, other, ENTRA_AUDIENCE, &victims)?),
            ("T23", entra.mint(2, user, ENTRA_AUDIENCE, &json!({"scp": null, "idtyp": "app"}))?),
            ("T49", entra.mint(2, user, ENTRA_AUDIENCE, &json!({"cnf": {"kid": "k"}}))?),
        ] {
            self.all.push(Row {
                what: format!("{what}, of Entra's"),
                principal: principal.clone(),
                is_plain: false,
                bytes: head(&format!("GET {CANARY}/pods"), &bearer(&token)),
                expected: Err((401, Fault::ClusterTokenRefused)),
            });
        }
        Ok(())
    }

    /// Tokens that are bound to their caller's key, in requests that it signed, or that somebody else did.
    fn proofs(&mut self) -> anyhow::Result<()> {
        let (caller, thief) = (DevCaller::generate()?, DevCaller::generate()?);
        let bound = |cnf: &Value| self.entra.mint(2, (TENANT, OBJECT), ENTRA_AUDIENCE, &json!({"cnf": cnf}));
        let token = bound(&caller.confirmation())?;
        let principal = Some(self.entra.principal(TENANT, OBJECT));
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let sound = caller.prove(&token, HOST, "n1", &json!({}))?;
        let mut all = vec![
            ("a sound proof", sound.clone(), true),
            ("T24 replayed", sound, false),
            ("T24 another with its nonce", caller.prove(&token, HOST, "n1", &json!({"ts": now - 1}))?, false),
            ("T24 by a thief's key", thief.prove(&token, HOST, "n2", &json!({}))?, false),
            (
                "T24 a thief's signature under the caller's key",
                thief.prove(&token, HOST, "n3", &json!({"cnf": caller.key()}))?,
                false,
            ),
            (
                "T24 a token that is bound to nothing",
                { caller.prove(&bound(&Value::Null)?, HOST, "n4", &json!({}))? },
                false,
            ),
        ];
        for (what, nonce, changes) in [
            ("T24 for another host", "n5", json!({"u": "other.example"})),
            ("T24 for no host", "n6", json!({"u": null})),
            ("T24 old", "n7", json!({"ts": now - 400})),
            ("T24 from the future", "n8", json!({"ts": now + 200})),
            ("T24 without a time", "n9", json!({"ts": null})),
            ("T24 without a key", "n10", json!({"cnf": null})),
            ("T24 without a nonce", "", json!({"nonce": null})),
        ] {
            all.push((what, caller.prove(&token, HOST, nonce, &changes)?, false));
        }
        for (what, proof, is_sound) in all {
            let path = if is_sound { "/version".to_owned() } else { format!("{CANARY}/pods") };
            self.all.push(Row {
                what: what.to_owned(),
                principal: principal.clone(),
                is_plain: false,
                bytes: head(&format!("GET {path}"), &bearer(&proof)),
                expected: if is_sound { Ok(&[200]) } else { Err((401, Fault::ClusterTokenRefused)) },
            });
        }
        Ok(())
    }
}

/// Reads kube-apiserver's audit log until all sound requests are in it; then nothing else of the agent's may be there but its own
/// questions. Says how many of those.
fn judge(cluster: &Cluster, agent: &str, sound: usize) -> anyhow::Result<usize> {
    let begun = Instant::now();
    loop {
        let text = fs::read_to_string(cluster.audit_log())?;
        // The last line may be half written.
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let events: Vec<Value> = events.filter(|event| event["user"]["username"] == agent).collect();
        let (acted, own): (Vec<_>, Vec<_>) =
            events.iter().partition(|event| event["impersonatedUser"].is_object());
        let ids: BTreeSet<&str> = acted.iter().filter_map(|event| event["auditID"].as_str()).collect();
        if ids.len() < sound {
            ensure!(
                begun.elapsed() < WRITTEN_WITHIN,
                "{} of {sound} sound requests are in the log",
                ids.len()
            );
            crate::process::pause(Duration::from_millis(100));
            continue;
        }
        ensure!(ids.len() == sound, "{} requests reached it, {sound} should have: {acted:#?}", ids.len());
        for event in &acted {
            let user = event["impersonatedUser"]["username"].as_str().unwrap_or_default();
            let known = user == "dev:alice" || user == format!("entra:{TENANT}/{OBJECT}");
            ensure!(known, "somebody else: {event}");
            let groups = event["impersonatedUser"]["groups"].as_array().cloned().unwrap_or_default();
            let usual = |group: &Value| group == "system:authenticated" || group == "dev:dev";
            ensure!(groups.iter().all(usual), "other groups: {event}");
        }
        for event in &own {
            let resource = event["objectRef"]["resource"].as_str().unwrap_or_default();
            let uri = event["requestURI"].as_str().unwrap_or_default();
            let is_question = resource == "subjectaccessreviews" && event["verb"] == "create";
            ensure!(is_question || uri == "/version", "the agent's own, and no question of its: {event}");
        }
        ensure!(
            !events
                .iter()
                .any(|event| event["requestURI"].as_str().is_some_and(|uri| uri.contains("canary"))
                    && event["impersonatedUser"].is_object()),
            "what was refused was asked for"
        );
        return Ok(own.len());
    }
}

//! Microsoft Entra ID's tokens through the whole path: users', applications', and those of people with more groups than a token holds.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde_json::{Value, json};
use towline_identity::dev::DevEntra;
use towline_tunnel::fault::Fault;

use super::{Scene, endings::Open, modes::with_files};
use crate::{
    bad_days::{fails_with, kubectl},
    case::run_within,
    stage::{CLUSTER_NAME, Stage, Tokens, Trust},
};

const TENANT: &str = "11111111-1111-4111-8111-111111111111";
/// The two applications that stand for relay and cluster.
const RELAY_API: &str = "44444444-4444-4444-8444-444444444441";
const CLUSTER_API: &str = "44444444-4444-4444-8444-444444444442";
const ADA: &str = "55555555-5555-4555-8555-555555555551";
/// In more groups than a token holds.
const MANY: &str = "55555555-5555-4555-8555-555555555552";
const HANK: &str = "55555555-5555-4555-8555-555555555553";
const ROBOT: &str = "55555555-5555-4555-8555-555555555554";
/// A group that may do anything in the cluster.
const PEOPLE: &str = "66666666-6666-4666-8666-666666666666";
/// What an application must have been given at the cluster's.
const ROLE: &str = "Cluster.Call";
const ROBOTS_CLIENT: &str = "88888888-8888-4888-8888-888888888888";
/// A command has to end in this time.
const WITHIN: Duration = Duration::from_secs(60);

fn username(object: &str) -> String {
    format!("entra:{TENANT}/{object}")
}

/// Who may do anything in the cluster.
pub(super) fn subjects() -> [(&'static str, String); 2] {
    [("Group", format!("entra:{PEOPLE}")), ("User", username(ROBOT))]
}

/// Relay and agent take the tenant's tokens beside the others; the agent asks Graph.
pub(super) fn trust(entra: &DevEntra, folder: &Path, trust: &mut Trust) -> anyhow::Result<()> {
    let (ca, secret) = (folder.join("entra-ca.pem"), folder.join("graph-secret"));
    fs::write(&ca, entra.ca_pem())?;
    fs::write(&secret, "secret")?;
    let apps = format!("apps: {{roles: [{ROLE}]}}\n");
    let graph = format!(
        "{apps}checkAccounts: true\ngraph: {{clientId: {ROBOTS_CLIENT}, clientSecretFile: {}}}\n",
        secret.display()
    );
    for (flags, name, audience, more) in [
        (&mut trust.relay, "entra-relay.yaml", RELAY_API, &apps),
        (&mut trust.agent, "entra-agent.yaml", CLUSTER_API, &graph),
    ] {
        let file = folder.join(name);
        fs::write(&file, entra.config(TENANT, audience, &ca, more))?;
        flags.extend(["--entra-config".to_owned(), file.display().to_string()]);
    }
    Ok(())
}

pub(super) fn let_in(stage: &Stage) -> anyhow::Result<()> {
    [ADA, MANY, HANK, ROBOT].into_iter().try_for_each(|object| stage.let_in(&username(object)))
}

/// Both tokens of somebody, in files; the one for the cluster is changed.
fn tokens(
    scene: &Scene,
    name: &str,
    version: u8,
    object: &str,
    [relay, cluster]: [&Value; 2],
) -> anyhow::Result<Tokens> {
    let mint = |audience, changes| scene.entra.mint(version, (TENANT, object), audience, changes);
    let file = |kind: &str| scene.stage.folder().join(format!("entra-{name}.{kind}-token"));
    let tokens = Tokens { relay: file("relay"), cluster: file("cluster") };
    fs::write(&tokens.relay, mint(RELAY_API, relay)?)?;
    fs::write(&tokens.cluster, mint(CLUSTER_API, cluster)?)?;
    Ok(tokens)
}

pub(super) fn user(scene: &Scene) -> anyhow::Result<String> {
    let (none, groups) = (json!({}), json!({ "groups": [PEOPLE] }));
    let mut worked = String::new();
    for version in [1, 2] {
        let name = format!("user-{version}");
        let tokens = tokens(scene, &name, version, ADA, [&none, &groups])?;
        let home = with_files(scene.stage, &name, &tokens)?;
        worked = home.works(scene, &[], &username(ADA), &[&format!("entra:{PEOPLE}")])?;
        let mut whoami = home.towline(scene.stage, "whoami");
        whoami.args(["--cluster", CLUSTER_NAME, "-o", "json"]);
        let outcome = run_within(whoami, WITHIN)?;
        ensure!(outcome.ended == "exit 0", "whoami: {}: {}", outcome.ended, outcome.stderr);
        let inside: Value = serde_json::from_str(&outcome.stdout)?;
        ensure!(inside["inCluster"]["username"] == username(ADA).as_str(), "whoami: {inside}");
    }
    // Whoever has no group that counts is the same person, and may do nothing.
    let proxy = scene.stage.proxy("entra-nobody", &tokens(scene, "nobody", 2, ADA, [&none, &none])?)?;
    let denied = kubectl(scene.stage, &proxy, &["-n", &scene.namespace, "get", "pods"])?;
    ensure!(
        denied.stderr.contains("Forbidden") && denied.stderr.contains(&username(ADA)),
        "{}",
        denied.stderr
    );
    Ok(worked)
}

pub(super) fn app(scene: &Scene) -> anyhow::Result<String> {
    let allowed = json!({ "scp": null, "idtyp": "app", "roles": [ROLE] });
    let stranger = json!({ "scp": null, "idtyp": "app", "roles": ["Another.Role"] });
    let refused = tokens(scene, "app-refused", 2, ROBOT, [&allowed, &stranger])?;
    let home = with_files(scene.stage, "app-refused", &refused)?;
    let mut run = home.towline(scene.stage, "run");
    run.args(["--", "kubectl", "get", "pods"]);
    let outcome = run_within(run, WITHIN)?;
    let code = Fault::ClusterTokenRefused.code();
    ensure!(outcome.ended != "exit 0" && outcome.stderr.contains(code), "it is let in: {outcome:?}");
    let tokens = tokens(scene, "app", 2, ROBOT, [&allowed, &allowed])?;
    let home = with_files(scene.stage, "app", &tokens)?;
    let worked = home.works(scene, &[], &username(ROBOT), &[])?;
    Ok(format!("refused ({code}) without the role; with it {worked}"))
}

pub(super) fn overage(scene: &Scene) -> anyhow::Result<String> {
    scene.entra.set_groups(MANY, &[PEOPLE]);
    let none = json!({});
    let changes = json!({
        "_claim_names": { "groups": "src1" },
        "_claim_sources": { "src1": { "endpoint": "https://127.0.0.1:1/getMemberObjects" } },
    });
    let tokens = tokens(scene, "overage", 2, MANY, [&none, &changes])?;
    let home = with_files(scene.stage, "overage", &tokens)?;
    home.works(scene, &[], &username(MANY), &[&format!("entra:{PEOPLE}")])
}

pub(super) fn disabled(scene: &Scene) -> anyhow::Result<String> {
    let (none, groups) = (json!({}), json!({ "groups": [PEOPLE] }));
    let proxy = scene.stage.proxy("entra-hank", &tokens(scene, "hank", 2, HANK, [&none, &groups])?)?;
    let mut open = Open::begin(scene, proxy, "entra-disabled")?;
    scene.entra.set_enabled(HANK, false);
    let ended = open.ended(Instant::now(), Fault::ClusterTokenExpired)?;
    let get = ["-n", &scene.namespace, "get", "pods"];
    fails_with(&kubectl(scene.stage, &open.proxy, &get)?, Fault::AccountEnded)?;
    Ok(format!("{ended}; a new command {}", Fault::AccountEnded.code()))
}

//! What kube-apiserver is told about who is calling, by each kind of token.

use std::{fs, time::Duration};

use anyhow::ensure;
use tokio::runtime::Handle;
use towline_identity::dev::DevEntra;
use towline_tunnel::{fault::Fault, ids::StreamKey};

use super::{SHARED, Scene, home::Home, logins::PEOPLE, provider::Provider, rights::Organisation};
use crate::{
    bad_days::until,
    case::run_within,
    stage::{AgentSetup, Stage, Tokens},
    table::{TOKEN_LIFETIME, direct_kubeconfig},
};

/// What is wrong in a profile is said at once.
const REFUSED_WITHIN: Duration = Duration::from_secs(30);

/// A profile whose tokens are in files.
pub(super) fn with_files(stage: &Stage, name: &str, tokens: &Tokens) -> anyhow::Result<Home> {
    let files = format!(
        "relay-token-file = '{}'\ncluster-token-file = '{}'",
        tokens.relay.display(),
        tokens.cluster.display()
    );
    Home::new(stage, name, &files, "")
}

pub(super) fn impersonated(scene: &Scene) -> anyhow::Result<String> {
    let tokens = scene.stage.tokens("alice", &["people", "ops"], TOKEN_LIFETIME)?;
    let home = with_files(scene.stage, "impersonated", &tokens)?;
    home.works(scene, &[], "dev:alice", &["dev:people", "dev:ops"])
}

pub(super) fn service_account(scene: &Scene) -> anyhow::Result<String> {
    let (stage, namespace) = (scene.stage, &scene.namespace);
    let tokens = stage.tokens("alice", &["people"], TOKEN_LIFETIME)?;
    let home =
        Home::new(stage, "service-account", &format!("relay-token-file = '{}'", tokens.relay.display()), "")?;
    let kubectl = |arguments: &[&str]| stage.cluster.kubectl_output(arguments);
    kubectl(&["-n", namespace, "create", "serviceaccount", "job"])?;
    let account = format!("--serviceaccount={namespace}:job");
    kubectl(&["-n", namespace, "create", "rolebinding", "job", "--clusterrole=admin", &account])?;
    let token = kubectl(&["-n", namespace, "create", "token", "job"])?;
    let file = home.folder().join("account-token");
    fs::write(&file, token.trim())?;
    let file = file.display().to_string();
    let user = format!("system:serviceaccount:{namespace}:job");
    home.works(scene, &["--service-account-token-file", &file], &user, &[])
}

pub(super) fn shared_audience(scene: &Scene) -> anyhow::Result<String> {
    let login = format!("client-id = '{SHARED}'");
    let refused = Home::at(scene, "shared-refused", "", &login)?;
    let mut command = refused.towline(scene.stage, "login");
    command.arg("--no-browser");
    let outcome = run_within(command, REFUSED_WITHIN)?;
    let code = Fault::ConfigInvalid.code();
    ensure!(outcome.ended != "exit 0" && outcome.stderr.contains(code), "it is not refused: {outcome:?}");
    let home = Home::at(scene, "shared", "allow-shared-audience = true", &login)?;
    home.log_in(scene, &[], "ada")?;
    home.works(scene, &[], "idp:ada", PEOPLE)
}

/// With an agent that asks no issuer itself.
pub(super) fn issuer_via_relay(
    stage: &mut Stage,
    provider: &Provider,
    runtime: &Handle,
    namespace: &str,
    (organisation, entra): (&Organisation, &DevEntra),
) -> anyhow::Result<String> {
    stage.agent_setup.flags.push("--issuer-via-relay".to_owned());
    stage.restart_agent()?;
    let scene = Scene { stage, provider, runtime, namespace: namespace.to_owned(), organisation, entra };
    let tokens = stage.tokens("alice", &["people"], TOKEN_LIFETIME)?;
    let home = with_files(stage, "via-relay", &tokens)?;
    let worked = home.works(&scene, &[], "dev:alice", &["dev:people"])?;
    let host = stage.issuer.url().trim_start_matches("https://").to_owned();
    let led = format!("to the identity provider {host}");
    until(|| {
        let audit = stage.relay_command(&["audit", "-o", "json"])?;
        ensure!(audit.contains(&led), "the relay led nobody {led}: {audit}");
        Ok(())
    })?;
    Ok(format!("{worked}; the relay tells of it"))
}

/// With an agent that may do nothing at kube-apiserver.
pub(super) fn pass_through(
    stage: &mut Stage,
    provider: &Provider,
    runtime: &Handle,
    namespace: &str,
    (organisation, entra): (&Organisation, &DevEntra),
) -> anyhow::Result<String> {
    let nobody = format!("nobody-{}", StreamKey::random());
    stage.agent_setup = AgentSetup {
        kubeconfig: direct_kubeconfig(&stage.cluster, stage.folder(), &nobody, &[])?,
        flags: ["--mode", "passthrough"].map(str::to_owned).to_vec(),
    };
    stage.restart_agent()?;
    let scene = Scene { stage, provider, runtime, namespace: namespace.to_owned(), organisation, entra };
    let clients = "relay.client-id = 'towline-relay'\ncluster.client-id = 'towline-cluster'";
    let home = Home::at(&scene, "pass-through", "", clients)?;
    home.log_in(&scene, &[], "ada")?;
    let worked = home.works(&scene, &[], "idp:ada", PEOPLE)?;
    // kube-apiserver was told by the token itself, and by nobody's word.
    let audit = fs::read_to_string(stage.cluster.audit_log())?;
    let of = |name: &str| {
        let name = format!("\"user\":{{\"username\":\"{name}\"");
        audit.lines().filter(move |line| line.contains(&name))
    };
    ensure!(of("idp:ada").next().is_some(), "kube-apiserver has no request of idp:ada's own");
    ensure!(!of(&nobody).any(|line| line.contains("impersonatedUser")), "the agent has impersonated");
    Ok(worked)
}

//! Each login, at the certified provider, and kubectl with it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use towline_identity::dev::TokenRequest;
use towline_tunnel::fault::Fault;

use super::{
    BRIEF_RESOURCE, CLUSTER_RESOURCE, RELAY_RESOURCE, Scene,
    endings::Open,
    home::Home,
    provider::{EXCHANGE, RUNNER_TOKEN, WORKLOAD},
};
use crate::{case::run_within, process::pause};

/// The clients that people have.
const CLIENTS: &str = "relay.client-id = 'towline-relay'\ncluster.client-id = 'towline-cluster'";
/// The group that everybody at the provider is in.
pub(super) const PEOPLE: &[&str] = &["idp:people"];
/// A machine is in none.
const MACHINES: &[&str] = &[];
/// The client with a certificate, as cluster and relay name it; the one with another issuer's token; and a job of GitHub's.
pub(super) const CERTIFIED: &str = "idp:robot-certificate";
/// See [`CERTIFIED`].
pub(super) const FEDERATED: &str = "idp:robot-federated";
/// See [`CERTIFIED`].
pub(super) const JOB: &str = "idp:repo:acme/app:ref:refs/heads/main";
/// A program has to answer in this time.
const WITHIN: Duration = Duration::from_secs(30);
/// A token of 15 s has a successor in this time.
const RENEWED_WITHIN: Duration = Duration::from_secs(40);

pub(super) fn browser(scene: &Scene) -> anyhow::Result<String> {
    let home = Home::at(scene, "browser", "", CLIENTS)?;
    home.log_in(scene, &[], "ada")?;
    home.works(scene, &[], "idp:ada", PEOPLE)
}

pub(super) fn device(scene: &Scene) -> anyhow::Result<String> {
    let home = Home::at(scene, "device", "", CLIENTS)?;
    home.log_in(scene, &["--device"], "bob")?;
    home.works(scene, &[], "idp:bob", PEOPLE)
}

pub(super) fn client_credentials(scene: &Scene) -> anyhow::Result<String> {
    let login = format!(
        "flow = 'client-credentials'\nclient-id = 'robot'\nclient-secret-file = '{}'\n\
         relay.resource = '{RELAY_RESOURCE}'\ncluster.resource = '{CLUSTER_RESOURCE}'",
        scene.provider.secret_file().display()
    );
    let home = Home::at(scene, "client-credentials", "", &login)?;
    home.works(scene, &[], "idp:robot", MACHINES)
}

/// By `private_key_jwt`, which the provider verifies with the certificate's key; another key's assertion is no proof.
pub(super) fn certificate(scene: &Scene) -> anyhow::Result<String> {
    let (certificate, key) = scene.provider.client_certificate();
    let login = |key: &Path| {
        format!(
            "flow = 'client-credentials'\nclient-id = 'robot-certificate'\nclient-certificate-file = '{}'\nclient-key-file = '{}'\n\
             relay.resource = '{RELAY_RESOURCE}'\ncluster.resource = '{CLUSTER_RESOURCE}'",
            certificate.display(),
            key.display()
        )
    };
    let other = scene.stage.folder().join("other-client.key");
    let pair = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)?;
    fs::write(&other, pair.serialize_pem())?;
    refused(scene, &Home::at(scene, "certificate-other", "", &login(&other))?, Fault::LoginRefused)?;
    Home::at(scene, "certificate", "", &login(&key))?.works(scene, &[], CERTIFIED, MACHINES)
}

/// Nothing in the profile says where the token is: the variable does that the webhook sets.
pub(super) fn workload_identity(scene: &Scene) -> anyhow::Result<String> {
    let mut home = Home::at(scene, "federated-env", "", &federated(CLUSTER_RESOURCE, None))?;
    let file = home.folder().join("azure-identity-token");
    home.set("AZURE_FEDERATED_TOKEN_FILE", &file.display().to_string());
    for (subject, audience) in [("system:serviceaccount:ci:other", EXCHANGE), (WORKLOAD, "sts.amazonaws.com")]
    {
        workload_token(scene, &file, subject, audience, "refused")?;
        refused(scene, &home, Fault::LoginRefused).with_context(|| format!("{subject} for {audience}"))?;
    }
    workload_token(scene, &file, WORKLOAD, EXCHANGE, "env")?;
    home.works(scene, &[], FEDERATED, MACHINES)
}

/// The cluster's tokens live for 15 s: what asks for the next one finds the file as it is then.
pub(super) fn federated_file(scene: &Scene) -> anyhow::Result<String> {
    let file = scene.stage.folder().join("federated-token");
    let home = Home::at(scene, "federated-file", "", &federated(BRIEF_RESOURCE, Some(&file)))?;
    workload_token(scene, &file, WORKLOAD, EXCHANGE, "first")?;
    let worked = home.works(scene, &[], FEDERATED, MACHINES)?;
    let mut open = Open::begin(scene, home.proxy(scene.stage)?, "federated-file")?;
    ensure!(scene.provider.took_federated("first")?, "the provider saw another token than the file's");
    workload_token(scene, &file, WORKLOAD, EXCHANGE, "second")?;
    let since = Instant::now();
    while !scene.provider.took_federated("second")? {
        ensure!(since.elapsed() < RENEWED_WITHIN, "the file that was replaced is not read again");
        pause(Duration::from_millis(100));
    }
    open.goes_on(scene)?;
    Ok(format!("{worked}; the next token by the file that took its place"))
}

/// A client without a secret; `file` has its proof.
fn federated(cluster: &str, file: Option<&Path>) -> String {
    let file = file.map(|file| format!("federated-token-file = '{}'\n", file.display()));
    format!(
        "flow = 'client-credentials'\nclient-id = 'robot-federated'\n{}relay.resource = '{RELAY_RESOURCE}'\ncluster.resource = '{cluster}'",
        file.unwrap_or_default()
    )
}

/// What a kubelet or a GitLab job has in a file: put there whole, in place of the one before.
fn workload_token(
    scene: &Scene,
    file: &Path,
    subject: &str,
    audience: &str,
    jti: &str,
) -> anyhow::Result<()> {
    let mut request = TokenRequest::new(subject, &[], audience);
    request.claims.insert("jti".to_owned(), jti.into());
    let beside = file.with_extension("next");
    fs::write(&beside, scene.stage.issuer.mint(&request)?)?;
    Ok(fs::rename(beside, file)?)
}

pub(super) fn github(scene: &Scene) -> anyhow::Result<String> {
    let login = format!(
        "flow = 'github'\nrelay.audience = '{RELAY_RESOURCE}'\ncluster.audience = '{CLUSTER_RESOURCE}'"
    );
    let job = |name: &str, token: &str| {
        let mut home = Home::at(scene, name, "", &login)?;
        home.set("ACTIONS_ID_TOKEN_REQUEST_URL", &scene.provider.actions_url());
        home.set("ACTIONS_ID_TOKEN_REQUEST_TOKEN", token);
        anyhow::Ok(home)
    };
    refused(scene, &job("github-other", "another-job")?, Fault::CiTokenMissing)?;
    let home = job("github", RUNNER_TOKEN)?;
    let mut asks = home.towline(scene.stage, "run");
    asks.args(["--", "env"]);
    let asks = run_within(asks, WITHIN)?;
    ensure!(asks.ended == "exit 0" && asks.stdout.contains("KUBECONFIG="), "{}: {}", asks.ended, asks.stderr);
    ensure!(!asks.stdout.contains("ACTIONS_ID_TOKEN"), "what a job asks with is passed on: {}", asks.stdout);
    home.works(scene, &[], JOB, MACHINES)
}

/// No command of theirs gets to the cluster, and this is why.
fn refused(scene: &Scene, home: &Home, fault: Fault) -> anyhow::Result<()> {
    let mut run = home.towline(scene.stage, "run");
    run.args(["--", "true"]);
    let outcome = run_within(run, WITHIN)?;
    let (ended, said) = (&outcome.ended, &outcome.stderr);
    ensure!(ended != "exit 0" && said.contains(fault.code()), "{ended} without {}: {said}", fault.code());
    ensure!(!said.contains("canary"), "a secret is told: {said}");
    Ok(())
}

pub(super) fn exec(scene: &Scene) -> anyhow::Result<String> {
    let login = format!(
        "flow = 'exec'\nrelay.exec = {{command = './plugin', args = ['{RELAY_RESOURCE}']}}\n\
         cluster.exec = {{command = './plugin', args = ['{CLUSTER_RESOURCE}']}}"
    );
    let home = Home::new(scene.stage, "exec", "", &login)?;
    program(scene, home.folder(), "plugin", "exec \"$1\"")?;
    home.works(scene, &[], "idp:robot", MACHINES)
}

pub(super) fn az(scene: &Scene) -> anyhow::Result<String> {
    let login =
        format!("flow = 'az'\nrelay.resource = '{RELAY_RESOURCE}'\ncluster.resource = '{CLUSTER_RESOURCE}'");
    let home = Home::new(scene.stage, "az", "", &login)?;
    // `az account get-access-token --output json --resource R`
    program(scene, home.folder(), "az", "az \"$6\"")?;
    home.works(scene, &[], "idp:robot", MACHINES)
}

pub(super) fn gitlab(scene: &Scene) -> anyhow::Result<String> {
    let login = "flow = 'gitlab'\nrelay.token-env = 'RELAY_T'\ncluster.token-env = 'CLUSTER_T'";
    let mut home = Home::new(scene.stage, "gitlab", "", login)?;
    for (variable, resource) in [("RELAY_T", RELAY_RESOURCE), ("CLUSTER_T", CLUSTER_RESOURCE)] {
        let token = machine_token(scene, home.folder(), resource)?;
        home.set(variable, &token);
    }
    home.works(scene, &[], "idp:robot", MACHINES)
}

pub(super) fn token_file(scene: &Scene) -> anyhow::Result<String> {
    let files = "relay-token-file = 'relay-token'\ncluster-token-file = 'cluster-token'";
    let home = Home::new(scene.stage, "token-file", files, "")?;
    for (file, resource) in [("relay-token", RELAY_RESOURCE), ("cluster-token", CLUSTER_RESOURCE)] {
        fs::write(home.folder().join(file), machine_token(scene, home.folder(), resource)?)?;
    }
    home.works(scene, &[], "idp:robot", MACHINES)
}

/// A token of the provider's for its machine client.
fn machine_token(scene: &Scene, folder: &Path, resource: &str) -> anyhow::Result<String> {
    program(scene, folder, "raw-token", "raw \"$1\"")?;
    let mut command = Command::new(folder.join("raw-token"));
    command.arg(resource);
    let outcome = run_within(command, WITHIN)?;
    ensure!(outcome.ended == "exit 0", "{}: {}", outcome.ended, outcome.stderr);
    Ok(outcome.stdout.trim().to_owned())
}

/// A program that asks the provider for a machine's token, and prints it in some shape.
fn program(scene: &Scene, folder: &Path, name: &str, shape: &str) -> anyhow::Result<()> {
    let asks = xtask::root().join("e2e/src/identity/token.py");
    let text = format!(
        "#!/bin/sh\nexec python3 '{}' '{}' '{}' '{}' {shape}\n",
        asks.display(),
        scene.provider.url,
        scene.provider.ca_file().display(),
        scene.provider.secret_file().display(),
    );
    let path = folder.join(name);
    fs::write(&path, text)?;
    Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
}

//! Each login, at the certified provider, and kubectl with it.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::ensure;

use super::{CLUSTER_RESOURCE, RELAY_RESOURCE, Scene, home::Home};
use crate::case::run_within;

/// The clients that people have.
const CLIENTS: &str = "relay.client-id = 'towline-relay'\ncluster.client-id = 'towline-cluster'";
/// The group that everybody at the provider is in.
pub(super) const PEOPLE: &[&str] = &["idp:people"];
/// A machine is in none.
const MACHINES: &[&str] = &[];
/// A program has to answer in this time.
const WITHIN: std::time::Duration = std::time::Duration::from_secs(30);

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

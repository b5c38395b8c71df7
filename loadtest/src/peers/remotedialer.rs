//! Rancher's remotedialer: the program in `loadtest/remotedialer`, as server and as agent.

use super::{NAME, Setting, free_address, process::Started};

/// Both know it; it does not leave this machine.
const TOKEN: &str = "towline-loadtest";

pub(super) fn start(setting: &Setting<'_>) -> anyhow::Result<Vec<Started>> {
    let (folder, certificates) = (setting.folder, setting.certificates);
    let tunnel = free_address()?;
    let mut server = setting.installed.command("remotedialer")?;
    server
        .args(["server", "--token", TOKEN])
        .args(["--tunnel", &tunnel.to_string(), "--near", &setting.near.to_string()])
        .args(["--far", &setting.far.to_string(), "--far-name", NAME, "--far-ca"])
        .arg(certificates.authority())
        .arg("--cert")
        .arg(certificates.chain())
        .arg("--key")
        .arg(certificates.key());
    let mut agent = setting.installed.command("remotedialer")?;
    agent
        .args(["agent", "--token", TOKEN, "--connect", &format!("wss://{tunnel}/connect")])
        .args(["--name", NAME, "--ca"])
        .arg(certificates.authority());
    Ok(vec![
        Started::new("remotedialer-server", &mut server, folder)?,
        Started::new("remotedialer-agent", &mut agent, folder)?,
    ])
}

//! rathole: a server that people can reach, and a client behind the NAT.

use std::{fs, process::Command};

use anyhow::{Context as _, ensure};

use super::{NAME, Setting, free_address, process::Started};

/// Both know it; it does not leave this machine.
const TOKEN: &str = "towline-loadtest";

pub(super) fn start(setting: &Setting<'_>) -> anyhow::Result<Vec<Started>> {
    let (folder, certificates) = (setting.folder, setting.certificates);
    let identity = folder.join("identity.pfx");
    // As rathole's documentation says.
    let packed = Command::new("openssl")
        .args(["pkcs12", "-export", "-passout", "pass:towline", "-out"])
        .arg(&identity)
        .arg("-inkey")
        .arg(certificates.key())
        .arg("-in")
        .arg(certificates.chain())
        .arg("-certfile")
        .arg(certificates.authority())
        .output()
        .context("openssl can't be run; apt-get install openssl")?;
    ensure!(packed.status.success(), "openssl: {}", String::from_utf8_lossy(&packed.stderr).trim());
    let tunnel = free_address()?;
    fs::write(
        folder.join("server.toml"),
        format!(
            "[server]\nbind_addr = \"{tunnel}\"\ndefault_token = \"{TOKEN}\"\n\n\
             [server.transport]\ntype = \"tls\"\n\n\
             [server.transport.tls]\npkcs12 = \"{}\"\npkcs12_password = \"towline\"\n\n\
             [server.services.far]\nbind_addr = \"{}\"\n",
            identity.display(),
            setting.near
        ),
    )?;
    fs::write(
        folder.join("client.toml"),
        format!(
            "[client]\nremote_addr = \"{tunnel}\"\ndefault_token = \"{TOKEN}\"\n\n\
             [client.transport]\ntype = \"tls\"\n\n\
             [client.transport.tls]\ntrusted_root = \"{}\"\nhostname = \"{}\"\n\n\
             [client.services.far]\nlocal_addr = \"{}\"\n",
            certificates.authority().display(),
            NAME,
            setting.far
        ),
    )?;
    let run = |name: &'static str, config: &str| {
        Started::new(name, setting.installed.command("rathole")?.arg(folder.join(config)), folder)
    };
    Ok(vec![run("rathole-server", "server.toml")?, run("rathole-client", "client.toml")?])
}

//! haproxy: one hop, or three in a chain.

use std::{fs, net::SocketAddr};

use anyhow::Context as _;

use super::{NAME, Setting, free_address, process::Started};

/// What the two ends of a chain speak.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ends {
    /// TLS, which the first ends and the last begins.
    Tls,
    /// Whatever comes.
    Plain,
}

/// What Debian's own /etc/haproxy/haproxy.cfg has, but TLS 1.3 alone; and timeouts that suit tunnels.
const HEAD: &str = "\
global
    maxconn 8192
    ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256
    ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
    ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256
    ssl-default-server-options ssl-min-ver TLSv1.3

defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
";

/// One hop of a chain.
struct Hop {
    listen: SocketAddr,
    tls_in: bool,
    to: SocketAddr,
    tls_out: bool,
}

pub(super) fn hop(setting: &Setting<'_>) -> anyhow::Result<Vec<Started>> {
    let hop = Hop { listen: setting.near, tls_in: true, to: setting.far, tls_out: true };
    Ok(vec![start("haproxy", setting, &hop)?])
}

pub(super) fn chain(setting: &Setting<'_>, ends: Ends) -> anyhow::Result<Vec<Started>> {
    let (middle, last) = (free_address()?, free_address()?);
    let tls = ends == Ends::Tls;
    let first = Hop { listen: setting.near, tls_in: tls, to: middle, tls_out: true };
    let second = Hop { listen: middle, tls_in: true, to: last, tls_out: true };
    let third = Hop { listen: last, tls_in: true, to: setting.far, tls_out: tls };
    [("haproxy-3", third), ("haproxy-2", second), ("haproxy-1", first)]
        .iter()
        .map(|(name, hop)| start(name, setting, hop))
        .collect()
}

fn start(name: &'static str, setting: &Setting<'_>, hop: &Hop) -> anyhow::Result<Started> {
    let (folder, certificates) = (setting.folder, setting.certificates);
    let bind = match hop.tls_in {
        true => format!(" ssl crt {}", certificates.chain_and_key().display()),
        false => String::new(),
    };
    let server = match hop.tls_out {
        true => {
            let authority = certificates.authority();
            format!(" ssl verify required ca-file {} sni str({NAME}) verifyhost {NAME}", authority.display())
        }
        false => String::new(),
    };
    let config =
        format!("{HEAD}\nlisten line\n    bind {}{bind}\n    server next {}{server}\n", hop.listen, hop.to);
    let path = folder.join(format!("{name}.cfg"));
    fs::write(&path, config).with_context(|| path.display().to_string())?;
    // In the foreground, as systemd runs it, without its master process.
    Started::new(name, setting.installed.command("haproxy")?.arg("-db").arg("-f").arg(path), folder)
}

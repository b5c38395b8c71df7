//! Proxies as they are in the field, each with settings of its own, on a free port, ended with the way that it is part of.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use xtask::peers::Peer;

use crate::{
    case::run_within,
    only_way,
    process::{Process, pause},
    stage::Stage,
};

/// mitmproxy needs a few seconds; the machine may have other work.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// It has nothing to finish.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
/// Somebody else may take the port that was free.
const ATTEMPTS: usize = 3;

/// One that runs.
pub(super) struct Running {
    process: Process,
    at: SocketAddr,
}

impl Running {
    /// Starts a program that is to listen on the address that it is given.
    ///
    /// # Errors
    /// If it does not listen in time.
    pub(super) fn start(
        name: &str,
        folder: &Path,
        make: impl Fn(SocketAddr) -> anyhow::Result<Command>,
    ) -> anyhow::Result<Self> {
        let mut last = anyhow::anyhow!("{name} was not started");
        for _ in 0..ATTEMPTS {
            let at = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
            let log = folder.join(format!("{name}.log"));
            let mut running = Self { process: Process::start(name, &mut make(at)?, &log)?, at };
            match running.ready() {
                Ok(()) => return Ok(running),
                Err(error) => last = error.context(format!("{name} does not start")),
            }
        }
        Err(last)
    }

    fn ready(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while TcpStream::connect(self.at).is_err() {
            if !self.process.is_alive() {
                bail!("{}", self.process.log());
            }
            ensure!(begun.elapsed() < READY_WITHIN, "it does not listen: {}", self.process.log());
            pause(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.at
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // By a signal that it can catch: squid removes its shared memory.
        let _ended = self.process.terminate(ENDS_WITHIN);
    }
}

/// The command, for which the relay's name leads to this machine: only for it.
fn knowing_the_relay(command: &Command, folder: &Path) -> anyhow::Result<Command> {
    let hosts = folder.join("hosts");
    fs::write(&hosts, format!("127.0.0.1 localhost\n127.0.0.1 {}\n", only_way::HOST))?;
    let mut private = Command::new("unshare");
    private.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]);
    private.arg(hosts).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => private.env(name, value),
            None => private.env_remove(name),
        };
    }
    Ok(private)
}

/// squid on such a port (`http_port`, with what stands behind the address), with these settings; what they do not allow is denied.
///
/// # Errors
/// If it does not start.
pub(super) fn squid(folder: &Path, port: [&str; 2], settings: &str) -> anyhow::Result<Running> {
    let installed = Peer::Squid.ensure()?;
    Running::start("squid", folder, |at| {
        let (here, usr) = (folder.display(), installed.root().join("usr"));
        let (usr, [kind, more]) = (usr.display(), port);
        let text = format!(
            "{kind} {at} {more}\n{settings}http_access deny all\npid_filename {here}/squid.pid\ncache_log {here}/cache.log\naccess_log none\n\
             cache deny all\ncache_mem 8 MB\ncoredump_dir {here}\nmime_table {usr}/share/squid/mime.conf\nicon_directory {usr}/share/squid/icons\n\
             unlinkd_program {usr}/lib/squid/unlinkd\nerror_directory {usr}/share/squid-langpack/en\npinger_enable off\nshutdown_lifetime 0 seconds\n\
             visible_hostname squid.test\ncache_effective_user nobody\nforwarded_for delete\n"
        );
        let path = folder.join("squid.conf");
        fs::write(&path, text)?;
        let mut command = installed.command("squid")?;
        // Its shared memory has the service's name, which must be its own.
        let service = format!("t{}p{}", std::process::id(), at.port());
        command.arg("-N").arg("-f").arg(&path).args(["-n", &service]);
        knowing_the_relay(&command, folder)
    })
}

/// The settings of a squid that lets in whom it knows, by Basic: `agent` with the password `p@ss word`.
///
/// # Errors
/// If its helper can't be written.
pub(super) fn squid_basic(folder: &Path) -> anyhow::Result<String> {
    let helper = folder.join("helper");
    let known = "agent p%40ss%20word";
    // squid encodes what would end a word of its line, and no more.
    let script = format!(
        "#!/bin/sh\nwhile read -r question; do case \"$question\" in '{known}'|'agent p@ss%20word') echo OK ;; *) echo ERR ;; esac; done\n"
    );
    fs::write(&helper, script)?;
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755))?;
    Ok(format!(
        "auth_param basic program {}\nauth_param basic realm towline\nauth_param basic children 1\nacl known proxy_auth REQUIRED\n\
         http_access allow CONNECT known\n",
        helper.display()
    ))
}

/// squid that ends TLS and begins its own (`ssl_bump`), with an authority of its own: the proxy, and that authority.
///
/// # Errors
/// If it does not start.
pub(super) fn squid_bump(stage: &Stage, folder: &Path, settings: &str) -> anyhow::Result<(Running, PathBuf)> {
    let installed = Peer::Squid.ensure()?;
    let library = installed.root().join("usr/lib/squid/security_file_certgen");
    let (ca, both, certificates) =
        (folder.join("corp-ca.pem"), folder.join("corp-both.pem"), folder.join("certificates"));
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new())?;
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, "Corp Proxy CA");
    let key = rcgen::KeyPair::generate()?;
    let certificate = authority.self_signed(&key)?.pem();
    fs::write(&ca, &certificate)?;
    fs::write(&both, certificate + &key.serialize_pem())?;
    let relay_ca = readable(&stage.relay_dir().join("tls-ca.pem"), folder)?;
    let mut make = Command::new(&library);
    make.envs(installed.environment()).args(["-c", "-M", "4MB", "-s"]).arg(&certificates);
    let made = run_within(make, READY_WITHIN)?;
    ensure!(made.ended == "exit 0", "squid's certificates: {} {}", made.ended, made.stderr);
    let mut share = Command::new("chmod");
    share.args(["-R", "a+rwX"]).arg(&certificates);
    run_within(share, READY_WITHIN)?;
    let port = format!(
        "ssl-bump tls-cert={} generate-host-certificates=on dynamic_cert_mem_cache_size=4MB",
        both.display()
    );
    let settings = format!(
        "sslcrtd_program {} -s {} -M 4MB\nsslcrtd_children 1\ntls_outgoing_options cafile={}\nssl_bump bump all\nhttp_access allow all\n{settings}",
        library.display(),
        certificates.display(),
        relay_ca.display(),
    );
    Ok((squid(folder, ["http_port", &port], &settings)?, ca))
}

/// tinyproxy, with more settings.
///
/// # Errors
/// If it does not start.
pub(super) fn tinyproxy(folder: &Path, settings: &str) -> anyhow::Result<Running> {
    let installed = Peer::Tinyproxy.ensure()?;
    Running::start("tinyproxy", folder, |at| {
        let path = folder.join("tinyproxy.conf");
        let text =
            format!("Port {}\nListen {}\nTimeout 600\nAllow 127.0.0.1\n{settings}", at.port(), at.ip());
        fs::write(&path, text)?;
        let mut command = installed.command("tinyproxy")?;
        command.arg("-d").arg("-c").arg(&path);
        knowing_the_relay(&command, folder)
    })
}

/// mitmproxy, which records all that it sees into the file `recording`: the proxy, and its authority.
///
/// # Errors
/// If it does not start.
pub(super) fn mitmproxy(stage: &Stage, folder: &Path) -> anyhow::Result<(Running, PathBuf)> {
    let installed = Peer::Mitmproxy.ensure()?;
    let (settings, recording) = (folder.join("mitmproxy"), folder.join("recording"));
    let relay_ca = stage.relay_dir().join("tls-ca.pem");
    let running = Running::start("mitmproxy", folder, |at| {
        let mut command = installed.command("mitmdump")?;
        let (port, host) = (at.port().to_string(), at.ip().to_string());
        command.args(["--listen-host", &host, "--listen-port", &port, "--save-stream-file"]).arg(&recording);
        for option in [
            format!("confdir={}", settings.display()),
            format!("ssl_verify_upstream_trusted_ca={}", relay_ca.display()),
        ] {
            command.args(["--set", &option]);
        }
        knowing_the_relay(&command, folder)
    })?;
    Ok((running, settings.join("mitmproxy-ca-cert.pem")))
}

/// A certificate for a server on loopback: itself, and a file with its key as well.
///
/// # Errors
/// If it can't be made.
pub(super) fn certificate(folder: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let names = ["127.0.0.1", "localhost"].map(str::to_owned);
    let certified = rcgen::generate_simple_self_signed(names)?;
    let (alone, both) = (folder.join("front.pem"), folder.join("front-both.pem"));
    fs::write(&alone, certified.cert.pem())?;
    fs::write(&both, certified.cert.pem() + &certified.signing_key.serialize_pem())?;
    Ok((alone, both))
}

/// nginx before the relay, with a certificate of its own, on a port that listens so (`ssl`, `ssl http2`): the proxy and that certificate.
///
/// # Errors
/// If it does not start.
pub(super) fn nginx(
    stage: &Stage,
    folder: &Path,
    listen: &str,
    location: &str,
) -> anyhow::Result<(Running, PathBuf)> {
    let installed = Peer::Nginx.ensure()?;
    let (ca, both) = certificate(folder)?;
    let location = location.replace("RELAY", &stage.relay_address);
    let running = Running::start("nginx", folder, |at| {
        let (f, both) = (folder.display(), both.display());
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {f}/{kind};\n"))
            .concat();
        let text = format!(
            "daemon off;\nmaster_process off;\npid {f}/nginx.pid;\nerror_log stderr warn;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}\
             server {{\nlisten {at} {listen};\nssl_certificate {both};\nssl_certificate_key {both};\nlocation / {{ {location} }}\n}}\n}}\n"
        );
        let path = folder.join("nginx.conf");
        fs::write(&path, text)?;
        let mut command = installed.command("nginx")?;
        command.arg("-c").arg(&path).args(["-e", "stderr", "-p"]).arg(folder);
        Ok(command)
    })?;
    Ok((running, ca))
}

/// haproxy before the relay. `CERTIFICATE`, `AT` and `RELAY` stand for theirs in its sections.
///
/// # Errors
/// If it does not start.
pub(super) fn haproxy(stage: &Stage, folder: &Path, sections: &str) -> anyhow::Result<(Running, PathBuf)> {
    let installed = Peer::Haproxy.ensure()?;
    let (ca, both) = certificate(folder)?;
    let running = Running::start("haproxy", folder, |at| {
        let text = sections
            .replace("CERTIFICATE", &both.display().to_string())
            .replace("AT", &at.to_string())
            .replace("RELAY", &stage.relay_address);
        let path = folder.join("haproxy.cfg");
        fs::write(&path, text)?;
        let mut command = installed.command("haproxy")?;
        command.arg("-db").arg("-f").arg(path);
        Ok(command)
    })?;
    Ok((running, ca))
}

/// A copy for a program that has given up root's rights.
fn readable(file: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let to = folder.join(file.file_name().context("a file has a name")?);
    fs::copy(file, &to)?;
    fs::set_permissions(&to, fs::Permissions::from_mode(0o644))?;
    Ok(to)
}

//! Proxies as they are in the field, each with settings of its own, on a free port, ended when it is dropped.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::Peer;

/// mitmproxy needs a few seconds; the machine may have other work.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// It has nothing to finish.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);
/// Somebody else may take the port that was free.
const ATTEMPTS: usize = 3;

/// User and password that [`basic`] knows.
pub const KNOWN: &str = "agent:p@ss word";

/// One that answers.
#[derive(Debug)]
pub struct Running {
    child: Child,
    at: SocketAddr,
}

/// Where a proxy runs.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its files. Whoever it runs as must be able to write there, since squid gives up root's rights.
    pub folder: &'a Path,
    /// A name that leads to this machine for the proxy, and for nobody else; it then needs root, for a mount namespace.
    pub knows: Option<&'a str>,
}

impl Place<'_> {
    /// The command as it is run here.
    fn run(&self, command: Command) -> anyhow::Result<Command> {
        let Some(name) = self.knows else { return Ok(command) };
        let hosts = self.folder.join("hosts");
        fs::write(&hosts, format!("127.0.0.1 localhost\n127.0.0.1 {name}\n"))?;
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
}

impl Running {
    /// Starts a program that is to listen on the address that it is given.
    ///
    /// # Errors
    /// If it does not listen in time.
    fn start(
        name: &str,
        place: Place<'_>,
        make: impl Fn(SocketAddr) -> anyhow::Result<Command>,
    ) -> anyhow::Result<Self> {
        let mut last = anyhow::anyhow!("{name} was not started");
        for _ in 0..ATTEMPTS {
            let at = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
            let path = place.folder.join(format!("{name}.output"));
            let log = fs::File::create(&path)?;
            let mut command = place.run(make(at)?)?;
            let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
            let child = child.with_context(|| format!("{name} can't be run"))?;
            let mut running = Self { child, at };
            match running.ready(&path) {
                Ok(()) => return Ok(running),
                Err(error) => last = error.context(format!("{name} does not start")),
            }
        }
        Err(last)
    }

    fn ready(&mut self, log: &Path) -> anyhow::Result<()> {
        let begun = Instant::now();
        while TcpStream::connect(self.at).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{status}: {}", fs::read_to_string(log)?);
            }
            ensure!(begun.elapsed() < READY_WITHIN, "it does not listen: {}", fs::read_to_string(log)?);
            thread::park_timeout(LOOK);
        }
        Ok(())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.at
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // By a signal that it can catch: squid removes its shared memory.
        let _gone = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let begun = Instant::now();
        while begun.elapsed() < ENDS_WITHIN {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::park_timeout(LOOK);
        }
        let _killed = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// squid on such a port (`http_port`, with what stands behind the address), with these settings; what they do not allow is denied.
///
/// # Errors
/// If it does not start.
pub fn squid(place: Place<'_>, port: [&str; 2], settings: &str) -> anyhow::Result<Running> {
    let installed = Peer::Squid.ensure()?;
    Running::start("squid", place, |at| {
        let folder = place.folder;
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
        Ok(command)
    })
}

/// The settings of a squid that lets in whom it knows, by Basic: [`KNOWN`].
///
/// # Errors
/// If its helper can't be written.
pub fn basic(folder: &Path) -> anyhow::Result<String> {
    let helper = folder.join("helper");
    // squid encodes what would end a word of its line, and no more.
    let known = KNOWN.replace(' ', "%20").replace(':', " ");
    let script = format!(
        "#!/bin/sh\nwhile read -r question; do if [ \"$question\" = '{known}' ]; then echo OK; else echo ERR; fi; done\n"
    );
    fs::write(&helper, script)?;
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755))?;
    Ok(format!(
        "auth_param basic program {}\nauth_param basic realm towline\nauth_param basic children 1\nacl known proxy_auth REQUIRED\n\
         http_access allow CONNECT known\n",
        helper.display()
    ))
}

/// squid that ends TLS and begins its own (`ssl_bump`), with a certificate for the name that it knows, or for loopback, by an
/// authority of its own: the proxy, and that authority.
///
/// # Errors
/// If it does not start.
pub fn squid_bump(place: Place<'_>, relay_ca: &Path, settings: &str) -> anyhow::Result<(Running, PathBuf)> {
    let (ca, both) = (place.folder.join("corp-ca.pem"), place.folder.join("corp-both.pem"));
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new())?;
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, "Corp Proxy CA");
    let key = rcgen::KeyPair::generate()?;
    fs::write(&ca, authority.self_signed(&key)?.pem())?;
    let leaf_key = rcgen::KeyPair::generate()?;
    let leaf = rcgen::CertificateParams::new(vec![place.knows.unwrap_or("127.0.0.1").to_owned()])?;
    let leaf = leaf.signed_by(&leaf_key, &rcgen::Issuer::from_params(&authority, &key))?;
    fs::write(&both, leaf.pem() + &leaf_key.serialize_pem())?;
    let relay_ca = readable(relay_ca, place.folder)?;
    // Certificates that it makes as it goes need a helper, which whoever it runs as must be able to reach.
    let port = format!("ssl-bump tls-cert={} generate-host-certificates=off", both.display());
    let settings = format!(
        "tls_outgoing_options cafile={}\nssl_bump bump all\nhttp_access allow all\n{settings}",
        relay_ca.display()
    );
    Ok((squid(place, ["http_port", &port], &settings)?, ca))
}

/// tinyproxy, with more settings.
///
/// # Errors
/// If it does not start.
pub fn tinyproxy(place: Place<'_>, settings: &str) -> anyhow::Result<Running> {
    let installed = Peer::Tinyproxy.ensure()?;
    Running::start("tinyproxy", place, |at| {
        let path = place.folder.join("tinyproxy.conf");
        let text =
            format!("Port {}\nListen {}\nTimeout 600\nAllow 127.0.0.1\n{settings}", at.port(), at.ip());
        fs::write(&path, text)?;
        let mut command = installed.command("tinyproxy")?;
        command.arg("-d").arg("-c").arg(&path);
        Ok(command)
    })
}

/// mitmproxy, which records all that it sees into the file `recording`: the proxy, and its authority.
///
/// # Errors
/// If it does not start.
pub fn mitmproxy(place: Place<'_>, relay_ca: &Path) -> anyhow::Result<(Running, PathBuf)> {
    let installed = Peer::Mitmproxy.ensure()?;
    let (settings, recording) = (place.folder.join("mitmproxy"), place.folder.join("recording"));
    let running = Running::start("mitmproxy", place, |at| {
        let mut command = installed.command("mitmdump")?;
        let (port, host) = (at.port().to_string(), at.ip().to_string());
        command.args(["--listen-host", &host, "--listen-port", &port, "--save-stream-file"]).arg(&recording);
        for option in [
            format!("confdir={}", settings.display()),
            format!("ssl_verify_upstream_trusted_ca={}", relay_ca.display()),
        ] {
            command.args(["--set", &option]);
        }
        Ok(command)
    })?;
    Ok((running, settings.join("mitmproxy-ca-cert.pem")))
}

/// A certificate for a server on loopback: itself, and a file with its key as well.
///
/// # Errors
/// If it can't be made.
pub fn certificate(folder: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
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
pub fn nginx(
    place: Place<'_>,
    relay: SocketAddr,
    listen: &str,
    location: &str,
) -> anyhow::Result<(Running, PathBuf)> {
    let (installed, folder) = (Peer::Nginx.ensure()?, place.folder);
    let (ca, both) = certificate(folder)?;
    let location = location.replace("RELAY", &relay.to_string());
    let running = Running::start("nginx", place, |at| {
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
pub fn haproxy(place: Place<'_>, relay: SocketAddr, sections: &str) -> anyhow::Result<(Running, PathBuf)> {
    let (installed, folder) = (Peer::Haproxy.ensure()?, place.folder);
    let (ca, both) = certificate(folder)?;
    let running = Running::start("haproxy", place, |at| {
        let text = sections
            .replace("CERTIFICATE", &both.display().to_string())
            .replace("AT", &at.to_string())
            .replace("RELAY", &relay.to_string());
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

//! Proxies that run for a test: each with settings of its own, on a free port, ended with the test.
#![allow(clippy::disallowed_methods, reason = "it looks again until a deadline, and no runtime waits for it")]

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use xtask::peers::{Installed, Peer};

/// squid needs one to two seconds; the machine may have other work.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// It has nothing to finish.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);
/// Somebody else may take the port that was free.
const ATTEMPTS: usize = 3;

/// A proxy that answers.
pub(crate) struct Running {
    child: Child,
    at: SocketAddr,
    _folder: TempDir,
}

impl Running {
    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.at
    }

    /// Lets a file be run by whoever the proxy runs as.
    pub(crate) fn executable(path: &Path) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn start(
        peer: Peer,
        run: impl Fn(&Installed, &Path, SocketAddr) -> anyhow::Result<Command>,
    ) -> anyhow::Result<Self> {
        let installed = peer.ensure()?;
        let mut last = anyhow::anyhow!("{} was not started", peer.name());
        for _ in 0..ATTEMPTS {
            let folder = tempfile::tempdir()?;
            // squid gives up root's rights, and writes here.
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777))?;
            let at = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
            let log = fs::File::create(folder.path().join("output"))?;
            let mut command = run(&installed, folder.path(), at)?;
            let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
            let mut running = Self { child, at, _folder: folder };
            match running.ready() {
                Ok(()) => return Ok(running),
                Err(error) => last = error.context(format!("{} does not start", peer.name())),
            }
        }
        // It is there, and does not run: that is no reason to try nothing.
        panic!("{last:#}");
    }

    fn ready(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while TcpStream::connect(self.at).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{status}: {}", fs::read_to_string(self._folder.path().join("output"))?);
            }
            anyhow::ensure!(begun.elapsed() < READY_WITHIN, "it does not listen");
            std::thread::sleep(LOOK);
        }
        Ok(())
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
            std::thread::sleep(LOOK);
        }
        let _killed = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// squid, with more settings; what they do not allow is denied.
pub(crate) fn squid(settings: impl Fn(&Path) -> String) -> anyhow::Result<Running> {
    start_squid(|folder, at| format!("http_port {at}\n{}", settings(folder)))
}

/// squid that is spoken to by TLS, with this certificate and key.
pub(crate) fn squid_with_tls(pem: String, settings: &str) -> anyhow::Result<Running> {
    start_squid(|folder, at| {
        let path = folder.join("tls.pem");
        fs::write(&path, &pem).unwrap();
        format!("https_port {at} tls-cert={}\n{settings}", path.display())
    })
}

fn start_squid(settings: impl Fn(&Path, SocketAddr) -> String) -> anyhow::Result<Running> {
    Running::start(Peer::Squid, |installed, folder, at| {
        let usr = installed.root().join("usr");
        let (here, usr) = (folder.display(), usr.display());
        let own = settings(folder, at);
        let text = format!(
            "{own}http_access deny all\npid_filename {here}/pid\ncache_log {here}/cache.log\naccess_log none\ncache deny all\n\
             cache_mem 8 MB\ncoredump_dir {here}\nmime_table {usr}/share/squid/mime.conf\nicon_directory {usr}/share/squid/icons\n\
             unlinkd_program {usr}/lib/squid/unlinkd\nerror_directory {usr}/share/squid-langpack/en\npinger_enable off\nshutdown_lifetime 0 seconds\n\
             visible_hostname squid.test\ncache_effective_user nobody\nforwarded_for delete\n"
        );
        let path = folder.join("squid.conf");
        fs::write(&path, text)?;
        let mut command = installed.command("squid")?;
        // Its shared memory has the service's name, which must be its own.
        command.arg("-N").arg("-f").arg(&path).arg("-n").arg(format!("t{}p{}", std::process::id(), at.port()));
        Ok(command)
    })
    .context("squid")
}

/// tinyproxy, with more settings.
pub(crate) fn tinyproxy(settings: &str) -> anyhow::Result<Running> {
    Running::start(Peer::Tinyproxy, |installed, folder, at| {
        let path = folder.join("tinyproxy.conf");
        fs::write(
            &path,
            format!("Port {}\nListen {}\nTimeout 60\nAllow 127.0.0.1\n{settings}", at.port(), at.ip()),
        )?;
        let mut command = installed.command("tinyproxy")?;
        command.arg("-d").arg("-c").arg(&path);
        Ok(command)
    })
    .context("tinyproxy")
}

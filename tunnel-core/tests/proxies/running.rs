//! Proxies that run for a test, each in a folder of its own.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path};

use tempfile::TempDir;
use xtask::peers::{
    Peer,
    running::{self, Place},
};

/// A proxy that answers.
pub(crate) struct Running {
    proxy: running::Running,
    _folder: TempDir,
}

impl Running {
    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.proxy.address()
    }

    /// Lets a file be run by whoever the proxy runs as.
    pub(crate) fn executable(path: &Path) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn start(
        peer: Peer,
        start: impl FnOnce(Place<'_>) -> anyhow::Result<running::Running>,
    ) -> anyhow::Result<Self> {
        peer.ensure()?;
        let folder = tempfile::tempdir()?;
        // squid gives up root's rights, and writes here.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777))?;
        let proxy = start(Place { folder: folder.path(), knows: None });
        // It is there, and does not run: that is no reason to try nothing.
        let proxy = proxy.unwrap_or_else(|error| panic!("{error:#}"));
        Ok(Self { proxy, _folder: folder })
    }
}

/// squid, with more settings; what they do not allow is denied.
pub(crate) fn squid(settings: impl Fn(&Path) -> String) -> anyhow::Result<Running> {
    Running::start(Peer::Squid, |place| running::squid(place, ["http_port", ""], &settings(place.folder)))
}

/// squid that is spoken to by TLS, with this certificate and key.
pub(crate) fn squid_with_tls(pem: String, settings: &str) -> anyhow::Result<Running> {
    Running::start(Peer::Squid, |place| {
        let path = place.folder.join("tls.pem");
        fs::write(&path, &pem)?;
        running::squid(place, ["https_port", &format!("tls-cert={}", path.display())], settings)
    })
}

/// tinyproxy, with more settings.
pub(crate) fn tinyproxy(settings: &str) -> anyhow::Result<Running> {
    Running::start(Peer::Tinyproxy, |place| running::tinyproxy(place, settings))
}

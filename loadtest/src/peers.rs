//! What people use today for the same journey, as real processes on loopback: each one is a [`Path`] between the same
//! ends. How each is configured, and why so, stands in `docs/peers.md`.
//!
//! Where a peer ends TLS, the near end speaks TLS to it and it speaks TLS to the far end; where it does not, the near
//! end's TLS goes through it to the far end: TLS in and TLS out, always.

mod haproxy;
mod openssh;
mod process;
mod rathole;
mod remotedialer;

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path as FilePath,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};
use xtask::peers::{Installed, Peer};

use self::process::Started;
use crate::{
    certificates::Certificates,
    direct::Direct,
    far::FarEnd,
    near::{self, Http},
    path::{Dialling, Path},
};

/// What a peer may take until bytes go through it.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// The name in the certificate that all servers here have.
const NAME: &str = "localhost";
/// A free port may be taken by another program before the peer listens on it.
const ATTEMPTS: usize = 3;

/// A peer in one configuration.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Kind {
    /// One haproxy, TLS in and TLS out: what stands beside the relay alone
    HaproxyX1,
    /// Three in a chain, each of which ends TLS and begins it anew
    HaproxyX3,
    /// Three in a chain: plain→TLS, TLS→TLS, TLS→plain; the ends' own TLS goes through
    HaproxyX3Plain,
    /// rathole, with TLS between its client and its server
    Rathole,
    /// ssh -R and ssh -L over a bastion
    SshRl,
    /// ssh -J over a bastion to an sshd that is only reachable through its ssh -R: encrypted end to end
    SshJ,
    /// Rancher's remotedialer, TLS on both legs
    Remotedialer,
}

/// What a peer's processes are started with.
struct Setting<'a> {
    installed: &'a Installed,
    certificates: &'a Certificates,
    /// The far end, with TLS.
    far: SocketAddr,
    /// Where the peer is to listen.
    near: SocketAddr,
    /// For configurations and logs.
    folder: &'a FilePath,
}

/// A peer that runs. Dropping it stops its processes.
pub struct Running {
    kind: Kind,
    first_hop: Direct,
    processes: Vec<Started>,
    // Last: what runs reads it.
    _folder: TempDir,
}

impl Kind {
    /// What it is called in tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::HaproxyX1 => "haproxy-x1",
            Self::HaproxyX3 => "haproxy-x3",
            Self::HaproxyX3Plain => "haproxy-x3-plain",
            Self::Rathole => "rathole",
            Self::SshRl => "ssh-rl",
            Self::SshJ => "ssh-j",
            Self::Remotedialer => "remotedialer",
        }
    }

    /// The software.
    pub fn peer(self) -> Peer {
        match self {
            Self::HaproxyX1 | Self::HaproxyX3 | Self::HaproxyX3Plain => Peer::Haproxy,
            Self::Rathole => Peer::Rathole,
            Self::SshRl | Self::SshJ => Peer::Openssh,
            Self::Remotedialer => Peer::Remotedialer,
        }
    }

    /// Whether it ends the near end's TLS; otherwise that goes through to the far end.
    pub fn ends_tls(self) -> bool {
        matches!(self, Self::HaproxyX1 | Self::HaproxyX3 | Self::Remotedialer)
    }

    /// Starts its processes, and waits until bytes go through them.
    ///
    /// # Errors
    /// If one of them can't be started or ends, with the end of its log.
    pub async fn start(self, installed: &Installed, far: &FarEnd) -> anyhow::Result<Running> {
        let mut attempt = 1;
        loop {
            match self.try_start(installed, far).await {
                Err(error) if attempt < ATTEMPTS && format!("{error:#}").contains("in use") => attempt += 1,
                done => return done.with_context(|| self.name()),
            }
        }
    }

    async fn try_start(self, installed: &Installed, far: &FarEnd) -> anyhow::Result<Running> {
        let folder = tempfile::Builder::new().prefix("towline-peer-").tempdir()?;
        let near = free_address()?;
        let certificates = far.certificates();
        let setting = Setting { installed, certificates, far: far.tls(), near, folder: folder.path() };
        let processes = match self {
            Self::HaproxyX1 => haproxy::hop(&setting),
            Self::HaproxyX3 => haproxy::chain(&setting, haproxy::Ends::Tls),
            Self::HaproxyX3Plain => haproxy::chain(&setting, haproxy::Ends::Plain),
            Self::Rathole => rathole::start(&setting),
            Self::SshRl => openssh::remote_and_local(&setting),
            Self::SshJ => openssh::jump(&setting),
            Self::Remotedialer => remotedialer::start(&setting),
        }?;
        let first_hop = Direct::to(self.name(), near, Some(certificates.clone()));
        let mut running = Running { kind: self, first_hop, processes, _folder: folder };
        running.wait_until_ready().await?;
        Ok(running)
    }
}

impl Running {
    async fn ask(&self) -> anyhow::Result<usize> {
        Http::dial(self).await?.get(near::SMALL).await
    }

    /// A peer listens before all of it is connected: what counts is that an answer comes.
    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let tried = timeout(Duration::from_secs(2), self.ask()).await;
            if matches!(tried, Ok(Ok(_))) {
                return Ok(());
            }
            for process in &mut self.processes {
                process.still_runs()?;
            }
            if Instant::now() > deadline {
                let logs: Vec<String> = self.processes.iter().map(Started::tail).collect();
                let why = match tried {
                    Ok(Err(error)) => format!("{error:#}"),
                    _ => "no answer".to_owned(),
                };
                bail!(
                    "nothing goes through after {READY_WITHIN:?} ({why}); the ends of its logs:\n{}",
                    logs.join("\n")
                );
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Path for Running {
    fn name(&self) -> &str {
        self.kind.name()
    }

    fn dial(&self) -> Dialling<'_> {
        self.first_hop.dial()
    }

    fn processes(&self) -> Vec<u32> {
        self.processes.iter().flat_map(Started::tree).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Those that were started last are clients of the first.
        while let Some(last) = self.processes.pop() {
            drop(last);
        }
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Running({:?})", self.first_hop)
    }
}

/// A port on loopback that is free now.
fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

#[cfg(test)]
mod tests;

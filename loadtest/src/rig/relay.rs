//! The relay, as a process of its own: this very program under its name.

use std::{
    env,
    ffi::OsStr,
    fs,
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::block_in_place,
    time::timeout,
};
use towline_e2e::process::Process;
use towline_tunnel::{enrolment::EnrolmentToken, ids::KeyHash};

use super::RELAY_AUDIENCE;

/// What it may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// What it may take to answer for its metrics.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// All simulated peers come from one address, as one user, and may be instances of one cluster.
const ONE_MACHINE: [&str; 10] = [
    "--max-sessions-per-address",
    "1000000",
    "--max-sessions-per-user",
    "1000000",
    "--max-streams-per-user",
    "1000000",
    "--max-buffered-bytes-per-user",
    "1024GiB",
    "--max-instances-per-cluster",
    "1000000",
];

/// One of towline's programs: this very program, which goes by the name that it is called.
///
/// # Errors
/// If this program does not know where it is.
pub fn program(name: &str) -> anyhow::Result<Command> {
    let me = env::current_exe().context("this program's own path is not known")?;
    let mut command = Command::new(me);
    command.arg0(name);
    Ok(command)
}

/// A relay that serves. Dropping it kills it.
#[derive(Debug)]
pub struct Relay {
    process: Process,
    address: SocketAddr,
    metrics: SocketAddr,
    key: KeyHash,
    arguments: Vec<std::ffi::OsString>,
    folder: PathBuf,
}

impl Relay {
    /// Starts one on loopback, with its keys and registry in a folder, for an issuer.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start(folder: &Path, issuer: &str, issuer_ca: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        let mut arguments: Vec<std::ffi::OsString> = Vec::new();
        let mut add = |more: &[&str]| arguments.extend(more.iter().map(Into::into));
        add(&["--oidc-issuer-url", issuer, "--oidc-client-id", RELAY_AUDIENCE]);
        add(&["--oidc-username-prefix", "-", "--oidc-groups-claim", "groups"]);
        add(&["--oidc-signing-algs", "ES256", "--tls-self-signed", "127.0.0.1"]);
        add(&ONE_MACHINE);
        add(flags);
        arguments.extend(["--oidc-ca-file".into(), issuer_ca.into()]);
        let (process, address, metrics) = serve(folder, &arguments, "127.0.0.1:0")?;
        let key = said(program("towline-relay")?.arg("key"), folder)?;
        Ok(Self { process, address, metrics, key: key.parse()?, arguments, folder: folder.to_owned() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What its peers pin.
    pub fn key(&self) -> KeyHash {
        self.key
    }

    /// The authority of its certificate (PEM).
    pub fn authority(&self) -> PathBuf {
        self.folder.join("tls-ca.pem")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it has logged since it was last started.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        block_in_place(|| self.process.kill());
    }

    /// Ends it as Kubernetes does: SIGTERM, and time to drain.
    ///
    /// # Errors
    /// If it does not end.
    pub fn terminate(&mut self, within: Duration) -> anyhow::Result<()> {
        block_in_place(|| self.process.terminate(within)).map(|_| ())
    }

    /// Starts it again where it was, with what it keeps in its folder.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let address = self.address.to_string();
        (self.process, self.address, self.metrics) = serve(&self.folder, &self.arguments, &address)?;
        Ok(())
    }

    /// A token that lets one cluster in under this name.
    ///
    /// # Errors
    /// If the relay's command fails.
    pub fn enroll(&self, name: &str) -> anyhow::Result<EnrolmentToken> {
        let token = said(program("towline-relay")?.args(["enroll", name]), &self.folder)?;
        Ok(EnrolmentToken::decode(&token)?)
    }

    /// Lets a user open a cluster.
    ///
    /// # Errors
    /// If the relay's command fails.
    pub fn let_in(&self, user: &str, cluster: &str) -> anyhow::Result<()> {
        let mut command = program("towline-relay")?;
        command.args(["role", "assign", "--user", user, "--role", "cluster-user", "--cluster", cluster]);
        said(&mut command, &self.folder).map(|_| ())
    }

    /// The sum of a metric's series whose line begins so.
    ///
    /// # Errors
    /// If it does not answer, or has no such metric.
    pub async fn metric(&self, begins: &str) -> anyhow::Result<f64> {
        let page = timeout(ANSWER_WITHIN, page(self.metrics)).await.context("no metrics in time")??;
        let values: Vec<f64> = page
            .lines()
            .filter(|line| line.starts_with(begins))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse().ok())
            .collect();
        ensure!(!values.is_empty(), "the relay has no metric {begins}");
        Ok(values.iter().sum())
    }
}

async fn page(address: SocketAddr) -> anyhow::Result<String> {
    let mut tcp = TcpStream::connect(address).await?;
    tcp.write_all(b"GET /metrics HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n").await?;
    let mut page = String::new();
    tcp.read_to_string(&mut page).await?;
    Ok(page)
}

fn serve(
    folder: &Path,
    arguments: &[std::ffi::OsString],
    listen: &str,
) -> anyhow::Result<(Process, SocketAddr, SocketAddr)> {
    let mut command = program("towline-relay")?;
    command.args(["serve", "--listen", listen, "--data-dir"]).arg(folder).args(arguments);
    fs::create_dir_all(folder)?;
    let mut process = Process::start("the relay", &mut command, &folder.join("relay.log"))?;
    let line = block_in_place(|| process.wait_for(&["the relay serves"], READY_WITHIN))?;
    Ok((process, field(&line, "listen")?.parse()?, field(&line, "metrics")?.parse()?))
}

/// A field of a line of log, which is JSON where no terminal reads it.
pub(super) fn field(line: &str, name: &str) -> anyhow::Result<String> {
    let read: serde_json::Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
    Ok(read[name].as_str().with_context(|| format!("no field {name} in {line}"))?.to_owned())
}

/// What a command with this data directory prints, without the end of the line.
fn said(command: &mut Command, data_dir: impl AsRef<OsStr>) -> anyhow::Result<String> {
    command.arg("--data-dir").arg(data_dir);
    let output = block_in_place(|| command.output()).context("the relay's command can't be run")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

//! The whole journey: towline's three programs as processes, between a caller and the far end.
//!
//! The near end is a client of `towline proxy` as kubectl is one (TLS with its certificate, HTTP/1.1), and the far end
//! is what the agent takes for kube-apiserver. Raw bytes go as `exec` has them: after an upgrade.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path as FilePath, PathBuf},
    time::{Duration, Instant},
};

use tokio::task::block_in_place;
use towline_e2e::process::{Process, pause};
use towline_tunnel::fault::Fault;

use super::{CLUSTER_AUDIENCE, RELAY_AUDIENCE, Rig, USER, relay};
use crate::{
    path::{Dialling, Path},
    target::Target,
};

/// What a program may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Agent and proxy of one cluster. Dropping it kills both.
#[derive(Debug)]
pub struct Programs {
    name: String,
    agent: Process,
    proxy: Process,
    relay: u32,
    target: Target,
}

/// Where the programs find the relay, where that is not its own address: a line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lines {
    /// The agent's.
    pub agent: Option<SocketAddr>,
    /// The proxy's.
    pub proxy: Option<SocketAddr>,
}

impl Programs {
    /// Starts them, and waits until `/version` was answered through all of them.
    ///
    /// # Errors
    /// What fails, with the end of its log.
    pub fn start(rig: &Rig, name: &str, lines: Lines) -> anyhow::Result<Self> {
        Self::with_bulk_lines(rig, name, lines, None)
    }

    /// The same, with so many lines for bulk at both; none says what they have by themselves.
    ///
    /// # Errors
    /// What fails, with the end of its log.
    pub fn with_bulk_lines(
        rig: &Rig,
        name: &str,
        lines: Lines,
        bulk_lines: Option<u32>,
    ) -> anyhow::Result<Self> {
        let bulk: Vec<String> =
            bulk_lines.iter().flat_map(|n| ["--bulk-lines".to_owned(), n.to_string()]).collect();
        let programs = Self::with_flags(rig, name, lines, &bulk, &bulk)?;
        let name = match bulk_lines {
            None => programs.name.clone(),
            Some(n) => format!("towline, {n} bulk lines"),
        };
        Ok(Self { name, ..programs })
    }

    /// The same, with these flags for the agent.
    ///
    /// # Errors
    /// What fails, with the end of its log.
    pub fn with_agent_flags(rig: &Rig, name: &str, lines: Lines, flags: &[String]) -> anyhow::Result<Self> {
        Self::with_flags(rig, name, lines, flags, &[])
    }

    fn with_flags(
        rig: &Rig,
        name: &str,
        lines: Lines,
        agent: &[String],
        proxy: &[String],
    ) -> anyhow::Result<Self> {
        let folder = rig.folder().join(name);
        fs::create_dir_all(&folder)?;
        let (agent, cluster) = start_agent(rig, name, &folder, lines.agent, agent)?;
        rig.relay.let_in(USER, name)?;
        let kubeconfig = folder.join("kubeconfig");
        let running = start_proxy(rig, &folder, &cluster, &kubeconfig, lines.proxy, proxy)?;
        let target = Target::of_kubeconfig(&kubeconfig, b"http/1.1")?;
        Ok(Self { name: "towline".to_owned(), agent, proxy: running, relay: rig.relay.pid(), target })
    }

    /// The agent's process.
    pub fn agent(&self) -> u32 {
        self.agent.id()
    }

    /// What the agent has logged.
    pub fn agent_log(&self) -> String {
        self.agent.log()
    }

    /// The proxy's process.
    pub fn proxy(&self) -> u32 {
        self.proxy.id()
    }
}

impl Path for Programs {
    fn name(&self) -> &str {
        &self.name
    }

    fn dial(&self) -> Dialling<'_> {
        Box::pin(self.target.dial())
    }

    fn host(&self) -> &str {
        self.target.host()
    }

    fn prefix(&self) -> &str {
        self.target.prefix()
    }

    fn processes(&self) -> Vec<u32> {
        vec![self.proxy.id(), self.relay, self.agent.id()]
    }
}

fn issuer_flags(rig: &Rig, audience: &str) -> Vec<String> {
    let flags = ["--oidc-issuer-url", &rig.issuer.url(), "--oidc-client-id", audience];
    let rules =
        ["--oidc-username-prefix", "-", "--oidc-groups-claim", "groups", "--oidc-signing-algs", "ES256"];
    let ca = rig.folder().join("issuer-ca.pem").display().to_string();
    flags.into_iter().chain(rules).map(str::to_owned).chain(["--oidc-ca-file".to_owned(), ca]).collect()
}

fn start_agent(
    rig: &Rig,
    name: &str,
    folder: &FilePath,
    line: Option<SocketAddr>,
    more: &[String],
) -> anyhow::Result<(Process, String)> {
    let token = folder.join("enrolment-token");
    private(&token, &rig.relay.enroll(name)?.encode())?;
    let kubeconfig = folder.join("apiserver.kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: 'https://{}', certificate-authority: '{}'}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{token: far}}}}]\n",
        rig.far.tls(),
        rig.far.certificates().authority().display()
    );
    private(&kubeconfig, &text)?;
    let mut command = relay::program("towline-agent")?;
    command.args(["run", "--data-dir"]).arg(folder.join("agent"));
    command.arg("--enrolment-token-file").arg(&token).arg("--kubeconfig").arg(&kubeconfig);
    command.args(issuer_flags(rig, CLUSTER_AUDIENCE)).args(more);
    if let Some(line) = line {
        command.arg("--relay").arg(format!("https://{line}"));
    }
    let mut process = Process::start("the agent", &mut command, &folder.join("agent.log"))?;
    let starting = block_in_place(|| {
        process.wait_for(&["connected"], READY_WITHIN)?;
        process.wait_for(&["\"starting\""], READY_WITHIN)
    })?;
    Ok((process, relay::field(&starting, "cluster")?))
}

fn start_proxy(
    rig: &Rig,
    folder: &FilePath,
    cluster: &str,
    kubeconfig: &PathBuf,
    line: Option<SocketAddr>,
    more: &[String],
) -> anyhow::Result<Process> {
    let tokens = [("--relay-token-file", RELAY_AUDIENCE), ("--cluster-token-file", CLUSTER_AUDIENCE)];
    let mut flags: Vec<std::ffi::OsString> = Vec::new();
    for (flag, audience) in tokens {
        let path = folder.join(audience);
        private(&path, &rig.token(audience)?)?;
        flags.extend([flag.into(), path.into()]);
    }
    let address = line.unwrap_or_else(|| rig.relay.address());
    let begun = Instant::now();
    loop {
        let mut command = relay::program("towline")?;
        command.args(["proxy", "--relay", &format!("https://{address}")]);
        command.args(["--relay-key", &rig.relay.key().to_string(), "--relay-ca-file"]);
        command.arg(rig.relay.authority()).args(&flags).args(more).args([
            "--cluster",
            cluster,
            "--port",
            "0",
        ]);
        command.arg("--kubeconfig").arg(kubeconfig).arg("--state-dir").arg(folder.join("state"));
        let mut process = Process::start("the proxy", &mut command, &folder.join("proxy.log"))?;
        match block_in_place(|| process.wait_for(&["ready: "], READY_WITHIN)) {
            Ok(_) => return Ok(process),
            // A role that was just assigned reaches the relay a moment later.
            Err(error)
                if begun.elapsed() > Duration::from_secs(10)
                    || !process.log().contains(Fault::ClusterForbidden.code()) =>
            {
                return Err(error);
            }
            Err(_) => block_in_place(|| pause(Duration::from_millis(100))),
        }
    }
}

fn private(path: &FilePath, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

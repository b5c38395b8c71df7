//! A cluster, an identity provider, relay, agent and proxies: everything that a journey needs, and its end.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tempfile::TempDir;
use towline_identity::dev::{DevIssuer, TokenRequest};
use towline_tunnel::{fault::Fault, ids::StreamKey};
use xtask::cluster::{BUSYBOX_IMAGE, Cluster};

use crate::{
    process::{Process, pause},
    programs::Programs,
    table::direct_kubeconfig,
};

/// What a program may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// The name under which the cluster is enrolled.
pub const CLUSTER_NAME: &str = "edge";
/// Audiences of the two tokens that a person has.
pub const RELAY_AUDIENCE: &str = "towline-relay";
/// See [`RELAY_AUDIENCE`].
pub const CLUSTER_AUDIENCE: &str = "towline-cluster";

/// Relay, agent, issuer and folders of one journey. Dropping it stops all of it, but not the cluster.
#[derive(Debug)]
pub struct Stage {
    /// The programs.
    pub programs: Programs,
    /// The cluster that the agent serves.
    pub cluster: Cluster,
    /// Who gives people their tokens.
    pub issuer: DevIssuer,
    /// The relay.
    pub relay: Process,
    /// Host and port of the relay.
    pub relay_address: String,
    /// The hash of its identity key.
    pub relay_key: String,
    /// Where its metrics are.
    pub relay_metrics: String,
    /// The agent.
    pub agent: Process,
    /// Where its metrics are.
    pub agent_metrics: String,
    /// How the agent reaches the cluster from its next start on.
    pub agent_setup: AgentSetup,
    /// The agent's own name at kube-apiserver, as its audit log has it.
    pub agent_user: String,
    /// The cluster's id.
    pub cluster_id: String,
    trust: Trust,
    folder: TempDir,
}

/// Whose tokens relay and agent take: flags of theirs.
#[derive(Clone, Debug)]
pub struct Trust {
    /// The relay's.
    pub relay: Vec<String>,
    /// The agent's.
    pub agent: Vec<String>,
}

impl Trust {
    /// One issuer, whose users and groups have the names that it gives them.
    fn of(issuer: &DevIssuer, ca: &Path) -> Self {
        let flags = |audience: &str| {
            let (url, ca) = (issuer.url(), ca.display().to_string());
            let flags = ["--oidc-issuer-url", &url, "--oidc-client-id", audience, "--oidc-ca-file", &ca];
            let names = ["--oidc-username-prefix", "-", "--oidc-groups-claim", "groups"];
            let all = [&flags[..], &names, &["--oidc-signing-algs", "ES256"]].concat();
            all.into_iter().map(str::to_owned).collect()
        };
        Self { relay: flags(RELAY_AUDIENCE), agent: flags(CLUSTER_AUDIENCE) }
    }
}

/// How an agent reaches its cluster.
#[derive(Clone, Debug)]
pub struct AgentSetup {
    /// Whose rights it has.
    pub kubeconfig: PathBuf,
    /// More of its flags.
    pub flags: Vec<String>,
}

impl Stage {
    /// Starts relay and agent, and enrols the cluster.
    ///
    /// # Errors
    /// Whatever fails, with the log of the program.
    pub async fn set(cluster: Cluster, programs: Programs) -> anyhow::Result<Self> {
        let issuer = DevIssuer::start(0).await.context("the issuer can't be started")?;
        Self::with_issuer(cluster, programs, issuer)
    }

    /// The same with an issuer that runs already.
    ///
    /// # Errors
    /// See [`Stage::set`].
    pub fn with_issuer(cluster: Cluster, programs: Programs, issuer: DevIssuer) -> anyhow::Result<Self> {
        Self::with_trust(cluster, programs, issuer, None)
    }

    /// The same where other issuers are trusted as well, or in other ways. `issuer` makes [`Stage::tokens`].
    ///
    /// # Errors
    /// See [`Stage::set`].
    pub fn with_trust(
        cluster: Cluster,
        programs: Programs,
        issuer: DevIssuer,
        trust: Option<Trust>,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("towline-e2e-").tempdir()?;
        // A name of its own: what is asked in its name, this agent has asked.
        let agent_user = format!("towline-agent-{}", StreamKey::random());
        let kubeconfig = direct_kubeconfig(&cluster, folder.path(), &agent_user, &["system:masters"])?;
        let agent_setup = AgentSetup { kubeconfig, flags: Vec::new() };
        let ca = folder.path().join("issuer-ca.pem");
        fs::write(&ca, issuer.ca_pem())?;
        let trust = trust.unwrap_or_else(|| Trust::of(&issuer, &ca));
        let (relay, relay_address, relay_metrics) =
            start_relay(&programs, folder.path(), &trust, "127.0.0.1:0")?;
        let relay_key =
            said(Command::new(&programs.relay).arg("key").arg("--data-dir").arg(relay_dir(folder.path())))?;
        let token = said(
            Command::new(&programs.relay)
                .args(["enroll", CLUSTER_NAME, "--data-dir"])
                .arg(relay_dir(folder.path())),
        )?;
        let token_file = folder.path().join("enrolment-token");
        write_private(&token_file, &token)?;
        let (agent, agent_metrics) =
            start_agent(&programs, folder.path(), &trust, &agent_setup, Some(&token_file))?;
        let cluster_id =
            said(Command::new(&programs.agent).arg("id").arg("--data-dir").arg(folder.path().join("agent")))?;
        Ok(Self {
            programs,
            cluster,
            issuer,
            relay,
            relay_address,
            relay_key,
            relay_metrics,
            agent,
            agent_metrics,
            agent_setup,
            agent_user,
            cluster_id,
            trust,
            folder,
        })
    }

    /// Where everything of this stage is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The agent's audit log: a line for each request.
    pub fn agent_audit(&self) -> PathBuf {
        agent_audit(self.folder.path())
    }

    /// The relay's folder.
    pub fn relay_dir(&self) -> PathBuf {
        relay_dir(self.folder.path())
    }

    /// `towline-relay` with a command of its own and this relay's folder.
    ///
    /// # Errors
    /// If it fails.
    pub fn relay_command(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.command_of(&self.reach(), arguments)
    }

    /// The same with another relay's folder.
    ///
    /// # Errors
    /// If it fails.
    pub fn command_of(&self, relay: &Reach, arguments: &[&str]) -> anyhow::Result<String> {
        said(Command::new(&self.programs.relay).args(arguments).arg("--data-dir").arg(&relay.data_dir))
    }

    /// Starts the relay again on its old address, after it was stopped or killed.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn restart_relay(&mut self) -> anyhow::Result<()> {
        self.relay.kill();
        let address = self.relay_address.clone();
        (self.relay, self.relay_address, self.relay_metrics) =
            start_relay(&self.programs, self.folder.path(), &self.trust, &address)?;
        Ok(())
    }

    /// Starts the agent again, with what it keeps in its folder.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn restart_agent(&mut self) -> anyhow::Result<()> {
        self.agent.kill();
        (self.agent, self.agent_metrics) =
            start_agent(&self.programs, self.folder.path(), &self.trust, &self.agent_setup, None)?;
        Ok(())
    }

    /// The arguments of this stage's agent, behind `run` or `preflight`: for one that is started by somebody else.
    pub fn agent_arguments(&self) -> Vec<OsString> {
        agent_arguments(self.folder.path(), &self.trust, &self.agent_setup)
    }

    /// Lets a user open the cluster.
    ///
    /// # Errors
    /// If the relay's command fails.
    pub fn let_in(&self, user: &str) -> anyhow::Result<()> {
        let assign = ["role", "assign", "--user", user, "--role", "cluster-user", "--cluster", CLUSTER_NAME];
        self.relay_command(&assign).map(|_| ())
    }

    /// Writes fresh tokens for a user into files, and says which.
    ///
    /// # Errors
    /// If they can't be made or written.
    pub fn tokens(&self, user: &str, groups: &[&str], lifetime: Duration) -> anyhow::Result<Tokens> {
        self.write_tokens(user, groups, |request| request.lifetime = lifetime)
    }

    /// Replaces a user's tokens by ones that ended an hour ago.
    ///
    /// # Errors
    /// If they can't be made or written.
    pub fn expired_tokens(&self, user: &str, groups: &[&str]) -> anyhow::Result<Tokens> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        self.write_tokens(user, groups, |request| {
            request.claims.insert("iat".into(), (now - 7200).into());
            request.claims.insert("exp".into(), (now - 3600).into());
        })
    }

    /// Writes tokens for a user whose requests, one for each audience, are changed first.
    ///
    /// # Errors
    /// If they can't be made or written.
    pub fn write_tokens(
        &self,
        user: &str,
        groups: &[&str],
        change: impl Fn(&mut TokenRequest),
    ) -> anyhow::Result<Tokens> {
        let mint = |audience: &str| {
            let mut request = TokenRequest::new(user, groups, audience);
            change(&mut request);
            self.issuer.mint(&request)
        };
        let tokens = Tokens {
            relay: self.folder.path().join(format!("{user}.relay-token")),
            cluster: self.folder.path().join(format!("{user}.cluster-token")),
        };
        write_private(&tokens.relay, &mint(RELAY_AUDIENCE)?)?;
        write_private(&tokens.cluster, &mint(CLUSTER_AUDIENCE)?)?;
        Ok(tokens)
    }

    /// The flags of every client command for this relay and these tokens.
    pub fn client_flags(&self, tokens: &Tokens) -> Vec<String> {
        self.reach().flags(tokens)
    }

    /// Where this stage's relay is, and who.
    pub fn reach(&self) -> Reach {
        Reach { address: self.relay_address.clone(), key: self.relay_key.clone(), data_dir: self.relay_dir() }
    }

    /// Starts another relay, which trusts the same issuer and knows nothing of the first.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn another_relay(&self, name: &str) -> anyhow::Result<(Process, Reach)> {
        let folder = self.folder.path().join(name);
        fs::create_dir(&folder)?;
        let (relay, address, _) = start_relay(&self.programs, &folder, &self.trust, "127.0.0.1:0")?;
        let data_dir = relay_dir(&folder);
        let key = said(Command::new(&self.programs.relay).arg("key").arg("--data-dir").arg(&data_dir))?;
        Ok((relay, Reach { address, key, data_dir }))
    }

    /// Starts a proxy for the cluster and waits until it is ready. Its kubeconfig is a file of its own.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn proxy(&self, name: &str, tokens: &Tokens) -> anyhow::Result<Proxy> {
        self.proxy_to(name, &self.cluster_id, tokens)
    }

    /// The same for the cluster with another id.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn proxy_to(&self, name: &str, cluster: &str, tokens: &Tokens) -> anyhow::Result<Proxy> {
        self.proxy_by(name, &self.reach(), cluster, tokens)
    }

    /// The same by another relay.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn proxy_by(
        &self,
        name: &str,
        relay: &Reach,
        cluster: &str,
        tokens: &Tokens,
    ) -> anyhow::Result<Proxy> {
        let kubeconfig = self.folder.path().join(format!("{name}.kubeconfig"));
        let mut command = Command::new(&self.programs.client);
        command
            .args(["proxy", "--log", log_level()])
            .args(relay.flags(tokens))
            .args(["--cluster", cluster, "--port", "0", "--kubeconfig"])
            .arg(&kubeconfig)
            .arg("--state-dir")
            .arg(self.folder.path().join(format!("{name}.state")));
        let (name, log) = (format!("proxy {name}"), self.log(&format!("proxy-{name}")));
        let since = Instant::now();
        loop {
            let mut process = Process::start(&name, &mut command, &log)?;
            match process.wait_for(&["ready: "], READY_WITHIN) {
                Ok(_) => return Ok(Proxy { process, kubeconfig }),
                // A role that was just assigned reaches the relay a moment later.
                Err(error)
                    if since.elapsed() > Duration::from_secs(5)
                        || !process.log().contains(Fault::ClusterForbidden.code()) =>
                {
                    return Err(error);
                }
                Err(_) => pause(Duration::from_millis(100)),
            }
        }
    }

    /// Where the log of a program of this stage is.
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }
}

/// Where a relay is, and who.
#[derive(Clone, Debug)]
pub struct Reach {
    /// Host and port.
    pub address: String,
    /// The hash of its identity key.
    pub key: String,
    /// Its folder.
    pub data_dir: PathBuf,
}

impl Reach {
    /// The flags of every client command for this relay and these tokens.
    pub fn flags(&self, tokens: &Tokens) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        [
            "--relay",
            &format!("https://{}", self.address),
            "--relay-key",
            &self.key,
            "--relay-ca-file",
            &path(&self.data_dir.join("tls-ca.pem")),
            "--relay-token-file",
            &path(&tokens.relay),
            "--cluster-token-file",
            &path(&tokens.cluster),
        ]
        .map(str::to_owned)
        .to_vec()
    }
}

/// The two tokens of one user, in files.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// For the relay.
    pub relay: PathBuf,
    /// For the cluster.
    pub cluster: PathBuf,
}

/// A proxy that is ready.
#[derive(Debug)]
pub struct Proxy {
    /// The program.
    pub process: Process,
    /// What it wrote for kubectl.
    pub kubeconfig: PathBuf,
}

fn relay_dir(folder: &Path) -> PathBuf {
    folder.join("relay")
}

fn agent_audit(folder: &Path) -> PathBuf {
    folder.join("agent-audit.log")
}

pub(crate) fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let new = path.with_extension("new");
    let _old = fs::remove_file(&new);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    Ok(fs::rename(new, path)?)
}

fn start_relay(
    programs: &Programs,
    folder: &Path,
    trust: &Trust,
    listen: &str,
) -> anyhow::Result<(Process, String, String)> {
    let mut command = Command::new(&programs.relay);
    command
        .env("RUST_LOG", program_log("towline_relay"))
        .args(["serve", "--listen", listen, "--tls-self-signed", "127.0.0.1"])
        // Where it is only reached through a proxy.
        .args(["--tls-self-signed", crate::only_way::HOST, "--data-dir"])
        .arg(relay_dir(folder))
        .args(&trust.relay)
        .args(["--drain-timeout", "10s"]);
    let mut process = Process::start("the relay", &mut command, &folder.join("relay.log"))?;
    let line = process.wait_for(&["the relay serves"], READY_WITHIN)?;
    let (address, metrics) = (field(&line, "listen")?, field(&line, "metrics")?);
    Ok((process, address, metrics))
}

fn start_agent(
    programs: &Programs,
    folder: &Path,
    trust: &Trust,
    setup: &AgentSetup,
    enrolment: Option<&Path>,
) -> anyhow::Result<(Process, String)> {
    let mut command = Command::new(&programs.agent);
    command
        .env("RUST_LOG", program_log("towline_agent"))
        .arg("run")
        .args(agent_arguments(folder, trust, setup));
    if let Some(file) = enrolment {
        command.arg("--enrolment-token-file").arg(file);
    }
    let mut process = Process::start("the agent", &mut command, &folder.join("agent.log"))?;
    process.wait_for(&["connected"], READY_WITHIN)?;
    let metrics = field(&process.wait_for(&["\"metrics\""], READY_WITHIN)?, "metrics")?;
    Ok((process, metrics))
}

/// What `run` and `preflight` are told, once the cluster is enrolled.
fn agent_arguments(folder: &Path, trust: &Trust, setup: &AgentSetup) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec!["--data-dir".into(), folder.join("agent").into()];
    all.extend(["--kubeconfig".into(), setup.kubeconfig.clone().into()]);
    all.extend(setup.flags.iter().chain(&trust.agent).map(OsString::from));
    all.extend(["--audit-log".into(), agent_audit(folder).into()]);
    // What a proxy that was killed leaves behind is gone soon.
    all.extend(["--resume-timeout".into(), "20s".into()]);
    all
}

/// A folder for the logs of all programs, which then log everything: for whoever looks for a fault.
const KEEP_LOGS: &str = "TOWLINE_KEEP_LOGS";

fn log_level() -> &'static str {
    if env::var_os(KEEP_LOGS).is_some() { "debug" } else { "info" }
}

fn program_log(program: &str) -> String {
    let level = log_level();
    format!("info,{program}={level},towline_tunnel={level}")
}

impl Drop for Stage {
    fn drop(&mut self) {
        let Some(folder) = env::var_os(KEEP_LOGS).map(PathBuf::from) else { return };
        // Whoever asked for them sees that the folder is empty.
        let _lost = keep_logs(self.folder.path(), &folder);
    }
}

fn keep_logs(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().contains(".log") {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// A field of a line of log, which is JSON where no terminal reads it.
pub(crate) fn field(line: &str, name: &str) -> anyhow::Result<String> {
    let read: serde_json::Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
    Ok(read[name].as_str().with_context(|| format!("no field {name} in {line}"))?.to_owned())
}

/// What a command prints, without the end of the line.
fn said(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("{:?} can't be run", command.get_program()))?;
    anyhow::ensure!(
        output.status.success(),
        "{:?} failed: {}",
        command.get_program(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The image that pods run.
pub fn image() -> &'static str {
    BUSYBOX_IMAGE
}

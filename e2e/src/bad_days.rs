//! Bad input and bad days: what a person sees names the hop, the fault and what to do; nothing hangs; and the proxy that still
//! runs works again once the cause is gone.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use towline_tunnel::{fault::Fault, ids::ClusterId};

use crate::{
    case::{Outcome, run_within},
    process::{Process, pause},
    stage::{CLUSTER_NAME, Proxy, Stage},
    table::{GROUP, TOKEN_LIFETIME, USER},
};

/// Nothing hangs longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// The cause is gone, and a command works, within this time.
const BACK_WITHIN: Duration = Duration::from_secs(30);
const GET: [&str; 5] = ["get", "namespace", "default", "-o", "name"];

/// A user with a proxy of their own, for trouble.
#[derive(Debug)]
pub struct Trouble {
    proxy: Proxy,
}

/// kubectl through a proxy.
pub(crate) fn kubectl(stage: &Stage, proxy: &Proxy, arguments: &[&str]) -> anyhow::Result<Outcome> {
    kubectl_at(stage, proxy, stage.folder(), arguments)
}

/// The same with another home folder, in which it keeps what it learned of a cluster.
fn kubectl_at(stage: &Stage, proxy: &Proxy, home: &Path, arguments: &[&str]) -> anyhow::Result<Outcome> {
    let mut command = Command::new(stage.cluster.programs().kubectl());
    command.env("KUBECONFIG", &proxy.kubeconfig).env("HOME", home).args(arguments);
    run_within(command, ANSWER_WITHIN)
}

/// kubectl fails as [`fails_with`] has it, and says nothing else.
fn fails_in_one_line_with(outcome: &Outcome, fault: Fault) -> anyhow::Result<()> {
    fails_with(outcome, fault)?;
    let said = &outcome.stderr;
    ensure!(said.trim_end().lines().count() == 1, "kubectl prints more than one line: {said}");
    ensure!(said.starts_with("Error from server ("), "kubectl does not say whose error it is: {said}");
    Ok(())
}

/// kubectl fails, in time, with exactly this fault in its words.
pub(crate) fn fails_with(outcome: &Outcome, fault: Fault) -> anyhow::Result<()> {
    let (said, code) = (&outcome.stderr, fault.code());
    ensure!(outcome.ended == "exit 1", "kubectl: {} after {:?}: {said}", outcome.ended, outcome.took);
    ensure!(said.contains(code), "kubectl does not name {code}: {said}");
    ensure!(said.contains(fault.remedy()), "kubectl does not say what to do about {code}: {said}");
    Ok(())
}

/// Tries until it holds: what was just done takes a moment to be noticed.
pub(crate) fn until(holds: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let since = Instant::now();
    loop {
        let held = holds();
        if held.is_ok() || since.elapsed() > ANSWER_WITHIN {
            return held;
        }
        pause(Duration::from_millis(100));
    }
}

/// A program of ours fails, in time, with this fault's code and exit code.
fn ends_with(outcome: &Outcome, fault: Fault) -> anyhow::Result<()> {
    let wanted = format!("exit {}", fault.outcome().exit_code());
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    ensure!(outcome.ended == wanted, "{} where {wanted} was due: {said}", outcome.ended);
    ensure!(said.contains(fault.code()), "it does not name {}: {said}", fault.code());
    ensure!(!said.contains("panicked"), "{said}");
    Ok(())
}

impl Trouble {
    /// Starts the proxy.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn set(stage: &Stage) -> anyhow::Result<Self> {
        stage.let_in(USER)?;
        let tokens = stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?;
        Ok(Self { proxy: stage.proxy("trouble", &tokens)? })
    }

    fn get(&self, stage: &Stage) -> anyhow::Result<Outcome> {
        kubectl(stage, &self.proxy, &GET)
    }

    /// By a kubectl that remembers nothing, as in a CI job: it asks for discovery first.
    fn get_cold(&self, stage: &Stage) -> anyhow::Result<Outcome> {
        let home = tempfile::tempdir_in(stage.folder())?;
        kubectl_at(stage, &self.proxy, home.path(), &GET)
    }

    /// Tries until it works; no try may hang.
    fn works_again(&self, stage: &Stage) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            let outcome = self.get(stage)?;
            if outcome.ended == "exit 0" {
                return Ok(());
            }
            ensure!(!outcome.ended.starts_with("killed"), "kubectl hangs: {}", outcome.stderr);
            ensure!(since.elapsed() < BACK_WITHIN, "not back within {BACK_WITHIN:?}: {}", outcome.stderr);
            pause(Duration::from_millis(100));
        }
    }

    /// Tries until it fails with this fault, in one line: what was just done takes a moment to be noticed.
    fn fails_soon_with(&self, stage: &Stage, fault: Fault) -> anyhow::Result<()> {
        until(|| fails_in_one_line_with(&self.get(stage)?, fault))?;
        fails_in_one_line_with(&self.get_cold(stage)?, fault).context("with an empty HOME")
    }

    /// The role is taken away, and given back.
    ///
    /// # Errors
    /// What was not as it must be; so with all of these.
    pub fn without_a_role(&self, stage: &Stage) -> anyhow::Result<()> {
        self.works_again(stage)?;
        let remove = ["role", "remove", "--user", USER, "--role", "cluster-user", "--cluster", CLUSTER_NAME];
        stage.relay_command(&remove)?;
        self.fails_soon_with(stage, Fault::ClusterForbidden)?;
        stage.let_in(USER)?;
        self.works_again(stage)
    }

    /// The agent is gone, and comes back.
    ///
    /// # Errors
    /// See [`Trouble::without_a_role`].
    pub fn without_an_agent(&self, stage: &mut Stage) -> anyhow::Result<()> {
        stage.agent.kill();
        self.fails_soon_with(stage, Fault::AgentOffline)?;
        stage.restart_agent()?;
        self.works_again(stage)
    }

    /// The relay is gone, and comes back.
    ///
    /// # Errors
    /// See [`Trouble::without_a_role`].
    pub fn without_a_relay(&self, stage: &mut Stage) -> anyhow::Result<()> {
        stage.relay.kill();
        self.fails_soon_with(stage, Fault::ConnectionRefused)?;
        stage.restart_relay()?;
        self.works_again(stage)
    }

    /// kube-apiserver is gone, and comes back.
    ///
    /// # Errors
    /// See [`Trouble::without_a_role`].
    pub fn without_an_apiserver(&self, stage: &Stage) -> anyhow::Result<()> {
        stage.cluster.kill("kube-apiserver")?;
        self.fails_soon_with(stage, Fault::ApiserverUnreachable)?;
        stage.cluster.restart_apiserver()?;
        self.works_again(stage)
    }

    /// The cluster token expires, and is replaced.
    ///
    /// # Errors
    /// See [`Trouble::without_a_role`].
    pub fn with_an_expired_token(&self, stage: &Stage) -> anyhow::Result<()> {
        // The verifier grants a minute of skew: this one ended longer ago.
        stage.expired_tokens(USER, &[GROUP])?;
        let outcome = self.until_it_fails(stage)?;
        let said = &outcome.stderr;
        let expired = [Fault::ClusterTokenExpired, Fault::RelayTokenExpired];
        ensure!(
            outcome.ended == "exit 1" && expired.iter().any(|fault| said.contains(fault.code())),
            "an expired token is not called so: {said}"
        );
        stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?;
        self.works_again(stage)
    }

    fn until_it_fails(&self, stage: &Stage) -> anyhow::Result<Outcome> {
        let since = Instant::now();
        loop {
            let outcome = self.get(stage)?;
            if outcome.ended != "exit 0" || since.elapsed() > ANSWER_WITHIN {
                return Ok(outcome);
            }
            pause(Duration::from_millis(100));
        }
    }

    /// A second proxy for the same cluster and kubeconfig.
    ///
    /// # Errors
    /// See [`Trouble::without_a_role`].
    pub fn a_second_proxy(&self, stage: &Stage) -> anyhow::Result<()> {
        let before = fs::read(&self.proxy.kubeconfig)?;
        let tokens = stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?;
        let outcome = proxy_that_fails(stage, &tokens, "trouble", |_| {})?;
        ends_with(&outcome, Fault::ProxyAlreadyRuns)?;
        ensure!(fs::read(&self.proxy.kubeconfig)? == before, "the kubeconfig was changed");
        self.works_again(stage)
    }
}

/// `towline proxy` with a change to its command line, which must end by itself.
fn proxy_that_fails(
    stage: &Stage,
    tokens: &crate::stage::Tokens,
    name: &str,
    change: impl FnOnce(&mut Vec<String>),
) -> anyhow::Result<Outcome> {
    let mut arguments = vec!["proxy".to_owned()];
    arguments.extend(stage.client_flags(tokens));
    let path = |name: String| stage.folder().join(name).display().to_string();
    arguments.extend(["--cluster".to_owned(), stage.cluster_id.clone(), "--port".into(), "0".into()]);
    arguments.extend(["--kubeconfig".to_owned(), path(format!("{name}.kubeconfig"))]);
    arguments.extend(["--state-dir".to_owned(), path(format!("{name}.state"))]);
    change(&mut arguments);
    let mut command = Command::new(&stage.programs.client);
    command.args(arguments).env("HOME", stage.folder());
    run_within(command, ANSWER_WITHIN)
}

/// Gives a flag that stands there already another value.
pub(crate) fn replace(arguments: &mut [String], flag: &str, value: impl Into<String>) {
    if let Some(at) = arguments.iter().position(|argument| argument == flag) {
        arguments[at + 1] = value.into();
    }
}

/// What is wrong at the start is said at the start, with its exit code, and nothing is half written.
///
/// # Errors
/// What was not as it must be.
pub fn wrong_from_the_start(stage: &Stage) -> anyhow::Result<()> {
    stage.let_in(USER)?;
    let tokens = stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?;
    // Works, and is gone before the wrong ones begin: the role that was just assigned has arrived.
    drop(stage.proxy("right", &tokens)?);
    let kubeconfig = stage.folder().join("wrong.kubeconfig");
    let try_with = |fault: Fault, change: &dyn Fn(&mut Vec<String>)| -> anyhow::Result<()> {
        let outcome = proxy_that_fails(stage, &tokens, "wrong", |arguments| change(arguments))?;
        ends_with(&outcome, fault).with_context(|| format!("{fault:?}"))?;
        ensure!(!kubeconfig.exists(), "{fault:?}: a kubeconfig was written");
        Ok(())
    };
    let unknown = ClusterId::of_spki(b"nobody").to_string();
    try_with(Fault::ClusterUnknown, &|arguments| replace(arguments, "--cluster", unknown.clone()))?;
    try_with(Fault::ConnectionRefused, &|arguments| replace(arguments, "--relay", "https://127.0.0.1:1"))?;
    try_with(Fault::NameUnresolved, &|arguments| replace(arguments, "--relay", "https://relay.invalid"))?;
    let port = stage.cluster.apiserver_port();
    let ca = stage.cluster.ca_file().display().to_string();
    try_with(Fault::UpgradeRefused, &|arguments| {
        replace(arguments, "--relay", format!("https://127.0.0.1:{port}"));
        replace(arguments, "--relay-ca-file", ca.clone());
    })?;
    try_with(Fault::CertificateUntrusted, &|arguments| replace(arguments, "--relay-ca-file", ca.clone()))?;
    let other_key = towline_tunnel::ids::KeyHash::of_spki(b"another relay").to_string();
    try_with(Fault::RelayKeyMismatch, &|arguments| replace(arguments, "--relay-key", other_key.clone()))?;
    try_with(Fault::TokenFileUnusable, &|arguments| {
        replace(arguments, "--relay-token-file", "/nonexistent/token");
    })?;
    let empty = stage.folder().join("empty");
    fs::write(&empty, "")?;
    try_with(Fault::TokenFileUnusable, &|arguments| {
        replace(arguments, "--cluster-token-file", empty.display().to_string());
    })?;
    // The name of a cluster is only believed on a terminal, and this is none (THREATS T44).
    try_with(Fault::ClusterUnconfirmed, &|arguments| replace(arguments, "--cluster", CLUSTER_NAME))?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port().to_string();
    try_with(Fault::PortBusy, &|arguments| replace(arguments, "--port", port.clone()))
}

/// Files and folders that can't be used.
///
/// # Errors
/// What was not as it must be.
pub fn unusable_files(stage: &Stage) -> anyhow::Result<()> {
    let tokens = stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?;
    let broken = stage.folder().join("broken.kubeconfig");
    fs::write(&broken, "{ this is: [not yaml")?;
    let outcome = proxy_that_fails(stage, &tokens, "wrong", |arguments| {
        replace(arguments, "--kubeconfig", broken.display().to_string());
    })?;
    ends_with(&outcome, Fault::KubeconfigUnreadable)?;
    ensure!(fs::read_to_string(&broken)? == "{ this is: [not yaml", "it was touched");
    // Root may write anywhere, but not below a file.
    let folder = broken.join("below").display().to_string();
    let outcome = proxy_that_fails(stage, &tokens, "wrong", |arguments| {
        replace(arguments, "--state-dir", folder.clone());
    })?;
    ensure!(outcome.ended == "exit 2", "a folder that can't be made: {} {}", outcome.ended, outcome.stderr);
    let outcome = proxy_that_fails(stage, &tokens, "wrong", |arguments| {
        replace(arguments, "--kubeconfig", format!("{folder}/config"));
    })?;
    ensure!(
        outcome.ended == "exit 2",
        "a kubeconfig that can't be made: {} {}",
        outcome.ended,
        outcome.stderr
    );
    Ok(())
}

/// `towline run` does one command, with its exit code, and leaves nothing behind.
///
/// # Errors
/// What was not as it must be.
pub fn one_command(stage: &Stage) -> anyhow::Result<()> {
    stage.let_in(USER)?;
    let tokens = stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?;
    drop(stage.proxy("right", &tokens)?);
    let run = |script: &str| {
        let mut command = Command::new(&stage.programs.client);
        command
            .arg("run")
            .args(stage.client_flags(&tokens))
            .args(["--cluster", &stage.cluster_id, "--state-dir"])
            .arg(stage.folder().join("run.state"))
            .args(["--", "bash", "-c", script])
            .env("KUBECTL", stage.cluster.programs().kubectl())
            .env("HOME", stage.folder());
        run_within(command, Duration::from_secs(30))
    };
    let outcome =
        run("$KUBECTL get namespace default -o name; echo $KUBECONFIG; stat -c %a $KUBECONFIG; exit 7")?;
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    ensure!(outcome.ended == "exit 7" && lines.first() == Some(&"namespace/default"), "{outcome:?}");
    ensure!(lines.get(2) == Some(&"600"), "its kubeconfig can be read by others: {outcome:?}");
    ensure!(!fs::exists(lines.get(1).context("a path")?)?, "its kubeconfig is still there");
    let outcome = run("kill -9 $$")?;
    ensure!(outcome.ended == "exit 137", "{outcome:?}");
    Ok(())
}

/// The proxy takes its contexts out again, and the kubeconfig is what it was.
///
/// # Errors
/// What was not as it must be.
pub fn leaves_as_it_came(stage: &Stage) -> anyhow::Result<()> {
    let tokens = stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?;
    let kubeconfig = stage.folder().join("mine.kubeconfig");
    let before = fs::read_to_string(stage.cluster.kubeconfig())?;
    fs::write(&kubeconfig, &before)?;
    fs::set_permissions(&kubeconfig, fs::Permissions::from_mode(0o600))?;
    let mut proxy: Proxy = stage.proxy("mine", &tokens)?;
    let during = fs::read_to_string(&kubeconfig)?;
    ensure!(during.contains("towline-test") && during.contains("/clusters/"), "both are there: {during}");
    let ended = proxy.process.terminate(ANSWER_WITHIN)?;
    ensure!(ended.success(), "the proxy ended with {ended}: {}", proxy.process.log());
    let mut contexts = Command::new(stage.cluster.programs().kubectl());
    contexts.env("KUBECONFIG", &kubeconfig).args(["config", "get-contexts", "-o", "name"]);
    let contexts = run_within(contexts, ANSWER_WITHIN)?;
    ensure!(contexts.stdout == "towline-test\n", "contexts after the end: {}", contexts.stdout);
    let mut current = Command::new(stage.cluster.programs().kubectl());
    current.env("KUBECONFIG", &kubeconfig).args(["config", "current-context"]);
    ensure!(run_within(current, ANSWER_WITHIN)?.stdout == "towline-test\n", "the current context is another");
    Ok(())
}

/// What a request is called at each hop joins: one channel and one stream in the logs of proxy, relay and agent, which all have one shape, and
/// the apiserver's Audit-ID.
///
/// # Errors
/// Where the trace is lost.
pub fn can_be_followed(stage: &Stage, trouble: &Trouble) -> anyhow::Result<()> {
    let marker = format!("follow-{}", towline_tunnel::ids::StreamKey::random());
    let path = format!("/api/v1/namespaces/default/configmaps/{marker}");
    let _not_found = kubectl(stage, &trouble.proxy, &["get", "--raw", &path])?;
    let agent_log = fs::read_to_string(stage.log("agent"))?;
    let line = agent_log.lines().find(|line| line.contains(&marker)).context("the agent logs the request")?;
    let line: serde_json::Value = serde_json::from_str(line)?;
    let field =
        |name: &str| line[name].as_str().map(str::to_owned).with_context(|| format!("no {name}: {line}"));
    let (channel, stream, audit_id) = (field("channel")?, field("stream")?, field("audit_id")?);
    for log in ["proxy-trouble", "relay", "agent"] {
        let text = fs::read_to_string(stage.log(log))?;
        // The proxy's first line is for people.
        let mut lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let found =
            lines.any(|line| line["channel"] == channel.as_str() && line["stream"] == stream.as_str());
        ensure!(found, "no line of the log {log} has channel {channel} and stream {stream}: {text}");
    }
    let since = Instant::now();
    loop {
        let audit = fs::read_to_string(stage.cluster.audit_log())?;
        if audit.lines().any(|line| line.contains(&audit_id) && line.contains(&marker) && line.contains(USER))
        {
            break;
        }
        ensure!(since.elapsed() < ANSWER_WITHIN, "the audit log has no {audit_id}");
        pause(Duration::from_millis(100));
    }
    let relay_log = fs::read_to_string(stage.log("relay"))?;
    ensure!(!relay_log.contains(&marker), "the relay knows what was asked for");
    Ok(())
}

/// SIGTERM ends each program well, and in time.
///
/// # Errors
/// Which does not.
pub fn ends_when_told(stage: &mut Stage) -> anyhow::Result<()> {
    let end = |name: &str, process: &mut Process| -> anyhow::Result<()> {
        let status = process.terminate(ANSWER_WITHIN)?;
        ensure!(status.success(), "{name} ended with {status}: {}", process.log());
        ensure!(!process.log().contains("panicked"), "{name}: {}", process.log());
        Ok(())
    };
    end("the agent", &mut stage.agent)?;
    end("the relay", &mut stage.relay)?;
    stage.restart_relay()?;
    stage.restart_agent()
}

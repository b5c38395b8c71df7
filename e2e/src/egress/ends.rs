//! The two ends that take a way, and what they say of it.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::route::Route;
use crate::{
    bad_days::replace,
    case::run_within,
    process::{Process, pause},
    stage::{Stage, Tokens},
};

/// A ladder takes 10 s, and may have to be climbed again after a connection that was cut.
const SAYS_WITHIN: Duration = Duration::from_secs(40);
/// As preflight promises.
const LOOKS_WITHIN: Duration = Duration::from_secs(70);

/// What an end came to.
#[derive(Clone, Debug)]
pub(super) enum Came {
    /// A session, by this carrier.
    Connected(String),
    /// A code.
    Refused(String),
}

impl fmt::Display for Came {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected(carrier) => f.write_str(carrier),
            Self::Refused(code) => f.write_str(code),
        }
    }
}

/// An agent on its way.
pub(super) struct Agent {
    process: Process,
}

impl Agent {
    pub(super) fn start(stage: &Stage, route: &Route, folder: &Path) -> anyhow::Result<Self> {
        let mut command = agent(stage, route, "run");
        command.env("RUST_LOG", "info");
        Ok(Self { process: Process::start("the agent", &mut command, &folder.join("agent.log"))? })
    }

    /// Waits until it is connected or, where that is what is waited for, says why it is not.
    ///
    /// # Errors
    /// If it says neither in time: it hangs.
    pub(super) fn came(&mut self, refused: bool) -> anyhow::Result<Came> {
        let deadline = Instant::now() + SAYS_WITHIN;
        loop {
            if let Some(carrier) = carriers(&self.process.log(), "connected").pop() {
                return Ok(Came::Connected(carrier));
            }
            let (over, late) = (!self.process.is_alive(), Instant::now() > deadline);
            let log = self.process.log();
            let met = if over { codes(&log) } else { failures(&log) };
            if let (true, Some(code)) = (refused || over || late, met.last()) {
                return Ok(Came::Refused(code.clone()));
            }
            ensure!(!over && !late, "the agent says nothing: {log}");
            pause(Duration::from_millis(10));
        }
    }

    /// What failed before it was connected.
    pub(super) fn met_before(&self) -> Option<String> {
        let met = failures(&self.process.log());
        (!met.is_empty()).then(|| format!("met {}", met.join(", ")))
    }

    /// How many sessions it has had.
    pub(super) fn sessions(&self) -> usize {
        carriers(&self.process.log(), "connected").len()
    }

    /// How many streams went on after a connection was lost.
    pub(super) fn taken_up(&self) -> usize {
        self.process.log().matches("a stream was taken up").count()
    }
}

/// A client that is ready.
pub(super) struct Client {
    process: Process,
    pub(super) kubeconfig: PathBuf,
}

impl Client {
    /// Starts one; how long it took until a stream had answered.
    ///
    /// # Errors
    /// If it does not become ready.
    pub(super) fn start(
        stage: &Stage,
        tokens: &Tokens,
        route: &Route,
        folder: &Path,
    ) -> anyhow::Result<(Self, Duration)> {
        let begun = Instant::now();
        let mut command = client(stage, tokens, route, folder);
        let mut process = Process::start("the client", &mut command, &folder.join("client.log"))?;
        process.wait_for(&["ready: "], SAYS_WITHIN)?;
        Ok((Self { process, kubeconfig: folder.join("kubeconfig") }, begun.elapsed()))
    }

    /// The carrier of its latest session.
    pub(super) fn carrier(&self) -> String {
        carriers(&self.process.log(), "session established").pop().unwrap_or_else(|| "nothing".into())
    }

    /// How many sessions it has had.
    pub(super) fn sessions(&self) -> usize {
        carriers(&self.process.log(), "session established").len()
    }
}

/// The code with which a client ends that can't take a way.
///
/// # Errors
/// If it takes it, or hangs.
pub(super) fn refused_client(
    stage: &Stage,
    tokens: &Tokens,
    route: &Route,
    folder: &Path,
) -> anyhow::Result<String> {
    let outcome = run_within(client(stage, tokens, route, folder), SAYS_WITHIN)?;
    ensure!(!outcome.ended.starts_with("killed"), "the client hangs: {}", outcome.stderr);
    ensure!(outcome.ended != "exit 0", "the client got through");
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    codes(&said).pop().with_context(|| format!("the client names no code: {said}"))
}

/// The codes that preflight warns of on the way to the relay.
///
/// # Errors
/// If it finds that the way does not work, or hangs.
pub(super) fn warned(stage: &Stage, route: &Route) -> anyhow::Result<Vec<String>> {
    let found = look(stage, route)?;
    let mut codes = Vec::new();
    for step in ["tls", "upgrade", "frames", "relay", "large-frames"] {
        let said = found["findings"].as_array().into_iter().flatten().find(|said| said["step"] == step);
        let said = said.with_context(|| format!("preflight says nothing of {step}: {found}"))?;
        match said["status"].as_str() {
            Some("ok") => {}
            Some("warning") => codes.push(said["code"].as_str().unwrap_or_default().to_owned()),
            _ => bail!("preflight on {step}: {said}"),
        }
    }
    Ok(codes)
}

/// The code of the first failure that preflight finds.
///
/// # Errors
/// If it finds none, or hangs.
pub(super) fn preflight(stage: &Stage, route: &Route) -> anyhow::Result<String> {
    let found = look(stage, route)?;
    let failed = found["findings"].as_array().into_iter().flatten().find(|found| found["status"] == "failed");
    match failed.and_then(|failed| failed["code"].as_str()) {
        Some(code) => Ok(code.to_owned()),
        None => bail!("preflight finds nothing: {found}"),
    }
}

fn look(stage: &Stage, route: &Route) -> anyhow::Result<Value> {
    let mut command = agent(stage, route, "preflight");
    command.args(["--output", "json"]);
    let outcome = run_within(command, LOOKS_WITHIN)?;
    serde_json::from_str(&outcome.stdout)
        .with_context(|| format!("preflight: {}: {}{}", outcome.ended, outcome.stdout, outcome.stderr))
}

fn agent(stage: &Stage, route: &Route, what: &str) -> Command {
    let mut command = route.command(&stage.programs.agent);
    command.arg(what).args(stage.agent_arguments()).args(["--relay", &route.relay]).args(&route.flags);
    if let Some(ca) = &route.ca {
        command.arg("--relay-ca-file").arg(ca);
    }
    command
}

/// A doctor on a client's way that also leaves sessions alone for a minute, and writes JSON.
pub(super) fn deep_look(stage: &Stage, tokens: &Tokens, route: &Route, folder: &Path) -> Command {
    let mut command = client_command(stage, tokens, route, folder, &["doctor", "--deep", "--output", "json"]);
    command.args(["--port", "0"]);
    command
}

/// What such a look found of sessions that are left alone: a code where it warned, and what was seen.
///
/// # Errors
/// If it failed, or looked at none.
pub(super) fn found_of_idleness(said: &str) -> anyhow::Result<(Option<String>, String)> {
    let found: Value = serde_json::from_str(said).with_context(|| format!("doctor says {said}"))?;
    let idle = found["findings"].as_array().into_iter().flatten().find(|found| found["step"] == "idle");
    let idle = idle.with_context(|| format!("doctor says nothing of idle sessions: {found}"))?;
    ensure!(matches!(idle["status"].as_str(), Some("ok" | "warning")), "doctor on idle sessions: {idle}");
    Ok((idle["code"].as_str().map(str::to_owned), idle["seen"].as_str().unwrap_or_default().to_owned()))
}

fn client(stage: &Stage, tokens: &Tokens, route: &Route, folder: &Path) -> Command {
    client_command(stage, tokens, route, folder, &["proxy", "--port", "0", "--cluster", &stage.cluster_id])
}

fn client_command(stage: &Stage, tokens: &Tokens, route: &Route, folder: &Path, what: &[&str]) -> Command {
    let mut flags = stage.client_flags(tokens);
    replace(&mut flags, "--relay", route.relay.as_str());
    if let Some(ca) = &route.ca {
        replace(&mut flags, "--relay-ca-file", ca.display().to_string());
    }
    let mut command = route.command(&stage.programs.client);
    command
        .args(what)
        .args(["--log", "info"])
        .args(flags)
        .args(&route.flags)
        .arg("--kubeconfig")
        .arg(folder.join("kubeconfig"))
        .arg("--state-dir")
        .arg(folder.join("state"))
        .env("HOME", folder);
    command
}

/// The carriers of the lines with this message. Programs of before name none: they know but one.
fn carriers(log: &str, message: &str) -> Vec<String> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    // The client's lines are flat.
    let events = lines.map(|mut line| if line["fields"].is_object() { line["fields"].take() } else { line });
    let named = events.filter(|event| event["message"] == message);
    named.map(|event| event["carrier"].as_str().unwrap_or("websocket").to_owned()).collect()
}

/// The codes of attempts to begin a session. Other lines may have codes as well: rights, the issuer.
fn failures(log: &str) -> Vec<String> {
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("no session with the relay")).collect();
    codes(&lines.join("\n"))
}

/// Codes such as `TL-NET-005`, in the order in which they stand there, each once.
fn codes(log: &str) -> Vec<String> {
    let mut all = Vec::new();
    for (at, _) in log.match_indices("TL-") {
        let code = log.get(at..at + 10).unwrap_or_default();
        let digits = code.get(7..).is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        if digits && !code.is_empty() && !all.iter().any(|known| known == code) {
            all.push(code.to_owned());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_carriers_are_read_out_of_logs() {
        let log = "{\"fields\":{\"message\":\"connected\",\"carrier\":\"pair\"}}\n\
            [TL-NET-005] and TL-NET-0 TL-X TL-NET-005 TL-TLS-001\n{\"message\":\"connected\"}\n{\"message\":\"gone\"}\n";
        assert_eq!(codes(log), ["TL-NET-005", "TL-TLS-001"]);
        assert_eq!(carriers(log, "connected"), ["pair", "websocket"]);
    }
}

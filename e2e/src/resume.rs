//! Streams outlive the relay: real kubectl goes on at the right byte while it is killed and started anew.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use crate::{
    process::pause,
    stage::{Proxy, Stage, image},
    table::{GROUP, TOKEN_LIFETIME, USER, apply_with, namespace},
};

const NAMESPACE: &str = "resume";
/// What is cut has gone on and ended after this time.
const ENDS_WITHIN: Duration = Duration::from_secs(90);
/// Between two deaths of the relay, and how long it stays dead.
const ALIVE: Duration = Duration::from_secs(2);
const DEAD: Duration = Duration::from_millis(400);
/// Lines that are typed, one after the other.
const TYPED: usize = 160;
/// Writes different bytes for ten seconds, 25 MB in all, and then waits for a line: where a container's program ends while its reader
/// stands still for some seconds, Kubernetes drops the rest of its output (seen with kubectl 1.36 and kube-apiserver alone).
const BYTES: &str =
    "for n in $(seq 1 100); do seq $n 37 1400000 | head -c 250000; $PAUSE; done; read end || true";
/// Prints lines for ten seconds.
const LINES: &str = "for n in $(seq 1 200); do echo line $n; sleep 0.05; done";

/// How often the relay is killed.
pub const DEATHS: u32 = 4;

/// Output, typing, logs and a copy go on while the relay is killed with -9 and started anew, `deaths` times.
///
/// # Errors
/// If a byte is lost, repeated or out of order, a command ends with an error, or one hangs.
pub fn survives(stage: &mut Stage, deaths: u32) -> anyhow::Result<()> {
    prepare(stage)?;
    stage.let_in(USER)?;
    let tokens = stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?;
    let proxy = stage.proxy("resume", &tokens)?;
    let folder = tempfile::Builder::new().prefix("towline-resume-").tempdir()?;
    let program = stage.cluster.programs().kubectl();
    let kubectl = |arguments: &[&str]| command(&program, &proxy, folder.path(), arguments);

    let at_once = BYTES.replace("$PAUSE", "true").replace("read end || ", "");
    let expected = output(kubectl(&["exec", "box", "--", "sh", "-c", &at_once]))?;
    let paused = BYTES.replace("$PAUSE", "sleep 0.1");
    let bytes = folder.path().join("bytes");
    let mut writing = kubectl(&["exec", "-i", "box", "--", "sh", "-c", &paused])
        .stdin(Stdio::piped())
        .stdout(File::create(&bytes)?)
        .spawn()?;
    let lines = folder.path().join("lines");
    let mut following = kubectl(&["logs", "-f", "talker"]).stdout(File::create(&lines)?).spawn()?;
    let copy = folder.path().join("copy");
    let mut copying = kubectl(&["cp", "box:/tmp/large", &copy.to_string_lossy()]).spawn()?;
    let typing =
        kubectl(&["exec", "-i", "box", "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let typed = thread::spawn(move || type_lines(typing));
    let digest = String::from_utf8(output(kubectl(&["exec", "box", "--", "sha256sum", "/tmp/large"]))?)?;

    for _ in 0..deaths {
        pause(ALIVE);
        stage.relay.kill();
        pause(DEAD);
        stage.restart_relay()?;
    }

    let deadline = Instant::now() + ENDS_WITHIN;
    while fs::metadata(&bytes)?.len() < expected.len() as u64 && writing.try_wait()?.is_none() {
        ensure!(Instant::now() < deadline, "exec hangs after {} bytes", fs::metadata(&bytes)?.len());
        pause(Duration::from_millis(20));
    }
    drop(writing.stdin.take());
    for (what, child) in [("exec", &mut writing), ("logs -f", &mut following), ("cp", &mut copying)] {
        ended_well(what, child, deadline)?;
    }
    let typed = typed.join().map_err(|_| anyhow::anyhow!("typing panicked"))?;
    ensure!(typed? == TYPED, "not every line that was typed came back");
    let written = fs::read(&bytes)?;
    ensure!(
        written == expected,
        "exec wrote {} bytes, {} were expected, or others",
        written.len(),
        expected.len()
    );
    let all: String = (1..=200).map(|n| format!("line {n}\n")).collect();
    ensure!(fs::read_to_string(&lines)? == all, "logs -f missed, repeated or mixed up lines");
    let local = Command::new("sha256sum").arg(&copy).output()?;
    let local = String::from_utf8(local.stdout)?;
    ensure!(
        local.split_whitespace().next() == digest.split_whitespace().next(),
        "the copy differs: {local} {digest}"
    );
    let log = fs::read_to_string(stage.log("agent"))?;
    ensure!(log.contains("a stream was taken up"), "no stream was taken up: nothing was shown");
    Ok(())
}

fn prepare(stage: &Stage) -> anyhow::Result<()> {
    let image = image();
    let pod = |name: &str, restart: &str, script: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
             spec:\n  restartPolicy: {restart}\n  terminationGracePeriodSeconds: 0\n  containers:\n  - name: it\n    \
             image: \"{image}\"\n    imagePullPolicy: Never\n    command: [sh, -c, '{script}']\n"
        )
    };
    let yaml = format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {{name: user, namespace: {NAMESPACE}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: admin}}\n\
         subjects: [{{kind: Group, apiGroup: rbac.authorization.k8s.io, name: {GROUP}}}]\n{}{}",
        pod("box", "Always", "seq 1 9000000 > /tmp/large; touch /tmp/ready; sleep 3600"),
        pod("talker", "Never", LINES),
    );
    namespace(&stage.cluster, NAMESPACE)?;
    apply_with(&stage.cluster, &["apply", "-f", "-"], &yaml)?;
    for pod in ["pod/box", "pod/talker"] {
        let arguments = ["wait", "-n", NAMESPACE, pod, "--for=condition=Ready", "--timeout=60s"];
        stage.cluster.kubectl_output(&arguments)?;
    }
    let ready =
        ["exec", "-n", NAMESPACE, "box", "--", "sh", "-c", "until [ -e /tmp/ready ]; do sleep 0.1; done"];
    stage.cluster.kubectl_output(&ready)?;
    Ok(())
}

fn command(program: &Path, proxy: &Proxy, home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .env("KUBECONFIG", &proxy.kubeconfig)
        .env("HOME", home)
        .args(["-n", NAMESPACE])
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    command
}

fn output(mut command: Command) -> anyhow::Result<Vec<u8>> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?} ended with {}", output.status);
    Ok(output.stdout)
}

/// Types a line at a time, as a person does; each must come back, in order and once. How many did.
fn type_lines(mut child: Child) -> anyhow::Result<usize> {
    let mut stdin = child.stdin.take().context("its input is a pipe")?;
    let echo = BufReader::new(child.stdout.take().context("its output is a pipe")?);
    let writer = thread::spawn(move || -> std::io::Result<()> {
        for n in 0..TYPED {
            writeln!(stdin, "typed {n}")?;
            stdin.flush()?;
            pause(Duration::from_millis(60));
        }
        Ok(())
    });
    let mut came = 0;
    for line in echo.lines() {
        ensure!(line? == format!("typed {came}"), "line {came} is another");
        came += 1;
    }
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    ended_well("exec -i", &mut child, Instant::now() + ENDS_WITHIN)?;
    Ok(came)
}

fn ended_well(what: &str, child: &mut Child, deadline: Instant) -> anyhow::Result<()> {
    loop {
        match child.try_wait()? {
            Some(status) => {
                ensure!(status.success(), "{what} ended with {status}");
                return Ok(());
            }
            None if Instant::now() > deadline => {
                child.kill()?;
                child.wait()?;
                anyhow::bail!("{what} hangs");
            }
            None => pause(Duration::from_millis(20)),
        }
    }
}

//! What takes time: an idle session that a proxy would cut, and long streams over connections that are cut again and again.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};

use towline_tunnel::fault::Fault;

use super::{Passage, ends};
use crate::{
    case::run_within,
    process::{Process, pause},
};

/// Longer than proxies and routers of this table bear.
const IDLE: Duration = Duration::from_secs(45);
/// An idle minute, and what comes before it.
const LOOKED_WITHIN: Duration = Duration::from_secs(150);
/// Of the quick run, and of the long one.
const COPIED: [u64; 2] = [100_000_000, 1_000_000_000];
/// The long one is at most as fast as the way lets it: see `rows`.
const COPIED_WITHIN: Duration = Duration::from_secs(1200);
const TYPED_EACH: Duration = Duration::from_millis(250);
const WITHIN: Duration = Duration::from_secs(60);

/// An `exec` in which nothing is said for a while, and then something; no session was begun anew meanwhile. And `towline doctor --deep`
/// beside it says that a session without keep-alives would have been cut.
///
/// # Errors
/// If it is cut, or a session was; or if doctor sees nothing.
pub(super) fn idle(passage: Passage<'_>, folder: &Path) -> anyhow::Result<String> {
    let doctor = folder.join("doctor");
    std::fs::create_dir_all(&doctor)?;
    let look = ends::deep_look(passage.scene.stage, &passage.scene.tokens, &passage.route, &doctor);
    let looking = thread::spawn(move || run_within(look, LOOKED_WITHIN));
    let before = (passage.agent.sessions(), passage.client.sessions());
    let mut shell = Shell::open(&passage, folder)?;
    shell.says("before")?;
    pause(IDLE);
    shell.says("after")?;
    shell.close()?;
    let after = (passage.agent.sessions(), passage.client.sessions());
    ensure!(before == after, "sessions were begun anew: {before:?}, {after:?}");
    let Ok(looked) = looking.join() else { bail!("nobody looked") };
    let (code, seen) = ends::found_of_idleness(&looked?.stdout)?;
    ensure!(code.as_deref() == Some(Fault::IdleCut.code()), "doctor --deep: {seen}");
    Ok(format!("{} s idle, and not cut; doctor --deep: {}", IDLE.as_secs(), Fault::IdleCut.code()))
}

/// A copy into the pod and an `exec` that types, while connections are cut: the same hash, and no line lost or said twice.
///
/// # Errors
/// What was lost, repeated or cut; or if nothing was cut.
pub(super) fn cuts(passage: Passage<'_>, folder: &Path) -> anyhow::Result<String> {
    let size = COPIED[usize::from(passage.scene.long)];
    let before = passage.agent.taken_up();
    let begun = Instant::now();
    let file = folder.join("large");
    let mut make = std::process::Command::new("sh");
    make.args(["-c", &format!("head -c {size} /dev/urandom > {f} && sha256sum < {f}", f = file.display())]);
    let here = run_within(make, WITHIN)?.stdout;
    let mut copy = passage.scene.verbs.kubectl(&passage.route, &passage.client.kubeconfig);
    copy.env("HOME", folder).arg("cp").arg(&file).arg("box:/tmp/large");
    let mut copying = Process::start("kubectl cp", &mut copy, &folder.join("cp.log"))?;
    let mut shell = Shell::open(&passage, folder)?;
    let (deadline, mut lines) = (Instant::now() + COPIED_WITHIN, 0);
    while copying.is_alive() {
        ensure!(Instant::now() < deadline, "cp hangs");
        shell.says(&format!("line {lines}"))?;
        lines += 1;
        pause(TYPED_EACH);
    }
    let ended = copying.wait(WITHIN)?;
    ensure!(ended.success(), "cp ended with {ended}: {}", copying.log());
    shell.close()?;
    let mut sum = passage.scene.verbs.kubectl(&passage.route, &passage.client.kubeconfig);
    sum.env("HOME", folder).args(["exec", "box", "--", "sh", "-c", "sha256sum < /tmp/large; rm /tmp/large"]);
    let there = run_within(sum, WITHIN)?;
    ensure!(there.stdout == here && !here.is_empty(), "{here} was copied, and {} arrived", there.stdout);
    let (taken_up, took) = (passage.agent.taken_up() - before, begun.elapsed());
    ensure!(taken_up > 0, "no stream was taken up: nothing was shown");
    Ok(format!(
        "cp of {} MB in {:.0} s and {lines} lines typed, {taken_up} times taken up, same hash, nothing twice",
        size / 1_000_000,
        took.as_secs_f64()
    ))
}

/// `cat` in the pod, at the other end of an `exec`.
struct Shell {
    child: Child,
    echo: std::sync::mpsc::Receiver<String>,
}

impl Shell {
    fn open(passage: &Passage<'_>, folder: &Path) -> anyhow::Result<Self> {
        let mut command = passage.scene.verbs.kubectl(&passage.route, &passage.client.kubeconfig);
        let errors = File::create(folder.join("exec.log"))?;
        command.env("HOME", folder).args(["exec", "-i", "box", "--", "cat"]).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(errors).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("its output is a pipe")?).lines();
        let (said, echo) = std::sync::mpsc::sync_channel(16);
        // It ends with the pipe.
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| said.send(line)));
        Ok(Self { child, echo })
    }

    /// Types a line, which must come back next.
    fn says(&mut self, line: &str) -> anyhow::Result<()> {
        let stdin = self.child.stdin.as_mut().context("its input is a pipe")?;
        writeln!(stdin, "{line}")?;
        stdin.flush()?;
        let came = self.echo.recv_timeout(WITHIN).with_context(|| format!("{line:?} does not come back"))?;
        ensure!(came == line, "{came:?} came where {line:?} was due");
        Ok(())
    }

    /// Ends its input; then it must end well, and have said nothing more.
    fn close(mut self) -> anyhow::Result<()> {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + WITHIN;
        let status = loop {
            match self.child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() > deadline => bail!("exec does not end"),
                None => pause(Duration::from_millis(20)),
            }
        };
        ensure!(status.success(), "exec ended with {status}");
        match self.echo.try_recv() {
            Ok(more) => bail!("{more:?} came twice"),
            Err(_) => Ok(()),
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

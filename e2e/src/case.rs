//! One case of the table: a script, and what came of it.

use std::{
    ffi::OsStr,
    fs,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

/// No case takes longer; one that hangs is killed and fails.
const WITHIN: Duration = Duration::from_secs(240);

/// A script of `cases/`.
#[derive(Clone, Debug)]
pub struct Case {
    /// File name without ending.
    pub name: String,
    /// Its first line.
    pub title: String,
    /// Again over SPDY/3.1.
    pub also_spdy: bool,
    /// Again with each kubectl that is found.
    pub every_kubectl: bool,
    script: PathBuf,
}

impl Case {
    /// All cases, in order.
    ///
    /// # Errors
    /// If the folder or a script can't be read.
    pub fn all() -> anyhow::Result<Vec<Self>> {
        Self::of_folder("cases")
    }

    /// The scripts of another folder beside it, in order.
    ///
    /// # Errors
    /// See [`Case::all`].
    pub(crate) fn of_folder(folder: &str) -> anyhow::Result<Vec<Self>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let mut scripts: Vec<PathBuf> = fs::read_dir(&folder)
            .with_context(|| folder.display().to_string())?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        scripts.retain(|path| path.extension().is_some_and(|ending| ending == "sh"));
        scripts.sort();
        scripts.into_iter().map(Self::read).collect()
    }

    fn read(script: PathBuf) -> anyhow::Result<Self> {
        let text = fs::read_to_string(&script).with_context(|| script.display().to_string())?;
        let mut comments = text.lines().map_while(|line| line.strip_prefix("# "));
        let title = comments.next().with_context(|| format!("{} has no title", script.display()))?.to_owned();
        let also: Vec<&str> = comments
            .filter_map(|line| line.strip_prefix("also: "))
            .flat_map(|list| list.split(", "))
            .collect();
        let name = script.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        Ok(Self {
            name,
            title,
            also_spdy: also.contains(&"spdy"),
            every_kubectl: also.contains(&"every-kubectl"),
            script,
        })
    }
}

/// Which way a case goes, and as whom.
#[derive(Clone, Debug)]
pub struct Way {
    /// `direct` or `through`.
    pub name: &'static str,
    /// The user's kubeconfig; its context names the namespace.
    pub kubeconfig: PathBuf,
    /// The kubeconfig of a user who may do nothing.
    pub restricted: PathBuf,
    /// A namespace of its own.
    pub namespace: String,
    /// For caches and scratch files.
    pub folder: PathBuf,
}

/// How a case is run.
#[derive(Clone, Debug)]
pub struct Variant {
    /// As the table shows it; empty for the usual one.
    pub name: String,
    /// A folder with `kubectl` and `helm` in it.
    pub programs: PathBuf,
    /// SPDY/3.1 instead of WebSocket.
    pub spdy: bool,
    /// Whether its kubectl reads before it is ready to: see `without_discarded_greeting`.
    pub reads_too_early: bool,
    /// The network namespace that it runs in, where it is not this one.
    pub namespace: Option<String>,
}

/// What came of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Standard output.
    pub stdout: String,
    /// Its exit code, or how it was ended.
    pub ended: String,
    /// Standard error: shown where two outcomes differ, not compared.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    /// What is written down as expected.
    pub fn as_text(&self) -> String {
        format!("{}{}\n", self.stdout, self.ended)
    }

    /// Whether this is the same as another, as far as it is compared.
    pub fn is_like(&self, other: &Self) -> bool {
        self.stdout == other.stdout && self.ended == other.ended
    }
}

impl Case {
    /// What must come out, as `cases/NAME.out` has it.
    ///
    /// # Errors
    /// If it was never written down.
    pub fn expected(&self) -> anyhow::Result<String> {
        let path = self.script.with_extension("out");
        fs::read_to_string(&path)
            .with_context(|| format!("{}: write it with `cargo xtask e2e --direct --bless`", path.display()))
    }

    /// Takes an outcome as what must come out.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write_expected(&self, outcome: &Outcome) -> anyhow::Result<()> {
        Ok(fs::write(self.script.with_extension("out"), outcome.as_text())?)
    }

    /// Runs the script one way.
    ///
    /// # Errors
    /// If it can't be run at all.
    pub fn run(&self, way: &Way, variant: &Variant, image: &str) -> anyhow::Result<Outcome> {
        self.run_for(way, variant, image, WITHIN)
    }

    /// The same, for so long at most.
    pub(crate) fn run_for(
        &self,
        way: &Way,
        variant: &Variant,
        image: &str,
        within: Duration,
    ) -> anyhow::Result<Outcome> {
        let scratch = way.folder.join(format!("{}-{}", self.name, variant.name.replace([' ', '/'], "-")));
        fs::create_dir_all(&scratch)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = in_namespace(variant.namespace.as_deref(), "bash");
        command
            .arg("-u")
            .arg(&self.script)
            .env("PATH", format!("{}:{path}", variant.programs.display()))
            .env("KUBECONFIG", &way.kubeconfig)
            .env("RESTRICTED", &way.restricted)
            .env("NAMESPACE", &way.namespace)
            .env("IMAGE", image)
            .env("SCRATCH", &scratch)
            .env("HOME", way.folder.join("home"))
            .env("KUBECACHEDIR", way.folder.join("cache"))
            .env("LC_ALL", "C")
            .current_dir(&scratch);
        if variant.spdy {
            command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false");
            command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
        }
        let mut outcome = run_within(command, within)?;
        outcome.stdout = outcome.stdout.replace(&way.namespace, "NAMESPACE");
        if variant.reads_too_early {
            outcome.stdout = without_discarded_greeting(&outcome.stdout);
        }
        let _removed = fs::remove_dir_all(&scratch);
        Ok(outcome)
    }
}

/// A program in a network namespace, or in this one.
pub(crate) fn in_namespace(namespace: Option<&str>, program: impl AsRef<OsStr>) -> Command {
    let Some(namespace) = namespace else { return Command::new(program) };
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

/// The output without the lines in which kubectl before 1.34 says that it discarded kube-apiserver's greeting.
///
/// Right after an upgrade to WebSocket kube-apiserver sends an empty message on the first channel that it writes to (1,
/// standard output), to tell that the connection stands. client-go before 1.34 reads messages while it still creates
/// the streams that they belong to, so on a busy machine the greeting can come for a stream that is not there yet. The
/// message is empty, nothing is lost, and it happens as often directly (1 in 800 under load) as through towline (2 in
/// 800). From 1.34 on client-go reads only once its streams are there, so that there the line would be a difference.
/// All other lines are compared, and so is everything that the discarded message could have held, had it held anything.
fn without_discarded_greeting(output: &str) -> String {
    output.split_inclusive('\n').filter(|line| !is_discarded_greeting(line)).collect()
}

/// `E1121 10:20:16.057772   30675 websocket.go:297] Unknown stream id 1, discarding message`, and nothing else.
fn is_discarded_greeting(line: &str) -> bool {
    let Some((header, message)) = line.split_once("] ") else { return false };
    let fields: Vec<&str> = header.split_ascii_whitespace().collect();
    let [date, time, process, place] = fields.as_slice() else { return false };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    message == "Unknown stream id 1, discarding message\n"
        && date.strip_prefix('E').is_some_and(|date| date.len() == 4 && digits(date))
        && time.split([':', '.']).all(digits)
        && digits(process)
        && place.strip_prefix("websocket.go:").is_some_and(digits)
}

/// Runs a command in a process group of its own, which is killed after the deadline.
///
/// # Errors
/// If it can't be run at all.
pub fn run_within(mut command: Command, within: Duration) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("{:?} can't be run", command.get_program()))?;
    let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let group = group.context("no process id")?;
    let (done, ended) = mpsc::channel();
    let waiting = thread::spawn(move || {
        // The pipes end when the last process of the group has closed them.
        let _told = done.send(child.wait_with_output());
    });
    let (output, late) = match ended.recv_timeout(within) {
        Ok(output) => (output, false),
        Err(_) => {
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL)?;
            (ended.recv().context("the command's end was not told")?, true)
        }
    };
    ensure!(waiting.join().is_ok(), "waiting for a command panicked");
    let output = output?;
    let ended = match (output.status.code(), output.status.signal()) {
        _ if late => format!("killed after {within:?}"),
        (Some(code), _) => format!("exit {code}"),
        (None, signal) => format!("signal {}", signal.unwrap_or_default()),
    };
    Ok(Outcome {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        ended,
        took: begun.elapsed(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_line_about_the_discarded_greeting_is_left_out() {
        let line =
            "E1121 10:20:16.057772   30675 websocket.go:297] Unknown stream id 1, discarding message\n";
        assert_eq!(without_discarded_greeting(&format!("out\n{line}err\n")), "out\nerr\n");
        for other in [
            "E1121 10:20:16.057772   30675 websocket.go:297] Unknown stream id 2, discarding message\n",
            "E1121 10:20:16.057772   30675 websocket.go:297] Websocket Ping failed\n",
            "Unknown stream id 1, discarding message\n",
            "errE1121 10:20:16.057772   30675 websocket.go:297] Unknown stream id 1, discarding message\n",
            "E1121 10:20:16.057772   30675 websocket.go:297] Unknown stream id 1, discarding message",
            "err\n",
            " 61 00 62 ff 63",
        ] {
            assert_eq!(without_discarded_greeting(&format!("{line}{other}")), other);
        }
    }
}

//! Processes that outlive the command that started them, recorded so that they can be stopped by whoever comes next.

use std::{
    collections::hash_map::RandomState,
    fs::{self, File, OpenOptions},
    hash::BuildHasher as _,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::interrupt;

/// What was started. A pid may be given to another process later: with its start time it is unmistakable.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Recorded {
    pub(super) name: String,
    pub(super) pid: i32,
    started: u64,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

/// The processes of one cluster.
#[derive(Debug)]
pub(super) struct Processes {
    folder: PathBuf,
}

/// Waits a little between two looks; xtask is not asynchronous.
#[expect(clippy::disallowed_methods, reason = "no runtime here: this thread has nothing else to do")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

impl Processes {
    pub(super) fn new(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder.join("logs"))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Starts a program in a process group of its own, and records it.
    pub(super) fn start(
        &mut self,
        name: &str,
        program: &Path,
        arguments: &[String],
        environment: &[(&str, String)],
    ) -> anyhow::Result<()> {
        let environment = environment.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        let recorded = Recorded {
            name: name.to_owned(),
            pid: 0,
            started: 0,
            program: program.to_owned(),
            arguments: arguments.to_vec(),
            environment,
        };
        spawn(&self.folder, recorded)
    }
}

/// Uninterrupted: what is started is recorded before a signal has everything stopped that is.
fn spawn(folder: &Path, recorded: Recorded) -> anyhow::Result<()> {
    interrupt::uninterrupted(|| start_and_record(folder, recorded))
}

fn start_and_record(folder: &Path, mut recorded: Recorded) -> anyhow::Result<()> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("logs").join(format!("{}.log", recorded.name)))?;
    let child = Command::new(&recorded.program)
        .args(&recorded.arguments)
        .envs(recorded.environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("{} can't be started", recorded.program.display()))?;
    recorded.pid = i32::try_from(child.id())?;
    recorded.started = stat(recorded.pid).map_or(0, |stat| stat.started);
    let mut file = OpenOptions::new().create(true).append(true).open(folder.join("processes.jsonl"))?;
    writeln!(file, "{}", serde_json::to_string(&recorded)?)?;
    Ok(())
}

/// Starts the last recorded process of this name again, with the same arguments.
pub(super) fn restart(folder: &Path, name: &str) -> anyhow::Result<()> {
    let all = recorded(folder)?;
    let last =
        all.into_iter().rfind(|process| process.name == name).with_context(|| format!("{name} never ran"))?;
    spawn(folder, last)
}

/// All that was started in this folder.
pub(super) fn recorded(folder: &Path) -> anyhow::Result<Vec<Recorded>> {
    let text = fs::read_to_string(folder.join("processes.jsonl")).unwrap_or_default();
    // A last line that a killed run left half written names no process that it still started.
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// What is known of a process.
pub(crate) struct Stat {
    pub(crate) parent: i32,
    /// Its process group.
    pub(crate) group: i32,
    /// `Z` where it has ended and nobody asked how.
    pub(crate) state: char,
    started: u64,
}

/// From `/proc/PID/stat` (proc(5)): fields after the program's name in parentheses.
pub(crate) fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

impl Recorded {
    /// This process itself.
    pub(super) fn this() -> Self {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        Self {
            name: "owner".to_owned(),
            pid,
            started: stat(pid).map_or(0, |stat| stat.started),
            program: PathBuf::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.started == self.started && stat.state != 'Z')
    }

    fn signal(&self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = Pid::from_raw(self.pid)
        {
            // It may end between the look and the signal: then there is nothing to do.
            let _gone = kill_process(pid, signal);
        }
    }

    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Whether nothing of it is left, its sockets included: those are closed by the last of its threads, which may be after the first is a zombie.
    pub(super) fn is_gone(&self) -> bool {
        let threads = || fs::read_dir(format!("/proc/{}/task", self.pid)).map_or(0, Iterator::count);
        !self.is_alive() && (stat(self.pid).is_none_or(|stat| stat.started != self.started) || threads() <= 1)
    }
}

/// Stops everything that was recorded, containers included: shims are children of nobody once containerd is gone,
/// and are known by their containerd's socket.
pub(super) fn stop_all(folder: &Path) -> anyhow::Result<()> {
    let all = recorded(folder)?;
    for process in all.iter().rev().filter(|process| process.name != "containerd") {
        process.signal(Signal::TERM);
    }
    wait_gone(&all, "containerd", Duration::from_secs(3));
    for process in all.iter().filter(|process| process.name != "containerd") {
        process.kill();
    }
    for process in &all {
        process.kill();
    }
    stop_shims(folder);
    wait_gone(&all, "", Duration::from_secs(5));
    Ok(())
}

fn wait_gone(all: &[Recorded], except: &str, within: Duration) {
    let deadline = Instant::now() + within;
    while all.iter().any(|process| process.name != except && process.is_alive()) && Instant::now() < deadline
    {
        pause(Duration::from_millis(50));
    }
}

fn stop_shims(folder: &Path) {
    let socket = folder.join("containerd.sock");
    let socket = socket.to_string_lossy();
    let pids: Vec<i32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let shims: Vec<i32> = pids
        .iter()
        .copied()
        .filter(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command);
            command.contains("containerd-shim") && command.contains(&*socket)
        })
        .collect();
    let children =
        pids.iter().copied().filter(|pid| stat(*pid).is_some_and(|stat| shims.contains(&stat.parent)));
    let doomed: Vec<i32> = children.chain(shims.iter().copied()).collect();
    for pid in doomed.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        let _gone = kill_process(pid, Signal::KILL);
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while doomed.iter().any(|pid| stat(*pid).is_some_and(|stat| stat.state != 'Z'))
        && Instant::now() < deadline
    {
        pause(Duration::from_millis(50));
    }
}

/// Ports are looked for from here up to where those begin that the kernel gives to whoever asks for any.
const FIRST_PORT: u16 = 12_000;

/// A TCP port on loopback that is free now. Nobody is given it by chance while the program that listens there is being restarted.
pub(super) fn free_port() -> anyhow::Result<u16> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let given: u16 = range.split_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(32_768);
    let places = given.saturating_sub(FIRST_PORT).max(1);
    // Clusters side by side begin in different places, and one asks for several before it listens at the first.
    static BEGIN: LazyLock<u32> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()) as u32);
    static ASKED: AtomicU32 = AtomicU32::new(0);
    (0..places)
        .map(|_| BEGIN.wrapping_add(ASKED.fetch_add(1, Ordering::Relaxed)))
        .map(|step| FIRST_PORT + (step % u32::from(places)) as u16)
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .with_context(|| format!("no port from {FIRST_PORT} to {given} is free on loopback"))
}

/// Writes a file whole.
pub(super) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    File::create(path)?
        .write_all(text.as_bytes())
        .with_context(|| format!("{} can't be written", path.display()))
}

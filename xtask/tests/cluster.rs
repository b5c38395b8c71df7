//! `cargo xtask cluster` as people run it: side by side, after kill -9, told to end, and where something is missing.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// From `up` to ready, on a machine that does much else.
const WITHIN: Duration = Duration::from_secs(240);

/// A cache of its own, with the programs of the usual one. Its clusters end with it.
struct Cache(PathBuf);

impl Cache {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("towline-xtask-{name}-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn with_programs(name: &str) -> Self {
        xtask::cluster::build::ensure_built().unwrap();
        let cache = Self::new(name);
        std::os::unix::fs::symlink(xtask::cache().join("programs"), cache.0.join("programs")).unwrap();
        cache
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.arg("cluster").args(arguments).env("TOWLINE_CACHE", &self.0).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn cluster(&self, name: &str) -> PathBuf {
        self.0.join("clusters").join(name)
    }

    /// Pids that are recorded and have not ended.
    fn alive(&self, name: &str) -> Vec<i32> {
        pids(&self.cluster(name)).into_iter().filter(|pid| is_alive(*pid)).collect()
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.0.join("clusters")).into_iter().flatten().flatten() {
            let _down = self.run(&["down", "--name", &entry.file_name().to_string_lossy()]);
        }
        let _gone = fs::remove_dir_all(&self.0);
    }
}

fn pids(cluster: &Path) -> Vec<i32> {
    let text = fs::read_to_string(cluster.join("processes.jsonl")).unwrap_or_default();
    let pid = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["pid"].as_i64();
    text.lines().filter_map(pid).map(|pid| i32::try_from(pid).unwrap()).collect()
}

fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| !fields.trim_start().starts_with('Z'))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[track_caller]
fn fails(output: &Output, with: &[&str]) {
    let said = text(&output.stderr);
    assert!(!output.status.success(), "{said}");
    for words in with {
        assert!(said.contains(words), "{words:?} is missing in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {WITHIN:?}: {what}");
        thread::park_timeout(Duration::from_millis(20));
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn two_run_side_by_side_and_what_a_killed_one_leaves_goes_with_the_next_up() {
    let cache = Cache::with_programs("two");
    let up = |name: &str| cache.run(&["up", "--no-node", "--name", name]);
    // What it prints can be evaluated, and nothing else is in it.
    let exports = succeeds(&up("one"));
    assert!(
        exports.lines().count() == 2 && exports.lines().all(|line| line.starts_with("export ")),
        "{exports}"
    );

    // The second is killed as soon as something of it runs.
    let mut killed = cache.command(&["up", "--no-node", "--name", "two"]);
    let mut killed = killed.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("a process of the second runs", || !cache.alive("two").is_empty());
    signal(&killed, Signal::KILL);
    killed.wait().unwrap();
    let left = cache.alive("two");
    assert!(!left.is_empty());
    let status = succeeds(&cache.run(&["status"]));
    assert!(status.contains("two (left behind; the next `up` removes it"), "{status}");
    fails(&cache.run(&["kubeconfig", "--name", "two"]), &["no cluster two is up"]);

    // Any name's.
    succeeds(&up("three"));
    assert!(!cache.cluster("two").exists());
    assert!(!left.into_iter().any(is_alive));

    // The first was left alone, and both answer.
    for name in ["one", "three"] {
        let kubeconfig = succeeds(&cache.run(&["kubeconfig", "--name", name]));
        let path = exports.lines().find_map(|line| line.strip_prefix("export PATH=")).unwrap();
        let kubectl = Path::new(path.trim_end_matches(":$PATH")).join("kubectl");
        let mut command = Command::new(kubectl);
        command.args(["get", "--raw", "/readyz"]).env("KUBECONFIG", kubeconfig.trim());
        assert_eq!(succeeds(&command.output().unwrap()), "ok", "{name}");
    }

    // A name that is taken is refused, and what runs under it goes on.
    let before = cache.alive("one");
    fails(&up("one"), &["a cluster one is up already", "--replace"]);
    assert_eq!(cache.alive("one"), before);
    succeeds(&cache.run(&["up", "--no-node", "--name", "one", "--replace"]));
    assert!(!before.into_iter().any(is_alive));

    // Where the processes are gone, there is no kubeconfig that leads anywhere.
    for pid in cache.alive("three") {
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
    until("the third is gone", || cache.alive("three").is_empty());
    fails(&cache.run(&["kubeconfig", "--name", "three"]), &["no cluster three is up"]);

    let said = succeeds(&cache.run(&["down", "--all"]));
    assert!(said.contains("cluster one is down") && said.contains("cluster three is down"), "{said}");
    assert_eq!(succeeds(&cache.run(&["status"])), "no cluster is up\n");
}

#[test]
fn told_to_end_it_stops_what_it_has_started() {
    let cache = Cache::with_programs("told");
    for told in [Signal::INT, Signal::TERM] {
        let mut up = cache.command(&["up", "--no-node", "--name", "told"]);
        let mut up = up.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        until("something of it runs", || cache.alive("told").len() >= 2);
        let started = cache.alive("told");
        // While it is made nobody else stops it.
        let said = succeeds(&cache.run(&["down", "--all"]));
        assert!(said.contains(&format!("used by process {}", up.id())), "{said}");
        fails(&cache.run(&["up", "--no-node", "--name", "told"]), &["uses a cluster told"]);
        signal(&up, told);
        let status = up.wait().unwrap();
        assert!(!status.success(), "{status}");
        assert!(!cache.cluster("told").exists(), "{told:?}");
        assert!(!started.into_iter().any(is_alive), "{told:?}");
    }
}

#[test]
fn what_is_missing_is_named_with_its_fix() {
    let cache = Cache::new("missing");
    let mut without_go = cache.command(&["up", "--no-node"]);
    fails(&without_go.env("PATH", "").output().unwrap(), &["Go (`go version` does not run)", "install Go"]);
    assert!(!cache.0.join("clusters").exists());

    // Whoever is not root gets no node, and nothing is begun. The programs are not called.
    let programs = xtask::cluster::build::ensure_built().unwrap();
    let stand_ins = cache.0.join("programs").join(programs.folder().file_name().unwrap());
    fs::create_dir_all(&stand_ins).unwrap();
    for entry in fs::read_dir(programs.folder()).unwrap() {
        fs::write(stand_ins.join(entry.unwrap().file_name()), "").unwrap();
    }
    if rustix::process::geteuid().is_root() {
        let program = cache.0.join("xtask");
        fs::copy(env!("CARGO_BIN_EXE_xtask"), &program).unwrap();
        fs::set_permissions(&cache.0, fs::Permissions::from_mode(0o777)).unwrap();
        let mut as_nobody = Command::new(program);
        as_nobody.args(["cluster", "up"]).env("TOWLINE_CACHE", &cache.0).current_dir("/").uid(65534);
        fails(&as_nobody.output().unwrap(), &["root (containers", "--no-node"]);
    } else {
        fails(&cache.run(&["up"]), &["root (containers", "--no-node"]);
    }
    assert!(!cache.0.join("clusters").exists());
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let cache = Cache::new("reader");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = cache.command(&["status"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    fails(&output, &[]);
    assert_eq!(text(&output.stderr), "");
}

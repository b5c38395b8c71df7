//! A task that is told to end leaves nobody running, in a group of their own or deaf as they may be.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Set where this program is the task that is told to end.
const TASK: &str = "TOWLINE_INTERRUPTED_TASK";
const WITHIN: Duration = Duration::from_secs(30);

fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')))
}

/// What the other test runs: it starts two programs, says which, and waits to be told.
#[test]
fn a_task_with_programs_below_it() {
    if std::env::var_os(TASK).is_none() {
        return;
    }
    xtask::interrupt::promise("what the task made", || {}).unwrap();
    let mut started: Vec<_> = ["exec tail -f /dev/null", "trap '' TERM; tail -f /dev/null"]
        .into_iter()
        .map(|script| Command::new("sh").args(["-c", script]).process_group(0).spawn().unwrap())
        .collect();
    let pids: Vec<String> = started.iter().map(|child| child.id().to_string()).collect();
    println!("\nstarted {}", pids.join(" "));
    let _status = started.remove(0).wait();
    // Its first program has been told already, and it itself is about to go.
    thread::park_timeout(WITHIN);
}

#[test]
fn a_task_that_is_told_to_end_leaves_nobody_running() {
    let mut task = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_task_with_programs_below_it", "--nocapture"])
        .env(TASK, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(task.stdout.take().unwrap()).lines().map_while(Result::ok);
    let started = lines.find_map(|line| Some(line.strip_prefix("started ")?.to_owned())).unwrap();
    let pids: Vec<i32> = started.split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    kill_process(Pid::from_child(&task), Signal::TERM).unwrap();
    let deadline = Instant::now() + WITHIN;
    while task.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the task does not end");
        thread::park_timeout(Duration::from_millis(20));
    }
    for pid in pids {
        // Who is killed is gone once whoever adopts orphans has asked.
        while is_alive(pid) {
            assert!(Instant::now() < deadline, "{pid} goes on");
            thread::park_timeout(Duration::from_millis(20));
        }
    }
}

//! Told to end by Ctrl-C, SIGTERM or a terminal that is closed: what this process made is undone before it goes.
//!
//! What is to be undone is promised when it is made ([`promise`]) and undone by [`keep`], once, by whoever comes first: the
//! code that made it, or the signal. Nothing that is promised prints to standard output.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    panic,
    sync::{Mutex, MutexGuard, Once, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, getpgrp, getpid, kill_process, set_child_subreaper};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM},
    iterator::Signals,
    low_level::emulate_default_handler,
};

use crate::cluster::process::{pause, stat};

/// What a cluster takes to stop, on a machine that is busy.
const CHILDREN_WITHIN: Duration = Duration::from_secs(60);
/// What is still there after this was told, and is killed: nothing that runs here has more to finish.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

type Undo = Box<dyn FnOnce() + Send>;

/// What is to be undone, oldest first, by its name. Whoever holds it can't be interrupted.
static PROMISED: Mutex<Vec<(String, Undo)>> = Mutex::new(Vec::new());

fn promised() -> MutexGuard<'static, Vec<(String, Undo)>> {
    // What panicked while it held this was undoing one thing: the others still are to be.
    PROMISED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on a signal undoes this before the process ends; the newest of several first.
///
/// # Errors
/// If signals can't be listened to.
pub fn promise(what: &str, undo: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    static LISTENING: Once = Once::new();
    let mut listening = Ok(());
    LISTENING.call_once(|| listening = listen(end));
    listening?;
    promised().push((what.to_owned(), Box::new(undo)));
    Ok(())
}

/// Undoes what was promised under this name, in the way given here, uninterrupted.
pub fn keep<T>(what: &str, undo: impl FnOnce() -> T) -> T {
    let mut promised = promised();
    promised.retain(|(name, _)| name != what);
    undo()
}

/// Does what must not be half done when a signal comes.
pub fn uninterrupted<T>(act: impl FnOnce() -> T) -> T {
    let _held = promised();
    act()
}

/// Where a process only waits for others: a signal is theirs too, and ends it once they are gone.
///
/// # Errors
/// If signals can't be listened to.
pub fn wait_for_children() -> anyhow::Result<()> {
    // cargo dies of Ctrl-C at once; what it started is to be waited for all the same.
    set_child_subreaper(Some(getpid())).context("orphans can't be adopted")?;
    listen(|signal| {
        // The terminal has told them already if it was Ctrl-C; to be told twice is no harm. A group of their own have the
        // processes of clusters, which whoever made them stops, in order.
        tell(descendants().into_iter().filter(|pid| group(*pid) == Some(getpgrp().as_raw_nonzero().get())));
        let deadline = Instant::now() + CHILDREN_WITHIN;
        while !descendants().is_empty() && Instant::now() < deadline {
            pause(Duration::from_millis(50));
        }
        go(signal)
    })
}

/// `println!` panics where its reader has gone (`… | head`): there this process undoes what it promised, and goes as
/// SIGPIPE has programs go.
pub fn end_when_nobody_reads() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let said = panic.payload_as_str().unwrap_or_default();
        if said.starts_with("failed printing to std") && said.contains("Broken pipe") {
            end(SIGPIPE);
        }
        usual(panic);
    }));
}

fn listen(then: fn(i32)) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("signals can't be listened to")?;
    thread::Builder::new()
        .name("interrupt".into())
        .spawn(move || signals.forever().for_each(then))
        .context("no thread for signals")?;
    Ok(())
}

fn end(signal: i32) {
    // Held to the end: the main thread may not go on, nor end the process first.
    let mut promised = promised();
    for (what, undo) in promised.drain(..).rev() {
        // Whoever reads may have gone.
        let _told = writeln!(std::io::stderr(), "-- {what}: stopped");
        undo();
    }
    leave_nobody();
    go(signal);
}

/// Ends every process below this one: told first, and killed where that was not enough. What starts meanwhile is told as well.
fn leave_nobody() {
    // What was started by one of them stays below this one when that one ends.
    let _kept = set_child_subreaper(Some(getpid()));
    let (deadline, mut told) = (Instant::now() + LEAVE_WITHIN, BTreeSet::new());
    loop {
        let left = descendants();
        if left.is_empty() {
            return;
        }
        if Instant::now() > deadline {
            return signal_all(left, Signal::KILL);
        }
        tell(left.into_iter().filter(|pid| told.insert(*pid)));
        pause(Duration::from_millis(50));
    }
}

fn go(signal: i32) {
    let _ended = emulate_default_handler(signal);
    std::process::exit(128 + signal);
}

fn tell(pids: impl IntoIterator<Item = i32>) {
    signal_all(pids, Signal::TERM);
}

fn signal_all(pids: impl IntoIterator<Item = i32>, signal: Signal) {
    for pid in pids.into_iter().filter_map(Pid::from_raw) {
        // One that has just ended needs no signal.
        let _gone = kill_process(pid, signal);
    }
}

fn group(pid: i32) -> Option<i32> {
    stat(pid).map(|stat| stat.group)
}

/// The processes below this one that are alive.
fn descendants() -> Vec<i32> {
    let pids = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let all: Vec<(i32, i32)> = pids
        .filter_map(|pid| stat(pid).filter(|stat| stat.state != 'Z').map(|stat| (pid, stat.parent)))
        .collect();
    let mut found = BTreeSet::from([getpid().as_raw_nonzero().get()]);
    loop {
        let more: Vec<i32> = all
            .iter()
            .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    found.remove(&getpid().as_raw_nonzero().get());
    found.into_iter().collect()
}

//! A peer's processes: each in a group of its own, with its log in a file, and gone with whoever holds it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// One that runs. Dropping it kills it and all that it started.
#[derive(Debug)]
pub(super) struct Started {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Started {
    pub(super) fn new(name: &'static str, command: &mut Command, folder: &Path) -> anyhow::Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("{name} can't be started"))?;
        Ok(Self { name, child, log })
    }

    /// The end of its log.
    pub(super) fn tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("{}:\n{}", self.name, lines[lines.len().saturating_sub(12)..].join("\n"))
    }

    /// Fails with the end of its log where it has ended.
    pub(super) fn still_runs(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended ({status}); the end of its log:\n{}", self.name, self.tail());
        }
        Ok(())
    }

    /// Its process, and all that came of it: sshd forks one for each connection.
    pub(super) fn tree(&self) -> Vec<u32> {
        let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if let Some(parent) = parent(pid) {
                children.entry(parent).or_default().push(pid);
            }
        }
        let mut tree = vec![self.child.id()];
        let mut next = 0;
        while let Some(pid) = tree.get(next) {
            tree.extend(children.get(pid).into_iter().flatten());
            next += 1;
        }
        tree
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Those in sessions of their own first, while their parent still says that they are its.
        for pid in self.tree().into_iter().skip(1).filter_map(pid) {
            let _gone = kill_process(pid, Signal::KILL);
        }
        if let Some(group) = pid(self.child.id()) {
            let _gone = kill_process_group(group, Signal::KILL);
        }
        let _status = self.child.wait();
    }
}

fn pid(raw: u32) -> Option<Pid> {
    i32::try_from(raw).ok().and_then(Pid::from_raw)
}

/// From `/proc/PID/stat` (proc(5)): the second field after the program's name in parentheses.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_started_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        // One child in its group, and one in a session of its own.
        command.args(["-c", "sleep 600 & setsid sleep 600 & wait"]);
        let started = Started::new("sh", &mut command, folder.path()).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while started.tree().len() < 3 && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        let tree = started.tree();
        assert!(tree.len() >= 3, "{tree:?}");
        drop(started);
        let runs = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
        };
        while tree.iter().any(runs) && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(tree.iter().filter(|pid| runs(pid)).count(), 0);
    }

    #[test]
    fn one_that_ends_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such port; exit 3"]);
        let mut started = Started::new("sh", &mut command, folder.path()).unwrap();
        let _status = started.child.wait();
        let told = format!("{:#}", started.still_runs().unwrap_err());
        assert!(told.contains("exit status: 3") && told.contains("no such port"), "{told}");
    }
}

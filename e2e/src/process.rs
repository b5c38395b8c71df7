//! Programs that run beside a test, with their logs in files, stopped with it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

/// One that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it, with both outputs in a file, which is begun anew: what an earlier run wrote there stays as `….N`.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        if log.exists() {
            let older = (1..).map(|n| log.with_added_extension(n.to_string()));
            let free = older.into_iter().find(|path| !path.exists()).context("no name is free")?;
            fs::rename(log, free)?;
        }
        let file = File::create(log).with_context(|| log.display().to_string())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("{name} can't be started"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a whole line of its log that has all of these in it.
    ///
    /// # Errors
    /// If it ends, or does not write one in time; with the end of its log.
    pub fn wait_for(&mut self, words: &[&str], within: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + within;
        loop {
            let log = self.log();
            let whole = log.rfind('\n').map_or("", |end| &log[..end]);
            if let Some(line) = whole.lines().rev().find(|line| words.iter().all(|word| line.contains(word)))
            {
                return Ok(line.to_owned());
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(20)..].join("\n");
                let how = ended.map_or_else(|| format!("after {within:?}"), |status| status.to_string());
                bail!("{} did not say {words:?} ({how}); the end of its log:\n{tail}", self.name);
            }
            pause(Duration::from_millis(10));
        }
    }

    /// Kills it with -9, and waits until it is gone.
    pub fn kill(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }

    /// Sends SIGTERM and waits for its end.
    ///
    /// # Errors
    /// If it is not gone in time.
    pub fn terminate(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.context("no process id")?, rustix::process::Signal::TERM)?;
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                self.kill();
                bail!("{} did not end within {within:?} of SIGTERM", self.name);
            }
            pause(Duration::from_millis(10));
        }
    }

    /// Waits for its end, and says how it was.
    ///
    /// # Errors
    /// If it has not ended in time; with the end of what it wrote.
    pub fn wait(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                let log = self.log();
                let tail = log.lines().rev().take(5).collect::<Vec<_>>().join(" | ");
                bail!("{} goes on after {within:?}; the end of what it wrote, last first: {tail}", self.name);
            }
            pause(Duration::from_millis(20));
        }
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits, in a program that has a thread for it: processes can only be looked at again.
pub fn pause(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
}

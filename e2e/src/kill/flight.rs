//! One running kubectl of the load, and what it has printed.

use std::{
    fs::{self, File},
    io::{BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use crate::process::pause;

/// Bytes that `cp` copies: the beginning of the numbers from 1, a line each.
pub(super) const LARGE: u64 = 60_000_000;

/// What goes on prints all the time.
const COMES_WITHIN: Duration = Duration::from_secs(3);

/// One running kubectl.
pub(super) struct Flight {
    pub(super) what: &'static str,
    /// Whether exit 0 means that all of it arrived: never so for what has no end of its own.
    pub(super) may_end_well: bool,
    /// Whether anything had come when the victim was killed.
    pub(super) had_begun: bool,
    child: Child,
    output: PathBuf,
    /// Bytes that were there when the victim was killed.
    at_the_kill: u64,
}

/// The whole load, with its output in this folder.
pub(super) fn all(
    folder: &Path,
    kubectl: impl Fn(&[&str]) -> anyhow::Result<Command>,
) -> anyhow::Result<Vec<Flight>> {
    let copy = folder.join("copy");
    let _old = fs::remove_file(&copy);
    let copy = copy.to_string_lossy();
    let counts = "n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); echo $n; done";
    let specifications: [(&'static str, &[&str], bool); 5] = [
        ("watch", &["get", "pods", "--watch", "--output-watch-events"], false),
        ("logs", &["logs", "-f", "box", "--tail=1"], false),
        ("exec", &["exec", "box", "--", "sh", "-c", counts], false),
        ("cp", &["cp", "box:/tmp/large", &copy], true),
        ("get", &["get", "pods", "-o", "json"], true),
    ];
    specifications
        .into_iter()
        .map(|(what, arguments, may_end_well)| {
            let printed = folder.join(what);
            let child = kubectl(arguments)?.stdout(File::create(&printed)?).stderr(Stdio::piped()).spawn()?;
            let output = if what == "cp" { folder.join("copy") } else { printed };
            Ok(Flight { what, may_end_well, had_begun: false, child, output, at_the_kill: 0 })
        })
        .collect()
}

impl Flight {
    /// Notes how far it is: now the victim is killed.
    pub(super) fn note_begun(&mut self) {
        self.at_the_kill = self.copied();
        self.had_begun = self.at_the_kill > 0;
    }

    /// Whether it has shown that it went on: by its end, or by what came since.
    pub(super) fn has_gone_on(&mut self) -> bool {
        let has_end = matches!(self.what, "exec" | "cp" | "get");
        !self.had_begun || self.ended().is_some() || (!has_end && self.copied() > self.at_the_kill)
    }

    /// Whether nothing of it was there when the victim was killed, and more comes now. Waits for that for some seconds.
    pub(super) fn began_after(&self) -> bool {
        // Nothing happens to the pod: a watch prints what is there, and then no more.
        if self.what == "watch" {
            return !self.had_begun && self.copied() > 0;
        }
        let (before, asked) = (self.copied(), Instant::now());
        while !self.had_begun && asked.elapsed() < COMES_WITHIN {
            if self.copied() > before {
                return true;
            }
            pause(Duration::from_millis(50));
        }
        false
    }

    /// How it ended, if it did.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Ends it as a person does.
    pub(super) fn stop(mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }

    /// What it said on standard error; it must have ended.
    pub(super) fn said(&mut self) -> String {
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _read = stderr.read_to_string(&mut said);
        }
        said
    }

    /// What a watch printed.
    pub(super) fn printed(&self) -> String {
        if self.what == "watch" {
            fs::read_to_string(&self.output).unwrap_or_default()
        } else {
            String::new()
        }
    }

    /// Bytes that came.
    pub(super) fn copied(&self) -> u64 {
        fs::metadata(&self.output).map_or(0, |file| file.len())
    }

    /// Went on to its end, or still goes on, and all of it is there and in its place.
    pub(super) fn judge_whole(mut self) -> anyhow::Result<()> {
        let ended = self.ended();
        if ended.is_none() {
            let _ended = self.child.kill();
            let _status = self.child.wait();
        }
        let said = self.said();
        match self.what {
            "watch" | "logs" => {
                ensure!(ended.is_none(), "it ended: {said}");
                ensure!(self.copied() > self.at_the_kill, "nothing came any more");
            }
            _ => {
                let status = ended.context("it does not come to its end")?;
                ensure!(status.success(), "it ended with {status}: {said}");
                ensure!(self.what != "cp" || self.copied() == LARGE, "cp copied {} bytes", self.copied());
            }
        }
        self.is_sound()
    }

    /// Whether what came are numbers that follow one another. The last line may be cut.
    pub(super) fn is_sound(&self) -> anyhow::Result<()> {
        if !matches!(self.what, "logs" | "exec" | "cp") {
            return Ok(());
        }
        let Ok(file) = File::open(&self.output) else { return Ok(()) };
        follow_one_another(BufReader::new(file), self.what != "logs")
    }
}

/// Numbers, a line each, the first one 1 where that is wanted.
fn follow_one_another(mut lines: impl std::io::BufRead, from_one: bool) -> anyhow::Result<()> {
    let (mut line, mut before) = (String::new(), from_one.then_some(0));
    while lines.read_line(&mut line).context("not text")? > 0 {
        let Some(number) = line.strip_suffix('\n') else { return Ok(()) };
        let number: u64 = number.parse().with_context(|| format!("{number:?} after {before:?}"))?;
        ensure!(before.is_none_or(|before| number == before + 1), "{number} follows {before:?}");
        before = Some(number);
        line.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_lost_repeated_or_elsewhere_is_seen() {
        let judged = |text: &str, from_one| follow_one_another(text.as_bytes(), from_one).is_ok();
        assert!(judged("1\n2\n3\n4", true) && judged("7\n8\n", false) && judged("", true));
        for wrong in ["2\n3\n", "1\n3\n", "1\n2\n2\n", "1\n3\n2\n", "1\n\n2\n"] {
            assert!(!judged(wrong, true), "{wrong:?}");
        }
    }
}

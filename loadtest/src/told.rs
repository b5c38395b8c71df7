//! How a command tells what it finds: figures on standard output and in a file, progress on a terminal.

#![allow(clippy::print_stdout, reason = "figures are what the program is run for")]

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::Duration,
};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    figure::{Figure, HEAD},
    stats::in_turns,
};

/// Where figures go.
#[derive(Debug)]
pub struct Told {
    json: bool,
    file: Option<File>,
    begun: bool,
    figures: Vec<Figure>,
    bar: Option<ProgressBar>,
}

impl Told {
    /// Tells people, or programs where `json`; and keeps the lines in `results/COMMAND.jsonl`, anew.
    ///
    /// # Errors
    /// If the file can't be made.
    pub fn new(json: bool, results: Option<&Path>, command: &str) -> anyhow::Result<Self> {
        let file = match results {
            None => None,
            Some(folder) => {
                fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
                let path = folder.join(format!("{command}.jsonl"));
                Some(File::create(&path).with_context(|| path.display().to_string())?)
            }
        };
        Ok(Self { json, file, begun: false, figures: Vec::new(), bar: None })
    }

    /// Tells one. One without a number (of no bytes, in no time) has no line, and is remarked upon.
    pub fn note(&mut self, figure: Figure) {
        if !figure.value.is_finite() {
            return self.remark(&format!("{}: no figure", figure.name));
        }
        let head = !self.json && !std::mem::replace(&mut self.begun, true);
        let line = if self.json { figure.json() } else { figure.line() };
        let print = || {
            if head {
                println!("{HEAD}");
            }
            println!("{line}");
        };
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
        if let Some(file) = &mut self.file
            && let Err(error) = writeln!(file, "{}", figure.json())
        {
            eprintln!("a result can't be kept: {error}");
        }
        self.figures.push(figure);
    }

    /// A remark for people, beside the figures.
    pub fn remark(&self, text: &str) {
        let print = || eprintln!("{text}");
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Begins something of so many steps; shown where standard error is a terminal.
    pub fn begin(&mut self, what: &str, steps: usize) -> ProgressBar {
        if let Some(old) = self.bar.take() {
            old.finish_and_clear();
        }
        let style = ProgressStyle::with_template("{spinner} {msg} {wide_bar} {pos}/{len} {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(steps as u64).with_style(style).with_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        self.bar = Some(bar.clone());
        bar
    }

    /// Both in turns ([`stats::in_turns`](in_turns)), so many times, with a step of progress for each pair.
    ///
    /// # Errors
    /// The first that one of them meets.
    pub async fn in_turns<T>(
        &mut self,
        what: &str,
        runs: usize,
        first: impl AsyncFnMut() -> anyhow::Result<T>,
        mut second: impl AsyncFnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<Vec<(T, T)>> {
        let bar = self.begin(what, runs);
        let second = async || {
            let seen = second().await;
            bar.inc(1);
            seen
        };
        in_turns(runs, first, second).await
    }

    /// All that was told.
    pub fn figures(&self) -> &[Figure] {
        &self.figures
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_kept_and_what_is_no_number_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut told = Told::new(true, Some(folder.path()), "x").unwrap();
        told.note(Figure::once("none", "s", f64::NAN, 0));
        told.note(Figure::once("one", "s", 1.0, 1));
        assert_eq!(told.figures().len(), 1);
        let kept = fs::read_to_string(folder.path().join("x.jsonl")).unwrap();
        assert_eq!(kept, format!("{}\n", told.figures()[0].json()));
    }
}

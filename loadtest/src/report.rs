//! A page with plots of everything that the commands kept, and the table of targets in `docs/performance.md`.

mod page;
mod plot;
mod targets;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use clap::Args;

use self::targets::{TARGETS, Verdict};
use crate::{
    figure::{Figure, LOAD, short},
    terms::Terms,
};

/// The table stands between these lines.
const BEGIN: &str = "<!-- figures: written by `towline-loadtest report` -->";
/// See [`BEGIN`].
const END: &str = "<!-- end of figures -->";

/// What to make.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// The page [default: report.html in the folder of --results]
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The document whose table is rewritten
    #[arg(long, value_name = "FILE", default_value = "docs/performance.md")]
    document: PathBuf,
    /// Only the page
    #[arg(long)]
    no_document: bool,
}

/// What one command kept.
#[derive(Clone, Debug)]
struct Kept {
    command: String,
    figures: Vec<Figure>,
}

/// Makes them.
///
/// # Errors
/// If a file can't be read or written, or the document has no place for the table.
pub fn run(arguments: Arguments, terms: &Terms) -> anyhow::Result<()> {
    let kept = read(&terms.results)?;
    ensure!(!kept.is_empty(), "nothing is kept in {}: run the other commands first", terms.results.display());
    let all: Vec<&Figure> = kept.iter().flat_map(|kept| &kept.figures).collect();
    let about = about(&all);
    let html = arguments.html.unwrap_or_else(|| terms.results.join("report.html"));
    fs::write(&html, page::page(&kept, &about)).with_context(|| html.display().to_string())?;
    eprintln!("{} figures of {} commands: {}", all.len(), kept.len(), html.display());
    if !arguments.no_document {
        let path = &arguments.document;
        let old = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let new = rewrite(&old, &table(&all, &about)).with_context(|| path.display().to_string())?;
        fs::write(path, new).with_context(|| path.display().to_string())?;
        eprintln!("{}: the table is rewritten", path.display());
    }
    Ok(())
}

fn read(folder: &Path) -> anyhow::Result<Vec<Kept>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| folder.display().to_string())?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    paths.sort();
    let mut kept = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let figures = text.lines().filter(|line| !line.trim().is_empty()).map(serde_json::from_str);
        let figures: Vec<Figure> =
            figures.collect::<Result<_, _>>().with_context(|| path.display().to_string())?;
        let command = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if !figures.is_empty() {
            kept.push(Kept { command, figures });
        }
    }
    Ok(kept)
}

/// On what it was measured, in a few words.
fn about(all: &[&Figure]) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let revision = Command::new("git").args(["describe", "--always", "--dirty", "--exclude=*"]).output();
    let revision = revision.ok().filter(|output| output.status.success());
    let revision = revision.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let build = if cfg!(debug_assertions) { ", not a release build" } else { "" };
    let revision = revision.map_or_else(String::new, |revision| format!(", at `{revision}`"));
    let loads = all.iter().filter(|figure| figure.name == LOAD).map(|figure| figure.value);
    let load = loads.reduce(f64::max);
    let load = load.map_or_else(String::new, |load| {
        format!("; load average of the machine before a command began: at most {}", short(load))
    });
    format!("{cores} cores{revision}{build}{load}")
}

/// The table of targets, as Markdown.
fn table(all: &[&Figure], about: &str) -> String {
    let mut text = format!(
        "Measured on {about}.\n\n| what | measured | ratio (95 %) | target | |\n|---|---|---|---|---|\n"
    );
    for target in TARGETS {
        let found: Vec<&&Figure> = all.iter().filter(|figure| target.is_about(figure)).collect();
        if found.is_empty() {
            text += &format!("| {} | – | – | {} | not measured |\n", target.what, target.bound());
        }
        for figure in found {
            let verdict = match target.judge(figure) {
                Verdict::Met => "met",
                Verdict::Missed => "**missed**",
                Verdict::Open => "open",
            };
            text += &format!(
                "| {} | {} | {} | {} | {verdict} |\n",
                figure.name,
                value_of(figure),
                ratio_of(figure),
                target.bound()
            );
        }
    }
    text
}

fn value_of(figure: &Figure) -> String {
    let value = format!("{} {}", short(figure.value), figure.unit);
    match (figure.ratio, figure.ci95) {
        (None, Some((low, high))) => format!("{} ({} – {})", value.trim(), short(low), short(high)),
        _ => value.trim().to_owned(),
    }
}

fn ratio_of(figure: &Figure) -> String {
    match (figure.ratio, &figure.against) {
        (Some(ratio), Some(against)) => {
            let interval = figure
                .ci95
                .map_or_else(String::new, |(low, high)| format!(" ({} – {})", short(low), short(high)));
            format!("{}{interval} × {against}", short(ratio))
        }
        _ => "–".to_owned(),
    }
}

fn rewrite(old: &str, table: &str) -> anyhow::Result<String> {
    let begin = old.find(BEGIN).with_context(|| format!("has no line {BEGIN}"))? + BEGIN.len();
    let end = old[begin..].find(END).with_context(|| format!("has no line {END} after the other"))? + begin;
    Ok(format!("{}\n\n{table}\n{}", &old[..begin], &old[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_stands_between_its_marks_and_again_when_it_is_written_again() {
        let figure = Figure::once("relay CPU, 1 stream", "core s/GB", 1.1, 5);
        let missed = Figure::once("relay CPU, 16 streams", "core s/GB", 1.3, 5);
        let table = table(&[&figure, &missed], "2 cores");
        assert!(table.contains("| relay CPU, 1 stream | 1.10 core s/GB | – | ≤ 1.2 | met |"), "{table}");
        assert!(
            table.contains("| relay CPU, 16 streams | 1.30 core s/GB | – | ≤ 1.2 | **missed** |"),
            "{table}"
        );
        assert!(table.contains("| not measured |"));
        let document = format!("before\n{BEGIN}\nyesterday\n{END}\nafter\n");
        let once = rewrite(&document, &table).unwrap();
        assert!(
            once.starts_with("before\n")
                && once.ends_with(&format!("{END}\nafter\n"))
                && !once.contains("yesterday")
        );
        assert_eq!(rewrite(&once, &table).unwrap(), once);
        assert!(rewrite("no marks", &table).is_err());
    }

    #[test]
    fn what_commands_keep_is_read_in_order_and_what_is_not_a_figure_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let line = Figure::once("x", "ms", 1.0, 1).json();
        fs::write(folder.path().join("b.jsonl"), format!("{line}\n{line}\n")).unwrap();
        fs::write(folder.path().join("a.jsonl"), format!("{line}\n")).unwrap();
        fs::write(folder.path().join("empty.jsonl"), "").unwrap();
        fs::write(folder.path().join("other.txt"), "no JSON").unwrap();
        let kept = read(folder.path()).unwrap();
        let counts: Vec<(&str, usize)> =
            kept.iter().map(|kept| (kept.command.as_str(), kept.figures.len())).collect();
        assert_eq!(counts, [("a", 1), ("b", 2)]);
        fs::write(folder.path().join("c.jsonl"), "{}\n").unwrap();
        assert!(format!("{:#}", read(folder.path()).unwrap_err()).contains("c.jsonl"));
    }
}

//! `cargo xtask test`: every check and test, in an order that fails early.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use crate::{interrupt, needs};

/// What to run.
#[derive(Args, Debug)]
pub struct TestArguments {
    /// Only the steps whose names contain this.
    #[arg(long)]
    only: Option<String>,
}

/// Counts of the tests that cargo's runners reported.
#[derive(Debug, Default)]
struct Counts {
    passed: u64,
    failed: u64,
}

type Step = (&'static str, fn(&mut Counts) -> anyhow::Result<()>);

const TESTS: &str = "tests";

/// `fuzz/` is a workspace of its own: its format and its dependencies are looked at apart.
const STEPS: &[Step] = &[
    ("format", |_| {
        cargo(&["fmt", "--all", "--check"])?;
        cargo(&["fmt", "--manifest-path", FUZZ, "--check"])
    }),
    ("features", |_| crate::programs::check_features()),
    ("cluster programs (in the background)", |_| crate::cluster::build::start_in_background()),
    ("clippy", |_| cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])),
    ("deny", |_| deny()),
    ("docs", |_| {
        run_command(
            cargo_command(&["doc", "--quiet", "--no-deps", "--workspace"]).env("RUSTDOCFLAGS", "-D warnings"),
        )
    }),
    ("cluster programs", |_| crate::cluster::build::ensure_built().map(|_| ())),
    (TESTS, tests),
    ("threats", |_| crate::threats::check()),
];

const FUZZ: &str = "fuzz/Cargo.toml";

/// Runs the steps.
///
/// # Errors
/// At the first step that fails.
pub fn run(arguments: &TestArguments) -> anyhow::Result<ExitCode> {
    let steps: Vec<&Step> = STEPS
        .iter()
        .filter(|(name, _)| arguments.only.as_ref().is_none_or(|only| name.contains(only.as_str())))
        .collect();
    ensure!(!steps.is_empty(), "no step has such a name");
    interrupt::wait_for_children()?;
    if steps.iter().any(|(name, _)| *name == TESTS) {
        // What a machine lacks is said now, and not after half an hour.
        needs::check(&needs::of_tests())?;
        crate::cluster::build::check_node_programs()?;
    }
    let begun = Instant::now();
    let mut counts = Counts::default();
    let mut failed = None;
    for (number, (name, step)) in steps.iter().enumerate() {
        println!("== step {}/{} {name}", number + 1, steps.len());
        let started = Instant::now();
        match step(&mut counts) {
            Ok(()) => println!(
                "== step {}/{} {name}: ok ({} s)",
                number + 1,
                steps.len(),
                started.elapsed().as_secs()
            ),
            Err(error) => {
                println!("== step {}/{} {name}: FAILED ({error:#})", number + 1, steps.len());
                failed = Some(*name);
                counts.failed += u64::from(counts.failed == 0);
                break;
            }
        }
    }
    println!("== {} s in all", begun.elapsed().as_secs());
    println!("{} passed, {} failed", counts.passed, counts.failed);
    Ok(if failed.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn cargo_command(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(crate::root()).stdin(Stdio::null());
    command
}

fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    run_command(&mut cargo_command(arguments))
}

fn run_command(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("{:?} can't be run", command.get_program()))?;
    ensure!(status.success(), "{:?} ended with {status}", command.get_program());
    Ok(())
}

/// cargo-deny, kept in the cache. Advisories are not checked: their database can't be fetched everywhere.
fn deny() -> anyhow::Result<()> {
    let folder = crate::cache().join("cargo-deny");
    let program = folder.join("bin/cargo-deny");
    if !program.exists() {
        println!("   installing cargo-deny into the cache (once, 1.5 min)");
        run_command(
            Command::new("cargo")
                .args(["install", "--quiet", "--debug", "--locked", "cargo-deny", "--root"])
                .arg(&folder)
                .env_remove("CARGO_TARGET_DIR")
                .current_dir(std::env::temp_dir()),
        )?;
    }
    // Offline, cargo-deny needs the sources of every target, not only of this machine's.
    cargo(&["fetch", "--quiet", "--locked"])?;
    cargo(&["fetch", "--quiet", "--locked", "--manifest-path", FUZZ])?;
    for manifest in ["Cargo.toml", FUZZ] {
        run_command(
            Command::new(&program)
                .args(["--offline", "--config", "deny.toml", "--manifest-path", manifest, "check"])
                .args(["--hide-inclusion-graph", "bans", "licenses", "sources"])
                .current_dir(crate::root()),
        )?;
    }
    Ok(())
}

/// `cargo test`, line by line, so that its summaries can be counted and each test's result kept for `threats`.
fn tests(counts: &mut Counts) -> anyhow::Result<()> {
    let mut child = cargo_command(&["test", "--workspace", "--no-fail-fast"])
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo can't be run")?;
    let output = child.stdout.take().context("cargo's output is piped")?;
    let mut results = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        if let Some((name, result)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) {
            results.push(format!("{name}\t{result}\n"));
        }
        if let Some((passed, failed)) = summary(&line) {
            counts.passed += passed;
            counts.failed += failed;
        }
    }
    keep(&crate::threats::results_file(), &results.concat())?;
    let status = child.wait()?;
    if !status.success() {
        bail!("cargo test ended with {status}");
    }
    Ok(())
}

fn summary(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |word: &str| {
        rest.split(';')
            .find_map(|part| {
                part.trim().trim_start_matches("ok. ").trim_start_matches("FAILED. ").strip_suffix(word)
            })
            .and_then(|number| number.trim().parse().ok())
    };
    Some((number("passed")?, number("failed")?))
}

fn keep(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = std::fs::File::create(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_cargo_test_are_counted() {
        let line =
            "test result: ok. 94 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.11s";
        assert_eq!(summary(line), Some((94, 0)));
        let line = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(summary(line), Some((3, 2)));
        assert_eq!(summary("test a ... ok"), None);
    }
}

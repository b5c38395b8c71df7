//! Builds the targets of `fuzz/` with coverage instrumentation and runs each over as many inputs as wanted.
//!
//! The toolchain is the workspace's own (stable): what `cargo fuzz` does with nightly flags is done here by passes
//! of LLVM. Panics, failed assertions, overflows, inputs that take longer than 10 s and more than 2 GiB of memory
//! are findings.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, ensure};
use clap::Args;

/// Each target, and the longest input that makes sense for it.
const TARGETS: &[(&str, u32)] = &[
    ("frame", 512),
    ("open", 512),
    ("mux", 1024),
    ("streams", 512),
    ("resume", 512),
    ("session", 1024),
    ("control", 512),
    ("ticket", 512),
    ("role", 2048),
    ("enrolment", 512),
    ("head", 1024),
    ("websocket", 1024),
    ("identity_token", 1024),
    ("identity_claims", 1024),
    ("exec_credential", 512),
    ("headers", 1024),
    ("kubeconfig", 2048),
];

const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Coverflow-checks -Ccodegen-units=1 \
    --cfg fuzzing";

/// What to run.
#[derive(Args, Debug)]
pub struct FuzzArguments {
    /// Inputs for each target.
    #[arg(long, default_value_t = 10_000_000)]
    inputs: u64,
    /// Only these targets.
    #[arg(long)]
    target: Vec<String>,
}

/// What came of one target.
#[derive(Debug)]
struct Outcome {
    inputs: u64,
    per_second: u64,
    findings: Vec<PathBuf>,
}

pub(super) fn run(arguments: &FuzzArguments) -> anyhow::Result<ExitCode> {
    let chosen =
        |name: &str| arguments.target.is_empty() || arguments.target.iter().any(|wanted| wanted == name);
    let targets: Vec<_> = TARGETS.iter().filter(|(name, _)| chosen(name)).collect();
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    ensure!(!targets.is_empty(), "the targets are {}", names.join(", "));
    let programs = build()?;
    println!("{:<15} {:>12} {:>9}  findings", "target", "inputs", "inputs/s");
    let mut found = false;
    for (name, longest) in targets {
        let outcome = fuzz(&programs, name, *longest, arguments.inputs)?;
        found |= !outcome.findings.is_empty();
        println!("{name:<15} {:>12} {:>9}  {}", outcome.inputs, outcome.per_second, outcome.findings.len());
        for finding in &outcome.findings {
            println!("                {}", finding.display());
        }
    }
    Ok(if found { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The folder with the built targets.
fn build() -> anyhow::Result<PathBuf> {
    let version = Command::new("rustc").arg("-vV").output().context("rustc can't be run")?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let folder = crate::root().join("fuzz");
    // With --target, the flags are for the targets only, not for build scripts.
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--release", "--locked", "--bins", "--target", host])
        .current_dir(&folder)
        .env("RUSTFLAGS", FLAGS)
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .status()
        .context("cargo can't be run")?;
    ensure!(status.success(), "the targets can't be built");
    Ok(folder.join("target").join(host).join("release"))
}

fn fuzz(programs: &Path, name: &str, longest: u32, inputs: u64) -> anyhow::Result<Outcome> {
    let folder = crate::root().join("fuzz");
    let (corpus, artifacts) = (folder.join("corpus").join(name), folder.join("artifacts").join(name));
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&artifacts)?;
    let before = files(&artifacts)?;
    let output = Command::new(programs.join(name))
        .arg(format!("-runs={inputs}"))
        .arg(format!("-max_len={longest}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=1"])
        .arg(&corpus)
        .env("TOWLINE_SEEDS", &corpus)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{name} can't be run"))?;
    let log = String::from_utf8_lossy(&output.stderr);
    let mut findings = files(&artifacts)?;
    findings.retain(|path| !before.contains(path));
    if !output.status.success() {
        // What happened; the artifact lets it happen again.
        let lines: Vec<&str> = log.lines().collect();
        let from =
            lines.iter().position(|line| line.contains("panicked at") || line.contains("ERROR: libFuzzer"));
        for line in lines.iter().skip(from.unwrap_or(lines.len().saturating_sub(40))).take(40) {
            println!("   {line}");
        }
        ensure!(!findings.is_empty(), "{name} ended with {} and left no input", output.status);
    }
    Ok(Outcome {
        inputs: statistic(&log, "number_of_executed_units").unwrap_or(0),
        per_second: statistic(&log, "average_exec_per_sec").unwrap_or(0),
        findings,
    })
}

fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    Ok(fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
}

/// A number of libFuzzer's final statistics.
fn statistic(log: &str, name: &str) -> Option<u64> {
    let line = log.lines().find_map(|line| line.strip_prefix("stat::")?.strip_prefix(name))?;
    line.trim_start_matches(':').trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn final_statistics_are_read() {
        let log =
            "Done 20 runs\nstat::number_of_executed_units: 1000000\nstat::average_exec_per_sec:     500000\n";
        assert_eq!(statistic(log, "number_of_executed_units"), Some(1_000_000));
        assert_eq!(statistic(log, "average_exec_per_sec"), Some(500_000));
        assert_eq!(statistic(log, "peak_rss_mb"), None);
    }

    #[test]
    fn every_target_of_the_fuzz_crate_is_run() {
        let manifest = fs::read_to_string(crate::root().join("fuzz/Cargo.toml")).unwrap();
        let bins: Vec<&str> =
            manifest.split("[[bin]]").skip(1).filter_map(|bin| bin.split('"').nth(1)).collect();
        assert_eq!(bins, TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }
}

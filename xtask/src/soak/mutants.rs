//! The code that says who somebody is, changed in one place at a time (cargo-mutants): a test has to notice each change.
//!
//! What is left over, or is changed to something that means the same, stands in [`EXPLAINED`] with its reason, and in `docs/proofs.md`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, ensure};
use clap::Args;

/// Code, and the tests that are to notice.
struct Part {
    name: &'static str,
    package: &'static str,
    files: &'static [&'static str],
    /// Arguments of `cargo test`; a word alone is part of the tests' names.
    tests: &'static [&'static str],
}

const PARTS: &[Part] = &[
    Part {
        name: "headers",
        package: "towline-agent",
        files: &["agent-tunnel/src/headers.rs"],
        tests: &["--lib", "--test", "requests"],
    },
    Part {
        name: "impersonation",
        package: "towline-agent",
        files: &[
            "agent-tunnel/src/impersonate.rs",
            "agent-tunnel/src/as_user.rs",
            "agent-tunnel/src/as_user/review.rs",
        ],
        tests: &["--lib", "--test", "acting"],
    },
    Part {
        name: "head",
        package: "towline-tunnel",
        files: &["tunnel-core/src/head.rs", "tunnel-core/src/head/*.rs"],
        tests: &["--lib", "--test", "fuzz_slice", "head"],
    },
    Part {
        name: "claims",
        package: "towline-identity",
        files: &["identity/src/claims.rs", "identity/src/claimed.rs", "identity/src/token.rs"],
        tests: &["--lib", "--test", "verify", "--test", "tokens"],
    },
    Part {
        name: "entra",
        package: "towline-identity",
        files: &["identity/src/entra.rs", "identity/src/entra/*.rs"],
        tests: &["--lib", "--test", "tokens"],
    },
];

/// Changes that no test can notice: how cargo-mutants names one, without line and column, and why.
const EXPLAINED: &[(&str, &str)] = &[(
    "agent-tunnel/src/impersonate.rs: replace | with ^ in AuditId::random",
    "the bits that are set were cleared just before: both set them",
)];

/// What to change.
#[derive(Args, Debug)]
pub struct MutantsArguments {
    /// Only these parts: headers, impersonation, head, claims, entra
    #[arg(long)]
    part: Vec<String>,
    /// Only list the changes
    #[arg(long)]
    list: bool,
}

pub(super) fn run(arguments: &MutantsArguments) -> anyhow::Result<ExitCode> {
    let chosen =
        |part: &Part| arguments.part.is_empty() || arguments.part.iter().any(|wanted| wanted == part.name);
    let parts: Vec<&Part> = PARTS.iter().filter(|part| chosen(part)).collect();
    let names: Vec<&str> = PARTS.iter().map(|part| part.name).collect();
    ensure!(!parts.is_empty(), "the parts are {}", names.join(", "));
    let program = install()?;
    if arguments.list {
        for part in parts {
            let status =
                command(&program, part).arg("--list").status().context("cargo-mutants can't be run")?;
            ensure!(status.success(), "cargo-mutants ended with {status}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:<14} {:>7} {:>9} {:>9} {:>6}  survivors", "part", "noticed", "unviable", "too long", "s");
    let mut survived = false;
    for part in parts {
        let begun = Instant::now();
        let found = mutate(&program, part)?;
        let (explained, left): (Vec<_>, Vec<_>) =
            found.missed.iter().partition(|line| explanation(line).is_some());
        println!(
            "{:<14} {:>7} {:>9} {:>9} {:>6}  {}",
            part.name,
            found.caught,
            found.unviable,
            found.timeouts,
            begun.elapsed().as_secs(),
            left.len()
        );
        for line in explained {
            println!("   explained: {line}: {}", explanation(line).unwrap_or_default());
        }
        for line in &left {
            println!("   {line}");
        }
        survived |= !left.is_empty();
    }
    Ok(if survived { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What came of one part.
#[derive(Debug, Default)]
struct Found {
    caught: usize,
    unviable: usize,
    timeouts: usize,
    missed: Vec<String>,
}

/// cargo-mutants, kept in the cache.
fn install() -> anyhow::Result<PathBuf> {
    let folder = crate::cache_folder()?.join("cargo-mutants");
    let program = folder.join("bin/cargo-mutants");
    if !program.exists() {
        println!("installing cargo-mutants into the cache (once, 3 min)");
        let status = Command::new("cargo")
            .args(["install", "--quiet", "--debug", "--locked", "cargo-mutants", "--root"])
            .arg(&folder)
            .env_remove("CARGO_TARGET_DIR")
            .current_dir(std::env::temp_dir())
            .status()
            .context("cargo can't be run")?;
        ensure!(status.success(), "cargo-mutants can't be installed: {status}");
    }
    Ok(program)
}

/// Works on a copy of the tree; what is built of it is kept for the next time.
fn command(program: &Path, part: &Part) -> Command {
    let mut command = Command::new(program);
    command.arg("mutants").args(["--package", part.package, "--gitignore", "true"]);
    for file in part.files {
        command.args(["--file", file]);
    }
    command
        .env("CARGO_TARGET_DIR", crate::root().join("target/towline/mutants"))
        // Each change is built once and run once.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .current_dir(crate::root())
        .stdin(Stdio::null());
    command
}

fn mutate(program: &Path, part: &Part) -> anyhow::Result<Found> {
    let output = crate::root().join("target/towline").join(format!("mutants-{}", part.name));
    fs::create_dir_all(&output)?;
    let status = command(program, part)
        .args(["--no-shuffle", "--colors", "never", "--minimum-test-timeout", "120", "--output"])
        .arg(&output)
        // Said of building, too: all that is not run need not be built.
        .args(part.tests.iter().flat_map(|argument| ["--cargo-arg", argument]))
        .stdout(Stdio::null())
        .status()
        .context("cargo-mutants can't be run")?;
    // 0: all noticed; 2: some were not; 3: some took too long.
    ensure!(
        matches!(status.code(), Some(0 | 2 | 3)),
        "cargo-mutants ended with {status}: see {}",
        output.display()
    );
    let lines = |name: &str| -> Vec<String> {
        let text = fs::read_to_string(output.join("mutants.out").join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    };
    Ok(Found {
        caught: lines("caught.txt").len(),
        unviable: lines("unviable.txt").len(),
        timeouts: lines("timeout.txt").len(),
        missed: lines("missed.txt"),
    })
}

/// Why a change can't be noticed, if that is known. Lines begin with `FILE:LINE:COLUMN: `.
fn explanation(line: &str) -> Option<&'static str> {
    EXPLAINED.iter().find(|(change, _)| without_place(line) == *change).map(|(_, why)| *why)
}

fn without_place(line: &str) -> String {
    let mut parts = line.splitn(4, ':');
    match (parts.next(), parts.nth(2)) {
        (Some(file), Some(change)) => format!("{file}:{change}"),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_there_and_every_name_another() {
        for part in PARTS {
            for file in part.files.iter().filter(|file| !file.contains('*')) {
                assert!(crate::root().join(file).is_file(), "{file}");
            }
            assert_eq!(PARTS.iter().filter(|other| other.name == part.name).count(), 1);
        }
    }

    #[test]
    fn a_change_is_known_again_when_lines_have_moved() {
        let line = "agent-tunnel/src/headers.rs:97:5: replace bearer -> Result<&str, Report> with Ok(\"\")";
        assert_eq!(
            without_place(line),
            "agent-tunnel/src/headers.rs: replace bearer -> Result<&str, Report> with Ok(\"\")"
        );
        assert_eq!(explanation(line), None);
    }
}

//! towline's programs, as cargo builds them for the demo and the tests.
//!
//! Cargo gives a dependency those features that the packages of one command ask for; with others it is built anew, which takes minutes. So all
//! development builds select the same packages, and [`check_features`] holds them to what `cargo test --workspace` makes of the dependencies.

use std::{
    collections::BTreeSet,
    io::{IsTerminal as _, stderr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

/// Packages of towline's programs; each program but the client's is named as its package.
const PROGRAMS: [&str; 3] = ["towline", "towline-relay", "towline-agent"];
/// The package of the programs that use them, which brings the features of the tests.
const USERS: &str = "towline-e2e";

/// Builds towline's programs, and of those of `towline-e2e` the named ones, for development; says in which folder they are.
///
/// # Errors
/// If cargo can't build them.
pub fn build(users: &[&str]) -> anyhow::Result<PathBuf> {
    let mut cargo = cargo_build(&PROGRAMS);
    cargo.args(["--package", USERS]);
    for user in users {
        cargo.args(["--bin", user]);
    }
    run(cargo)?;
    folder()
}

/// Builds towline's programs as they are deployed; says in which folder they are.
///
/// # Errors
/// See [`build`].
pub fn build_release() -> anyhow::Result<PathBuf> {
    let mut cargo = cargo_build(&PROGRAMS);
    cargo.arg("--release");
    run(cargo)?;
    folder()
}

fn cargo_build(programs: &[&str]) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.arg("build").current_dir(crate::root());
    // A build takes minutes: whoever watches is to see it.
    if !stderr().is_terminal() {
        cargo.arg("--quiet");
    }
    for program in programs {
        cargo.args(["--package", program, "--bin", program]);
    }
    cargo
}

fn run(mut cargo: Command) -> anyhow::Result<()> {
    let status = cargo.status().context("cargo can't be run")?;
    ensure!(status.success(), "the programs can't be built");
    Ok(())
}

/// The folder of the program that runs: `target/debug` of `target/debug/PROGRAM` and of `target/debug/deps/TEST`.
fn folder() -> anyhow::Result<PathBuf> {
    let me = std::env::current_exe().context("this program's own path is not known")?;
    let folder = me.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    folder.map(Path::to_owned).context("this program lies in no folder")
}

/// Whether the demo's dependencies have the features that they have in the tests.
///
/// # Errors
/// What would be built twice.
pub fn check_features() -> anyhow::Result<()> {
    let tested = tree(&["--edges", "features", "--workspace"])?;
    let selected = ["--package", "towline", "--package", "towline-relay", "--package", "towline-agent"];
    let built = [&["--edges", "features,normal,build", "--package", USERS], &selected[..]].concat();
    let twice: Vec<String> = tree(&built)?.difference(&tested).cloned().collect();
    ensure!(
        twice.is_empty(),
        "the demo builds these with other features than the tests; give {USERS} those that it lacks:\n{}",
        twice.join("\n")
    );
    Ok(())
}

/// Each package with its features.
fn tree(arguments: &[&str]) -> anyhow::Result<BTreeSet<String>> {
    let output = Command::new("cargo")
        .args(["tree", "--quiet", "--prefix", "none", "--format", "{p} {f}"])
        .args(arguments)
        .current_dir(crate::root())
        .output()
        .context("cargo can't be run")?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let packages = text.lines().map(|line| line.trim_end_matches(" (*)").trim_end());
    Ok(packages.filter(|line| !line.contains(" feature \"")).map(str::to_owned).collect())
}

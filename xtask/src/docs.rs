//! `cargo xtask docs`: pages that are made from code.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};

/// Has the tests that compare such pages write them instead.
///
/// # Errors
/// If the tests can't run, or the chart's pages can't be written.
pub fn run() -> anyhow::Result<ExitCode> {
    let status = Command::new("cargo")
        .args(["test", "--quiet", "--package", "towline-tunnel", "--lib", "page"])
        .env("TOWLINE_BLESS", "1")
        .current_dir(crate::root())
        .status()
        .context("cargo can't be run")?;
    ensure!(status.success(), "the pages could not be written");
    println!("wrote docs/errors.md");
    crate::chart::write()?;
    println!("wrote values.yaml and README.md of deploy/charts/towline-agent");
    Ok(ExitCode::SUCCESS)
}

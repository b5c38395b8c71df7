//! Programs of `towline-e2e` that are tasks of their own: what they need is looked at first, and what is slow begins at once.

use std::process::{Command, ExitCode};

use anyhow::Context as _;

use crate::{
    cluster::build,
    interrupt,
    needs::{self, Need},
    programs,
};

/// `cargo xtask demo`.
///
/// # Errors
/// What the machine lacks, or if cargo can't be run.
pub fn demo(arguments: &[String]) -> anyhow::Result<ExitCode> {
    let has = |flag: &str| {
        arguments.iter().any(|argument| argument == flag || argument.starts_with(&format!("{flag}=")))
    };
    if !is_question(arguments) {
        needs::check(&[Need::Python3])?;
        if !has("--kubeconfig") {
            begin_cluster()?;
        }
    }
    run("towline-demo", arguments)
}

/// `cargo xtask e2e`.
///
/// # Errors
/// See [`demo`].
pub fn e2e(arguments: &[String]) -> anyhow::Result<ExitCode> {
    if !is_question(arguments) {
        needs::check(&[Need::Python3, Need::Go, Need::Node])?;
        begin_cluster()?;
    }
    run("towline-e2e", arguments)
}

/// `cargo xtask egress`.
///
/// # Errors
/// See [`demo`].
pub fn egress(arguments: &[String]) -> anyhow::Result<ExitCode> {
    if !is_question(arguments) {
        needs::check(&[Need::Python3])?;
        begin_cluster()?;
    }
    run("towline-egress", arguments)
}

/// `cargo xtask soak kill`.
///
/// # Errors
/// See [`demo`].
pub fn kill(arguments: &[String]) -> anyhow::Result<ExitCode> {
    if !is_question(arguments) {
        begin_cluster()?;
    }
    run("towline-kill", arguments)
}

/// `cargo xtask soak autobahn`.
///
/// # Errors
/// If cargo can't be run.
pub fn autobahn(arguments: &[String]) -> anyhow::Result<ExitCode> {
    run("towline-autobahn", arguments)
}

/// Whether nothing is to be done but to say how it is used.
fn is_question(arguments: &[String]) -> bool {
    arguments.iter().any(|argument| argument == "--help" || argument == "-h")
}

/// Kubernetes is built while cargo builds towline.
fn begin_cluster() -> anyhow::Result<()> {
    needs::check(&needs::of_cluster())?;
    build::check_node_programs()?;
    build::start_in_background()
}

/// Builds and runs a program where the caller is; its exit code becomes ours.
fn run(program: &str, arguments: &[String]) -> anyhow::Result<ExitCode> {
    interrupt::wait_for_children()?;
    let folder = programs::build(&[program])?;
    let status = Command::new(folder.join(program))
        .args(arguments)
        .status()
        .with_context(|| format!("{program} can't be run"))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

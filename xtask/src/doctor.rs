//! `cargo xtask doctor`: faults that are put in on purpose, and the diagnosis that each gets.

use std::{
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, ensure};

/// Where `towline doctor` and `towline-agent preflight` look at ways: in the library, in the agent and in the client.
const PLACES: usize = 3;
/// How those tests begin a row: `doctor-table`, fault, code, seconds, with tabs between.
const ROW: &str = "doctor-table\t";

/// Prints a row for each fault: fault, code, seconds.
///
/// # Errors
/// If a test can't be run, or none has a row.
pub fn run() -> anyhow::Result<ExitCode> {
    let output = tests().env("TOWLINE_DOCTOR_TABLE", "1").stderr(Stdio::inherit()).output();
    let output = output.context("cargo can't be run")?;
    let passed = output.status.success();
    let said = String::from_utf8_lossy(&output.stdout);
    let rows: Vec<&str> =
        said.lines().filter_map(|line| line.find(ROW).map(|at| &line[at + ROW.len()..])).collect();
    ensure!(!rows.is_empty(), "no test has a row");
    println!("| fault | code | seconds |\n|---|---|---|");
    for row in &rows {
        println!("| {} |", row.replace('\t', " | "));
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Healthy ways, so many times in each place: none may raise an alarm.
///
/// # Errors
/// If a test can't be run.
pub fn soak(runs: u32) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let status = tests().arg("no_alarm").env("TOWLINE_RUNS", runs.to_string()).status();
    let passed = status.context("cargo can't be run")?.success();
    let result = if passed { "no alarm" } else { "FAILED" };
    println!("{runs} healthy runs in each of {PLACES} places: {result} ({} s)", begun.elapsed().as_secs());
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The test programs that put faults in.
fn tests() -> Command {
    let mut command = Command::new("cargo");
    command
        .args(["test", "--quiet", "--workspace", "--no-fail-fast", "--test", "doctor", "--test", "preflight"])
        .args(["--", "--nocapture"])
        .current_dir(crate::root())
        .stdin(Stdio::null());
    command
}

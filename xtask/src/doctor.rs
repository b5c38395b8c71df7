//! `cargo xtask doctor`: faults that are put in on purpose, and the diagnosis that each gets.

use std::{
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, ensure};

/// The test programs that put faults in, by package and name.
const TESTS: [(&str, &str); 3] =
    [("towline-tunnel", "doctor"), ("towline-agent", "preflight"), ("towline", "doctor")];
/// How those tests begin a row: `doctor-table`, fault, code, seconds, with tabs between.
const ROW: &str = "doctor-table\t";

/// Prints a row for each fault: fault, code, seconds.
///
/// # Errors
/// If a test can't be run, or none has a row.
pub fn run() -> anyhow::Result<ExitCode> {
    let (mut rows, mut passed) = (Vec::new(), true);
    for (package, test) in TESTS {
        let mut command = cargo(package, test);
        let output = command.env("TOWLINE_DOCTOR_TABLE", "1").stderr(Stdio::inherit()).output();
        let output = output.context("cargo can't be run")?;
        passed &= output.status.success();
        let said = String::from_utf8_lossy(&output.stdout);
        let found =
            said.lines().filter_map(|line| line.find(ROW).map(|at| line[at + ROW.len()..].to_owned()));
        rows.extend(found);
    }
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
    let mut passed = true;
    for (package, test) in TESTS {
        let mut command = cargo(package, test);
        let status = command.arg("no_alarm").env("TOWLINE_RUNS", runs.to_string()).status();
        passed &= status.context("cargo can't be run")?.success();
    }
    let result = if passed { "no alarm" } else { "FAILED" };
    println!(
        "{runs} healthy runs in each of {} places: {result} ({} s)",
        TESTS.len(),
        begun.elapsed().as_secs()
    );
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cargo(package: &str, test: &str) -> Command {
    let mut command = Command::new("cargo");
    command
        .args(["test", "--quiet", "--package", package, "--test", test, "--", "--nocapture"])
        .current_dir(crate::root())
        .stdin(Stdio::null());
    command
}

//! `cargo xtask threats`: each row of `docs/threats.md` with its tests and their last result.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, ensure};
use clap::Args;

/// What to list.
#[derive(Args, Debug)]
pub struct ThreatsArguments {
    /// Fail where a row that is due has no passing test.
    #[arg(long)]
    strict: bool,
}

/// One row of the table.
#[derive(Debug)]
struct Threat {
    id: String,
    attack: String,
    due: bool,
}

/// Where `cargo xtask test` keeps each test's result.
pub fn results_file() -> PathBuf {
    crate::root().join("target/towline/test-results.tsv")
}

/// Lists the rows.
///
/// # Errors
/// If the table or the sources can't be read.
pub fn run(arguments: &ThreatsArguments) -> anyhow::Result<ExitCode> {
    let missing = list()?;
    Ok(if arguments.strict && !missing.is_empty() {
        eprintln!("error: no passing test for {}", missing.join(", "));
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Lists the rows; fails where one that is due has no passing test.
///
/// # Errors
/// Which rows these are.
pub fn check() -> anyhow::Result<()> {
    let missing = list()?;
    ensure!(missing.is_empty(), "no passing test for {}", missing.join(", "));
    Ok(())
}

/// Prints the table; returns the ids that are due and not proven.
fn list() -> anyhow::Result<Vec<String>> {
    let threats = threats()?;
    let tests = tests()?;
    let results = results();
    let mut missing = Vec::new();
    println!("{:<5} {:<9} {:<72} test", "id", "result", "attack or fault");
    for threat in threats {
        let found = tests.get(&threat.id).map(Vec::as_slice).unwrap_or_default();
        let verdict = verdict(&threat, found, &results);
        if threat.due && verdict != "passed" {
            missing.push(threat.id.clone());
        }
        let attack: String = threat.attack.chars().take(70).collect();
        println!("{:<5} {verdict:<9} {attack:<72} {}", threat.id, found.join(", "));
    }
    Ok(missing)
}

/// What is to be said of a row. A test that did not run has not failed, and proves nothing.
fn verdict(threat: &Threat, tests: &[String], results: &HashMap<String, String>) -> &'static str {
    let result = |test: &String| results.get(test).map(String::as_str);
    if tests.is_empty() {
        if threat.due { "MISSING" } else { "not yet" }
    } else if tests.iter().any(|test| result(test).is_some_and(|result| result != "ok")) {
        "FAILED"
    } else if tests.iter().all(|test| result(test) == Some("ok")) {
        "passed"
    } else {
        "not run"
    }
}

/// Rows `| T1 | attack | expected | due |`.
fn threats() -> anyhow::Result<Vec<Threat>> {
    let page =
        fs::read_to_string(crate::root().join("docs/threats.md")).context("docs/threats.md can't be read")?;
    let rows = page.lines().filter(|line| line.starts_with("| T")).filter_map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [id, attack, _, due] = cells.as_slice() else { return None };
        Some(Threat {
            id: (*id).to_owned(),
            attack: (*attack).to_owned(),
            due: due.trim_matches('|').trim() == "now",
        })
    });
    let rows: Vec<Threat> = rows.collect();
    ensure!(!rows.is_empty(), "docs/threats.md has no rows");
    Ok(rows)
}

/// Test functions by the threats in their names: `t11_…`, `t43_and_t45_…`.
fn tests() -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut folders = vec![crate::root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                collect(&path, &mut found)?;
            }
        }
    }
    Ok(found)
}

fn collect(path: &Path, found: &mut BTreeMap<String, Vec<String>>) -> anyhow::Result<()> {
    let text = fs::read_to_string(path)?;
    for line in text.lines() {
        let line = line.trim_start();
        let line = line.strip_prefix("async ").unwrap_or(line);
        let function = line.strip_prefix("fn t").and_then(|rest| rest.split('(').next());
        let Some(name) = function.or_else(|| check_name(line)) else { continue };
        for part in format!("t{name}").split('_').take(3) {
            if let Some(number) = part.strip_prefix('t').and_then(|digits| digits.parse::<u32>().ok()) {
                found.entry(format!("T{number}")).or_default().push(format!("t{name}"));
            }
        }
    }
    Ok(())
}

/// The name of a check of `e2e`, without its `t`: `theatre.upheaval("t39_…", …`.
fn check_name(line: &str) -> Option<&str> {
    let (call, rest) = line.split_once("(\"t")?;
    let is_of_theatre =
        call.strip_prefix("theatre.").is_some_and(|kind| kind.chars().all(char::is_alphabetic));
    is_of_theatre.then(|| rest.split('"').next()).flatten()
}

/// The last results by the test's own name, without its module: of several with one name the worst.
fn results() -> HashMap<String, String> {
    read_results(&fs::read_to_string(results_file()).unwrap_or_default())
}

fn read_results(text: &str) -> HashMap<String, String> {
    let mut results: HashMap<String, String> = HashMap::new();
    for (name, result) in text.lines().filter_map(|line| line.split_once('\t')) {
        let kept = results.entry(name.rsplit("::").next().unwrap_or(name).to_owned()).or_default();
        if kept.is_empty() || kept == "ok" {
            result.clone_into(kept);
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_of_the_end_to_end_tests_are_found_by_their_names() {
        assert_eq!(check_name("theatre.upheaval(\"t39_five_rounds\", |stage| {"), Some("39_five_rounds"));
        assert_eq!(check_name("theatre.check(\"t01_t53_as\", acting::run),"), Some("01_t53_as"));
        assert_eq!(check_name("row(\"t39_no_check\", 1)"), None);
        let found = tests().unwrap();
        assert!(found.get("T39").is_some_and(|tests| !tests.is_empty()), "{found:?}");
    }

    #[test]
    fn a_row_is_proven_only_by_all_its_tests_and_what_did_not_run_has_not_failed() {
        let results = read_results("a::one\tok\nb::one\tfailed\na::two\tok\nthree\tok\n");
        let of = |due, tests: &[&str]| {
            let tests: Vec<String> = tests.iter().map(|&test| test.to_owned()).collect();
            verdict(&Threat { id: "T1".into(), attack: String::new(), due }, &tests, &results)
        };
        assert_eq!(of(true, &[]), "MISSING");
        assert_eq!(of(false, &[]), "not yet");
        assert_eq!(of(true, &["one"]), "FAILED", "one of two with this name failed");
        assert_eq!(of(true, &["two", "three"]), "passed");
        assert_eq!(of(true, &["two", "four"]), "not run");
        assert_eq!(of(true, &["four", "one"]), "FAILED");
    }
}

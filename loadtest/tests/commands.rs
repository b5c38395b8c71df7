//! The program itself, in small: every command sets its stage, measures, and tells what it is to tell.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

const KEYS: [&str; 7] = ["against", "ci95", "n", "name", "ratio", "unit", "value"];

fn loadtest(results: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_towline-loadtest"))
        .args(arguments)
        .args([
            "--json",
            "--runs",
            "1",
            "--seconds",
            "0.2",
            "--warm-up",
            "0.05",
            "--within",
            "120",
            "--results",
        ])
        .arg(results)
        .output()
        .unwrap()
}

/// What it told, of which each line has exactly the keys that were agreed, and a number.
fn figures(output: &Output) -> Vec<Value> {
    let (told, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{errors}");
    let figures: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!figures.is_empty(), "{errors}");
    for figure in &figures {
        let keys: BTreeSet<&str> = figure.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, BTreeSet::from(KEYS), "{figure}");
        assert!(figure["value"].is_f64() && figure["n"].is_u64(), "{figure}");
    }
    figures
}

fn value(figures: &[Value], name: &str) -> f64 {
    let found = figures.iter().find(|figure| figure["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {figures:#?}"))["value"].as_f64().unwrap()
}

#[test]
fn bytes_move_through_the_relay_alone_and_through_the_three_programs() {
    let folder = tempfile::tempdir().unwrap();
    let told = loadtest(folder.path(), &["goodput", "--only", "relay,journey", "--streams", "2", "--up"]);
    let figures = figures(&told);
    for name in [
        "goodput, relay alone, 2 streams",
        "goodput, client, relay, agent, 2 streams",
        "goodput, towline, 2 streams",
        "goodput, direct, 2 streams",
        "goodput, towline, 2 streams, up",
        "relay CPU, 2 streams",
    ] {
        assert!(value(&figures, name) > 0.0, "{name}");
    }
    let kept = fs::read_to_string(folder.path().join("goodput.jsonl")).unwrap();
    assert_eq!(kept, String::from_utf8_lossy(&told.stdout), "what is kept is what is told");
}

#[test]
fn a_transfer_and_typing_through_lines_that_nobody_cuts_come_whole() {
    let folder = tempfile::tempdir().unwrap();
    let told = loadtest(folder.path(), &["cut", "--never", "--bytes", "3000000", "--rate", "200"]);
    let figures = figures(&told);
    for what in ["transfer down", "transfer up", "typing"] {
        assert_eq!(value(&figures, &format!("{what}, never cut, hashes equal")), 1.0, "{what}");
    }
    assert_eq!(value(&figures, "transfer up, never cut, bytes right"), 3e6);
}

#[test]
fn carriers_that_are_cut_lose_no_byte_of_a_transfer_nor_of_typing() {
    let folder = tempfile::tempdir().unwrap();
    let told = loadtest(folder.path(), &["cut", "--every", "0.7", "--bytes", "4000000", "--rate", "20"]);
    let figures = figures(&told);
    for (what, bytes) in [("transfer down", 4e6), ("transfer up", 4e6), ("typing", 100.0)] {
        let figure = |name: &str| value(&figures, &format!("{what}, cut every 0.7 s, {name}"));
        assert_eq!((figure("hashes equal"), figure("bytes right")), (1.0, bytes), "{what}");
        assert!(figure("cuts survived") >= 1.0, "{what} was over before a cut");
        assert!(figure("longest stall") < 15_000.0, "{what}");
    }
}

#[test]
fn no_request_fails_while_certificates_renew_the_relay_drains_and_authorities_change() {
    let folder = tempfile::tempdir().unwrap();
    let hold = ["hold", "--hold-for", "9", "--every", "3", "--certificate-life", "6", "--at-once"];
    let told = loadtest(folder.path(), &hold);
    let figures = figures(&told);
    assert_eq!(value(&figures, "small GETs while all is replaced, failed"), 0.0);
    for what in ["relay drained and started again", "files of authorities exchanged", "certificates renewed"]
    {
        assert!(value(&figures, &format!("while requests went on, {what}")) >= 1.0, "{what}");
    }
}

#[test]
fn agents_join_and_come_back_after_a_restart_and_the_page_shows_it() {
    let folder = tempfile::tempdir().unwrap();
    let fleet = ["--agents", "20", "--clusters", "3"];
    let told = loadtest(folder.path(), &[&["fleet"], &fleet[..]].concat());
    assert_eq!(value(&figures(&told), "of 20 idle agents, lost"), 0.0);
    let told = loadtest(folder.path(), &[&["storm", "--budget", "100"], &fleet[..]].concat());
    let figures = figures(&told);
    assert!(value(&figures, "20 agents, relay killed, all back") > 0.0);
    let peak = figures.iter().find(|figure| figure["against"] == "the budget").unwrap();
    assert_eq!(peak["ratio"].as_f64().unwrap() * 100.0, peak["value"].as_f64().unwrap());
    assert!(peak["value"].as_f64().unwrap() >= 1.0 && peak["ratio"].as_f64().unwrap() <= 1.0, "{peak}");

    let document = folder.path().join("performance.md");
    fs::write(
        &document,
        "# Performance\n<!-- figures: written by `towline-loadtest report` -->\n<!-- end of figures -->\n",
    )
    .unwrap();
    let report = loadtest(folder.path(), &["report", "--document", document.to_str().unwrap()]);
    assert!(report.status.success(), "{}", String::from_utf8_lossy(&report.stderr));
    let document = fs::read_to_string(document).unwrap();
    assert!(document.contains("| 20 agents, relay killed, 95 % back |"), "{document}");
    let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("20 agents, relay killed, all back"));
}

#[test]
fn streams_open_and_end_with_inner_tls_and_without() {
    let folder = tempfile::tempdir().unwrap();
    let told = loadtest(folder.path(), &["opens", "--sessions", "2", "--at-once", "4"]);
    let figures = figures(&told);
    for what in ["streams", "streams with inner TLS"] {
        assert!(value(&figures, &format!("{what} opened and ended, relay and both ends together")) > 0.0);
    }
}

#[test]
fn a_command_that_takes_too_long_gives_up_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_towline-loadtest"))
        .args(["goodput", "--within", "0.2", "--results"])
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("--within"), "{said}");
}

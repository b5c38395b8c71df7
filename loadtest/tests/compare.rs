//! `towline-loadtest compare`, in small.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use xtask::peers::Peer;

fn compare(results: &Path, cache: Option<&Path>, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_towline-loadtest"));
    command
        .args(["compare", "--json", "--no-build", "--runs", "1", "--seconds", "0.5", "--warm-up", "0.05"])
        .args(["--within", "120", "--results"])
        .arg(results)
        .args(arguments);
    if let Some(cache) = cache {
        command.env("TOWLINE_CACHE", cache);
    }
    command.output().unwrap()
}

#[test]
fn a_peer_that_is_asked_for_and_missing_is_named_with_its_fix() {
    let folder = tempfile::tempdir().unwrap();
    let told = compare(folder.path(), Some(folder.path()), &["--only", "remotedialer"]);
    let errors = String::from_utf8_lossy(&told.stderr);
    assert!(!told.status.success() && errors.contains("error: missing: remotedialer"), "{errors}");
    assert!(errors.contains("NOT COMPARED: remotedialer"), "{errors}");
    assert!(errors.contains("cargo xtask peers build remotedialer"), "{errors}");
}

#[test]
fn towline_is_beside_haproxy_in_every_part_and_the_relay_alone_beside_one_hop() {
    // Fetched if that takes seconds; past the capture of tests' output where it can't be had.
    if let Err(missing) = Peer::Haproxy.ensure() {
        let _told = writeln!(std::io::stderr(), "NOT TRIED: haproxy is missing: {missing:#}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let told = compare(folder.path(), None, &["--only", "haproxy-x1,haproxy-x3", "--streams", "2"]);
    let (lines, errors) = (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(told.status.success(), "{errors}");
    let figures: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (name, against) in [
        ("goodput, relay alone, 2 streams", "haproxy-x1"),
        ("goodput, towline, 2 streams", "haproxy-x3"),
        ("CPU, towline, 2 at once", "haproxy-x3"),
        ("small GET, towline, p50", "haproxy-x3"),
        ("small GET, towline, p99", "haproxy-x3"),
        ("small GET, added, towline, p50", "haproxy-x3"),
        ("new connection and a GET, towline, one by one", "haproxy-x3"),
        ("new connection and a GET, towline, 16 at a time", "haproxy-x3"),
    ] {
        let found = figures.iter().find(|figure| figure["name"] == name && figure["against"] == against);
        let found = found.unwrap_or_else(|| panic!("no {name} against {against} in {lines}"));
        assert!(found["value"].is_f64() && found["ratio"].is_f64(), "{found}");
    }
    assert!(!lines.contains("new connection and a GET, relay alone"), "{lines}");
}

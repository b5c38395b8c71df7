//! The Helm chart and the command line: whatever `run` can be told, the chart can tell it.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

use std::{collections::BTreeSet, fs, path::PathBuf};

use clap::CommandFactory as _;
use towline_agent::cli::Cli;
use towline_identity::TrustSettings;

/// What means nothing in a pod: a kubeconfig is for an agent outside of the cluster, and a public key needs no file.
const OUTSIDE: &[&str] =
    &["TOWLINE_AGENT_KUBECONFIG", "TOWLINE_AGENT_CONTEXT", "TOWLINE_AGENT_ORGANISATION_KEY_FILE"];

fn templates() -> String {
    let folder =
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/charts/towline-agent/templates"));
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    // Notes are for people.
    let files = files.filter(|path| path.extension().is_some_and(|ending| ending != "txt"));
    files.map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// Variables of `towline-agent run`.
fn variables() -> BTreeSet<String> {
    let run = Cli::command().find_subcommand("run").unwrap().clone();
    let names = run.get_arguments().filter_map(|argument| argument.get_env()?.to_str().map(str::to_owned));
    names.collect()
}

/// Variables that the chart sets: by their whole name in the pod, and without the prefix in the table of settings.
fn set() -> BTreeSet<String> {
    let templates = templates();
    let is_name = |word: &&str| {
        word.len() > 3
            && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
            && !word.starts_with("KUBERNETES")
    };
    let quoted = templates.split('"').skip(1).step_by(2).filter(is_name);
    let settings = quoted.filter(|word| *word != "RUST_LOG").map(|word| format!("TOWLINE_AGENT_{word}"));
    let whole = templates
        .split(|c: char| !c.is_ascii_uppercase() && c != '_')
        .filter(|word| word.len() > "TOWLINE_AGENT_".len() && word.starts_with("TOWLINE_AGENT_"));
    settings.chain(whole.map(str::to_owned)).collect()
}

#[test]
fn the_chart_can_say_whatever_run_can_be_told_and_nothing_else() {
    let (variables, set) = (variables(), set());
    assert!(variables.len() > 25, "{variables:?}");
    let missing: Vec<_> =
        variables.iter().filter(|name| !set.contains(*name) && !OUTSIDE.contains(&name.as_str())).collect();
    assert!(missing.is_empty(), "the chart has no value for {missing:?}: see templates/_settings.tpl");
    let unknown: Vec<_> = set.difference(&variables).collect();
    assert!(unknown.is_empty(), "the agent knows no {unknown:?}");
}

/// The sample is what somebody copies: the agent takes it.
#[test]
fn the_sample_of_issuers_is_a_configuration_that_the_agent_takes() {
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/charts/towline-agent/ci/entra-values.yaml");
    let sample: serde_json::Value = serde_norway::from_str(&fs::read_to_string(sample).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        Some(path)
    };
    let text = |key: &str| match &sample[key] {
        serde_json::Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    // Where the chart mounts the Secret's keys.
    let secret = write("introspection", "secret".to_owned()).unwrap();
    let introspection = text("introspectionConfig")
        .replace("/etc/towline/issuer-secret/introspection", secret.to_str().unwrap());
    let settings = TrustSettings {
        authentication_config: write("authentication.yaml", text("authenticationConfig")),
        entra_config: write("entra.yaml", text("entraConfig")),
        introspection_config: write("introspection.yaml", introspection),
        ..TrustSettings::default()
    };
    settings.load().unwrap();
}

//! A person's kubeconfig: whatever stands in it, a context of ours is put in and taken out again, and nothing else changes.
//!
//! Not in the library's list, which `tunnel-core` tests: these are the client's own files, by their paths, since the client's crate
//! brings relay and agent along.

#[allow(dead_code, reason = "the client uses the rest")]
#[path = "../../client-proxy/src/kubeconfig/document.rs"]
mod document;
#[path = "../../client-proxy/src/kubeconfig/entry.rs"]
mod entry;

use std::path::Path;

use document::Document;
use entry::{Entry, mapping};
use serde_norway::Value;
use towline_tunnel::{ids::ClusterId, session::message::Secret};

/// The first line is the context's name, the rest the file.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (name, text) = text.split_once('\n').unwrap_or((text, ""));
    let path = Path::new("kubeconfig");
    let before = match Document::parse(path, text) {
        Ok(before) => before,
        Err(report) => {
            let said = report.to_string();
            return assert!(!said.contains("canary"), "{said}");
        }
    };
    let written = before.to_text();
    assert_eq!(read(path, &written), before, "it is read as it was written");
    if name.is_empty() || before.has_foreign(name) {
        return;
    }
    let previous = before.current_context().map(str::to_owned);
    let entry = entry_of(name);
    let mut merged = before.clone();
    merged.put(&entry, previous.as_deref());
    merged.set_current_context(Some(name));
    let mut merged = read(path, &merged.to_text());
    assert!(merged.has_context(name) && !merged.has_foreign(name), "it is there, and ours");
    assert_eq!(merged.current_context(), Some(name));
    assert_eq!(merged.previous_of(name), previous.as_deref());
    merged.remove(name, entry.cluster);
    assert!(!merged.has(name), "nothing of it is left");
    merged.set_current_context(previous.as_deref());
    if previous.is_some() && !before.has(name) && has_all_lists(&written) {
        assert_eq!(read(path, &merged.to_text()), before, "all else is as it was");
    }
}

fn read(path: &Path, text: &str) -> Document {
    Document::parse(path, text).unwrap_or_else(|report| panic!("{report}: {text}"))
}

/// Lists that are missing are made, and contexts of ours remember each other: then it is not quite what it was.
fn has_all_lists(text: &str) -> bool {
    let root: Value = serde_norway::from_str(text).unwrap_or_default();
    let is_list = |name: &str| root.get(name).is_some_and(Value::is_sequence);
    ["clusters", "contexts", "users"].into_iter().all(is_list) && !text.contains("previous-context")
}

fn entry_of(name: &str) -> Entry {
    Entry {
        name: name.to_owned(),
        cluster: ClusterId::of_spki(b"cluster"),
        server: "https://127.0.0.1:47011/clusters/x".to_owned(),
        authority: "authority".to_owned(),
        certificate: "certificate".to_owned(),
        key: Secret::new("key"),
    }
}

/// Kubeconfigs as people have them, one with an entry of ours, and texts that are none.
pub fn seeds() -> Vec<Vec<u8>> {
    let own = {
        let mut document = Document::default();
        document.put(&entry_of("edge"), Some("work"));
        document.set_current_context(Some("edge"));
        document.to_text()
    };
    let work = "apiVersion: v1\nkind: Config\ncurrent-context: work\nclusters:\n- name: work\n  cluster: {server: 'https://a', \
                insecure-skip-tls-verify: yes}\ncontexts:\n- name: work\n  context: {cluster: work, user: work, namespace: \"007\"}\n\
                users:\n- name: work\n  user: {token: canary-token, exec: {args: [null, 1.5, 0o7], env: []}}\npreferences: {}\n";
    let texts = [
        work,
        &own,
        "",
        "{}",
        "kind: Other\n",
        "clusters: [canary]\n",
        "a: &a [*a]\n",
        "contexts: null\nusers: []\nx: !y 1\n",
        "!e :\n- nam\n",
        "e: !%2co\n",
    ];
    texts.iter().map(|text| format!("edge\n{text}").into_bytes()).collect()
}

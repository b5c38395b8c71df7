use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use proptest::prelude::*;
use serde_norway::{Mapping, Value};
use towline_tunnel::{
    fault::{Fault, Report},
    ids::ClusterId,
    session::message::Secret,
};

use super::*;

const THEIRS: &str = r#"# written by hand
apiVersion: v1
kind: Config
preferences: {colors: true}
x-unknown: {kept: [1, 2.5, "yes", "0123", null]}
current-context: work
clusters:
- name: work
  cluster: {server: "https://work.example", insecure-skip-tls-verify: yes, x-more: "1e3"}
contexts:
- {name: work, context: {cluster: work, user: "on", namespace: "012"}}
users:
- name: "on"
  user:
    exec: {apiVersion: client.authentication.k8s.io/v1, command: get-token, env: [{name: A, value: "true"}], provideClusterInfo: false}
"#;

fn entry(name: &str) -> Entry {
    let cluster = ClusterId::of_spki(name.as_bytes());
    Entry {
        name: name.to_owned(),
        cluster,
        server: format!("https://127.0.0.1:47011/clusters/{cluster}"),
        authority: "authority".into(),
        certificate: "certificate".into(),
        key: Secret::new("key"),
    }
}

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with(text: &str) -> (Self, Location) {
        let home = Self::new();
        fs::write(home.path("config"), text).unwrap();
        let location = home.location();
        (home, location)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn location(&self) -> Location {
        Location::file(self.path("config"))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|item| item.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn document(path: &Path) -> Document {
    Document::parse(path, &fs::read_to_string(path).unwrap()).unwrap()
}

fn value(path: &Path) -> Value {
    serde_norway::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_context_is_added_and_everything_else_stays() {
    let (home, location) = Home::with(THEIRS);
    let merged = location.merge(&[entry("edge-7")]).unwrap();
    let now = value(&home.path("config"));
    let theirs: Value = serde_norway::from_str(THEIRS).unwrap();
    assert_eq!(now["x-unknown"], theirs["x-unknown"]);
    assert_eq!(now["preferences"], theirs["preferences"]);
    assert_eq!(now["users"][0], theirs["users"][0]);
    assert_eq!(now["contexts"][0], theirs["contexts"][0]);
    assert_eq!(now["clusters"][0]["cluster"]["x-more"], "1e3");
    assert_eq!(now["clusters"][0]["cluster"]["insecure-skip-tls-verify"], true, "YAML 1.1's yes");
    assert_eq!(now["current-context"], "edge-7");
    assert_eq!(now["contexts"][1]["context"]["user"], "edge-7");
    assert!(
        now["clusters"][1]["cluster"]["server"]
            .as_str()
            .unwrap()
            .ends_with(&entry("edge-7").cluster.to_string())
    );
    assert_eq!(now["users"][1]["user"]["client-key-data"], "a2V5");
    drop(merged);
    assert_eq!(home.names(), ["config"]);
}

#[test]
fn nobody_wrote_meanwhile_so_the_file_is_byte_for_byte_what_it_was() {
    let (home, location) = Home::with(THEIRS);
    location.merge(&[entry("edge-7"), entry("edge-8")]).unwrap().restore().unwrap();
    assert_eq!(fs::read_to_string(home.path("config")).unwrap(), THEIRS);
}

#[test]
fn a_file_that_was_not_there_is_gone_again() {
    let home = Home::new();
    let location = Location::file(home.path("deep/er/config"));
    let merged = location.merge(&[entry("edge-7")]).unwrap();
    assert!(document(&home.path("deep/er/config")).has_context("edge-7"));
    merged.restore().unwrap();
    assert!(!home.path("deep/er/config").exists());
}

#[test]
fn what_others_write_meanwhile_is_kept() {
    let (home, location) = Home::with(THEIRS);
    let merged = location.merge(&[entry("edge-7")]).unwrap();
    let mut now = document(&home.path("config"));
    now.put(&entry("other"), None);
    fs::write(home.path("config"), now.to_text()).unwrap();
    merged.restore().unwrap();
    let left = document(&home.path("config"));
    assert!(left.has_context("other") && left.has_context("work") && !left.has("edge-7"));
    assert_eq!(left.current_context(), Some("work"));
}

#[test]
fn a_current_context_that_somebody_chose_meanwhile_stays() {
    let (home, location) = Home::with(&format!("{THEIRS}# more\n"));
    let merged = location.merge(&[entry("edge-7")]).unwrap();
    let mut now = document(&home.path("config"));
    now.put(&entry("mine"), None);
    now.set_current_context(Some("mine"));
    fs::write(home.path("config"), now.to_text()).unwrap();
    merged.restore().unwrap();
    assert_eq!(document(&home.path("config")).current_context(), Some("mine"));
}

#[test]
fn two_proxies_may_end_in_either_order() {
    for first_ends_first in [true, false] {
        let (home, location) = Home::with(THEIRS);
        let first = location.merge(&[entry("edge-7")]).unwrap();
        let second = location.merge(&[entry("edge-8")]).unwrap();
        if first_ends_first {
            first.restore().unwrap();
            assert_eq!(document(&home.path("config")).current_context(), Some("edge-8"));
            second.restore().unwrap();
        } else {
            second.restore().unwrap();
            assert_eq!(document(&home.path("config")).current_context(), Some("edge-7"));
            first.restore().unwrap();
        }
        let left = document(&home.path("config"));
        assert!(!left.has("edge-7") && !left.has("edge-8"));
        assert_eq!(left.current_context(), Some("work"));
    }
}

#[test]
fn what_a_killed_proxy_left_behind_is_taken_over() {
    let (home, location) = Home::with(THEIRS);
    let killed = location.merge(&[entry("edge-7")]).unwrap();
    std::mem::forget(killed);
    let wanted = [Wanted { name: "edge-7".into(), chosen: true }];
    assert_eq!(location.names(&wanted).unwrap(), ["edge-7"]);
    let merged = location.merge(&[entry("edge-7")]).unwrap();
    fs::write(home.path("config"), format!("{}\n", fs::read_to_string(home.path("config")).unwrap()))
        .unwrap();
    merged.restore().unwrap();
    // As if somebody had written meanwhile: still the context of before the kill.
    let again = location.merge(&[entry("edge-7")]).unwrap();
    let text = fs::read_to_string(home.path("config")).unwrap();
    fs::write(home.path("config"), format!("# touched\n{text}")).unwrap();
    again.restore().unwrap();
    assert_eq!(document(&home.path("config")).current_context(), Some("work"));
}

#[test]
fn a_name_that_is_taken_is_changed_or_refused() {
    let (_home, location) = Home::with(THEIRS);
    let wanted = |name: &str, chosen| Wanted { name: name.into(), chosen };
    assert_eq!(location.names(&[wanted("work", false)]).unwrap(), ["work-towline"]);
    let report = location.names(&[wanted("work", true)]).unwrap_err();
    assert_eq!(report.fault, Fault::ContextTaken);
    assert!(report.to_string().contains("work"), "{report}");
    // A user's entry counts as well: kubectl would merge ours with theirs.
    assert_eq!(location.names(&[wanted("on", true)]).unwrap_err().fault, Fault::ContextTaken);
    assert_eq!(
        location.names(&[wanted("a", true), wanted("a", true)]).unwrap_err().fault,
        Fault::ContextTaken
    );
    assert_eq!(location.merge(&[entry("work")]).unwrap_err().fault, Fault::ContextTaken);
}

#[test]
fn a_name_in_another_file_of_the_list_is_taken_too() {
    let home = Home::new();
    fs::write(home.path("first"), "").unwrap();
    fs::write(home.path("second"), THEIRS).unwrap();
    let list = std::env::join_paths([home.path("first"), home.path("second")]).unwrap();
    let location = Location::of(Some(&list), None).unwrap();
    let wanted = [Wanted { name: "work".into(), chosen: false }];
    assert_eq!(location.names(&wanted).unwrap(), ["work-towline"]);
    let merged = location.merge(&[entry("edge-7")]).unwrap();
    assert_eq!(merged.path(), home.path("first").canonicalize().unwrap());
    assert_eq!(fs::read_to_string(home.path("second")).unwrap(), THEIRS);
}

#[test]
fn what_is_no_kubeconfig_is_named_and_left_untouched() {
    let cases: [(&str, &str); 10] = [
        ("{", "line"),
        ("a: 1\na: 2\n", "not YAML"),
        ("- a\n", "not a kubeconfig"),
        ("kind: Pod\n", "version v1"),
        ("clusters: {a: 1}\n", "clusters"),
        ("users: [{user: {}}]\n", "users"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
        ("!e :\n- nam\n", "can't be written back"),
        ("e: !%2co\n", "can't be written back"),
        ("token: canary\n  bad: indent\n", "line"),
    ];
    for (text, told) in cases {
        let (home, location) = Home::with(text);
        for report in [location.names(&[]).unwrap_err(), location.merge(&[entry("e")]).unwrap_err()] {
            assert_eq!(report.fault, Fault::KubeconfigUnreadable, "{text:?}");
            assert!(report.to_string().contains(told), "{text:?}: {report}");
            assert!(report.to_string().contains("config"), "names the file: {report}");
            assert!(!format!("{report:?}").contains("canary"), "{report:?}");
        }
        assert_eq!(fs::read_to_string(home.path("config")).unwrap(), text);
        assert_eq!(home.names(), ["config"], "no lock and no half file stays");
    }
    let home = Home::new();
    fs::create_dir(home.path("config")).unwrap();
    assert_eq!(home.location().names(&[]).unwrap_err().fault, Fault::KubeconfigUnreadable);
}

#[test]
fn t28_through_a_symbolic_link_the_file_it_leads_to_is_replaced() {
    let home = Home::new();
    fs::create_dir(home.path("dotfiles")).unwrap();
    fs::write(home.path("dotfiles/kube"), THEIRS).unwrap();
    fs::set_permissions(home.path("dotfiles/kube"), fs::Permissions::from_mode(0o644)).unwrap();
    symlink(home.path("dotfiles/kube"), home.path("config")).unwrap();
    let merged = home.location().merge(&[entry("edge-7")]).unwrap();
    assert!(fs::symlink_metadata(home.path("config")).unwrap().is_symlink());
    let about = fs::symlink_metadata(home.path("dotfiles/kube")).unwrap();
    assert!(about.is_file());
    assert_eq!(about.mode() & 0o777, 0o600);
    merged.restore().unwrap();
    assert!(fs::symlink_metadata(home.path("config")).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(home.path("dotfiles/kube")).unwrap(), THEIRS);

    let dangling = Home::new();
    symlink(dangling.path("nowhere"), dangling.path("config")).unwrap();
    let report = dangling.location().merge(&[entry("edge-7")]).unwrap_err();
    assert!(report.to_string().contains("leads nowhere"), "{report}");
    assert!(!dangling.path("nowhere").exists());
}

/// One file under two names would be locked twice, and wait for itself.
#[test]
fn t28_a_folder_that_is_a_link_is_no_second_lock() {
    let home = Home::new();
    fs::create_dir(home.path("real")).unwrap();
    fs::write(home.path("real/config"), THEIRS).unwrap();
    symlink(home.path("real"), home.path("linked")).unwrap();
    let merged = Location::file(home.path("linked/config")).merge(&[entry("edge-7")]).unwrap();
    merged.restore().unwrap();
    assert_eq!(fs::read_to_string(home.path("real/config")).unwrap(), THEIRS);
}

#[test]
fn t28_a_lock_that_stays_is_named_and_nothing_is_written() {
    let (home, _) = Home::with(THEIRS);
    let path = home.path("config");
    fs::write(home.path("config.lock"), "").unwrap();
    let report = lock::Lock::take_within(&path, &path, Duration::from_millis(60)).unwrap_err();
    assert_eq!(report.fault, Fault::KubeconfigUnwritable);
    assert!(report.to_string().contains("config.lock"), "{report}");
    assert!(home.path("config.lock").exists(), "somebody else's lock is not ours to remove");
    let waiting = {
        let path = path.clone();
        thread::spawn(move || lock::Lock::take_within(&path, &path, Duration::from_secs(10)).map(drop))
    };
    fs::remove_file(home.path("config.lock")).unwrap();
    waiting.join().unwrap().unwrap();
    assert_eq!(home.names(), ["config"]);
}

#[test]
fn t28_a_crash_in_the_middle_of_a_write_leaves_the_old_file_whole() {
    let (home, location) = Home::with(THEIRS);
    // What a process leaves that was killed between writing the new file and renaming it.
    fs::write(home.path(".config.towline-new"), "apiVersion: v1\nclus").unwrap();
    assert_eq!(document(&home.path("config")).current_context(), Some("work"));
    let merged = location.merge(&[entry("edge-7")]).unwrap();
    assert!(document(&home.path("config")).has_context("edge-7"));
    merged.restore().unwrap();
    assert_eq!(home.names(), ["config"]);
}

#[test]
fn t28_many_writers_at_once_lose_nothing() {
    let (home, location) = Home::with(THEIRS);
    let writers: Vec<_> = (0..8)
        .map(|n| {
            let location = location.clone();
            thread::spawn(move || location.merge(&[entry(&format!("edge-{n}"))]).unwrap())
        })
        .collect();
    let merged: Vec<Merged> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    let all = document(&home.path("config"));
    assert!((0..8).all(|n| all.has_context(&format!("edge-{n}"))) && all.has_context("work"));
    let enders: Vec<_> =
        merged.into_iter().map(|one| thread::spawn(move || one.restore().unwrap())).collect();
    enders.into_iter().for_each(|ender| ender.join().unwrap());
    let left = document(&home.path("config"));
    assert!((0..8).all(|n| !left.has(&format!("edge-{n}"))) && left.has_context("work"));
    assert_eq!(left.current_context(), Some("work"));
    assert_eq!(home.names(), ["config"]);
}

/// Root may write anywhere, so a folder that is a file stands in for one that is read-only.
#[test]
fn a_folder_that_can_not_be_written_is_named() {
    let home = Home::new();
    fs::write(home.path("file"), "").unwrap();
    let report = Location::file(home.path("file/config")).merge(&[entry("edge-7")]).unwrap_err();
    assert_eq!(report.fault, Fault::KubeconfigUnwritable);
    assert!(report.to_string().contains("file/config"), "{report}");
}

#[test]
fn a_kubeconfig_of_its_own_has_only_our_contexts() {
    let text = standalone(&[entry("edge-7"), entry("edge-8")]);
    let read = Document::parse(Path::new("-"), &text).unwrap();
    assert!(read.has_context("edge-7") && read.has_context("edge-8"));
    assert_eq!(read.current_context(), Some("edge-7"));
}

#[test]
fn t29_a_key_does_not_print() {
    let (_home, location) = Home::with("token: canary-in-file\n");
    let mut secret = entry("edge-7");
    secret.key = Secret::new("canary-key");
    assert!(!format!("{secret:?}").contains("canary"));
    assert!(!format!("{:?}", location.merge(&[secret]).unwrap()).contains("canary"));
}

fn scalar() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9_.:-]{0,12}",
        "\\PC{0,20}",
        prop::sample::select(vec![
            "yes", "no", "on", "null", "~", "0123", "1e3", "0x1f", "- a", "a: b", "#x", "1_000"
        ])
        .prop_map(str::to_owned),
    ]
}

proptest! {
    /// Whatever texts stand in a kubeconfig, they read the same after our writing.
    #[test]
    fn texts_of_others_survive(texts in prop::collection::vec(scalar(), 1..6)) {
        let fields: Mapping = texts.iter().enumerate()
            .map(|(n, text)| (Value::from(format!("x{n}")), Value::from(text.as_str()))).collect();
        let before = Document::parse(Path::new("c"), &serde_norway::to_string(&fields).unwrap()).unwrap();
        let mut changed = before.clone();
        changed.put(&entry("edge-7"), Some("work"));
        let mut back = Document::parse(Path::new("c"), &changed.to_text()).unwrap();
        back.remove("edge-7", entry("edge-7").cluster);
        let text = back.to_text();
        for (n, expected) in texts.iter().enumerate() {
            let read: Value = serde_norway::from_str(&text).unwrap();
            prop_assert_eq!(read[format!("x{n}")].as_str(), Some(expected.as_str()));
        }
    }

    #[test]
    fn any_bytes_give_an_answer(text in "\\PC{0,200}") {
        let _: Result<Document, Report> = Document::parse(Path::new("c"), &text);
    }
}

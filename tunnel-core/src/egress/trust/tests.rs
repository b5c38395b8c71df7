use std::{fs, os::unix::fs::symlink};

use super::*;

fn root(name: &str, ends: (i32, u8, u8)) -> String {
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_after = rcgen::date_time_ymd(ends.0, ends.1, ends.2);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

fn far(name: &str) -> String {
    root(name, (4000, 1, 1))
}

impl TrustStore {
    fn subjects(&self) -> Vec<String> {
        self.client_config(b"http/1.1").unwrap();
        let state = self.0.state.lock().unwrap();
        state.ends.iter().map(|end| end.subject.trim_start_matches("CN=").to_owned()).collect()
    }

    fn count(&self) -> usize {
        self.0.state.lock().unwrap().roots.len()
    }
}

#[test]
fn files_are_read_again_when_they_change_and_a_bad_one_keeps_what_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    let system = TrustStore::new(Vec::new()).unwrap().count();
    fs::write(&path, far("one")).unwrap();
    let store = TrustStore::new(vec![path.clone()]).unwrap();
    let (first, again) =
        (store.client_config(b"http/1.1").unwrap(), store.client_config(b"http/1.1").unwrap());
    assert!(Arc::ptr_eq(&first, &again), "sessions are resumed only by one configuration");
    assert_eq!((store.subjects(), store.count()), (vec!["one".to_owned()], system + 1));

    fs::write(&path, far("two") + &far("three")).unwrap();
    assert_eq!((store.subjects(), store.count()), (vec!["two".to_owned(), "three".to_owned()], system + 2));
    assert!(!Arc::ptr_eq(&first, &store.client_config(b"http/1.1").unwrap()));

    for bad in ["", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        fs::write(&path, bad).unwrap();
        assert_eq!(store.subjects(), ["two", "three"], "{bad:?}");
        assert!(TrustStore::new(vec![path.clone()]).is_err(), "{bad:?}");
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(store.subjects(), ["two", "three"]);
    fs::write(&path, far("four")).unwrap();
    assert_eq!(store.subjects(), ["four"]);
}

#[test]
fn a_volume_that_swaps_its_link_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // As kubelet lays out a ConfigMap: ca.pem → ..data/ca.pem, and ..data → a folder that is replaced by a new link.
    for (name, subject) in [("..1", "one"), ("..2", "two")] {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("ca.pem"), far(subject)).unwrap();
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/ca.pem", at("ca.pem")).unwrap();
    let store = TrustStore::new(vec![at("ca.pem")]).unwrap();
    assert_eq!(store.subjects(), ["one"]);
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    assert_eq!(store.subjects(), ["two"]);
}

#[test]
fn roots_that_end_within_thirty_days_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    fs::write(
        &path,
        root("past", (2020, 1, 1)) + &root("soon", (2030, 6, 20)) + &root("later", (2030, 7, 20)),
    )
    .unwrap();
    let store = TrustStore::new(vec![path]).unwrap();
    let state = store.0.state.lock().unwrap();
    // 2030-06-01.
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_906_502_400);
    let found: Vec<&str> = ending(&state.ends, now).map(|end| end.subject.as_str()).collect();
    assert_eq!(found, ["CN=past", "CN=soon"]);
}

#[test]
fn a_file_that_is_missing_or_too_large_is_named_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    let report = TrustStore::new(vec![path.clone()]).unwrap_err();
    assert_eq!(report.fault, Fault::FileUnreadable);
    assert!(report.to_string().contains("ca.pem"), "{report}");
    fs::write(&path, vec![b' '; 5 << 20]).unwrap();
    assert!(TrustStore::new(vec![path]).unwrap_err().to_string().contains("4 MiB"));
}

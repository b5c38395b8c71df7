//! That kube-apiserver's own code still says what `cel-oracle/goldens.json` says it does. Needs Go, as the clusters of
//! `e2e` do; without it there is nothing to compare with.

use std::process::Command;

#[test]
fn the_goldens_are_what_kube_apiserver_says() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/cel-oracle");
    let checked = Command::new("go").args(["run", ".", "-check"]).current_dir(folder).output();
    let Ok(checked) = checked else {
        eprintln!("there is no Go here: the goldens are taken as they are");
        return;
    };
    let told =
        format!("{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
    assert!(checked.status.success(), "{told}");
    assert!(told.contains("as kube-apiserver says"), "{told}");
}

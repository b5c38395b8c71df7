//! Somebody else on the same machine: a real second uid, which needs root to become.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::Command,
};

use support::{Home, Kubectl, Peer, soon};
use towline::{app::start, kubeconfig::Location};
use towline_tunnel::drain::drain;

/// Reads what it can below a folder, and asks the local endpoint for Secrets.
const OTHER: &str = r#"
import os, socket, ssl, sys
folder, host, port, path = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
found = []
for place, folders, files in os.walk(folder):
    for name in files:
        try:
            open(os.path.join(place, name)).close()
            found.append(name)
        except OSError:
            pass
print("uid", os.getuid())
print("files", ",".join(sorted(found)))
try:
    tls = ssl._create_unverified_context().wrap_socket(socket.create_connection((host, port), 10))
    tls.sendall(("GET %s/api/v1/secrets HTTP/1.1\r\nHost: %s:%d\r\nConnection: close\r\n\r\n" % (path, host, port)).encode())
    print("answer", tls.recv(65536).split(b"\r\n")[0].decode())
except (OSError, ssl.SSLError) as error:
    print("answer", type(error).__name__)
"#;

/// What the script prints as another user.
fn as_other_user(arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new("python3");
    command.args(["-I", "-c", OTHER]).args(arguments).current_dir("/").uid(65_534).gid(65_534);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn t26_another_user_of_the_machine_reads_nothing_and_is_not_served() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let peer = Peer::start().await;
    let home = Home::new(&peer);
    // What keeps others out must be the files of ours, not the folder that they happen to be in.
    fs::set_permissions(home.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for token in ["relay-token", "cluster-token"] {
        fs::set_permissions(home.path(token), fs::Permissions::from_mode(0o600)).unwrap();
    }
    fs::write(home.path("everybody"), "may read this").unwrap();
    let (_trigger, watcher) = drain();
    let config =
        towline::app::Config { kubeconfig: Some(Location::file(home.path("config"))), ..home.config(&peer) };
    let running = soon("the start", start(config, watcher)).await.unwrap();
    let kubectl = Kubectl::new(&running.kubeconfig(), 0);
    assert!(home.path("config").exists() && home.path("state").exists());

    let (host, port) = (kubectl.address.ip().to_string(), kubectl.address.port().to_string());
    let folder = home.0.path().to_str().unwrap().to_owned();
    let prefix = kubectl.prefix.clone();
    let seen = tokio::task::spawn_blocking(move || as_other_user(&[&folder, &host, &port, &prefix]));
    let seen = soon("the other user", seen).await.unwrap();
    assert_eq!(seen[..2], ["uid 65534", "files ca.pem,everybody"]);
    assert!(!seen[2].contains(" 200"), "{seen:?}");
    let reached = peer.script.apiserver.seen();
    assert!(reached.iter().all(|request| request.path == "/version"), "{reached:?}");
    // Its owner is served.
    let response = soon("h1", kubectl.h1().await.send(kubectl.get("/version"))).await.unwrap();
    assert_eq!(response.status(), 200);
}

//! Where the program's tokens come from: variables of a job, a plugin, standard input; and that they are renewed.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Output, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use support::{Home, Kubectl, Peer, jwt, soon};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
};

struct Bench {
    peer: Peer,
    home: Home,
}

impl Bench {
    async fn new() -> Self {
        let peer = Peer::start().await;
        let home = Home::new(&peer);
        Self { peer, home }
    }

    /// The program with a profile that says everything; `rest` is what is different.
    fn towline(&self, rest: &str, arguments: &[&str]) -> Command {
        let profile = format!(
            "relay = 'https://localhost:{}'\nrelay-key = '{}'\nrelay-ca-file = 'ca.pem'\nstate-dir = 'state'\nport = 0\n{rest}\n\
             [clusters]\nedge-7 = '{}'\n",
            self.peer.address().port(),
            self.peer.relay_key(),
            self.peer.cluster()
        );
        fs::write(self.home.path("profile.toml"), profile).unwrap();
        let mut command = self.home.program();
        command.args(arguments).env("TOWLINE_PROFILE", self.home.path("profile.toml"));
        command
    }

    /// What the cluster was shown last.
    fn shown_to_cluster(&self) -> String {
        let seen = self.peer.script.apiserver.seen();
        seen.last().unwrap().headers["authorization"].to_str().unwrap().to_owned()
    }

    fn shown_to_relay(&self) -> Vec<String> {
        self.peer.script.tokens.lock().unwrap().clone()
    }
}

fn told(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn t29_a_jobs_tokens_are_used_and_not_passed_on() {
    let bench = Bench::new().await;
    let (relay, cluster) = (jwt("towline-relay", 4_000_000_000), jwt("towline-cluster", 4_000_000_000));
    let login =
        "login.flow = 'gitlab'\nlogin.relay.token-env = 'RELAY_T'\nlogin.cluster.token-env = 'CLUSTER_T'";
    let output = bench
        .towline(login, &["run", "--", "env"])
        .env("RELAY_T", &relay)
        .env("CLUSTER_T", &cluster)
        .env("OTHER", "stays")
        .output();
    let output = soon("the command", output).await.unwrap();
    let told = told(&output);
    assert!(output.status.success() && told.contains("OTHER=stays"), "{told}");
    assert!(!told.contains("RELAY_T") && !told.contains("CLUSTER_T") && !told.contains(&cluster), "{told}");
    assert_eq!(bench.shown_to_relay(), [relay]);
    assert_eq!(bench.shown_to_cluster(), format!("Bearer {cluster}"));
}

#[tokio::test]
async fn a_service_accounts_token_takes_the_cluster_tokens_place() {
    let bench = Bench::new().await;
    let account = jwt("https://kubernetes.default.svc", 4_000_000_000);
    let files = "relay-token-file = 'relay-token'\ncluster-token-file = 'cluster-token'";
    let mut child = bench
        .towline(files, &["run", "--service-account-token-file", "-", "--", "true"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{account}\n").as_bytes()).await.unwrap();
    let output = soon("the command", child.wait_with_output()).await.unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert_eq!(bench.shown_to_cluster(), format!("Bearer {account}"));
    // The relay's token may come the same way, where the other one doesn't.
    let relay = jwt("towline-relay", 4_000_000_001);
    let mut child = bench
        .towline(files, &["run", "--relay-token-file", "-", "--", "true"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{relay}\n").as_bytes()).await.unwrap();
    let output = soon("the command", child.wait_with_output()).await.unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert_eq!(bench.shown_to_relay().last(), Some(&relay));
    // From a file, named in the profile; and never as an argument.
    fs::write(bench.home.path("sa"), &account).unwrap();
    let files = "relay-token-file = 'relay-token'\nservice-account-token-file = 'sa'";
    let output = soon("the command", bench.towline(files, &["run", "--", "true"]).output()).await.unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert_eq!(bench.shown_to_cluster(), format!("Bearer {account}"));
}

/// A plugin's token is asked for again before it ends, and requests have the new one.
#[tokio::test]
async fn a_token_is_renewed_while_the_proxy_runs() {
    let bench = Bench::new().await;
    let plugin = bench.home.path("plugin");
    let print = |token: &str| {
        let script = format!(
            "#!/bin/sh\necho '{{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":{{\"token\":\"{token}\"}}}}'\n"
        );
        let new = plugin.with_extension("new");
        fs::write(&new, script).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, &plugin).unwrap();
    };
    let soon_over = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 8;
    print(&jwt("towline-cluster", soon_over));
    let rest = format!(
        "relay-token-file = 'relay-token'\nlogin.flow = 'exec'\nlogin.cluster.exec.command = '{0}'\nlogin.relay.exec.command = '{0}'",
        plugin.display()
    );
    let mut child = bench.towline(&rest, &["proxy"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    soon("ready", lines.next_line()).await.unwrap().expect("it is ready");
    assert_eq!(bench.shown_to_cluster(), format!("Bearer {}", jwt("towline-cluster", soon_over)));
    let next = jwt("towline-cluster", 4_000_000_000);
    print(&next);
    let kubeconfig = fs::read_to_string(bench.home.path("home/.kube/config")).unwrap();
    let kubectl = Kubectl::new(&kubeconfig, 0);
    soon("the renewal", async {
        loop {
            let answer = kubectl.h2().await.send(kubectl.get("/version")).await.unwrap();
            assert_eq!(answer.status(), 200, "nobody notices");
            if bench.shown_to_cluster() == format!("Bearer {next}") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

/// Without a login nothing is dialled, and what to do is said.
#[tokio::test]
async fn a_proxy_without_a_login_says_so() {
    let bench = Bench::new().await;
    let login =
        "login.issuer = 'https://127.0.0.1:1'\nlogin.relay.client-id = 'r'\nlogin.cluster.client-id = 'c'";
    let output = soon("the end", bench.towline(login, &["run", "--", "true"]).output()).await.unwrap();
    let told = told(&output);
    assert_eq!(output.status.code(), Some(12), "{told}");
    assert!(told.contains("TL-LGN-001") && told.contains("towline login"), "{told}");
    assert!(bench.shown_to_relay().is_empty());
}

//! The program itself, as an administrator or a script runs it.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

const SOON: Duration = Duration::from_secs(20);

struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn data_dir(&self) -> PathBuf {
        self.0.path().join("relay")
    }

    fn relay(&self, arguments: &[&str]) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_towline-relay"));
        program
            .args(arguments)
            .env_clear()
            .env("TOWLINE_RELAY_DATA_DIR", self.data_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        program
    }

    fn serve(&self, more: &[&str]) -> Command {
        let usual = ["serve", "--listen", "127.0.0.1:0", "--oidc-issuer-url", "https://127.0.0.1:1"];
        self.relay(&[&usual, more].concat())
    }

    /// Runs it to its end: exit code, what it printed, what it said.
    async fn told(mut command: Command) -> (Option<i32>, String, String) {
        let output = timeout(SOON, command.output()).await.expect("it ends").unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// Runs it to its end, which must be with this exit code and words.
    async fn refused(command: Command, code: i32, words: &[&str]) {
        let (ended, _, said) = Self::told(command).await;
        assert_eq!(ended, Some(code), "{said}");
        for word in words {
            assert!(said.contains(word), "no {word:?} in {said}");
        }
    }

    async fn serving(&self, more: &[&str]) -> Child {
        let mut child = self.serve(&[&["--tls-self-signed", "127.0.0.1"], more].concat()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        timeout(SOON, async {
            while !lines.next_line().await.unwrap().expect("it serves").contains("the relay serves") {}
        })
        .await
        .expect("it serves soon");
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        child
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn one_relay_serves_from_a_folder_and_the_other_is_told_which() {
    let bench = Bench::new();
    let mut first = bench.serving(&[]).await;
    assert_eq!(mode(&bench.data_dir()), 0o700);
    let second = bench.serve(&["--tls-self-signed", "127.0.0.1"]);
    let (pid, folder) = (first.id().unwrap().to_string(), bench.data_dir());
    Bench::refused(second, 2, &["towline-relay: ", "TL-CFG-007", &pid, folder.to_str().unwrap()]).await;
    // However it ends.
    first.kill().await.unwrap();
    bench.serving(&[]).await.kill().await.unwrap();
}

#[tokio::test]
async fn who_is_online_is_known_while_a_relay_serves() {
    let bench = Bench::new();
    let mut relay = bench.serving(&[]).await;
    let (code, _, said) = Bench::told(bench.relay(&["clusters"])).await;
    assert!(code == Some(0) && !said.contains("No relay serves"), "{said}");
    relay.kill().await.unwrap();
    for list in ["clusters", "instances"] {
        let (code, _, said) = Bench::told(bench.relay(&[list])).await;
        assert!(code == Some(0) && said.contains("No relay serves"), "{list}: {said}");
    }
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing_behind_and_says_why() {
    let bench = Bench::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let own = ["--tls-self-signed", "127.0.0.1"];
    let metrics = bench.serve(&[&own[..], &["--metrics-listen", &address]].concat());
    Bench::refused(metrics, 2, &["TL-CFG-004", &address, "in use"]).await;
    let nowhere = bench.serve(&[&own[..], &["--metrics-listen", "192.0.2.1:1"]].concat());
    Bench::refused(nowhere, 2, &["TL-CFG-001", "192.0.2.1:1", "assign requested address"]).await;
    let ca = bench.serve(&[&own[..], &["--oidc-ca-file", "/nowhere/ca.pem"]].concat());
    Bench::refused(
        ca,
        2,
        &["towline-relay: ", "TL-CFG-002", "--oidc-ca-file /nowhere/ca.pem", "No such file"],
    )
    .await;
    let burst = bench.serve(&[&own[..], &["--accept-burst", "501"]].concat());
    Bench::refused(burst, 2, &["TL-CFG-001", "--accept-burst 501"]).await;
    let uncovered = bench.serve(&["--tls-self-signed", "relay.test"]);
    Bench::refused(uncovered, 2, &["TL-CFG-001", "add --tls-self-signed 127.0.0.1", "--public-url"]).await;
    for nonsense in ["nonsense", "http://relay.test", "https://relay.test/path", "https://"] {
        Bench::refused(bench.serve(&[&own[..], &["--public-url", nonsense]].concat()), 2, &["--public-url"])
            .await;
    }
    assert!(!bench.data_dir().exists(), "nothing was made");
}

#[tokio::test]
async fn a_token_is_all_of_standard_output_and_where_it_leads_is_said_beside() {
    let bench = Bench::new();
    let _relay = bench.serving(&["--public-url", "https://127.0.0.1:8443"]).await;
    let (code, token, said) = Bench::told(bench.relay(&["enroll", "edge-7"])).await;
    assert!(code == Some(0) && token.starts_with("tle1.") && token.lines().count() == 1, "{said}");
    assert!(said.contains("https://127.0.0.1:8443") && !said.contains(token.trim()), "{said}");
    let other = bench.relay(&["enroll", "edge-8", "--public-url", "https://relay.test"]);
    assert!(Bench::told(other).await.2.contains("https://relay.test:443"));
    for (flag, value, why) in [
        ("--ttl", "36500d", "30d"),
        ("--ttl", "0s", "longer than nothing"),
        ("--public-url", "relay", "https://"),
    ] {
        Bench::refused(bench.relay(&["enroll", "edge-9", flag, value]), 2, &[flag, why]).await;
    }
}

#[tokio::test]
async fn what_matches_nobody_is_refused_before_anything_is_asked() {
    let bench = Bench::new();
    for principal in ["nohash", "https://idp#", "#sub", "alice#1"] {
        let assign = ["role", "assign", "--principal", principal, "--role", "cluster-user", "--cluster", "a"];
        Bench::refused(bench.relay(&assign), 2, &["--principal", "https://idp.example.com#4711"]).await;
    }
    Bench::refused(bench.relay(&["revoke-instance", "x"]), 2, &["not an agent instance id"]).await;
}

#[tokio::test]
async fn an_administrator_gives_duties_and_revokes_sessions() {
    let bench = Bench::new();
    let _relay = bench.serving(&[]).await;
    let run = async |arguments: &[&str]| {
        let (code, out, said) = Bench::told(bench.relay(arguments)).await;
        assert_eq!(code, Some(0), "{said}");
        out.trim().to_owned()
    };
    let assign = ["role", "assign", "--group", "security", "--role", "auditor"];
    assert_eq!(run(&assign).await, "group security: auditor on the whole relay (assigned)");
    assert_eq!(run(&assign).await, "group security: auditor on the whole relay (was assigned already)");
    let listed: serde_json::Value =
        serde_json::from_str(&run(&["role", "list", "-o", "json"]).await).unwrap();
    let only = &listed.as_array().unwrap()[..];
    assert!(only.len() == 1 && only[0]["role"] == "auditor" && only[0]["cluster"].is_null(), "{listed}");
    let remove = ["role", "remove", "--group", "security", "--role", "auditor"];
    assert_eq!(run(&remove).await, "group security: auditor on the whole relay (removed)");
    Bench::refused(bench.relay(&remove), 2, &["there is no such assignment"]).await;
    // A role that opens clusters is on one of them.
    let everywhere = bench.relay(&["role", "assign", "--user", "ada", "--role", "cluster-user"]);
    Bench::refused(everywhere, 2, &["--cluster"]).await;

    let revoked = run(&["revoke", "--user", "ada", "--for", "1h"]).await;
    assert!(revoked.starts_with("user ada (revoked; tokens issued until "), "{revoked}");
    let shown: serde_json::Value = serde_json::from_str(&run(&["revocations", "-o", "json"]).await).unwrap();
    assert!(shown[0]["subject"] == "ada" && shown[0]["cluster"].is_null(), "{shown}");
    let told = run(&["audit", "--user", "ada", "-o", "json"]).await;
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert!(told[0]["verdict"] == "revoked" && told[0]["why"].as_str().unwrap().contains("uid"), "{told}");
    assert_eq!(run(&["revoke", "--user", "ada", "--undo"]).await, "user ada (no longer revoked)");
    assert_eq!(run(&["revocations", "-o", "json"]).await, "[]");
    Bench::refused(bench.relay(&["revoke", "--user", "ada", "--for", "31d"]), 2, &["30d"]).await;
    Bench::refused(bench.relay(&["revoke"]), 2, &["--user", "--principal"]).await;
}

#[tokio::test]
async fn help_is_a_command_too_and_puts_each_flag_under_its_heading() {
    let bench = Bench::new();
    let (code, help, _) = Bench::told(bench.relay(&["help", "serve"])).await;
    assert_eq!(code, Some(0));
    let place = |text: &str| help.find(text).unwrap_or_else(|| panic!("no {text:?} in {help}"));
    let (people, limits) = (place("People's tokens"), place("\nLimits:"));
    for plain in ["--certificate-life", "--drain-timeout", "--public-url"] {
        assert!(place(&format!("      {plain}")) < people, "{plain} is no flag for tokens: {help}");
    }
    assert!(
        (people..limits).contains(&place("      --oidc-issuer-url"))
            && place("      --max-sessions ") > limits
    );
}

#[tokio::test]
async fn an_issuer_that_is_not_there_is_told_once() {
    let bench = Bench::new();
    let mut child = bench.serve(&["--tls-self-signed", "127.0.0.1"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut told = 0;
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    // From its end on there is nothing more to say.
    let reading = timeout(SOON, async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("keys can't be had") {
                told += 1;
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            }
        }
    });
    reading.await.expect("it is told, and it ends");
    assert_eq!(told, 1);
    assert_eq!(timeout(SOON, child.wait()).await.unwrap().unwrap().code(), Some(0));
}

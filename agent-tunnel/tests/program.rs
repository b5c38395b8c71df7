//! The program itself, as an administrator or a manifest runs it.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

use std::{
    fs,
    path::PathBuf,
    process::Stdio,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpListener,
    process::Command,
    time::timeout,
};
use towline_tunnel::{
    carrier::dial::RelayAddress, enrolment::EnrolmentToken, ids::KeyHash, session::message::Secret,
};

const SOON: Duration = Duration::from_secs(20);

struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        fs::create_dir(bench.path("data")).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    fn agent(&self, arguments: &[&str]) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_towline-agent"));
        program
            .args(arguments)
            .env_clear()
            .env("TOWLINE_AGENT_DATA_DIR", self.path("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        program
    }

    fn run(&self, more: &[&str]) -> Command {
        self.agent(&[&["run", "--oidc-issuer-url", "https://127.0.0.1:1"], more].concat())
    }

    /// A kubeconfig for an apiserver at this port of loopback.
    fn kubeconfig(&self, port: u16) -> String {
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, \
             clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{port}'}}}}], \
             users: [{{name: u, user: {{token: t}}}}], contexts: [{{name: c, context: {{cluster: c, user: u}}}}]}}"
        );
        self.write("kubeconfig", &text)
    }

    /// A token of a relay at this port of loopback.
    fn token(&self, port: u16) -> String {
        let token = EnrolmentToken {
            relay: RelayAddress::parse(&format!("127.0.0.1:{port}")).unwrap(),
            relay_key: KeyHash::of_spki(b"k"),
            secret: Secret::new([7; 32]),
            expires: SystemTime::now() + Duration::from_secs(60),
            ca_pem: None,
        };
        self.write("token", &token.encode())
    }
}

/// Runs it to its end, which must be with this exit code and words.
async fn refused(mut command: Command, code: i32, words: &[&str]) {
    let output = timeout(SOON, command.output()).await.expect("it ends").unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_its_files_is_the_agents_own_fault_and_names_the_file() {
    let bench = Bench::new();
    let (kubeconfig, token) = (bench.kubeconfig(1), bench.token(1));
    let damaged = bench.write("damaged", "tle1.canary");
    let run = |token: &str, kubeconfig: &str, more: &[&str]| {
        bench.run(&[&["--enrolment-token-file", token, "--kubeconfig", kubeconfig], more].concat())
    };
    refused(run(&damaged, &kubeconfig, &[]), 2, &["towline-agent: ", "TL-CFG-008", &damaged]).await;
    refused(run(&token, &damaged, &[]), 2, &["towline-agent: ", "TL-CFG-002", &damaged]).await;
    refused(run(&token, "/nowhere/config", &[]), 2, &["towline-agent: ", "TL-CFG-002", "No such file"]).await;
    for flag in ["--oidc-ca-file", "--relay-ca-file"] {
        let missing = run(&token, &kubeconfig, &[flag, "/nowhere/ca.pem"]);
        refused(missing, 2, &["towline-agent: ", "TL-CFG-002", "/nowhere/ca.pem", "No such file"]).await;
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = run(&token, &kubeconfig, &["--metrics-listen", &taken.local_addr().unwrap().to_string()]);
    refused(busy, 2, &["towline-agent: ", "TL-CFG-004", "in use"]).await;
}

#[tokio::test]
async fn an_apiserver_that_is_not_there_is_told_at_the_start_and_ends_nothing() {
    let bench = Bench::new();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let (kubeconfig, token) = (bench.kubeconfig(closed), bench.token(closed));
    let mut child =
        bench.run(&["--enrolment-token-file", &token, "--kubeconfig", &kubeconfig]).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let told = timeout(SOON, async {
        loop {
            let line = lines.next_line().await.unwrap().expect("it goes on");
            if line.contains("TL-API-001") {
                return line;
            }
        }
    });
    let line = told.await.expect("it is told");
    assert!(line.contains(&closed.to_string()) && line.contains("refused"), "{line}");
    assert_eq!(child.try_wait().unwrap(), None);
}

#[tokio::test]
async fn help_is_a_command_too_and_puts_each_flag_under_its_heading() {
    let bench = Bench::new();
    let output = timeout(SOON, bench.agent(&["help", "run"]).output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).unwrap();
    let place = |text: &str| help.find(text).unwrap_or_else(|| panic!("no {text:?} in {help}"));
    for plain in ["--metrics-listen", "--drain-timeout", "--resume-timeout", "--bulk-lines"] {
        assert!(place(&format!("      {plain}")) < place("People's tokens"), "{plain}: {help}");
    }
}

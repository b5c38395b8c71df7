//! The program itself, as a person or a script runs it.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::{
    fs,
    path::PathBuf,
    process::{Output, Stdio},
};

use support::{Home, Kubectl, Peer, soon};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};
use towline_tunnel::mux::CloseReason;

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

    /// The program with everything but the cluster.
    fn towline(&self, command: &str) -> Command {
        let mut program = self.home.program();
        program
            .arg(command)
            .args(["--relay", &format!("https://localhost:{}", self.peer.address().port())])
            .args(["--relay-key", &self.peer.relay_key().to_string()])
            .args([PathBuf::from("--relay-ca-file"), self.home.path("ca.pem")])
            .args([PathBuf::from("--relay-token-file"), self.home.path("relay-token")])
            .args([PathBuf::from("--cluster-token-file"), self.home.path("cluster-token")])
            .args([PathBuf::from("--state-dir"), self.home.path("state")]);
        program
    }

    fn cluster(&self) -> String {
        format!("edge-7={}", self.peer.cluster())
    }

    fn kubeconfig(&self) -> PathBuf {
        self.home.path("home/.kube/config")
    }
}

fn lines(child: &mut Child) -> Lines<BufReader<ChildStdout>> {
    BufReader::new(child.stdout.take().unwrap()).lines()
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

fn told(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn ready_is_said_once_kubectl_works_and_the_end_restores_the_kubeconfig() {
    let bench = Bench::new().await;
    let mut child =
        bench.towline("proxy").args(["--cluster", &bench.cluster(), "--port", "0"]).spawn().unwrap();
    let ready = soon("ready", lines(&mut child).next_line()).await.unwrap().unwrap();
    assert!(ready.starts_with("ready: edge-7 at https://127.0.0.1:"), "{ready}");
    assert_eq!(bench.peer.script.apiserver.seen()[0].path, "/version");
    let kubectl = Kubectl::new(&fs::read_to_string(bench.kubeconfig()).unwrap(), 0);
    assert_eq!(kubectl.h2().await.send(kubectl.get("/version")).await.unwrap().status(), 200);
    signal(&child, rustix::process::Signal::TERM);
    assert_eq!(soon("the end", child.wait()).await.unwrap().code(), Some(0));
    assert!(!bench.kubeconfig().exists());
}

#[tokio::test]
async fn a_kubeconfig_can_be_printed_instead() {
    let bench = Bench::new().await;
    let mut child = bench
        .towline("proxy")
        .args(["--cluster", &bench.cluster(), "--port", "0", "-f", "-"])
        .spawn()
        .unwrap();
    let mut lines = lines(&mut child);
    let mut text = String::new();
    while !text.contains("current-context") {
        text += &soon("a line", lines.next_line()).await.unwrap().unwrap();
        text += "\n";
    }
    let kubectl = Kubectl::new(&text, 0);
    assert_eq!(kubectl.h2().await.send(kubectl.get("/version")).await.unwrap().status(), 200);
    assert!(!bench.kubeconfig().exists());
}

#[tokio::test]
async fn each_fault_has_its_exit_code_and_says_what_to_do() {
    let bench = Bench::new().await;
    let run = async |more: &[&str]| {
        let output = bench.towline("proxy").args(more).output();
        told(&soon("the end", output).await.unwrap())
    };
    let cluster = bench.cluster();
    let (code, said) = run(&["--cluster", "edge-7"]).await;
    assert_eq!(code, Some(14), "{said}");
    bench.peer.script.names.lock().unwrap().insert("edge-7".into(), bench.peer.cluster());
    let (code, said) = run(&["--cluster", "edge-7"]).await;
    assert!(code == Some(11) && said.contains("TL-CFG-006"), "{said}");
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, said) = run(&["--cluster", &cluster, "--port", &port]).await;
    assert!(code == Some(2) && said.contains("TL-CFG-004") && said.contains(&port), "{said}");
    fs::write(bench.home.path("broken"), "{").unwrap();
    let broken = bench.home.path("broken");
    let (code, said) = run(&["--cluster", &cluster, "--kubeconfig", broken.to_str().unwrap()]).await;
    assert!(code == Some(2) && said.contains("TL-KUB-001") && said.contains("broken"), "{said}");
    *bench.peer.script.refuse_open.lock().unwrap() = Some(CloseReason::Forbidden);
    let (code, said) = run(&["--cluster", &cluster, "--port", "0"]).await;
    assert!(code == Some(13) && said.contains("role assign"), "{said}");
    let (code, said) = run(&["--cluster", &cluster, "--relay-key", "x"]).await;
    assert!(code == Some(2), "a flag that is given twice: {said}");
    assert!(!bench.kubeconfig().exists());
}

#[tokio::test]
async fn a_relay_that_is_not_there_is_told_once() {
    let mut bench = Bench::new().await;
    bench.peer.kill().await;
    let proxy = bench.towline("proxy").args(["--cluster", &bench.cluster(), "--port", "0"]).output();
    let (code, said) = told(&soon("the end", proxy).await.unwrap());
    assert!(code == Some(10) && said.matches("TL-NET-003").count() == 1, "{said}");
}

/// What a request failed at can be looked up at the other hops: the log names the stream as they do.
#[tokio::test]
async fn the_log_names_streams_and_those_that_failed() {
    let bench = Bench::new().await;
    let mut child =
        bench.towline("proxy").args(["--cluster", &bench.cluster(), "--port", "0"]).spawn().unwrap();
    soon("ready", lines(&mut child).next_line()).await.unwrap().unwrap();
    let kubectl = Kubectl::new(&fs::read_to_string(bench.kubeconfig()).unwrap(), 0);
    *bench.peer.script.refuse_open.lock().unwrap() = Some(CloseReason::Forbidden);
    let connections = bench.peer.script.connections.lock().unwrap().clone();
    connections.iter().for_each(|connection| connection.close());
    let response = soon("a refusal", kubectl.h2().await.send(kubectl.get("/api/v1/pods"))).await.unwrap();
    assert_eq!(response.status(), 403);
    signal(&child, rustix::process::Signal::TERM);
    let mut log = String::new();
    soon("its log", child.stderr.take().unwrap().read_to_string(&mut log)).await.unwrap();
    let said: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names = |message: &str| -> Vec<(String, String)> {
        let told = said.iter().filter(|line| line["message"] == message);
        told.map(|line| ["channel", "stream"].map(|name| line[name].as_str().unwrap_or_default().to_owned()))
            .map(|[channel, stream]| (channel, stream))
            .collect()
    };
    let (opened, failed) = (names("stream opened"), names("request failed"));
    let [failed] = failed.as_slice() else { panic!("one has failed: {log}") };
    assert!(opened.contains(failed) && !failed.1.is_empty(), "{failed:?} is one of {opened:?}");
    assert!(opened.len() >= 2, "{opened:?}");
}

#[tokio::test]
async fn one_command_runs_with_a_kubeconfig_of_its_own_and_its_exit_code_is_ours() {
    let bench = Bench::new().await;
    let run = async |script: &str| {
        let mut towline = bench.towline("run");
        towline.args(["--cluster", &bench.cluster(), "--", "sh", "-c", script]);
        soon("the end", towline.output()).await.unwrap()
    };
    let output = run("cat \"$KUBECONFIG\"; stat -c %a \"$KUBECONFIG\"; exit 42").await;
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(42), "{}", told(&output).1);
    assert!(text.contains("current-context: edge-7") && text.ends_with("600\n"), "{text}");
    let output = run("dirname \"$KUBECONFIG\"").await;
    assert!(!PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()).exists(), "it is gone again");
    assert_eq!(run("kill -9 $$").await.status.code(), Some(137));
    // As a shell has it.
    let plain = bench.home.path("plain-file");
    fs::write(&plain, "").unwrap();
    for (command, exit) in [("no-such-program", 127), (plain.to_str().unwrap(), 126)] {
        let mut nothing = bench.towline("run");
        nothing.args(["--cluster", &bench.cluster(), "--", command]);
        let (code, said) = told(&soon("it", nothing.output()).await.unwrap());
        assert!(code == Some(exit) && said.contains(command) && said.contains("TL-CFG-001"), "{said}");
    }
}

#[tokio::test]
async fn a_command_is_asked_to_end_when_we_are() {
    let bench = Bench::new().await;
    let mut towline = bench.towline("run");
    let script = "trap 'exit 7' TERM; echo begun; while :; do sleep 0.05; done";
    let mut child = towline.args(["--cluster", &bench.cluster(), "--", "sh", "-c", script]).spawn().unwrap();
    assert_eq!(soon("begun", lines(&mut child).next_line()).await.unwrap().unwrap(), "begun");
    signal(&child, rustix::process::Signal::TERM);
    assert_eq!(soon("the end", child.wait()).await.unwrap().code(), Some(7));
}

#[tokio::test]
async fn a_killed_proxy_is_followed_by_one_that_works_and_cleans_up() {
    let bench = Bench::new().await;
    fs::create_dir_all(bench.home.path("home/.kube")).unwrap();
    let theirs = "apiVersion: v1\nkind: Config\ncurrent-context: work\ncontexts:\n- name: work\n  context: {cluster: a, user: b}\n";
    fs::write(bench.kubeconfig(), theirs).unwrap();
    let start =
        || bench.towline("proxy").args(["--cluster", &bench.cluster(), "--port", "0"]).spawn().unwrap();
    let mut child = start();
    soon("ready", lines(&mut child).next_line()).await.unwrap().unwrap();
    child.kill().await.unwrap();
    let mut child = start();
    soon("ready again", lines(&mut child).next_line()).await.unwrap().unwrap();
    // Somebody writes meanwhile, so that only our entries go.
    let text = fs::read_to_string(bench.kubeconfig()).unwrap();
    fs::write(bench.kubeconfig(), format!("{text}x-mine: 1\n")).unwrap();
    signal(&child, rustix::process::Signal::INT);
    assert_eq!(soon("the end", child.wait()).await.unwrap().code(), Some(0));
    let left = fs::read_to_string(bench.kubeconfig()).unwrap();
    assert!(
        left.contains("current-context: work") && left.contains("x-mine") && !left.contains("edge-7"),
        "{left}"
    );
}

/// Tokens and keys show up in no log, argument list or environment, at the most talkative level.
#[tokio::test]
async fn t29_secrets_are_in_no_log_no_argument_and_no_environment() {
    let bench = Bench::new().await;
    let mut towline = bench.towline("run");
    let script =
        "tr '\\0' '\\n' < /proc/$PPID/cmdline; tr '\\0' '\\n' < /proc/$PPID/environ; env; echo begun; read _";
    towline.stdin(Stdio::piped());
    let command =
        ["--log", "trace", "--cluster", &bench.cluster(), "--", "sh", "-c", script].map(str::to_owned);
    let mut child = towline.args(command).spawn().unwrap();
    let mut lines = lines(&mut child);
    let mut seen = String::new();
    let mut kubeconfig = String::new();
    loop {
        let line = soon("a line", lines.next_line()).await.unwrap().unwrap();
        if let Some(path) = line.strip_prefix("KUBECONFIG=") {
            kubeconfig = fs::read_to_string(path).unwrap();
        }
        if line == "begun" {
            break;
        }
        seen += &line;
        seen += "\n";
    }
    let kubectl = Kubectl::new(&kubeconfig, 0);
    for path in ["/version", "/unauthorized", "/elsewhere"] {
        kubectl.h2().await.send(kubectl.get(path)).await.unwrap();
        let mut request = kubectl.get(path);
        request.headers_mut().insert("authorization", "Bearer theirs-canary".parse().unwrap());
        kubectl.h2().await.send(request).await.unwrap();
    }
    let mut client = kubectl.h1().await;
    client.send(kubectl.upgrade("/upgrade/cut", "SPDY/3.1")).await.unwrap();
    drop(client);
    // A token that is refused, too.
    bench.home.tokens(1000);
    kubectl.h2().await.send(kubectl.get("/version")).await.unwrap();
    drop(child.stdin.take());
    let mut logged = String::new();
    child.stderr.take().unwrap().read_to_string(&mut logged).await.unwrap();
    soon("the end", child.wait()).await.unwrap();
    assert!(
        logged.contains("stream opened") && logged.contains("TL-IDN-003"),
        "the log is talkative: {logged}"
    );
    let key = kubeconfig.lines().find_map(|line| line.trim().strip_prefix("client-key-data: ")).unwrap();
    let canary = support::jwt("towline-relay", 4_000_000_000);
    let body = canary.split('.').nth(1).unwrap();
    for secret in ["canary", body, &support::jwt("towline-cluster", 4_000_000_000), key] {
        assert!(!seen.contains(secret) && !logged.contains(secret), "{secret} shows up");
    }
}

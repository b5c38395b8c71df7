//! A run through the rig of [`crate::blind`] with a real proxy, a real kubectl, and canaries.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use towline_agent::dial::{Apiserver, ApiserverConfig};
use towline_tunnel::ids::StreamKey;
use xtask::cluster::Cluster;

use crate::{
    blind::{Person, Rig, Tape},
    case::run_within,
    process::Process,
    programs::Programs,
    stage::image,
    table::apply_with,
};

/// What a run has recorded, and what to look for in it.
#[derive(Debug)]
pub struct Run {
    /// All that the relay handled.
    pub outside: Tape,
    /// All that passed inside inner TLS.
    pub inside: Tape,
    /// What only the two ends may know, by name.
    pub canaries: Vec<(&'static str, String)>,
}

/// Uses every kind of request once: get, watch, logs, exec, port-forward, by a user with a name and a group that only the
/// cluster knows.
///
/// # Errors
/// If something does not work at all.
pub async fn run(cluster: &Cluster, programs: &Programs) -> anyhow::Result<Run> {
    let canary = |what: &str| format!("canary-{what}-{}", StreamKey::random());
    let person = Person { subject: "subject-1".into(), name: canary("user"), group: canary("group") };
    let (namespace, pod, value) = (format!("blind-{}", StreamKey::random()), canary("pod"), canary("secret"));
    prepare(cluster, &person, &namespace, &pod, &value)?;
    let config = ApiserverConfig::Kubeconfig { path: cluster.kubeconfig(), context: None };
    let rig = Rig::set(Apiserver::new(&config, None)?, &person).await?;
    let (relay_token, cluster_token, token) = rig.tokens(&person)?;
    let kubeconfig = rig.folder().join("kubeconfig");
    let mut command = Command::new(&programs.client);
    command
        .args([
            "proxy",
            "--relay",
            &rig.relay_url,
            "--relay-key",
            &rig.relay_key.to_string(),
            "--relay-ca-file",
        ])
        .arg(&rig.relay_ca_file)
        .arg("--relay-token-file")
        .arg(&relay_token)
        .arg("--cluster-token-file")
        .arg(&cluster_token)
        .args(["--cluster", &rig.cluster.to_string(), "--port", "0", "--kubeconfig"])
        .arg(&kubeconfig)
        .arg("--state-dir")
        .arg(rig.folder().join("state"));
    let log = rig.folder().join("proxy.log");
    let kubectl = cluster.programs().kubectl();
    let used = tokio::task::spawn_blocking({
        let (namespace, pod, value) = (namespace.clone(), pod.clone(), value.clone());
        move || -> anyhow::Result<()> {
            let mut proxy = Process::start("the proxy", &mut command, &log)?;
            proxy.wait_for(&["ready: "], Duration::from_secs(30))?;
            use_it(&kubectl, &kubeconfig, &namespace, &pod, &value)
        }
    });
    used.await.context("a use panicked")??;
    let run = Run {
        outside: rig.outside.clone(),
        inside: rig.inside.clone(),
        canaries: vec![
            ("the Secret's value", value),
            ("the cluster token", token.rsplit('.').next().unwrap_or_default().to_owned()),
            ("a path", format!("/api/v1/namespaces/{namespace}/")),
            ("the pod's name", pod),
            ("a group", person.group),
            ("a user's name", person.name),
        ],
    };
    rig.end().await;
    cluster.kubectl_output(&["delete", "namespace", &namespace, "--wait=false"])?;
    Ok(run)
}

fn prepare(
    cluster: &Cluster,
    person: &Person,
    namespace: &str,
    pod: &str,
    value: &str,
) -> anyhow::Result<()> {
    let (group, image) = (&person.group, image());
    let yaml = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {{name: hidden, namespace: {namespace}}}\nstringData: {{k: {value}}}\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {{name: all, namespace: {namespace}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: admin}}\n\
         subjects: [{{kind: Group, apiGroup: rbac.authorization.k8s.io, name: {group}}}]\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: {namespace}}}\n\
         spec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: c, image: \"{image}\", imagePullPolicy: Never, command: [sleep, \"3600\"]}}\n"
    );
    apply_with(cluster, &["apply", "-f", "-"], &yaml)?;
    let pod = format!("pod/{pod}");
    cluster.kubectl_output(&["wait", "-n", namespace, &pod, "--for=condition=Ready", "--timeout=60s"])?;
    Ok(())
}

fn use_it(kubectl: &Path, kubeconfig: &Path, namespace: &str, pod: &str, value: &str) -> anyhow::Result<()> {
    let script = format!(
        "set -e\nk() {{ {} -n {namespace} \"$@\"; }}\n\
         k get secret hidden -o yaml >/dev/null\nk auth whoami\nk get pods --watch-only --request-timeout=1s || true\n\
         k logs {pod}\nk exec {pod} -- echo {value}\necho {value} | k exec -i {pod} -- cat\n\
         KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false k exec {pod} -- echo {value}\n\
         k port-forward {pod} :1 >forwarded 2>&1 & until grep -q 127.0.0.1 forwarded; do sleep 0.05; done; kill %1",
        kubectl.display()
    );
    let folder = kubeconfig.parent().context("it lies in a folder")?;
    let mut command = Command::new("bash");
    command.args(["-c", &script]).env("KUBECONFIG", kubeconfig).env("HOME", folder).current_dir(folder);
    let outcome = run_within(command, Duration::from_secs(60))?;
    ensure!(
        outcome.ended == "exit 0" || outcome.ended == "exit 143",
        "{}: {}",
        outcome.ended,
        outcome.stderr
    );
    ensure!(outcome.stdout.matches(value).count() == 3, "the uses do not work: {}", outcome.stdout);
    let _gone = fs::remove_file(folder.join("forwarded"));
    Ok(())
}

//! The agent where it belongs: in a pod of the cluster, from an image with nothing else, with `deploy/agent.yaml` and no more rights
//! than that gives it.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use crate::{
    case::run_within,
    process::pause,
    stage::{CLUSTER_AUDIENCE, Stage, image},
    table::{GROUP, TOKEN_LIFETIME, USER, apply_with},
};

/// The agent's image, as the node has it.
pub(crate) const IMAGE: &str = "towline.test/agent:1";
const NAME: &str = "pod";
/// From applied to connected.
const CONNECTED_WITHIN: Duration = Duration::from_secs(60);

/// What a test cluster needs otherwise: loopback in place of a pod network, and an issuer of its own.
fn kustomization(stage: &Stage) -> String {
    let port = stage.cluster.apiserver_port();
    format!(
        "resources: [agent.yaml]\nimages: [{{name: towline-agent, newName: towline.test/agent, newTag: \"1\"}}]\npatches:\n\
         - target: {{kind: Deployment}}\n  patch: |\n    - {{op: add, path: /spec/template/spec/hostNetwork, value: true}}\n    \
         - {{op: replace, path: /spec/template/spec/containers/0/imagePullPolicy, value: Never}}\n    \
         - {{op: add, path: /spec/template/spec/containers/0/env/-, value: {{name: KUBERNETES_SERVICE_HOST, value: 127.0.0.1}}}}\n    \
         - {{op: add, path: /spec/template/spec/containers/0/env/-, value: {{name: KUBERNETES_SERVICE_PORT, value: \"{port}\"}}}}\n\
         - target: {{kind: ConfigMap}}\n  patch: |\n    - {{op: replace, path: /data/TOWLINE_AGENT_OIDC_ISSUER_URL, value: \"{}\"}}\n    \
         - {{op: add, path: /data/TOWLINE_AGENT_OIDC_CLIENT_ID, value: {CLUSTER_AUDIENCE}}}\n    \
         - {{op: add, path: /data/TOWLINE_AGENT_OIDC_USERNAME_PREFIX, value: \"-\"}}\n    \
         - {{op: add, path: /data/TOWLINE_AGENT_OIDC_SIGNING_ALGS, value: ES256}}\n    \
         - {{op: add, path: /data/TOWLINE_AGENT_OIDC_CA_FILE, value: /etc/towline/issuer/ca.pem}}\n",
        stage.issuer.url()
    )
}

/// Deploys the agent, and works through it: get, logs, exec, cp; then once more after its pod was replaced.
///
/// # Errors
/// What does not work.
pub fn run(stage: &Stage) -> anyhow::Result<()> {
    let cluster = &stage.cluster;
    cluster.import_program(IMAGE, &stage.programs.agent)?;
    let folder = stage.folder().join("pod");
    fs::create_dir_all(&folder)?;
    fs::copy(xtask::root().join("deploy/agent.yaml"), folder.join("agent.yaml"))?;
    fs::write(folder.join("kustomization.yaml"), kustomization(stage))?;
    let token = stage.relay_command(&["enroll", NAME])?;
    fs::write(folder.join("token"), token)?;
    apply_with(cluster, &["create", "namespace", "towline"], "")?;
    let from = |what: &str, file: &Path| format!("--from-file={what}={}", file.display());
    let kubectl = |arguments: &[&str]| cluster.kubectl_output(arguments);
    let secret = from("token", &folder.join("token"));
    kubectl(&["-n", "towline", "create", "secret", "generic", "towline-agent-enrolment", &secret])?;
    let ca = from("ca.pem", &stage.folder().join("issuer-ca.pem"));
    kubectl(&["-n", "towline", "create", "configmap", "towline-agent-issuer", &ca])?;
    kubectl(&["apply", "-k", &folder.display().to_string()])?;
    let worked = works(stage, &folder);
    if worked.is_err() {
        let log = kubectl(&["-n", "towline", "logs", "deployment/towline-agent", "--tail=20"]);
        let pods = kubectl(&["-n", "towline", "describe", "pods"]);
        return worked.with_context(|| format!("the agent's log: {log:?}; its pods: {pods:?}"));
    }
    Ok(())
}

fn works(stage: &Stage, folder: &Path) -> anyhow::Result<()> {
    let cluster = &stage.cluster;
    let id = connected(stage, NAME)?;
    let assign = ["role", "assign", "--user", USER, "--role", "cluster-user", "--cluster", NAME];
    stage.relay_command(&assign)?;
    let tokens = stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?;
    let proxy = stage.proxy_to("pod", &id, &tokens)?;
    let script = format!(
        "set -e\nkubectl auth whoami -o jsonpath='{{.status.userInfo.username}}{{\"\\n\"}}'\n\
         kubectl create namespace by-pod\n\
         kubectl -n by-pod run box --image={} --image-pull-policy=Never --restart=Never --command -- sh -c 'echo hello; sleep 3600'\n\
         kubectl -n by-pod wait pod/box --for=condition=Ready --timeout=30s\nkubectl -n by-pod logs box\n\
         echo through | kubectl -n by-pod exec -i box -- cat\nhead -c 3000000 /dev/zero > zeros\n\
         kubectl -n by-pod cp zeros box:/tmp/zeros\nkubectl -n by-pod exec box -- sh -c 'wc -c < /tmp/zeros'\n\
         kubectl delete namespace by-pod --wait=false\n\
         kubectl auth whoami --as=carol --as-group=dev --as-uid=7 -o yaml\n\
         if kubectl get namespaces --as=system:admin 2>&1; then exit 9; fi\n\
         if kubectl get namespaces --as=system:serviceaccount:default:default 2>&1; then exit 9; fi",
        image()
    );
    let shell = |script: &str| {
        let path = format!(
            "{}:{}",
            cluster.programs().folder().display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let mut command = Command::new("bash");
        command.args(["-c", script]).env("PATH", path).env("KUBECONFIG", &proxy.kubeconfig);
        command.env("HOME", folder).current_dir(folder);
        run_within(command, Duration::from_secs(90))
    };
    let outcome = shell(&script)?;
    ensure!(outcome.ended == "exit 0", "{}: {}{}", outcome.ended, outcome.stdout, outcome.stderr);
    // Whom kube-apiserver does not let the agent be, it names itself.
    let original = "towline.dev/original-user";
    let refused = ["User \"system:admin\" cannot list", "cannot impersonate resource \"serviceaccounts\""];
    for expected in [USER, "hello", "through", "3000000", "carol", original].into_iter().chain(refused) {
        ensure!(outcome.stdout.contains(expected), "{expected} is missing in {}", outcome.stdout);
    }
    // Its successor has an empty folder, and joins by the cluster's key in the Secret; no request fails meanwhile.
    cluster.kubectl_output(&["-n", "towline", "delete", "secret", "towline-agent-enrolment"])?;
    cluster.kubectl_output(&["-n", "towline", "rollout", "restart", "deployment/towline-agent"])?;
    // Longer than the successor is waited for (minReadySeconds), so that its predecessor goes meanwhile.
    let again = "for n in $(seq 75); do kubectl get namespace default -o name || exit 8; sleep 0.2; done";
    let outcome = shell(again)?;
    ensure!(outcome.ended == "exit 0", "while the pod is replaced: {}{}", outcome.stdout, outcome.stderr);
    cluster.kubectl_output(&[
        "-n",
        "towline",
        "rollout",
        "status",
        "deployment/towline-agent",
        "--timeout=60s",
    ])?;
    let outcome = shell("kubectl get namespace default -o name")?;
    ensure!(outcome.ended == "exit 0", "after the pod was replaced: {}", outcome.stderr);
    cluster.kubectl_output(&["delete", "namespace", "towline", "--wait=false"])?;
    Ok(())
}

/// Waits until the relay has an agent of the cluster with this name, and says which cluster that is.
pub(crate) fn connected(stage: &Stage, name: &str) -> anyhow::Result<String> {
    let since = Instant::now();
    loop {
        let clusters = stage.relay_command(&["clusters", "-o", "json"])?;
        let clusters: serde_json::Value = serde_json::from_str(&clusters)?;
        let found = clusters.as_array().into_iter().flatten().find(|cluster| cluster["name"] == name);
        if let Some(cluster) = found
            && cluster["online"] == true
        {
            return Ok(cluster["id"].as_str().context("a cluster has an id")?.to_owned());
        }
        ensure!(since.elapsed() < CONNECTED_WITHIN, "the agent is not connected: {clusters}");
        pause(Duration::from_millis(200));
    }
}

//! The agent from its Helm chart, on a real cluster: what the chart renders is what kube-apiserver takes, and what it installs
//! connects, keeps the cluster's identity, and says beforehand what would not work.

use std::{
    fs,
    net::{SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use xtask::chart;

use crate::{
    bad_days::{kubectl, until},
    case::{Outcome, run_within},
    only_way::{self, OnlyWay},
    pod::{IMAGE, connected},
    stage::{CLUSTER_AUDIENCE, Proxy, Stage},
    table::{GROUP, TOKEN_LIFETIME, USER, apply_with},
};

/// The release, and the name under which the cluster is enrolled once more.
const NAME: &str = "charted";
const NAMESPACE: &str = "charted";
/// An installation waits for its pods, which connect for 10 s, and its preflight for 60 s at most.
const HELM_WITHIN: Duration = Duration::from_secs(180);

/// helm in one namespace of the cluster.
pub struct Helm<'a> {
    stage: &'a Stage,
    folder: PathBuf,
}

impl<'a> Helm<'a> {
    /// With the agent's image on the node.
    ///
    /// # Errors
    /// If the agent can't be built, or its image not be loaded.
    pub fn set(stage: &'a Stage) -> anyhow::Result<Self> {
        let program = &stage.programs.agent;
        stage.cluster.import_program(IMAGE, program)?;
        let folder = stage.folder().join("chart");
        fs::create_dir_all(&folder)?;
        Ok(Self { stage, folder })
    }

    /// What helm says to some arguments.
    ///
    /// # Errors
    /// If it can't be run.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Outcome> {
        let cluster = &self.stage.cluster;
        let mut helm = Command::new(cluster.programs().path("helm"));
        helm.args(arguments).args(["--namespace", NAMESPACE]).env("KUBECONFIG", cluster.kubeconfig());
        helm.env("HOME", &self.folder).current_dir(&self.folder);
        run_within(helm, HELM_WITHIN)
    }

    /// `helm upgrade --install` with what a test cluster needs otherwise (loopback in place of a pod network, an issuer of its
    /// own), and more values.
    ///
    /// # Errors
    /// If helm can't be run.
    pub fn install(&self, release: &str, more: &[&str]) -> anyhow::Result<Outcome> {
        let values = self.folder.join(format!("{release}-values.yaml"));
        let (repository, tag) = IMAGE.rsplit_once(':').context("an image has a tag")?;
        let text = format!(
            "clusterName: {release}\nimage: {{repository: {repository}, tag: \"{tag}\", pullPolicy: Never}}\nhostNetwork: true\n\
             extraEnv:\n- {{name: KUBERNETES_SERVICE_HOST, value: 127.0.0.1}}\n- {{name: KUBERNETES_SERVICE_PORT, value: \"{}\"}}\n\
             oidc: {{issuerUrl: \"{}\", clientId: {CLUSTER_AUDIENCE}, usernamePrefix: \"-\", groupsClaim: groups, signingAlgs: [ES256]}}\n",
            self.stage.cluster.apiserver_port(),
            self.stage.issuer.url(),
        );
        fs::write(&values, text)?;
        let ca = format!("oidc.ca={}", self.stage.folder().join("issuer-ca.pem").display());
        let (chart, values) = (chart::folder().display().to_string(), values.display().to_string());
        let common = ["upgrade", "--install", release, &chart, "--values", &values, "--set-file", &ca];
        let wait = ["--wait", "--timeout", "120s"];
        self.run(&[&common[..], &wait, more].concat())
    }

    fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.stage.cluster.kubectl_output(&[&["--namespace", NAMESPACE], arguments].concat())
    }

    /// What the release's namespace holds, by kind and name.
    fn objects(&self) -> anyhow::Result<Vec<String>> {
        let kinds = "deployments,jobs,pods,configmaps,secrets,serviceaccounts,roles,rolebindings";
        let namespaced = self.kubectl(&["get", kinds, "-o", "name"])?;
        let everywhere = self.kubectl(&["get", "clusterroles,clusterrolebindings", "-o", "name"])?;
        Ok(namespaced.lines().chain(everywhere.lines()).map(str::to_owned).collect())
    }
}

/// Well, and with these words.
fn says(outcome: &Outcome, words: &[&str]) -> anyhow::Result<()> {
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    ensure!(outcome.ended == "exit 0", "{}: {said}", outcome.ended);
    for word in words {
        ensure!(said.contains(word), "{word} is missing in {said}");
    }
    Ok(())
}

/// Everything that the chart can render is taken by kube-apiserver, and its pods by the pod security standard `restricted`;
/// then it is installed, upgraded, removed and installed again, as one and the same cluster.
///
/// # Errors
/// What is not as it must be.
pub fn run(stage: &Stage) -> anyhow::Result<()> {
    let cluster = &stage.cluster;
    let namespace = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n  labels: {{pod-security.kubernetes.io/warn: restricted}}\n"
    );
    apply_with(cluster, &["apply", "-f", "-"], &namespace)?;
    let helm = Helm::set(stage)?;
    kube_apiserver_takes_it(&helm)?;
    let worked = installed(&helm);
    if worked.is_err() {
        let log = helm.kubectl(&["logs", "--selector=app.kubernetes.io/instance=charted", "--tail=20"]);
        let pods = helm.kubectl(&["describe", "pods"]);
        return worked.with_context(|| format!("the agent's log: {log:?}; its pods: {pods:?}"));
    }
    cluster.kubectl_output(&["delete", "namespace", NAMESPACE, "--wait=false"])?;
    Ok(())
}

/// With each of the chart's own values files, and as strictly as it can.
fn kube_apiserver_takes_it(helm: &Helm<'_>) -> anyhow::Result<()> {
    let mut taken = 0;
    for entry in fs::read_dir(chart::folder().join("ci"))? {
        let file = entry?.path();
        let (chart, values) = (chart::folder().display().to_string(), file.display().to_string());
        let rendered =
            helm.run(&["template", "dry", &chart, "--kube-version=1.36.0", "--values", &values])?;
        says(&rendered, &[])?;
        let manifest = helm.folder.join("dry.yaml");
        fs::write(&manifest, &rendered.stdout)?;
        let mut apply = helm.stage.cluster.kubectl();
        apply.args(["apply", "--dry-run=server", "--validate=strict", "--filename"]).arg(&manifest);
        let outcome = run_within(apply, Duration::from_secs(60))?;
        says(&outcome, &["deployment.apps/", "created (server dry run)"])
            .with_context(|| file.display().to_string())?;
        ensure!(!outcome.stderr.contains("Warning"), "{}: {}", file.display(), outcome.stderr);
        taken += 1;
    }
    ensure!(taken > 4, "{taken} values files");
    // Such warnings would come: from a pod on the node's network.
    let issuer = ["--set", "oidc.issuerUrl=https://issuer.example.com", "--set", "hostNetwork=true"];
    let chart = chart::folder().display().to_string();
    let rendered =
        helm.run(&[&["template", "dry", &chart, "--kube-version=1.36.0"], &issuer[..]].concat())?;
    let manifest = helm.folder.join("dry.yaml");
    fs::write(&manifest, &rendered.stdout)?;
    let mut apply = helm.stage.cluster.kubectl();
    apply.args(["apply", "--dry-run=server", "--filename"]).arg(&manifest);
    let outcome = run_within(apply, Duration::from_secs(60))?;
    ensure!(outcome.stderr.contains("would violate PodSecurity"), "no warning: {}", outcome.stderr);
    Ok(())
}

fn installed(helm: &Helm<'_>) -> anyhow::Result<()> {
    let stage = helm.stage;
    a_preflight_that_fails_changes_nothing(helm)?;
    let token = stage.relay_command(&["enroll", NAME])?;
    let token_file = helm.folder.join("token");
    fs::write(&token_file, &token)?;
    let with_token = format!("enrolment.token={}", token_file.display());
    let outcome = helm.install(NAME, &["--set-file", &with_token])?;
    says(
        &outcome,
        &["STATUS: deployed", "/towline-agent id", "role assign --group GROUP", "--cluster charted"],
    )?;
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    ensure!(!said.contains(token.trim()), "the token is told: {said}");
    let id = connected(stage, NAME)?;
    let told = helm.kubectl(&["exec", "deployment/charted-agent", "--", "/towline-agent", "id"])?;
    ensure!(told.trim() == id, "the agent says it is {told}, and the relay {id}");
    // Of each of the two accounts.
    until(|| {
        let log = helm.kubectl(&["logs", "deployment/charted-agent"])?;
        let proven = log.matches("the account may do what it must, and no more").count();
        ensure!(proven == 2 && !log.contains("TL-IDN-02"), "{proven} accounts are as they must be: {log}");
        Ok(())
    })?;
    let left: Vec<String> =
        helm.objects()?.into_iter().filter(|name| name.contains("charted-preflight")).collect();
    ensure!(left.is_empty(), "the preflight left {left:?}");
    let assign = ["role", "assign", "--user", USER, "--role", "cluster-user", "--cluster", NAME];
    stage.relay_command(&assign)?;
    let proxy = stage.proxy_to(NAME, &id, &stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?)?;
    works(stage, &proxy, &helm.folder)?;
    // An upgrade without the token, with a setting changed: other pods, and the same cluster.
    let before =
        helm.kubectl(&["get", "pods", "-l", "app.kubernetes.io/name=towline-agent", "-o", "name"])?;
    let accounts = format!("impersonation.serviceAccounts={{{NAMESPACE}/deployer}}");
    helm.kubectl(&["create", "serviceaccount", "deployer"])?;
    says(&helm.install(NAME, &["--set", "maxTokenAge=2h", "--set", &accounts])?, &["STATUS: deployed"])?;
    let after = helm.kubectl(&["get", "pods", "-l", "app.kubernetes.io/name=towline-agent", "-o", "name"])?;
    ensure!(after.lines().any(|pod| !before.contains(pod)), "no pod was replaced: {after}");
    ensure!(connected(stage, NAME)? == id, "after an upgrade it is another cluster");
    works(stage, &proxy, &helm.folder)?;
    acts_as_the_account_that_is_named(stage, &proxy)?;
    // Gone and back, without a token.
    says(&helm.run(&["uninstall", NAME, "--wait"])?, &["uninstalled"])?;
    let left: Vec<String> = helm
        .objects()?
        .into_iter()
        .filter(|name| name.contains("charted") && !name.starts_with("pod/"))
        .collect();
    ensure!(left == ["secret/charted-agent-state"], "what is left: {left:?}");
    says(&helm.install(NAME, &[])?, &["STATUS: deployed"])?;
    let told = helm.kubectl(&["exec", "deployment/charted-agent", "--", "/towline-agent", "id"])?;
    ensure!(told.trim() == id, "after all was removed it is another cluster: {told}");
    works(stage, &proxy, &helm.folder)?;
    behind_a_proxy(helm, &id)?;
    works(stage, &proxy, &helm.folder)?;
    says(&helm.run(&["uninstall", NAME, "--wait"])?, &["uninstalled"])
}

/// `kubectl --as` of a service account: of the one in the values, and of no other, whatever the person may do.
fn acts_as_the_account_that_is_named(stage: &Stage, proxy: &Proxy) -> anyhow::Result<()> {
    let whoami = |account: &str| {
        let account = format!("--as=system:serviceaccount:{NAMESPACE}:{account}");
        kubectl(stage, proxy, &["auth", "whoami", "-o", "json", &account])
    };
    let name = format!("system:serviceaccount:{NAMESPACE}:deployer");
    until(|| says(&whoami("deployer")?, &[&name, "towline.dev/original-user", USER]))?;
    let refused = whoami("default")?;
    ensure!(refused.ended == "exit 1", "an account that is not named: {refused:?}");
    Ok(())
}

/// The relay under a name that only a proxy can resolve, which wants to be asked with a password.
fn behind_a_proxy(helm: &Helm<'_>, id: &str) -> anyhow::Result<()> {
    let stage = helm.stage;
    let relay: SocketAddr = stage.relay_address.parse()?;
    ensure!((only_way::HOST, relay.port()).to_socket_addrs().is_err(), "there is another way");
    let proxy = OnlyWay::to(relay)?;
    let credentials = format!("--from-literal=credentials={}", only_way::CREDENTIALS);
    helm.kubectl(&["create", "secret", "generic", "proxy", &credentials])?;
    let (url, ask) = (
        format!("relay.url=https://{}:{}", only_way::HOST, relay.port()),
        format!("proxy.https={}", proxy.url()),
    );
    // The issuer is on loopback.
    let how = "proxy.credentialsSecret=proxy,proxy.skipRange={127.0.0.1}";
    let outcome = helm.install(NAME, &["--set", &url, "--set", &ask, "--set", how])?;
    says(&outcome, &["STATUS: deployed"])?;
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    ensure!(!said.contains("hunter2"), "the proxy's password is told: {said}");
    // The predecessor, which dials directly, is gone: what is connected now came through the proxy.
    helm.kubectl(&["rollout", "status", "deployment/charted-agent", "--timeout=60s"])?;
    until(|| {
        let asked = proxy.asked();
        ensure!(asked.iter().any(|(_, code)| *code == 200), "nobody came through the proxy: {asked:?}");
        ensure!(asked.iter().all(|(_, code)| *code != 403), "somebody asks for another host: {asked:?}");
        Ok(())
    })?;
    ensure!(connected(stage, NAME)? == id, "behind a proxy it is another cluster");
    let log = helm.kubectl(&["logs", "deployment/charted-agent"])?;
    ensure!(!log.contains("hunter2"), "the proxy's password is logged: {log}");
    let person = stage.proxy_to("charted-proxied", id, &stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?)?;
    works(stage, &person, &helm.folder)?;
    drop((person, proxy));
    says(&helm.install(NAME, &[])?, &["STATUS: deployed"])
}

/// Nobody listens where the relay is said to be.
fn a_preflight_that_fails_changes_nothing(helm: &Helm<'_>) -> anyhow::Result<()> {
    let nowhere = ["--set", "relay.url=https://127.0.0.1:1", "--set", "preflight.enabled=true"];
    let outcome = helm.install("doomed", &nowhere)?;
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    ensure!(outcome.ended == "exit 1" && said.contains("failed pre-install"), "{said}");
    // helm shows what the Job's pod said.
    ensure!(said.contains("TL-"), "{said}");
    let there = helm.objects()?;
    let doomed: Vec<&str> = there
        .iter()
        .map(String::as_str)
        .filter(|name| name.contains("doomed") && !name.contains("helm.release"))
        .collect();
    let is_kept = |name: &&str| {
        *name == "secret/doomed-agent-state"
            || name.starts_with("job.batch/doomed-preflight")
            || name.starts_with("pod/doomed-preflight")
    };
    ensure!(doomed.iter().all(is_kept), "it was begun all the same: {doomed:?}");
    says(&helm.run(&["uninstall", "doomed"])?, &["uninstalled"])
}

/// Reads, a stream, and what is long.
fn works(stage: &Stage, proxy: &Proxy, folder: &Path) -> anyhow::Result<()> {
    until(|| {
        let outcome = kubectl(stage, proxy, &["auth", "whoami", "-o", "json"])?;
        says(&outcome, &[USER, GROUP, "system:authenticated"])
    })?;
    says(&kubectl(stage, proxy, &["get", "namespace", NAMESPACE, "-o", "name"])?, &["namespace/charted"])?;
    let logs = ["--namespace", NAMESPACE, "logs", "deployment/charted-agent", "--tail=5"];
    says(&kubectl(stage, proxy, &logs)?, &["{"])?;
    let exec =
        ["--namespace", NAMESPACE, "exec", "deployment/charted-agent", "--", "/towline-agent", "--version"];
    says(&kubectl(stage, proxy, &exec)?, &["towline-agent "]).with_context(|| folder.display().to_string())
}

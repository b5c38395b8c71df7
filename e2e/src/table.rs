//! Every case directly and through towline, and whether the two are equal.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use xtask::cluster::Cluster;

use crate::{
    case::{Case, Outcome, Variant, Way, run_within},
    programs::Programs,
    stage::{Stage, image},
};

/// The user as whom all cases run, and a group of theirs.
pub const USER: &str = "alice";
/// See [`USER`].
pub const GROUP: &str = "e2e-admins";
/// A user who may open the cluster, and may do nothing in it.
pub const RESTRICTED: &str = "bob";
/// Longer than any run of the table.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(2 * 3600);

/// What is to be run.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only the cases whose names contain this.
    pub only: Option<String>,
    /// Only the usual variant of each.
    pub plain: bool,
    /// Only directly: to try the cases themselves.
    pub direct: bool,
    /// Take what comes out directly as what is expected.
    pub bless: bool,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// The case's name.
    pub case: String,
    /// Its title.
    pub title: String,
    /// Its variant; empty for the usual one.
    pub variant: String,
    /// What must come of it, where it is written down.
    pub expected: Option<String>,
    /// What came of it directly.
    pub direct: Outcome,
    /// What came of it through towline.
    pub through: Option<Outcome>,
}

impl Row {
    /// Whether both came out the same.
    pub fn is_equal(&self) -> bool {
        self.through.as_ref().is_none_or(|through| self.direct.is_like(through))
    }

    /// Whether it came out directly as it must: two failures are equal, too.
    pub fn is_expected(&self) -> bool {
        self.expected.as_ref().is_none_or(|expected| *expected == self.direct.as_text())
    }

    /// The line as it is printed; where something differs, with both.
    pub fn print(&self) -> String {
        let seconds = |outcome: &Outcome| format!("{:.1} s", outcome.took.as_secs_f64());
        let through = self.through.as_ref().map_or_else(|| "-".to_owned(), seconds);
        let variant = if self.variant.is_empty() { "" } else { &self.variant };
        let verdict = match (self.is_equal(), self.is_expected()) {
            (false, _) => "DIFFERENT",
            (true, false) => "WRONG",
            (true, true) => "equal",
        };
        let mut line = format!(
            "{:<26} {:<14} {:<9} {:>8} {:>8}   {}",
            self.case,
            variant,
            verdict,
            seconds(&self.direct),
            through,
            self.title
        );
        if let (false, Some(through)) = (self.is_equal(), &self.through) {
            for (name, outcome) in [("direct", &self.direct), ("through", through)] {
                line += &format!(
                    "\n--- {name}: {}\n{}--- its standard error\n{}",
                    outcome.ended, outcome.stdout, outcome.stderr
                );
            }
        }
        if let (false, Some(expected)) = (self.is_expected(), &self.expected) {
            line += &format!(
                "\n--- expected\n{expected}--- direct\n{}--- its standard error\n{}",
                self.direct.as_text(),
                self.direct.stderr
            );
        }
        line
    }
}

/// Prepares the cluster, and runs the selected cases; `told` hears of each row.
///
/// # Errors
/// If something can't be prepared or run; a difference is not an error here.
pub fn run(
    cluster: &Cluster,
    stage: Option<&Stage>,
    selection: &Selection,
    mut told: impl FnMut(&Row),
) -> anyhow::Result<Vec<Row>> {
    let folder = tempfile::Builder::new().prefix("towline-table-").tempdir()?;
    prepare(cluster)?;
    // A run that was killed leaves its namespaces: each has its own, of one length, so that columns are as wide.
    let run = format!("{:08x}", rand_u32());
    let mut ways = vec![direct(cluster, folder.path(), &format!("e2e-{run}-d"))?];
    let _proxies = match stage.filter(|_| !selection.direct) {
        Some(stage) => {
            let (way, proxies) = through(stage, folder.path(), &format!("e2e-{run}-t"))?;
            ways.push(way);
            Some(proxies)
        }
        None => None,
    };
    for way in &ways {
        fs::create_dir_all(way.folder.join("home"))?;
        make_namespace(cluster, &way.namespace)?;
    }
    let variants = variants(cluster, folder.path())?;
    let mut rows = Vec::new();
    for case in Case::all()? {
        if selection.only.as_ref().is_some_and(|only| !case.name.contains(only.as_str())) {
            continue;
        }
        for variant in &variants {
            let usual = variant.name.is_empty();
            let other_kubectl = !usual && !variant.spdy;
            let wanted = usual
                || (!selection.plain
                    && ((variant.spdy && case.also_spdy) || (other_kubectl && case.every_kubectl)));
            if !wanted {
                continue;
            }
            let outcomes = thread::scope(|scope| {
                let case = &case;
                let running: Vec<_> =
                    ways.iter().map(|way| scope.spawn(move || case.run(way, variant, image()))).collect();
                running
                    .into_iter()
                    .map(|run| run.join().map_err(|_| anyhow::anyhow!("a case panicked"))?)
                    .collect()
            });
            let outcomes: anyhow::Result<Vec<Outcome>> = outcomes;
            let mut outcomes = outcomes?.into_iter();
            let direct = outcomes.next().context("a case ran at least directly")?;
            if selection.bless && usual {
                case.write_expected(&direct)?;
            }
            let row = Row {
                // Older kubectls say some things in other words.
                expected: (usual || variant.spdy).then(|| case.expected()).transpose()?,
                case: case.name.clone(),
                title: case.title.clone(),
                variant: variant.name.clone(),
                direct,
                through: outcomes.next(),
            };
            told(&row);
            rows.push(row);
        }
    }
    for way in &ways {
        cluster.kubectl_output(&["delete", "namespace", &way.namespace, "--wait=false"])?;
    }
    Ok(rows)
}

fn rand_u32() -> u32 {
    let key = towline_tunnel::ids::StreamKey::random();
    let [a, b, c, d, ..] = *key.as_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// Gives [`USER`] the right to everything, by their group.
///
/// # Errors
/// If it can't be given.
pub fn grant(cluster: &Cluster) -> anyhow::Result<()> {
    apply(
        cluster,
        &format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: e2e-admins}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}}\n\
         subjects: [{{kind: Group, apiGroup: rbac.authorization.k8s.io, name: {GROUP}}}]\n"
        ),
    )
}

/// Rights of the user, a kind of object without a size of its own, and many objects to list.
fn prepare(cluster: &Cluster) -> anyhow::Result<()> {
    grant(cluster)?;
    apply(
        cluster,
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: blobs.e2e.towline.test}\n\
        spec:\n  group: e2e.towline.test\n  scope: Namespaced\n  names: {kind: Blob, plural: blobs, singular: blob}\n  versions:\n  - name: v1\n    \
        served: true\n    storage: true\n    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}\n",
    )?;
    let have =
        cluster.kubectl_output(&["get", "configmaps", "-n", "many", "-o", "name", "--ignore-not-found"]);
    if have.is_ok_and(|names| names.lines().count() >= 5000) {
        return Ok(());
    }
    apply(cluster, "apiVersion: v1\nkind: Namespace\nmetadata: {name: many}\n")?;
    // kubectl holds itself to 50 requests a second: ten of them are done in ten seconds.
    thread::scope(|scope| {
        let parts: Vec<_> = (0..10)
            .map(|part| {
                scope.spawn(move || {
                    let items: Vec<String> = (0..500)
                        .map(|n| {
                            let name = format!("c{:04}", part * 500 + n);
                            format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}","namespace":"many"}},"data":{{"n":"{name}"}}}}"#)
                        })
                        .collect();
                    apply_with(cluster, &["create", "-f", "-"], &items.join("\n"))
                })
            })
            .collect();
        parts.into_iter().try_for_each(|part| part.join().map_err(|_| anyhow::anyhow!("a part panicked"))?)
    })
}

/// Makes a namespace with a pod `box` that runs.
///
/// # Errors
/// If it can't be made, or the pod does not come up.
pub fn make_namespace(cluster: &Cluster, namespace: &str) -> anyhow::Result<()> {
    apply(
        cluster,
        &format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: box, namespace: {namespace}, labels: {{app: box}}}}\n\
         spec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: box, image: \"{}\", imagePullPolicy: Never, command: [sleep, \"36000\"]}}\n",
            image()
        ),
    )?;
    cluster.kubectl_output(&[
        "wait",
        "-n",
        namespace,
        "pod/box",
        "--for=condition=Ready",
        "--timeout=60s",
    ])?;
    Ok(())
}

fn apply(cluster: &Cluster, yaml: &str) -> anyhow::Result<()> {
    apply_with(cluster, &["apply", "-f", "-"], yaml)
}

/// Makes a namespace, and waits for its account: before that is there, which takes its controller a moment, pods are refused.
///
/// # Errors
/// If it can't be made.
pub fn namespace(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let yaml = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n");
    apply_with(cluster, &["apply", "-f", "-"], &yaml)?;
    cluster.kubectl_output(&[
        "wait",
        "-n",
        name,
        "serviceaccount/default",
        "--for=create",
        "--timeout=30s",
    ])?;
    Ok(())
}

/// kubectl as the administrator, with this on standard input.
///
/// # Errors
/// If it fails.
pub fn apply_with(cluster: &Cluster, arguments: &[&str], input: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut child = cluster
        .kubectl()
        .args(arguments)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("standard input is piped")?;
    let input = input.to_owned();
    // Written beside, so that a kubectl that prints before it has read all is not waited for in vain.
    let writing = thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    let _written = writing.join();
    ensure!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A kubeconfig that leads straight to kube-apiserver, with a client certificate for the user.
///
/// # Errors
/// If it can't be made.
pub fn direct_kubeconfig(
    cluster: &Cluster,
    folder: &Path,
    user: &str,
    groups: &[&str],
) -> anyhow::Result<PathBuf> {
    let certificate = cluster.user_certificate(user, groups)?;
    let base64 = |text: &str| data_encoding::BASE64.encode(text.as_bytes());
    let ca = base64(&fs::read_to_string(cluster.ca_file())?);
    let path = folder.join(format!("{user}.direct.kubeconfig"));
    fs::write(
        &path,
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: direct\ncontexts: [{{name: direct, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: \"{}\", certificate-authority-data: {ca}}}}}]\n\
             users: [{{name: u, user: {{client-certificate-data: {}, client-key-data: {}}}}}]\n",
            cluster.server(),
            base64(&certificate.certificate),
            base64(&certificate.key),
        ),
    )?;
    Ok(path)
}

fn direct(cluster: &Cluster, folder: &Path, namespace: &str) -> anyhow::Result<Way> {
    let folder = folder.join("direct");
    fs::create_dir_all(&folder)?;
    let way = Way {
        name: "direct",
        kubeconfig: direct_kubeconfig(cluster, &folder, USER, &[GROUP])?,
        restricted: direct_kubeconfig(cluster, &folder, RESTRICTED, &[])?,
        namespace: namespace.to_owned(),
        folder,
    };
    set_namespace(cluster, &way)?;
    Ok(way)
}

fn through(stage: &Stage, folder: &Path, namespace: &str) -> anyhow::Result<(Way, [crate::stage::Proxy; 2])> {
    let folder = folder.join("through");
    fs::create_dir_all(&folder)?;
    stage.let_in(USER)?;
    stage.let_in(RESTRICTED)?;
    let user = stage.proxy(USER, &stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?)?;
    let restricted = stage.proxy(RESTRICTED, &stage.tokens(RESTRICTED, &[], TOKEN_LIFETIME)?)?;
    let kubeconfig = folder.join("alice.kubeconfig");
    fs::copy(&user.kubeconfig, &kubeconfig)?;
    let way = Way {
        name: "through",
        kubeconfig,
        restricted: restricted.kubeconfig.clone(),
        namespace: namespace.to_owned(),
        folder,
    };
    set_namespace(&stage.cluster, &way)?;
    Ok((way, [user, restricted]))
}

fn set_namespace(cluster: &Cluster, way: &Way) -> anyhow::Result<()> {
    let mut command = Command::new(cluster.programs().kubectl());
    command.env("KUBECONFIG", &way.kubeconfig).args([
        "config",
        "set-context",
        "--current",
        "--namespace",
        &way.namespace,
    ]);
    let outcome = run_within(command, Duration::from_secs(30))?;
    ensure!(outcome.ended == "exit 0", "kubectl config: {}", outcome.stderr);
    Ok(())
}

fn variants(cluster: &Cluster, folder: &Path) -> anyhow::Result<Vec<Variant>> {
    let informer = Programs::build_informer()?;
    let mut variants = Vec::new();
    for (number, (version, kubectl)) in cluster.programs().kubectls().into_iter().enumerate() {
        let programs = folder.join(format!("kubectl-{version}"));
        fs::create_dir_all(&programs)?;
        symlink(&kubectl, programs.join("kubectl"))?;
        symlink(cluster.programs().path("helm"), programs.join("helm"))?;
        symlink(&informer, programs.join("informer"))?;
        let reads_too_early = reads_too_early(&version);
        let usual = Variant { name: String::new(), programs, spdy: false, reads_too_early, namespace: None };
        if number == 0 {
            variants.push(usual.clone());
            variants.push(Variant { name: "SPDY/3.1".into(), spdy: true, ..usual });
        } else {
            variants.push(Variant { name: format!("kubectl {version}"), ..usual });
        }
    }
    Ok(variants)
}

/// Whether a kubectl of this version (`1.33`) has client-go's race at the begin of a WebSocket session.
fn reads_too_early(version: &str) -> bool {
    version.strip_prefix("1.").and_then(|minor| minor.parse::<u32>().ok()).is_some_and(|minor| minor < 34)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_reads_too_early_before_1_34() {
        assert!(reads_too_early("1.27") && reads_too_early("1.33"));
        assert!(!reads_too_early("1.34") && !reads_too_early("1.36"));
    }
}

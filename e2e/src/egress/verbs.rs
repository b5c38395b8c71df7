//! Seven of kubectl's verbs, at once, and what must come of each: the scripts of `e2e/egress`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::ensure;
use xtask::cluster::Cluster;

use super::route::Route;
use crate::{
    case::{Case, Variant, Way},
    stage::image,
    table::{apply_with, namespace},
};

/// The scripts, as the table heads its columns.
pub(super) const NAMES: [&str; 7] = ["get", "watch", "logs", "exec", "cp", "port-forward", "apply"];
/// Each takes a few seconds; one that hangs is killed and fails.
const WITHIN: Duration = Duration::from_secs(90);

/// What all rows use: a namespace with a pod that writes lines and serves pages.
pub(super) struct Verbs {
    cases: Vec<Case>,
    namespace: String,
    kubectl: PathBuf,
}

impl Verbs {
    /// Makes the namespace and its pod.
    ///
    /// # Errors
    /// If they can't be made, or the pod does not come up.
    pub(super) fn prepare(cluster: &Cluster, name: &str) -> anyhow::Result<Self> {
        let mut cases = Case::of_folder("egress")?;
        cases.sort_by_key(|case| NAMES.iter().position(|name| *name == case.name));
        ensure!(cases.iter().map(|case| case.name.as_str()).eq(NAMES), "there is one script for each verb");
        namespace(cluster, name)?;
        let script = "mkdir -p /var/www && seq 1 20000 > /var/www/numbers && httpd -p 8080 -h /var/www; n=0; \
            while true; do n=$((n+1)); echo line $n; sleep 0.1; done";
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: box, namespace: {name}}}\n\
             spec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - name: box\n    image: \"{}\"\n    imagePullPolicy: Never\n    \
             command: [sh, -c, '{script}']\n",
            image()
        );
        apply_with(cluster, &["apply", "-f", "-"], &pod)?;
        let ready = ["wait", "-n", name, "pod/box", "--for=condition=Ready", "--timeout=60s"];
        cluster.kubectl_output(&ready)?;
        Ok(Self { cases, namespace: name.to_owned(), kubectl: cluster.programs().kubectl() })
    }

    /// The namespace.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// kubectl on this way, in the namespace.
    pub(super) fn kubectl(&self, route: &Route, kubeconfig: &Path) -> std::process::Command {
        let mut command = route.command(&self.kubectl);
        command.env("KUBECONFIG", kubeconfig).args(["-n", &self.namespace]);
        command
    }

    /// Runs all of them at once.
    ///
    /// # Errors
    /// If they can't be run at all. What was not as it must be is told beside each.
    pub(super) fn run(
        &self,
        route: &Route,
        kubeconfig: &Path,
        folder: &Path,
    ) -> anyhow::Result<Vec<(&'static str, anyhow::Result<()>)>> {
        let (programs, home) = (folder.join("programs"), folder.join("home"));
        fs::create_dir_all(&programs)?;
        fs::create_dir_all(&home)?;
        symlink(&self.kubectl, programs.join("kubectl"))?;
        let set = ["config", "set-context", "--current", "--namespace", &self.namespace];
        let outcome = crate::case::run_within(
            {
                let mut command = self.kubectl(route, kubeconfig);
                command.args(set);
                command
            },
            WITHIN,
        )?;
        ensure!(outcome.ended == "exit 0", "kubectl config: {}", outcome.stderr);
        let way = Way {
            name: "egress",
            kubeconfig: kubeconfig.to_owned(),
            restricted: kubeconfig.to_owned(),
            namespace: self.namespace.clone(),
            folder: folder.to_owned(),
        };
        let variant = Variant {
            name: String::new(),
            programs,
            spdy: false,
            reads_too_early: false,
            namespace: route.namespace.clone(),
        };
        let one = |case: &Case| -> anyhow::Result<()> {
            let outcome = case.run_for(&way, &variant, image(), WITHIN)?;
            let (expected, came) = (case.expected()?, outcome.as_text());
            ensure!(came == expected, "{came} where {expected} was due: {}", outcome.stderr);
            Ok(())
        };
        thread::scope(|scope| {
            let running: Vec<_> = self.cases.iter().map(|case| scope.spawn(|| one(case))).collect();
            let ended = running.into_iter().map(|run| run.join().map_err(|_| anyhow::anyhow!("it panicked")));
            NAMES.into_iter().zip(ended).map(|(name, ended)| Ok((name, ended?))).collect()
        })
    }
}

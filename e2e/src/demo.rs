//! `cargo xtask demo`: real kubectl through relay, agent and proxy, before the reader's eyes.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use xtask::{
    cluster::{BUSYBOX_IMAGE, Cluster, Options},
    interrupt,
};

use crate::{case::run_within, process::Process, programs::Programs};

/// Who plays in the demo; what they may do is granted in the cluster.
const USER: &str = "alice";
/// What `towline dev` may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// No step takes longer.
const STEP_WITHIN: Duration = Duration::from_secs(60);

/// Shows kubectl working through towline: each command with its output and its time.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask demo")]
pub struct Arguments {
    /// End after the last step; the exit code is 0 only if each did what it should
    #[arg(long)]
    exit: bool,
    /// A cluster that you already have; otherwise one is made. What the demo makes there is gone when it ends
    #[arg(long, value_name = "FILE", requires = "image")]
    kubeconfig: Option<PathBuf>,
    /// Context of that kubeconfig; its current one if not given
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    context: Option<String>,
    /// The image of the demo's pod: busybox, where your cluster pulls it from (such as busybox:1.37)
    #[arg(long)]
    image: Option<String>,
}

/// One command that is shown.
struct Step {
    title: &'static str,
    command: String,
    /// How it must end.
    code: &'static str,
    /// What its output must have in it.
    shows: &'static str,
}

fn step(title: &'static str, command: impl Into<String>, code: &'static str, shows: &'static str) -> Step {
    Step { title, command: command.into(), code, shows }
}

fn steps(image: &str) -> Vec<Step> {
    vec![
        step("Who am I, as the cluster sees it?", "kubectl auth whoami", "exit 0", USER),
        step("Nodes", "kubectl get nodes", "exit 0", "Ready"),
        step(
            "Apply a pod and wait for it",
            format!(
                "kubectl apply -f - <<'EOF'\napiVersion: v1\nkind: Pod\nmetadata: {{name: box}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
                 containers:\n  - name: box\n    image: {image}\n    imagePullPolicy: IfNotPresent\n    \
                 command: [sh, -c, 'mkdir /www; echo hello from the cluster > /www/index.html; httpd -p 8080 -h /www; \
                 for n in 1 2 3 4 5; do echo line $n; sleep 0.2; done; sleep 3600']\nEOF\n\
                 kubectl wait pod/box --for=condition=Ready --timeout=50s"
            ),
            "exit 0",
            "condition met",
        ),
        step(
            "Watch an object while it changes",
            "kubectl create configmap note --from-literal=n=0\n\
             timeout 2 kubectl get configmap note --watch --output-watch-events -L step &\nsleep 0.5\n\
             kubectl label configmap note step=one\nkubectl label configmap note step=two --overwrite\nwait",
            "exit 0",
            "MODIFIED",
        ),
        step("Follow logs", "timeout 3 kubectl logs -f box || true", "exit 0", "line 5"),
        step(
            "Run a command in the pod, with input and an exit code",
            "echo 'from my terminal' | kubectl exec -i box -- sh -c 'cat; exit 7'",
            "exit 7",
            "from my terminal",
        ),
        step(
            "Copy a file there and back",
            "head -c 20000000 /dev/urandom > there\nkubectl cp there box:/tmp/there\nkubectl cp box:/tmp/there back\n\
             cmp there back && echo 'the same 20 MB'",
            "exit 0",
            "the same 20 MB",
        ),
        step(
            "Forward a port",
            "kubectl port-forward pod/box :8080 > forwarded &\n\
             until grep -q 127.0.0.1 forwarded; do sleep 0.05; done\n\
             port=$(grep -o '127.0.0.1:[0-9]*' forwarded | cut -d: -f2)\n\
             python3 -c \"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:$port').read().decode())\"\n\
             kill %1",
            "exit 0",
            "hello from the cluster",
        ),
        step(
            "What alice may not do is refused by the cluster itself, under her own name",
            "kubectl get secrets -n kube-system",
            "exit 1",
            "\"alice\" cannot list resource \"secrets\"",
        ),
        step(
            "And she can't make herself somebody else whom the cluster's rules don't let her be",
            "kubectl get pods --as=system:admin",
            "exit 1",
            "TL-IDN-020",
        ),
    ]
}

/// Runs the demo; says whether each step did what it should.
///
/// # Errors
/// If the stage can't be set.
pub fn run(arguments: &Arguments, mut say: impl FnMut(&str)) -> anyhow::Result<bool> {
    let begun = Instant::now();
    if arguments.kubeconfig.is_some() {
        let found = Command::new("kubectl").args(["version", "--client"]).output();
        found.context("kubectl is not on PATH: install it, https://kubernetes.io/docs/tasks/tools")?;
    }
    let programs = Programs::build()?;
    let cluster = match &arguments.kubeconfig {
        Some(_) => None,
        None => {
            say("-- A real Kubernetes cluster is started on this machine.");
            let name = format!("demo-{}", std::process::id());
            Some(Cluster::up(&Options { name, node: true, apiserver_arguments: Vec::new() })?)
        }
    };
    let shown = Admin::of(arguments, cluster.as_ref())
        .and_then(|admin| show(arguments, &admin, &programs, begun, &mut say));
    if let Some(cluster) = cluster {
        say("-- The cluster is stopped.");
        cluster.down()?;
    }
    shown
}

/// Whoever administers the cluster.
#[derive(Clone, Debug)]
struct Admin {
    kubeconfig: PathBuf,
    context: Option<String>,
    /// The programs of the cluster that was made; otherwise kubectl is on PATH.
    programs: Option<PathBuf>,
}

impl Admin {
    fn of(arguments: &Arguments, cluster: Option<&Cluster>) -> anyhow::Result<Self> {
        Ok(match (cluster, &arguments.kubeconfig) {
            (Some(cluster), _) => Self {
                kubeconfig: cluster.kubeconfig(),
                context: None,
                programs: Some(cluster.programs().folder().to_owned()),
            },
            (None, Some(file)) => Self {
                kubeconfig: std::path::absolute(file)?,
                context: arguments.context.clone(),
                programs: None,
            },
            (None, None) => bail!("there is neither a cluster nor a kubeconfig"),
        })
    }

    /// What kubectl is found by.
    fn path(&self) -> String {
        let path = std::env::var("PATH").unwrap_or_default();
        self.programs.as_ref().map_or(path.clone(), |folder| format!("{}:{path}", folder.display()))
    }

    fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new("kubectl");
        command.env("PATH", self.path()).env("KUBECONFIG", &self.kubeconfig).args(arguments);
        command.args(self.context.iter().flat_map(|context| ["--context", context]));
        let outcome = run_within(command, STEP_WITHIN)?;
        ensure!(outcome.ended == "exit 0", "kubectl {}: {}", arguments.join(" "), outcome.stderr.trim());
        Ok(())
    }
}

/// What alice may do, and the namespace for it, all of one name; gone on every way out of the demo.
#[derive(Debug)]
struct Rights {
    admin: Admin,
    name: String,
}

impl Rights {
    /// Grants them. Nothing that is there already is changed.
    fn grant(admin: &Admin) -> anyhow::Result<Self> {
        let name = format!("towline-demo-{}", std::process::id());
        // One that is there already is not the demo's to remove.
        admin.kubectl(&["create", "namespace", &name])?;
        let rights = Self { admin: admin.clone(), name: name.clone() };
        let (undoer, undone) = (admin.clone(), name.clone());
        interrupt::promise(&name, move || {
            let _gone = Self::delete(&undoer, &undone);
        })?;
        let user = format!("--user={USER}");
        admin.kubectl(&["create", "rolebinding", USER, "--clusterrole=edit", &user, "--namespace", &name])?;
        admin.kubectl(&["create", "clusterrole", &name, "--verb=get,list", "--resource=nodes"])?;
        let role = format!("--clusterrole={name}");
        admin.kubectl(&["create", "clusterrolebinding", &name, &role, &user])?;
        Ok(rights)
    }

    fn delete(admin: &Admin, name: &str) -> anyhow::Result<()> {
        let [binding, role, namespace] =
            ["clusterrolebinding", "clusterrole", "namespace"].map(|kind| format!("{kind}/{name}"));
        admin.kubectl(&["delete", "--ignore-not-found", "--wait=false", &binding, &role, &namespace])
    }
}

impl Drop for Rights {
    fn drop(&mut self) {
        if let Err(error) = interrupt::keep(&self.name, || Self::delete(&self.admin, &self.name)) {
            eprintln!("-- What the demo made is still there: {error:#}");
        }
    }
}

fn show(
    arguments: &Arguments,
    admin: &Admin,
    programs: &Programs,
    begun: Instant,
    say: &mut impl FnMut(&str),
) -> anyhow::Result<bool> {
    let folder = tempfile::Builder::new().prefix("towline-demo-").tempdir()?;
    let scratch = folder.path().to_owned();
    interrupt::promise("the demo's files", move || {
        let _gone = fs::remove_dir_all(scratch);
    })?;
    let bash = |kubeconfig: &Path, script: &str| {
        let mut command = Command::new("bash");
        command
            .args(["-c", &format!("exec 2>&1; {script}")])
            .env("KUBECONFIG", kubeconfig)
            .env("PATH", admin.path())
            .env("HOME", folder.path())
            .current_dir(folder.path());
        run_within(command, STEP_WITHIN)
    };
    let rights = Rights::grant(admin).context("the rights of the demo can't be granted")?;
    say(&format!(
        "-- As the cluster's administrator: alice may edit what is in the namespace `{}`, and look at nodes.",
        rights.name
    ));
    let kubeconfig = folder.path().join("kubeconfig");
    let context = admin.context.iter().flat_map(|context| ["--context", context]);
    let mut flags = vec!["dev", "--user", USER, "--group", "developers"];
    flags.extend(context);
    say(&format!("$ towline {} --kubeconfig {}", flags.join(" "), admin.kubeconfig.display()));
    let mut command = Command::new(&programs.client);
    command
        .args(flags)
        .arg("--kubeconfig")
        .arg(&admin.kubeconfig)
        .args(["--port", "0", "--write-kubeconfig"])
        .arg(&kubeconfig)
        .arg("--state-dir")
        .arg(folder.path().join("state"));
    let started = Instant::now();
    let mut dev = Process::start("towline dev", &mut command, &folder.path().join("dev.log"))?;
    dev.wait_for(&["ready"], READY_WITHIN)?;
    // Its log is for programs here, and the show for people.
    let said: Vec<String> =
        dev.log().lines().filter(|line| !line.starts_with('{')).map(str::to_owned).collect();
    say(&said.join("\n"));
    say(&format!("   ({:.1} s)\n", started.elapsed().as_secs_f64()));
    let namespaced = bash(
        &kubeconfig,
        &format!("kubectl config set-context --current --namespace={} >/dev/null", rights.name),
    )?;
    ensure!(namespaced.ended == "exit 0", "the context can't be changed: {}", namespaced.stdout);
    let mut all_well = true;
    for Step { title, command, code, shows } in steps(arguments.image.as_deref().unwrap_or(BUSYBOX_IMAGE)) {
        say(&format!("-- {title}\n$ {command}"));
        let outcome = bash(&kubeconfig, &command)?;
        let well = outcome.ended == code && outcome.stdout.contains(shows);
        all_well &= well;
        let verdict = if well { "" } else { "  <-- NOT AS IT SHOULD BE" };
        say(&format!(
            "{}   ({}, {:.2} s){verdict}\n",
            outcome.stdout,
            outcome.ended,
            outcome.took.as_secs_f64()
        ));
    }
    say(&format!("-- {:.0} s in all.", begun.elapsed().as_secs_f64()));
    if !arguments.exit {
        let path = admin.programs.as_ref().map(|folder| format!(" PATH={}:$PATH", folder.display()));
        say(&format!(
            "-- Now you:\n   export KUBECONFIG={}{}\n   kubectl get pods\n-- Press Enter to end.",
            kubeconfig.display(),
            path.unwrap_or_default()
        ));
        let mut line = String::new();
        let _read = std::io::stdin().read_line(&mut line);
    }
    drop(rights);
    let ended = dev.terminate(Duration::from_secs(15)).context("towline dev does not end")?;
    ensure!(ended.success(), "towline dev ended with {ended}:\n{}", dev.log());
    interrupt::keep("the demo's files", || folder.close())?;
    std::io::stderr().flush()?;
    Ok(all_well)
}

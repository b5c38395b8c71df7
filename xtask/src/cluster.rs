//! A real Kubernetes cluster on a bare machine: etcd, kube-apiserver, controller-manager, scheduler, kubelet, containerd.
//!
//! Everything of one cluster lives in one folder under the cache (`clusters/NAME`), on loopback ports chosen free at
//! run time, so that two run side by side. Each process is recorded with its start time before anything waits for
//! it, and so is the process that made the cluster and is to stop it (`owner`): what a run that was killed half-way
//! leaves, the next `up` of any name removes.

pub mod build;
mod control_plane;
mod image;
mod node;
mod owner;
mod pki;
pub(crate) mod process;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Subcommand;
use serde::{Deserialize, Serialize};

use owner::State;
pub use pki::UserCertificate;

use crate::interrupt;

/// The image that pods of tests run: busybox, with links for its applets.
pub const BUSYBOX_IMAGE: &str = "towline.test/busybox:1";

/// Tasks on clusters.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Build the programs into the cache (about 7 minutes, once).
    Build,
    /// Start a cluster and wait until it is ready.
    Up {
        /// Its name; two names run side by side.
        #[arg(long, default_value = "default")]
        name: String,
        /// An apiserver alone, without kubelet and containerd.
        #[arg(long)]
        no_node: bool,
        /// One more flag for kube-apiserver; may be repeated.
        #[arg(long = "apiserver-arg", allow_hyphen_values = true)]
        apiserver_arguments: Vec<String>,
        /// Stop one of that name first, if it runs.
        #[arg(long)]
        replace: bool,
    },
    /// Stop a cluster and remove what it left.
    Down {
        /// Its name.
        #[arg(long, default_value = "default")]
        name: String,
        /// Every cluster that no test or demo uses just now.
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// Show what runs.
    Status,
    /// Print the path of the administrator's kubeconfig.
    Kubeconfig {
        /// The cluster's name.
        #[arg(long, default_value = "default")]
        name: String,
    },
}

/// Runs a task.
///
/// # Errors
/// What is missing or failed, and what to do.
pub fn run(command: ClusterCommand) -> anyhow::Result<ExitCode> {
    match command {
        ClusterCommand::Build => {
            let programs = build::ensure_built()?;
            println!("programs are in {}", programs.folder().display());
        }
        ClusterCommand::Up { name, no_node, apiserver_arguments, replace } => {
            if replace {
                down(&name)?;
            }
            let cluster = Cluster::up(&Options { name, node: !no_node, apiserver_arguments })?;
            // It goes on when this process ends.
            owner::release(&cluster.folder)?;
            println!("export KUBECONFIG={}", cluster.kubeconfig().display());
            println!("export PATH={}:$PATH", cluster.programs.folder().display());
        }
        ClusterCommand::Down { name: _, all: true } => down_all()?,
        ClusterCommand::Down { name, all: false } => {
            down(&name)?;
            println!("cluster {name} is down");
        }
        ClusterCommand::Status => status()?,
        ClusterCommand::Kubeconfig { name } => {
            let up = Cluster::find(&name)?;
            let cluster = up.with_context(|| {
                format!("no cluster {name} is up; start it: cargo xtask cluster up --name {name}")
            })?;
            println!("{}", cluster.kubeconfig().display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name; two names run side by side.
    pub name: String,
    /// With kubelet and containerd, so that pods run.
    pub node: bool,
    /// More flags for kube-apiserver.
    pub apiserver_arguments: Vec<String>,
}

/// What a running cluster is made of; kept in `cluster.json` in its folder.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Record {
    apiserver_port: u16,
    admin_token: String,
}

/// A cluster that runs.
#[derive(Clone, Debug)]
pub struct Cluster {
    folder: PathBuf,
    programs: build::Programs,
    record: Record,
}

fn folder(name: &str) -> anyhow::Result<PathBuf> {
    let plain =
        !name.is_empty() && name.len() <= 20 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    ensure!(plain, "a cluster's name is at most 20 letters, digits and dashes, not {name:?}");
    Ok(clusters().join(name))
}

impl Cluster {
    /// Starts a cluster and waits until it is ready. What runs that were killed left behind is removed first. A signal that
    /// ends this process stops it, and so must whoever called this.
    ///
    /// # Errors
    /// What is missing or failed, and what to do; and if one of that name is up already.
    pub fn up(options: &Options) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let programs = build::ensure_built()?;
        if options.node {
            build::check_node_programs()?;
        }
        let folder = folder(&options.name)?;
        refuse_live(&options.name, &folder)?;
        sweep();
        down(&options.name)?;
        owner::claim(&folder)?;
        let name = options.name.clone();
        interrupt::promise(&promise_of(&name), move || {
            let _cleaned = remove(&name);
        })?;
        let started = Self::start(options, folder, programs);
        if started.is_err() {
            // What was started is stopped; its logs were shown with the error.
            let _cleaned = down(&options.name);
        }
        let cluster = started?;
        eprintln!("cluster {} is ready after {:.1} s", options.name, begun.elapsed().as_secs_f64());
        Ok(cluster)
    }

    fn start(options: &Options, folder: PathBuf, programs: build::Programs) -> anyhow::Result<Self> {
        let pki = pki::Pki::create(&folder)?;
        let mut processes = process::Processes::new(&folder)?;
        let plane =
            control_plane::start(&mut processes, &programs, &folder, &pki, &options.apiserver_arguments)?;
        let cluster = Self {
            record: Record { apiserver_port: plane.port, admin_token: plane.admin_token },
            folder,
            programs,
        };
        cluster.write_kubeconfig(&pki)?;
        // While the apiserver starts, containerd and the image do too.
        let containerd =
            options.node.then(|| node::start_containerd(&mut processes, &cluster.folder)).transpose()?;
        wait_until("kube-apiserver", Duration::from_secs(60), &cluster.log("kube-apiserver"), || {
            cluster.kubectl_output(&["get", "--raw", "/readyz"]).is_ok()
        })?;
        control_plane::start_controllers(&mut processes, &cluster.programs, &cluster.folder)?;
        if let Some(containerd) = containerd {
            node::start_kubelet(&mut processes, &cluster, &containerd)?;
            wait_until("the node", Duration::from_secs(60), &cluster.log("kubelet"), || {
                cluster
                    .kubectl_output(&[
                        "get",
                        "nodes",
                        "-o",
                        "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}",
                    ])
                    .is_ok_and(|status| status.trim() == "True")
            })?;
        }
        wait_until(
            "service accounts",
            Duration::from_secs(30),
            &cluster.log("kube-controller-manager"),
            || cluster.kubectl_output(&["get", "serviceaccount", "default", "-o", "name"]).is_ok(),
        )?;
        fs::write(cluster.folder.join("cluster.json"), serde_json::to_string(&cluster.record)?)?;
        Ok(cluster)
    }

    /// The cluster of this name, if it is up.
    ///
    /// # Errors
    /// If its folder can't be read.
    pub fn find(name: &str) -> anyhow::Result<Option<Self>> {
        let folder = folder(name)?;
        let Ok(text) = fs::read_to_string(folder.join("cluster.json")) else { return Ok(None) };
        let alive = process::recorded(&folder)?
            .iter()
            .any(|process| process.name == "kube-apiserver" && process.is_alive());
        if !alive {
            return Ok(None);
        }
        Ok(Some(Self { record: serde_json::from_str(&text)?, folder, programs: build::ensure_built()? }))
    }

    fn write_kubeconfig(&self, pki: &pki::Pki) -> anyhow::Result<()> {
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: towline-test\n  cluster:\n    server: {}\n    certificate-authority-data: {}\n\
             users:\n- name: admin\n  user:\n    token: {}\ncontexts:\n- name: towline-test\n  context: {{cluster: towline-test, user: admin}}\ncurrent-context: towline-test\n",
            self.server(),
            pki::base64(pki.ca_pem().as_bytes()),
            self.record.admin_token,
        );
        pki::write_private(&self.kubeconfig(), text.as_bytes())
    }

    /// The administrator's kubeconfig (a token of group system:masters).
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// The apiserver's URL.
    pub fn server(&self) -> String {
        format!("https://127.0.0.1:{}", self.record.apiserver_port)
    }

    /// The apiserver's port on loopback.
    pub fn apiserver_port(&self) -> u16 {
        self.record.apiserver_port
    }

    /// The certificate authority of the apiserver and of client certificates (PEM).
    pub fn ca_file(&self) -> PathBuf {
        self.folder.join("pki/ca.pem")
    }

    /// The audit log: one JSON event a line, at level Metadata.
    pub fn audit_log(&self) -> PathBuf {
        self.folder.join("audit.log")
    }

    /// The folder of everything that this cluster has.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The programs it was made of.
    pub fn programs(&self) -> &build::Programs {
        &self.programs
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join("logs").join(format!("{name}.log"))
    }

    /// A client certificate for a user and its groups, as kube-apiserver reads them from CN and O.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn user_certificate(&self, user: &str, groups: &[&str]) -> anyhow::Result<UserCertificate> {
        pki::Pki::open(&self.folder)?.user(user, groups)
    }

    /// Loads a docker-archive into the node.
    ///
    /// # Errors
    /// If containerd refuses it.
    pub fn import_image(&self, archive: &Path) -> anyhow::Result<()> {
        node::import(&self.folder, archive)
    }

    /// An image from scratch that holds one program, with the libraries that it needs, and loads it into the node.
    ///
    /// # Errors
    /// If the program can't be read or containerd refuses the image.
    pub fn import_program(&self, image: &str, program: &Path) -> anyhow::Result<()> {
        let archive = image::of_program(&self.folder, image, program)?;
        self.import_image(&archive)
    }

    /// Stops one of the cluster's processes with -9, as a fault would, and waits until it is gone. [`Cluster::restart_apiserver`]
    /// brings it back.
    ///
    /// # Errors
    /// If no such process is recorded, or it does not end.
    pub fn kill(&self, name: &str) -> anyhow::Result<()> {
        let processes = process::recorded(&self.folder)?;
        let process = processes.iter().rfind(|process| process.name == name && process.is_alive());
        let process = process.with_context(|| format!("{name} does not run"))?;
        process.kill();
        wait_until(name, Duration::from_secs(10), &self.log(name), || process.is_gone())
    }

    /// Starts kube-apiserver again as it was, and waits until it is ready.
    ///
    /// # Errors
    /// If it doesn't become ready.
    pub fn restart_apiserver(&self) -> anyhow::Result<()> {
        process::restart(&self.folder, "kube-apiserver")?;
        wait_until("kube-apiserver", Duration::from_secs(60), &self.log("kube-apiserver"), || {
            self.kubectl_output(&["get", "--raw", "/readyz"]).is_ok()
        })
    }

    /// Has kube-apiserver take people's tokens itself, as this `AuthenticationConfiguration` (`apiserver.config.k8s.io/v1`) says,
    /// and waits until it does: without a restart, and in place of what it took before.
    ///
    /// # Errors
    /// If it does not take it, as where an issuer can't be reached.
    pub fn trust(&self, authentication: &str) -> anyhow::Result<()> {
        let reloads = || -> anyhow::Result<f64> {
            let metrics = self.kubectl_output(&["get", "--raw", "/metrics"])?;
            let counted = metrics.lines().filter(|line| {
                line.starts_with("apiserver_authentication_config_controller_automatic_reloads_total")
                    && line.contains("status=\"success\"")
            });
            Ok(counted.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
        };
        let before = reloads()?;
        process::write(&self.folder.join(control_plane::AUTHENTICATION), authentication)?;
        let what = "kube-apiserver with other issuers";
        wait_until(what, Duration::from_secs(90), &self.log("kube-apiserver"), || {
            reloads().is_ok_and(|now| now > before)
        })
    }

    /// kubectl as the administrator.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(self.programs.kubectl());
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// What kubectl prints.
    ///
    /// # Errors
    /// If it fails; what it said is in the error.
    pub fn kubectl_output(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.kubectl().args(arguments).output().context("kubectl can't be run")?;
        ensure!(
            output.status.success(),
            "kubectl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Stops it and removes its folder.
    ///
    /// # Errors
    /// If something can't be stopped or removed.
    pub fn down(self) -> anyhow::Result<()> {
        down(name_of(&self.folder))
    }
}

/// Stops what the cluster of this name has running, and removes its folder. Fine where there is none.
///
/// # Errors
/// If something can't be stopped or removed.
pub fn down(name: &str) -> anyhow::Result<()> {
    interrupt::keep(&promise_of(name), || remove(name))
}

/// What is promised while this process has a cluster of this name.
fn promise_of(name: &str) -> String {
    format!("cluster {name}")
}

fn remove(name: &str) -> anyhow::Result<()> {
    let folder = folder(name)?;
    if !folder.exists() {
        return Ok(());
    }
    process::stop_all(&folder)?;
    node::clean(&folder)?;
    fs::remove_dir_all(&folder).with_context(|| format!("{} can't be removed", folder.display()))
}

/// Stops every cluster but those that a process still uses.
fn down_all() -> anyhow::Result<()> {
    for folder in all_folders() {
        let name = name_of(&folder);
        match owner::state(&folder)? {
            State::Owned(pid) => println!("cluster {name} is used by process {pid}, and goes on"),
            _ => {
                down(name)?;
                println!("cluster {name} is down");
            }
        }
    }
    Ok(())
}

/// One that runs is not stopped by another that wants its name.
fn refuse_live(name: &str, folder: &Path) -> anyhow::Result<()> {
    let end = format!(
        "take another --name, or stop it: cargo xtask cluster down --name {name} (`up --replace` does both)"
    );
    match owner::state(folder)? {
        State::Owned(pid) => bail!("process {pid} uses a cluster {name}; {end}"),
        State::Runs => bail!("a cluster {name} is up already; {end}"),
        State::Free | State::Left => Ok(()),
    }
}

/// Removes what runs that were killed have left.
fn sweep() {
    for folder in owner::left(&clusters()) {
        let name = name_of(&folder);
        match down(name) {
            Ok(()) => eprintln!("   removed cluster {name}, which was left behind"),
            Err(error) => eprintln!("   cluster {name} was left behind, and can't be removed: {error:#}"),
        }
    }
}

fn clusters() -> PathBuf {
    crate::cache().join("clusters")
}

/// In the order of their names.
fn all_folders() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        fs::read_dir(clusters()).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    all.sort();
    all
}

fn name_of(folder: &Path) -> &str {
    folder.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn status() -> anyhow::Result<()> {
    let mut any = false;
    for folder in all_folders() {
        any = true;
        let name = name_of(&folder);
        match owner::state(&folder)? {
            State::Owned(pid) => println!("{name} (used by process {pid})"),
            State::Runs | State::Free => println!("{name}"),
            State::Left => {
                println!(
                    "{name} (left behind; the next `up` removes it, or: cargo xtask cluster down --name {name})"
                );
            }
        }
        for process in process::recorded(&folder)? {
            println!(
                "  {:<26} pid {:<8} {}",
                process.name,
                process.pid,
                if process.is_alive() { "runs" } else { "is gone" }
            );
        }
    }
    if !any {
        println!("no cluster is up");
    }
    Ok(())
}

/// Polls until it is true.
///
/// # Errors
/// After the deadline, with the end of the log.
fn wait_until(
    what: &str,
    within: Duration,
    log: &Path,
    mut done: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + within;
    while !done() {
        if Instant::now() > deadline {
            let text = fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(15)..].join("\n");
            bail!("{what} is not ready after {} s; the end of {}:\n{end}", within.as_secs(), log.display());
        }
        process::pause(Duration::from_millis(100));
    }
    Ok(())
}

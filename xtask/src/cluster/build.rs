//! The cluster's programs: built once from Go modules into the cache, keyed by version.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};

use super::process::pause;
use crate::needs::{self, Need};

const KUBERNETES: &str = "v1.36.3";
const ETCD: &str = "v3.6.16";
/// A build says this often that it goes on.
const TELL_EVERY: Duration = Duration::from_secs(30);
const HELM: &str = "v3.22.0";

/// Where a program comes from: the folder of its go.mod, its package, its name.
struct Recipe {
    module: &'static str,
    package: &'static str,
    name: &'static str,
    expected: &'static str,
}

const RECIPES: &[Recipe] = &[
    Recipe {
        module: "kubernetes",
        package: "k8s.io/kubernetes/cmd/kube-apiserver",
        name: "kube-apiserver",
        expected: "3-6 min",
    },
    Recipe {
        module: "kubernetes",
        package: "k8s.io/kubernetes/cmd/kube-controller-manager",
        name: "kube-controller-manager",
        expected: "1 min",
    },
    Recipe {
        module: "kubernetes",
        package: "k8s.io/kubernetes/cmd/kube-scheduler",
        name: "kube-scheduler",
        expected: "20 s",
    },
    Recipe {
        module: "kubernetes",
        package: "k8s.io/kubernetes/cmd/kubelet",
        name: "kubelet",
        expected: "1 min",
    },
    Recipe {
        module: "kubernetes",
        package: "k8s.io/kubernetes/cmd/kubectl",
        name: "kubectl",
        expected: "20 s",
    },
    Recipe { module: "etcd", package: "go.etcd.io/etcd/server/v3", name: "etcd", expected: "25 s" },
    Recipe { module: "helm", package: "helm.sh/helm/v3/cmd/helm", name: "helm", expected: "1 min" },
];

/// Debian packages of a node, each with a program that shows it is there.
const NODE_PACKAGES: &[(&str, &str)] = &[
    ("containerd", "/usr/bin/containerd"),
    ("runc", "/usr/sbin/runc"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("busybox-static", "/bin/busybox"),
    ("iproute2", "/sbin/ip"),
];

/// The folder of built programs.
#[derive(Clone, Debug)]
pub struct Programs(PathBuf);

impl Programs {
    /// The folder, for PATH.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// One of them.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// kubectl of the cluster's own version.
    pub fn kubectl(&self) -> PathBuf {
        self.path("kubectl")
    }

    /// Every kubectl that is found, by version: this one, and `kubectl.1.NN` beside the one on PATH.
    pub fn kubectls(&self) -> Vec<(String, PathBuf)> {
        let mut found = vec![("1.36".to_owned(), self.kubectl())];
        let beside = std::env::var_os("PATH")
            .and_then(|path| {
                std::env::split_paths(&path).map(|folder| folder.join("kubectl")).find(|path| path.exists())
            })
            .and_then(|path| path.canonicalize().ok());
        if let Some(folder) = beside.as_deref().and_then(Path::parent) {
            for minor in 27..36 {
                let path = folder.join(format!("kubectl.1.{minor}"));
                if path.exists() {
                    found.push((format!("1.{minor}"), path));
                }
            }
        }
        found
    }
}

fn folder() -> PathBuf {
    crate::cache().join("programs").join(format!("k8s-{KUBERNETES}-etcd-{ETCD}-helm-{HELM}"))
}

fn missing() -> Vec<&'static Recipe> {
    RECIPES.iter().filter(|recipe| !folder().join(recipe.name).exists()).collect()
}

/// The programs, built first where they are not in the cache. A build that another process runs is waited for.
///
/// # Errors
/// What is missing (Go), or which build failed.
pub fn ensure_built() -> anyhow::Result<Programs> {
    if missing().is_empty() {
        return Ok(Programs(folder()));
    }
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| format!("{} can't be made", folder.display()))?;
    let lock = File::create(folder.with_extension("lock"))?;
    if lock.try_lock().is_err() {
        eprintln!("   another process builds the cluster programs; waiting for it");
        wait_for(&lock);
    }
    let missing = missing();
    if missing.is_empty() {
        return Ok(Programs(folder));
    }
    needs::check(&[Need::Go])?;
    for (number, recipe) in missing.iter().enumerate() {
        build(recipe, &folder, number + 1, missing.len())?;
    }
    Ok(Programs(folder))
}

/// Waits while another process builds, and says how far it is.
fn wait_for(lock: &File) {
    let begun = Instant::now();
    let mut told = Instant::now();
    while lock.try_lock().is_err() {
        if told.elapsed() > TELL_EVERY {
            told = Instant::now();
            let left: Vec<&str> = missing().iter().map(|recipe| recipe.name).collect();
            eprintln!("   still to be built after {} s: {}", begun.elapsed().as_secs(), left.join(", "));
        }
        pause(Duration::from_millis(200));
    }
}

/// Whether all programs are in the cache.
pub fn is_built() -> bool {
    missing().is_empty()
}

/// Starts building at low priority, in a process of its own that outlives nothing: [`ensure_built`] waits for it.
///
/// # Errors
/// If it can't be started.
pub fn start_in_background() -> anyhow::Result<()> {
    if missing().is_empty() {
        return Ok(());
    }
    let program = std::env::current_exe().context("this program's own path is unknown")?;
    let log = File::create(crate::cache_folder()?.join("cluster-build.log"))?;
    Command::new("nice")
        .args(["-n", "10"])
        .arg(program)
        .args(["cluster", "build"])
        .current_dir(crate::root())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("the build can't be started")?;
    eprintln!("   {} programs are being built meanwhile", missing().len());
    Ok(())
}

fn build(recipe: &Recipe, folder: &Path, number: usize, of: usize) -> anyhow::Result<()> {
    let begun = Instant::now();
    eprintln!("   [{number}/{of}] building {} (about {})", recipe.name, recipe.expected);
    // A name of its own until it is whole: a build that is killed leaves no half program.
    let partial = folder.join(format!(".{}.{}", recipe.name, std::process::id()));
    let mut version = String::from("-s -w");
    if recipe.module == "kubernetes" {
        for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
            for (key, value) in
                [("gitVersion", KUBERNETES), ("gitMajor", "1"), ("gitMinor", "36"), ("gitTreeState", "clean")]
            {
                version.push_str(&format!(" -X {package}.{key}={value}"));
            }
        }
    }
    let mut child = Command::new("go")
        .args(["build", "-mod=mod", "-trimpath", "-ldflags", &version, "-o"])
        .arg(&partial)
        .arg(recipe.package)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "")
        .current_dir(crate::root().join("xtask/cluster/go").join(recipe.module))
        .stdin(Stdio::null())
        .spawn()
        .context("go can't be run")?;
    let mut told = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if told.elapsed() > TELL_EVERY {
            told = Instant::now();
            eprintln!("   [{number}/{of}] building {}: {} s", recipe.name, begun.elapsed().as_secs());
        }
        pause(Duration::from_millis(200));
    };
    if !status.success() {
        let _gone = fs::remove_file(&partial);
        bail!("building {} failed ({status}); what go said is above", recipe.name);
    }
    fs::rename(&partial, folder.join(recipe.name))?;
    eprintln!("   [{number}/{of}] built {} in {} s", recipe.name, begun.elapsed().as_secs());
    Ok(())
}

/// Root, and the node's Debian packages, installed where they are missing.
///
/// # Errors
/// What is missing and can't be installed, with its fix.
pub fn check_node_programs() -> anyhow::Result<()> {
    needs::check(&[Need::Root])?;
    let missing: Vec<&str> = NODE_PACKAGES
        .iter()
        .filter(|(_, program)| !Path::new(program).exists())
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("   installing Debian packages: {}", missing.join(" "));
    let apt = |arguments: &[&str]| {
        Command::new("apt-get")
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(Stdio::null())
            .stdin(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(&missing);
    ensure!(
        apt(&["update"]) && apt(&install),
        "these packages can't be installed: {}. Install them by hand: apt-get install {}",
        missing.join(" "),
        missing.join(" ")
    );
    Ok(())
}

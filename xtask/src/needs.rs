//! What a machine must have before anything slow begins, and what to do where it hasn't.

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::ensure;

/// One thing that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Go, for Kubernetes and for small programs of the tests.
    Go,
    /// Python 3, which the cases of the table and the demo call.
    Python3,
    /// pip of Python 3, which fetches Autobahn|Testsuite.
    Pip,
    /// Python 2.7, in which Autobahn|Testsuite is written.
    Python2,
    /// Node.js with npm, for a certified OpenID provider.
    Node,
    /// Root, for containers.
    Root,
}

/// What `cargo xtask test` needs, where Autobahn|Testsuite is in the cache or has still to be fetched.
pub fn of_tests() -> Vec<Need> {
    let mut all = vec![Need::Go, Need::Python3, Need::Node, Need::Root];
    if !crate::cache().join("autobahn/complete").exists() {
        all.extend([Need::Pip, Need::Python2]);
    }
    all
}

/// What a cluster with a node needs, whose programs may be in the cache.
pub fn of_cluster() -> Vec<Need> {
    let mut all = vec![Need::Root];
    if !crate::cluster::build::is_built() {
        all.push(Need::Go);
    }
    all
}

/// Fails where something is missing.
///
/// # Errors
/// All that is missing, each with its fix.
pub fn check(needs: &[Need]) -> anyhow::Result<()> {
    let missing: Vec<&str> = needs.iter().filter(|need| !need.is_met()).map(|need| need.fix()).collect();
    ensure!(missing.is_empty(), "this machine lacks something:\n  - {}", missing.join("\n  - "));
    Ok(())
}

impl Need {
    fn is_met(self) -> bool {
        match self {
            Self::Go => runs("go", &["version"]),
            Self::Python3 => runs("python3", &["--version"]),
            Self::Pip => runs("python3", &["-m", "pip", "--version"]),
            Self::Python2 => python2().is_some(),
            Self::Node => node_version().is_some_and(|major| major >= 20) && runs("npm", &["--version"]),
            Self::Root => rustix::process::geteuid().is_root(),
        }
    }

    fn fix(self) -> &'static str {
        match self {
            Self::Go => "Go (`go version` does not run): install Go 1.26 or later, https://go.dev/dl",
            Self::Python3 => "Python 3 (`python3` does not run): apt-get install python3",
            Self::Pip => "pip (`python3 -m pip` does not run): apt-get install python3-pip",
            Self::Python2 => "Python 2.7, on PATH or of pyenv: pyenv install 2.7",
            Self::Node => "Node.js 20 or later with npm (`node`, `npm`): https://nodejs.org",
            Self::Root => {
                "root (containers, mounts, bridges): run as root; an apiserver alone needs none: cargo xtask cluster up --no-node"
            }
        }
    }
}

fn runs(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    output.is_ok_and(|output| output.status.success())
}

/// `v22.1.0` is 22.
fn node_version() -> Option<u32> {
    let output = Command::new("node").arg("--version").stdin(Stdio::null()).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

/// Python 2.7: on PATH, or one of pyenv's.
pub fn python2() -> Option<PathBuf> {
    let versions = env::var_os("PYENV_ROOT").map(PathBuf::from);
    let versions = versions.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".pyenv")));
    let versions = versions.and_then(|root| fs::read_dir(root.join("versions")).ok());
    let of_pyenv =
        versions.into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path().join("bin/python2.7"));
    // pyenv's own `python2.7` on PATH fails where another version is chosen.
    let runs = |python: &PathBuf| python.to_str().is_some_and(|python| runs(python, &["--version"]));
    std::iter::once(PathBuf::from("python2.7")).chain(of_pyenv).find(runs)
}

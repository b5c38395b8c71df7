//! A certified OpenID provider (npm's oidc-provider) for the tests of logging in: installed once into the cache.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

/// Where the provider is.
#[derive(Clone, Debug)]
pub struct Idp {
    /// The library's entry, for `import`.
    pub library: PathBuf,
    /// The program around it.
    pub server: PathBuf,
}

/// The provider; one that another process installs is waited for.
///
/// # Errors
/// If it can't be installed: what is missing.
pub fn ensure() -> anyhow::Result<Idp> {
    let source = crate::root().join("client-proxy/tests/idp");
    let folder = crate::cache_folder()?.join("idp");
    fs::create_dir_all(&folder)?;
    let lock = File::create(folder.with_extension("lock"))?;
    lock.lock()?;
    let complete = folder.join("complete");
    let wanted = fs::read_to_string(source.join("package-lock.json"))?;
    if fs::read_to_string(&complete).is_ok_and(|installed| installed == wanted) {
        return Ok(found(&folder, &source));
    }
    let _stale = fs::remove_file(&complete);
    for name in ["package.json", "package-lock.json"] {
        fs::copy(source.join(name), folder.join(name))?;
    }
    let status = Command::new("npm")
        .args(["ci", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"])
        .current_dir(&folder)
        .stdin(Stdio::null())
        .status()
        .context("npm can't be run; install Node.js 20 or later")?;
    ensure!(status.success(), "npm ci in {} ended with {status}", folder.display());
    fs::write(&complete, wanted)?;
    Ok(found(&folder, &source))
}

fn found(folder: &std::path::Path, source: &std::path::Path) -> Idp {
    Idp { library: folder.join("node_modules/oidc-provider/lib/index.js"), server: source.join("server.mjs") }
}

//! The programs under test, as cargo built them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// towline's programs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `towline-relay`.
    pub relay: PathBuf,
    /// `towline-agent`.
    pub agent: PathBuf,
    /// `towline`.
    pub client: PathBuf,
}

impl Programs {
    /// Builds the programs (nothing to do where they are fresh) beside the one that runs, and says where they are.
    ///
    /// # Errors
    /// If they can't be built.
    pub fn build() -> anyhow::Result<Self> {
        let folder = if cfg!(debug_assertions) {
            xtask::programs::build(&[])
        } else {
            xtask::programs::build_release()
        }?;
        let program = |name: &str| -> anyhow::Result<PathBuf> {
            let path = folder.join(name);
            ensure!(path.exists(), "{} was not built", path.display());
            Ok(path)
        };
        Ok(Self {
            relay: program("towline-relay")?,
            agent: program("towline-agent")?,
            client: program("towline")?,
        })
    }

    /// The same programs, copied into a folder: a long run is not to change with the next build.
    ///
    /// # Errors
    /// If they can't be copied.
    pub fn copied_to(&self, folder: &Path) -> anyhow::Result<Self> {
        let copy = |program: &Path| -> anyhow::Result<PathBuf> {
            let to = folder.join(program.file_name().context("a program has a name")?);
            std::fs::copy(program, &to).with_context(|| to.display().to_string())?;
            Ok(to)
        };
        Ok(Self { relay: copy(&self.relay)?, agent: copy(&self.agent)?, client: copy(&self.client)? })
    }

    /// A client-go informer that writes and watches; its source is `e2e/informer`.
    ///
    /// # Errors
    /// If Go can't build it.
    pub fn build_informer() -> anyhow::Result<PathBuf> {
        let program = xtask::root().join("target/towline/informer");
        let status = std::process::Command::new("go")
            .args(["build", "-mod=mod", "-trimpath", "-o"])
            .arg(&program)
            .arg(".")
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "")
            .current_dir(xtask::root().join("e2e/informer"))
            .status()
            .context("go can't be run")?;
        ensure!(status.success(), "e2e/informer can't be built");
        Ok(program)
    }

    /// The folder that they lie in.
    pub fn folder(&self) -> &Path {
        self.client.parent().unwrap_or(Path::new("/"))
    }
}

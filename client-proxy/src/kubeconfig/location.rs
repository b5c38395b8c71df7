//! Which files a kubeconfig is made of, and which one is written, as kubectl decides it.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use towline_tunnel::fault::{Fault, Report};

/// The files that together are the kubeconfig.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// In order of precedence.
    files: Vec<PathBuf>,
}

impl Location {
    /// This file and no other (kubectl's `--kubeconfig`).
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { files: vec![path.into()] }
    }

    /// What KUBECONFIG says, or `.kube/config` in the home folder.
    ///
    /// # Errors
    /// If neither is set.
    pub fn from_environment() -> Result<Self, Report> {
        Self::of(std::env::var_os("KUBECONFIG").as_deref(), std::env::home_dir().as_deref())
    }

    /// The same, for given values of KUBECONFIG and the home folder.
    ///
    /// # Errors
    /// If neither says anything.
    pub fn of(variable: Option<&OsStr>, home: Option<&Path>) -> Result<Self, Report> {
        let mut files: Vec<PathBuf> = Vec::new();
        for path in variable.map(std::env::split_paths).into_iter().flatten() {
            if !path.as_os_str().is_empty() && !files.contains(&path) {
                files.push(path);
            }
        }
        if files.is_empty() {
            let home = home.filter(|home| !home.as_os_str().is_empty());
            files.push(home.map(|home| home.join(".kube").join("config")).ok_or_else(|| {
                Report::new(
                    Fault::ConfigInvalid,
                    "neither KUBECONFIG nor a home folder is set; use --kubeconfig",
                )
            })?);
        }
        Ok(Self { files })
    }

    /// Every file, in order of precedence.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The file that new contexts are written to: the first that exists, or the last (which is then made).
    pub fn target(&self) -> &Path {
        let existing = self.files.iter().find(|file| file.exists());
        existing.or(self.files.last()).expect("a location has at least one file")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variable: &str) -> Vec<PathBuf> {
        Location::of(Some(OsStr::new(variable)), Some(Path::new("/home/ada"))).unwrap().files
    }

    #[test]
    fn the_variable_lists_files_and_the_home_folder_is_the_fallback() {
        assert_eq!(of("/a:/b"), [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(of("/a::/b:/a"), [PathBuf::from("/a"), PathBuf::from("/b")]);
        for nothing in ["", ":", "::"] {
            assert_eq!(of(nothing), [PathBuf::from("/home/ada/.kube/config")], "{nothing:?}");
        }
        let report = Location::of(None, None).unwrap_err();
        assert_eq!(report.fault, Fault::ConfigInvalid);
    }

    #[test]
    fn the_first_file_that_exists_is_written_and_otherwise_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let location = Location { files: vec![path("a"), path("b"), path("c")] };
        assert_eq!(location.target(), path("c"));
        std::fs::write(path("b"), "").unwrap();
        assert_eq!(location.target(), path("b"));
        std::fs::write(path("a"), "").unwrap();
        assert_eq!(location.target(), path("a"));
    }
}

//! Whether a kubeconfig could be written, without changing anything.

use std::path::{Path, PathBuf};

use towline_tunnel::fault::{Fault, Report};

use super::{Location, file, lock::Lock};

impl Location {
    /// Reads every file, and takes the lock of the one that would be written, which shows that its folder takes files. Returns that file.
    ///
    /// # Errors
    /// If a file is no kubeconfig, the lock stays, or the folder takes no files.
    pub fn check(&self) -> Result<PathBuf, Report> {
        self.names(&[])?;
        let given = self.target();
        let folder = given.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if folder.is_dir() {
            let path = file::resolve(given)?;
            let _lock = Lock::take(given, &path)?;
            return Ok(path);
        }
        // A proxy would make it, where its first ancestor that is there lets it.
        let ancestor = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
        tempfile::tempfile_in(ancestor).map_err(|error| {
            Report::caused_by(Fault::KubeconfigUnwritable, format!("{}: {error}", ancestor.display()), error)
        })?;
        Ok(given.to_path_buf())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_could_not_be_written_is_told_and_nothing_is_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let check = |name: &str| Location::file(path(name)).check();
        check("none").unwrap();
        check("no/such/folder/config").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
        fs::write(path("config"), "apiVersion: v1\nkind: Config\n").unwrap();
        check("config").unwrap();
        assert_eq!(fs::read_to_string(path("config")).unwrap(), "apiVersion: v1\nkind: Config\n");
        assert_eq!(check("config/below/it").unwrap_err().fault, Fault::KubeconfigUnreadable);
        fs::write(path("no-yaml"), "{").unwrap();
        assert_eq!(check("no-yaml").unwrap_err().fault, Fault::KubeconfigUnreadable);
        fs::write(path("config.lock"), "").unwrap();
        let report = check("config").unwrap_err();
        assert_eq!(report.fault, Fault::KubeconfigUnwritable);
        assert!(report.to_string().contains("config.lock"), "{report}");
    }
}

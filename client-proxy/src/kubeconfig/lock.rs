//! kubectl's own lock: whoever creates `<file>.lock` may write, and removes it afterwards.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use towline_tunnel::fault::{Fault, Report};

/// Whoever holds the lock writes one small file; longer than this means that it was left behind.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(25);

/// The lock files that this process made; removed when dropped.
#[derive(Debug)]
pub(super) struct Lock(Vec<PathBuf>);

impl Lock {
    /// Locks a file as kubectl would, under the name it was given and, where that is a link, the name it leads to.
    ///
    /// # Errors
    /// If the lock stays, or can't be made.
    pub(super) fn take(given: &Path, resolved: &Path) -> Result<Self, Report> {
        Self::take_within(given, resolved, PATIENCE)
    }

    pub(super) fn take_within(given: &Path, resolved: &Path, patience: Duration) -> Result<Self, Report> {
        let mut names = vec![lock_name(&in_real_folder(given)), lock_name(resolved)];
        // One order for everybody, so that two who want both never wait for each other.
        names.sort();
        names.dedup();
        let deadline = Instant::now() + patience;
        let mut lock = Self(Vec::new());
        for name in names {
            create(&name, deadline)?;
            lock.0.push(name);
        }
        Ok(lock)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        for name in &self.0 {
            if let Err(error) = fs::remove_file(name) {
                tracing::warn!(lock = %name.display(), %error, "a kubeconfig lock stays behind");
            }
        }
    }
}

/// The file in its folder's own name: a relative path, or one through a link, is no other lock than the plain one.
fn in_real_folder(file: &Path) -> PathBuf {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (fs::canonicalize(folder), file.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => file.to_owned(),
    }
}

fn lock_name(file: &Path) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(".lock");
    name.into()
}

fn create(name: &Path, deadline: Instant) -> Result<(), Report> {
    loop {
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(name) {
            Ok(_made) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if Instant::now() >= deadline {
                    let what = "is there: another program is writing, or one that was killed left it";
                    return Err(Report::new(
                        Fault::KubeconfigUnwritable,
                        format!("{} {what}; if none runs, remove it", name.display()),
                    ));
                }
                sleep();
            }
            Err(error) => {
                return Err(Report::caused_by(
                    Fault::KubeconfigUnwritable,
                    format!("its lock {} can't be made: {error}", name.display()),
                    error,
                ));
            }
        }
    }
}

/// kubectl's lock is a file that appears and goes: there is nothing to wait on.
#[expect(clippy::disallowed_methods, reason = "callers are on threads of their own, never on the runtime's")]
fn sleep() {
    thread::sleep(POLL);
}

//! What is made of files, and made anew when they change: rotation needs no restart.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use towline_tunnel::fault::Report;
use tracing::warn;

/// Which content a file has, without reading it. A mounted volume rotates by switching a symlink: another inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// A value made of files. A look at their metadata decides whether it is made anew; files of a service account are
/// small and in memory, so that this is done where a request waits.
#[derive(Debug)]
pub(super) struct Followed<T> {
    files: Vec<PathBuf>,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    stamps: Vec<Option<Stamp>>,
    value: T,
}

impl<T: Clone> Followed<T> {
    /// Makes it for the first time.
    pub(super) fn new(files: Vec<PathBuf>, make: impl FnOnce() -> Result<T, Report>) -> Result<Self, Report> {
        let stamps = files.iter().map(|file| Stamp::of(file)).collect();
        Ok(Self { state: Mutex::new(State { stamps, value: make()? }), files })
    }

    /// The value as the files are now; the last good one while they can't be used.
    pub(super) fn current(&self, make: impl FnOnce() -> Result<T, Report>) -> T {
        let stamps: Vec<_> = self.files.iter().map(|file| Stamp::of(file)).collect();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.stamps != stamps {
            // Noted before reading: a change in between is seen next time. A failure is told once for each change.
            state.stamps = stamps;
            match make() {
                Ok(value) => state.value = value,
                Err(report) => {
                    warn!(%report, "changed files can't be used; what they held before stays in use")
                }
            }
        }
        state.value.clone()
    }
}

#[cfg(test)]
mod tests {
    use towline_tunnel::fault::Fault;

    use super::*;

    #[test]
    fn a_change_is_followed_and_the_last_good_value_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let make = || {
            fs::read_to_string(&path)
                .ok()
                .filter(|text| !text.is_empty())
                .ok_or_else(|| Report::from(Fault::AgentCredential))
        };
        assert!(Followed::new(vec![path.clone()], make).is_err());
        fs::write(&path, "one").unwrap();
        let followed = Followed::new(vec![path.clone()], make).unwrap();
        assert_eq!(followed.current(|| unreachable!("nothing changed")), "one");
        for (content, seen) in [("second", "second"), ("", "second"), ("third", "third")] {
            // As a kubelet does: another file takes the name.
            fs::write(folder.path().join("next"), content).unwrap();
            fs::rename(folder.path().join("next"), &path).unwrap();
            assert_eq!(followed.current(make), seen);
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(followed.current(make), "third");
    }
}

//! The relay's folder: made for its user alone, and served from by one process at a time.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use towline_tunnel::fault::{Fault, Report};

/// Locked by the relay that serves; holds its process id.
const LOCK: &str = "serving.lock";
/// Whoever asks whether a relay serves holds the lock for a moment, and a relay that was just ended may need one, too.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The right to serve from a folder, until it is dropped or the process ends, however it does.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "the lock is held for as long as the file is open")] File);

impl Claim {
    /// Makes the folder where there is none, readable for its user only, and claims it.
    ///
    /// # Errors
    /// If another process serves from it, or it can't be written.
    pub async fn take(data_dir: &Path) -> Result<Self, Report> {
        let unwritable = |path: &Path, error: io::Error| {
            Report::caused_by(Fault::FileUnwritable, path.display().to_string(), error)
        };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
        made.map_err(|error| unwritable(data_dir, error))?;
        let path = lock_file(data_dir);
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = open.map_err(|error| unwritable(&path, error))?;
        let until = Instant::now() + GIVEN_UP_WITHIN;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < until => sleep(LOOK_EVERY).await,
                Err(TryLockError::WouldBlock) => return Err(in_use(data_dir, &mut file)),
                Err(TryLockError::Error(error)) => return Err(unwritable(&path, error)),
            }
        }
        let noted = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        noted.map_err(|error| unwritable(&path, error))?;
        Ok(Self(file))
    }
}

fn in_use(data_dir: &Path, file: &mut File) -> Report {
    let mut pid = String::new();
    let read = file.take(20).read_to_string(&mut pid);
    let by = match pid.trim() {
        pid if read.is_ok() && !pid.is_empty() => format!(", by process {pid}"),
        _ => String::new(),
    };
    Report::new(Fault::DataDirInUse, format!("{}{by}", data_dir.display()))
}

/// Whether a relay serves from the folder now.
pub fn is_served(data_dir: &Path) -> bool {
    let Ok(file) = fs::File::open(lock_file(data_dir)) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

fn lock_file(data_dir: &Path) -> PathBuf {
    data_dir.join(LOCK)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn a_folder_is_served_by_one_and_by_the_next_once_that_has_gone() {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("a/relay");
        assert!(!is_served(&folder));
        let claim = Claim::take(&folder).await.unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(is_served(&folder) && is_served(&folder));
        let refused = Claim::take(&folder).await.unwrap_err();
        assert_eq!(refused.fault, Fault::DataDirInUse);
        let said = refused.to_string();
        assert!(said.contains(&std::process::id().to_string()) && said.contains("a/relay"), "{said}");
        drop(claim);
        assert!(!is_served(&folder));
        Claim::take(&folder).await.unwrap();
    }

    #[tokio::test]
    async fn who_only_asks_does_not_keep_a_relay_from_starting() {
        let folder = tempfile::tempdir().unwrap();
        drop(Claim::take(folder.path()).await.unwrap());
        let asks = File::open(lock_file(folder.path())).unwrap();
        asks.lock_shared().unwrap();
        let (claim, ()) = tokio::join!(Claim::take(folder.path()), async { drop(asks) });
        claim.unwrap();
    }
}

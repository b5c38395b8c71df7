//! Reading and replacing one kubeconfig file.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown},
    path::{Path, PathBuf},
};

use towline_tunnel::fault::{Fault, Report};

/// Far above any kubeconfig; whatever is longer is something else.
const LONGEST: u64 = 16 << 20;

fn unreadable(path: &Path, why: impl std::fmt::Display) -> Report {
    Report::new(Fault::KubeconfigUnreadable, format!("{}: {why}", path.display()))
}

fn unwritable(path: &Path, error: io::Error) -> Report {
    Report::caused_by(Fault::KubeconfigUnwritable, format!("{}: {error}", path.display()), error)
}

/// Where a path leads: through symbolic links, which stay what they are. A file that is not there leads to itself.
///
/// # Errors
/// If it is a link that leads nowhere, or can't be followed.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, Report> {
    match fs::canonicalize(path) {
        Ok(real) => Ok(real),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if fs::symlink_metadata(path).is_ok() {
                return Err(unreadable(path, "a symbolic link that leads nowhere"));
            }
            // The folder may be a link; the lock and the temporary file belong where the file will be.
            match (path.parent().filter(|parent| !parent.as_os_str().is_empty()), path.file_name()) {
                (Some(parent), Some(name)) => {
                    Ok(fs::canonicalize(parent)
                        .map_or_else(|_| path.to_path_buf(), |parent| parent.join(name)))
                }
                _ => Ok(path.to_path_buf()),
            }
        }
        Err(error) => Err(unreadable(path, error)),
    }
}

/// The file's text; none where there is no file.
///
/// # Errors
/// If it can't be read, is no regular file, or is not text.
pub(super) fn read(path: &Path) -> Result<Option<String>, Report> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(path, error)),
    };
    let about = file.metadata().map_err(|error| unreadable(path, error))?;
    if about.is_dir() {
        return Err(unreadable(path, "a folder"));
    }
    if about.len() > LONGEST {
        return Err(unreadable(path, "larger than any kubeconfig"));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes).map_err(|error| unreadable(path, error))?;
    String::from_utf8(bytes).map(Some).map_err(|_| unreadable(path, "not UTF-8 text"))
}

/// Makes the folder that the file will stand in.
///
/// # Errors
/// If it can't be made.
pub(super) fn make_folder(path: &Path) -> Result<(), Report> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(|error| unwritable(path, error)),
        None => Ok(()),
    }
}

/// Replaces the file as a whole: a reader, or a crash at any moment, finds the old text or the new one. The caller
/// holds the lock. The file keeps its owner and gets mode 0600.
///
/// # Errors
/// If it can't be written; the old file then stands untouched.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), Report> {
    let temporary = temporary_name(path);
    // Only a process that was killed while it held the lock can have left one.
    let _stale = fs::remove_file(&temporary);
    let written = write_beside(path, &temporary, text);
    if written.is_err() {
        let _gone = fs::remove_file(&temporary);
    }
    written.map_err(|error| unwritable(path, error))
}

fn write_beside(path: &Path, temporary: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    file.write_all(text.as_bytes())?;
    if let Ok(old) = fs::metadata(path) {
        let new = file.metadata()?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            chown(temporary, Some(old.uid()), Some(old.gid()))?;
        }
    }
    file.sync_all()?;
    fs::rename(temporary, path)?;
    sync_folder(path)
}

/// Takes away a file that this process made.
///
/// # Errors
/// If it can't be removed.
pub(super) fn remove(path: &Path) -> Result<(), Report> {
    fs::remove_file(path).and_then(|()| sync_folder(path)).map_err(|error| unwritable(path, error))
}

/// The rename itself survives a power cut only once the folder is on disk.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".towline-new");
    path.with_file_name(name)
}

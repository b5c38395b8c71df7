//! The folder that keeps keys and what was agreed to: 0700, its files 0600.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use towline_tunnel::{
    fault::{Fault, Report},
    ids::{ClusterId, StreamKey},
    session::message::Secret,
};

/// No file in here comes near this.
const LONGEST: u64 = 1 << 20;

/// The state folder of one user.
#[derive(Clone, Debug)]
pub struct StateFolder(PathBuf);

impl StateFolder {
    /// Where it is unless somebody says otherwise: `towline` in `XDG_STATE_HOME` or `~/.local/state`.
    ///
    /// # Errors
    /// If neither that variable nor a home folder is set.
    pub fn default_path() -> Result<PathBuf, Report> {
        let absolute = |path: &PathBuf| path.is_absolute();
        std::env::var_os("XDG_STATE_HOME")
            .map(PathBuf::from)
            .filter(absolute)
            .or_else(|| std::env::home_dir().filter(absolute).map(|home| home.join(".local").join("state")))
            .map(|base| base.join("towline"))
            .ok_or_else(|| Report::new(Fault::ConfigInvalid, "no home folder is set; use --state-dir"))
    }

    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// If it can't be made, belongs to somebody else, or others may look inside.
    pub fn open(path: &Path) -> Result<Self, Report> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| Report::caused_by(Fault::FileUnwritable, path.display().to_string(), error))?;
        let about = fs::metadata(path)
            .map_err(|error| Report::caused_by(Fault::FileUnreadable, path.display().to_string(), error))?;
        let unsafe_to_use = |why: &str| {
            Report::new(Fault::FileUnreadable, format!("the state folder {} {why}", path.display()))
        };
        if about.uid() != rustix::process::geteuid().as_raw() {
            return Err(unsafe_to_use("belongs to another user"));
        }
        if about.mode() & 0o077 != 0 {
            return Err(unsafe_to_use("can be opened by others; chmod 700 it"));
        }
        Ok(Self(path.to_path_buf()))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file's content; none where there is no file.
    ///
    /// # Errors
    /// If it can't be read, or others than its owner may.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Secret>, Report> {
        let path = self.0.join(name);
        let failed =
            |error: io::Error| Report::caused_by(Fault::FileUnreadable, path.display().to_string(), error);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
            let why = "holds a secret and can be read by others; remove it";
            return Err(Report::new(Fault::FileUnreadable, format!("{} {why}", path.display())));
        }
        let mut bytes = Vec::new();
        file.take(LONGEST).read_to_end(&mut bytes).map_err(failed)?;
        Ok(Some(Secret::new(bytes)))
    }

    /// Replaces a file, whole or not at all.
    ///
    /// # Errors
    /// If it can't be written.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Report> {
        let path = self.0.join(name);
        let temporary = self.0.join(format!(".{name}.{}", StreamKey::random()));
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|error| {
            let _gone = fs::remove_file(&temporary);
            Report::caused_by(Fault::FileUnwritable, path.display().to_string(), error)
        })
    }

    /// Removes a file; whether there was one.
    ///
    /// # Errors
    /// If it can't be removed.
    pub(crate) fn remove(&self, name: &str) -> Result<bool, Report> {
        let path = self.0.join(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Report::caused_by(Fault::FileUnwritable, path.display().to_string(), error)),
        }
    }

    /// Held while files are looked at and made, so that two processes make one authority between them.
    pub(super) fn lock(&self) -> Result<File, Report> {
        let file = self.lock_file("lock")?;
        file.lock()
            .map_err(|error| Report::caused_by(Fault::FileUnwritable, self.0.display().to_string(), error))?;
        Ok(file)
    }

    /// Says that this process serves a cluster. The lock goes with the process, however it ends.
    ///
    /// # Errors
    /// If another process serves it.
    pub fn serve(&self, cluster: ClusterId, name: &str) -> Result<ServingLock, Report> {
        self.hold(&format!("{cluster}.serving"))?.map_err(|holder| {
            let holder = if holder.is_empty() { holder } else { format!(", process {holder}") };
            Report::new(Fault::ProxyAlreadyRuns, format!("{name}{holder}"))
        })
    }

    /// Says that this process listens on a port, or is about to; none where another process with this folder does.
    ///
    /// # Errors
    /// If there can be no lock.
    pub fn listen(&self, port: u16) -> Result<Option<ServingLock>, Report> {
        Ok(self.hold(&format!("{port}.port"))?.ok())
    }

    /// Locks a file, or says which process has locked it, as far as that is known.
    fn hold(&self, file_name: &str) -> Result<Result<ServingLock, String>, Report> {
        let path = self.0.join(file_name);
        let failed =
            |error: io::Error| Report::caused_by(Fault::FileUnwritable, self.0.display().to_string(), error);
        loop {
            let mut file = self.lock_file(file_name)?;
            match file.try_lock() {
                // Whoever had it removed it meanwhile: the next one makes another.
                Ok(()) if !is_at(&file, &path).map_err(failed)? => {}
                Ok(()) => {
                    file.set_len(0).map_err(failed)?;
                    writeln!(file, "{}", std::process::id()).map_err(failed)?;
                    return Ok(Ok(ServingLock { _file: file, path }));
                }
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    let _unknown = file.rewind().and_then(|()| file.read_to_string(&mut holder));
                    return Ok(Err(holder.trim().to_owned()));
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
    }

    /// A file to lock.
    pub(crate) fn lock_file(&self, name: &str) -> Result<File, Report> {
        let path = self.0.join(name);
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Report::caused_by(Fault::FileUnwritable, path.display().to_string(), error))
    }
}

/// Whether the file is still the one with this name.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(found) => Ok(found.ino() == file.metadata()?.ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Held for as long as a process serves a cluster, or listens on a port.
#[derive(Debug)]
pub struct ServingLock {
    _file: File,
    path: PathBuf,
}

impl Drop for ServingLock {
    /// Nobody else removes it, or locks another one in its place, before the file is closed, which is after this.
    fn drop(&mut self) {
        let _stays = fs::remove_file(&self.path);
    }
}

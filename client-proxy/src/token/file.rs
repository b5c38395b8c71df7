//! A token in a file that somebody else writes: read again when it changes.

use std::{
    fs::{self, File, Metadata},
    io::Read as _,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use towline_tunnel::{
    fault::{Fault, Report},
    session::message::{MAX_TOKEN, Secret},
};

use super::{Purpose, Token};

/// What tells one content of a file from the next without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    inode: u64,
    changed: (i64, i64),
    length: u64,
}

impl Fingerprint {
    fn of(about: &Metadata) -> Self {
        Self { inode: about.ino(), changed: (about.ctime(), about.ctime_nsec()), length: about.len() }
    }
}

/// A file that holds one token.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    purpose: Purpose,
    read: Mutex<Option<(Fingerprint, Token)>>,
}

impl TokenFile {
    /// The token in this file; nothing is read yet.
    pub fn new(path: PathBuf, purpose: Purpose) -> Self {
        Self { path, purpose, read: Mutex::new(None) }
    }

    /// The token, whether or not its time is over.
    ///
    /// # Errors
    /// If the file can't be read or does not hold one token.
    pub fn token(&self) -> Result<Token, Report> {
        let about = fs::metadata(&self.path).map_err(|error| self.unusable(&error.to_string()))?;
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let fingerprint = Fingerprint::of(&about);
        if let Some((of, token)) = read.as_ref().filter(|(of, _)| *of == fingerprint) {
            let _same = of;
            return Ok(token.clone());
        }
        let mut text = String::new();
        File::open(&self.path)
            .and_then(|file| file.take(4 * MAX_TOKEN as u64).read_to_string(&mut text))
            .map_err(|error| self.unusable(&error.to_string()))?;
        let secret = Secret::new(text);
        let token = secret
            .reveal_text()
            .and_then(Token::parse)
            .ok_or_else(|| self.unusable("it does not hold exactly one token"))?;
        *read = Some((fingerprint, token.clone()));
        Ok(token)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn unusable(&self, why: &str) -> Report {
        let detail = format!("{} {}: {why}", self.purpose.name(), self.path.display());
        Report::new(Fault::TokenFileUnusable, detail)
    }
}

//! A file that is appended to, and moved aside when it is large.
//!
//! Of the crates that do this, those that were looked at (file-rotate 0.8, rolling-file 0.2) go on without a word where a file can't be
//! opened, which an audit log must not.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::PathBuf,
};

use super::FileSettings;

/// See the module's text.
#[derive(Debug)]
pub(super) struct RotatingFile {
    settings: FileSettings,
    /// None where the last attempt to open it failed.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    inode: u64,
    length: u64,
}

impl RotatingFile {
    /// Appends to what is there.
    pub(super) fn open(settings: FileSettings) -> io::Result<Self> {
        let open = Some(open(&settings)?);
        Ok(Self { settings, open })
    }

    fn older(&self, number: u32) -> PathBuf {
        let mut path = self.settings.path.clone().into_os_string();
        path.push(format!(".{number}"));
        path.into()
    }

    fn rotate(&self) -> io::Result<()> {
        for number in (1..self.settings.keep).rev() {
            rename(&self.older(number), &self.older(number + 1))?;
        }
        if self.settings.keep > 0 {
            rename(&self.settings.path, &self.older(1))
        } else {
            fs::remove_file(&self.settings.path)
        }
    }

    /// The file that the next line goes to.
    fn current(&mut self, line: u64) -> io::Result<&mut Open> {
        // Somebody else may have moved it away: logrotate, a person.
        let is_there =
            |open: &Open| fs::metadata(&self.settings.path).is_ok_and(|found| found.ino() == open.inode);
        match self.open.take() {
            Some(held) if is_there(&held) => {
                if held.length == 0 || held.length.saturating_add(line) <= self.settings.max_bytes {
                    return Ok(self.open.insert(held));
                }
                self.rotate()?;
            }
            _ => {}
        }
        let opened = open(&self.settings)?;
        Ok(self.open.insert(opened))
    }
}

fn open(settings: &FileSettings) -> io::Result<Open> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&settings.path)?;
    let about = file.metadata()?;
    Ok(Open { file, inode: about.ino(), length: about.len() })
}

/// What is not there need not be moved.
fn rename(from: &PathBuf, to: &PathBuf) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

impl Write for RotatingFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let open = self.current(line.len() as u64)?;
        if let Err(error) = open.file.write_all(line) {
            // A part of it may stand there, which the next line would follow. What can't be taken back is a file's end.
            if open.file.set_len(open.length).is_err() {
                self.open = None;
            }
            return Err(error);
        }
        open.length += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(folder: &tempfile::TempDir, keep: u32) -> RotatingFile {
        let path = folder.path().join("audit.log");
        RotatingFile::open(FileSettings { path, max_bytes: 10, keep }).unwrap()
    }

    fn texts(folder: &tempfile::TempDir) -> Vec<(String, String)> {
        let mut all: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600);
                (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn a_line_is_not_divided_and_the_oldest_files_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = file(&folder, 2);
        for line in ["one\n", "two\n", "three is longer than a file\n", "four\n", "five\n"] {
            file.write_all(line.as_bytes()).unwrap();
        }
        let named = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        assert_eq!(
            texts(&folder),
            [
                named("audit.log", "four\nfive\n"),
                named("audit.log.1", "three is longer than a file\n"),
                named("audit.log.2", "one\ntwo\n"),
            ]
        );
        file.write_all(b"six\n").unwrap();
        assert_eq!(texts(&folder)[2], named("audit.log.2", "three is longer than a file\n"));
        drop(file);
        let mut again = self::file(&folder, 2);
        again.write_all(b"7\n").unwrap();
        assert_eq!(texts(&folder)[0], named("audit.log", "six\n7\n"));
    }

    #[test]
    fn one_that_was_moved_away_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = file(&folder, 0);
        file.write_all(b"one\n").unwrap();
        fs::rename(folder.path().join("audit.log"), folder.path().join("elsewhere")).unwrap();
        file.write_all(b"two\n").unwrap();
        assert_eq!(texts(&folder)[0].1, "two\n");
        file.write_all(b"three three\n").unwrap();
        assert_eq!(texts(&folder)[0].1, "three three\n");
    }

    #[test]
    fn a_folder_that_is_gone_is_an_error_and_one_that_is_back_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("logs");
        fs::create_dir(&inside).unwrap();
        let path = inside.join("audit.log");
        let mut file = RotatingFile::open(FileSettings { path, max_bytes: 10, keep: 1 }).unwrap();
        fs::remove_dir_all(&inside).unwrap();
        assert!(file.write_all(b"one\n").is_err());
        fs::create_dir(&inside).unwrap();
        file.write_all(b"two\n").unwrap();
        assert_eq!(fs::read_to_string(inside.join("audit.log")).unwrap(), "two\n");
    }
}

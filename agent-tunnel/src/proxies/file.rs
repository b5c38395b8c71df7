//! A file with the settings of the outbound proxy (TOML): the keys of a client's profile, for agents. It is read once, at the start.

use std::{
    fs::File,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::Spanned;
use towline_tunnel::{
    egress::{Origin, ProxyArgs, ProxyText},
    fault::{Fault, Report},
    session::message::Secret,
};

/// No such file is larger; a long skip range has its place in it.
const MAX_FILE: u64 = 64 << 10;
/// What a file may say, by the names of the flags.
const KEYS: [&str; 5] =
    ["proxy-https", "proxy-http", "proxy-skip-range", "proxy-cert", "proxy-credentials-file"];

/// Settings of a file, and on which lines they stand.
#[derive(Debug)]
pub(super) struct ProxyFile {
    path: PathBuf,
    args: ProxyArgs,
    lines: [Option<usize>; KEYS.len()],
    /// Who has no account here can read a password in it.
    is_readable_by_all: bool,
}

/// As it is written.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Document {
    proxy_https: Option<Spanned<ProxyText>>,
    proxy_http: Option<Spanned<ProxyText>>,
    proxy_skip_range: Option<Spanned<String>>,
    proxy_cert: Option<Spanned<PathBuf>>,
    proxy_credentials_file: Option<Spanned<PathBuf>>,
}

impl ProxyFile {
    /// Reads it. Relative paths in it start at its folder.
    ///
    /// # Errors
    /// If it can't be read, says something else, or holds or names a password and can be written by others.
    pub(super) fn read(path: &Path) -> Result<Self, Report> {
        let place = || format!("--proxy-config {}", path.display());
        let unreadable = |error| Report::caused_by(Fault::FileUnreadable, place(), error);
        let invalid = |why: &str| Report::new(Fault::ConfigInvalid, format!("{}{why}", place()));
        let file = File::open(path).map_err(unreadable)?;
        let about = file.metadata().map_err(unreadable)?;
        if !about.is_file() {
            return Err(Report::new(Fault::FileUnreadable, format!("{}: it is no file", place())));
        }
        let mut bytes = Vec::new();
        let read = file.take(MAX_FILE + 1).read_to_end(&mut bytes);
        // What was read is wiped in any case: a password may be in it.
        let bytes = Secret::new(bytes);
        if read.map_err(unreadable)? as u64 > MAX_FILE {
            return Err(invalid(&format!(": it is larger than {} KiB", MAX_FILE >> 10)));
        }
        let text = bytes.reveal_text().ok_or_else(|| invalid(": it is not UTF-8"))?;
        let document: Document = toml::from_str(text).map_err(|error| {
            // Its own text would show the line, in which a password may stand.
            let Some(span) = error.span() else { return invalid(&format!(": {}", error.message())) };
            let key = key_at(text, span.start).map(|key| format!(", {key}")).unwrap_or_default();
            invalid(&format!(", line {}{key}: {}", line_of(text, span.start), error.message()))
        })?;

        let line = |start: Option<usize>| start.map(|start| line_of(text, start));
        let start_of = |key: &Option<Spanned<ProxyText>>| key.as_ref().map(|value| value.span().start);
        let start_of_file = |key: &Option<Spanned<PathBuf>>| key.as_ref().map(|value| value.span().start);
        let lines = [
            line(start_of(&document.proxy_https)),
            line(start_of(&document.proxy_http)),
            line(document.proxy_skip_range.as_ref().map(|value| value.span().start)),
            line(start_of_file(&document.proxy_cert)),
            line(start_of_file(&document.proxy_credentials_file)),
        ];
        let folder = path.parent().unwrap_or(Path::new(""));
        // An empty name is none.
        let within = |file: Spanned<PathBuf>| {
            let file = file.into_inner();
            if file.as_os_str().is_empty() { file } else { folder.join(file) }
        };
        let args = ProxyArgs {
            proxy_https: document.proxy_https.map(Spanned::into_inner),
            proxy_http: document.proxy_http.map(Spanned::into_inner),
            proxy_skip_range: document.proxy_skip_range.map(Spanned::into_inner),
            proxy_cert: document.proxy_cert.map(within),
            proxy_credentials_file: document.proxy_credentials_file.map(within),
        };
        let has_password =
            [&args.proxy_https, &args.proxy_http].into_iter().flatten().any(ProxyText::has_login);
        if has_password || args.proxy_credentials_file.is_some() {
            let is_ours = [0, rustix::process::geteuid().as_raw()].contains(&about.uid());
            if !is_ours || about.mode() & 0o022 != 0 {
                // Whoever writes it could have the password sent to a proxy of their own.
                let why =
                    "it has a password, or names the file that has it, and others can write it: chmod 600 it";
                return Err(Report::new(Fault::FileUnreadable, format!("{}: {why}", place())));
            }
        }
        let is_readable_by_all = has_password && about.mode() & 0o004 != 0;
        Ok(Self { path: path.to_owned(), args, lines, is_readable_by_all })
    }

    /// What it says.
    pub(super) fn args(&self) -> &ProxyArgs {
        &self.args
    }

    /// Where a key stands, for messages.
    pub(super) fn origin(&self, key: &'static str) -> Origin {
        let line = KEYS.iter().position(|known| *known == key).and_then(|at| self.lines[at]);
        let line = line.map(|line| format!(", line {line}")).unwrap_or_default();
        Origin::File(key, format!("{}{line}", self.path.display()).into())
    }

    /// Whether everybody on this machine can read a password in it.
    pub(super) fn is_readable_by_all(&self) -> bool {
        self.is_readable_by_all
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Counted from one.
fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// Which key this place belongs to, if it is one that is known.
fn key_at(text: &str, at: usize) -> Option<&'static str> {
    let line = text.lines().nth(line_of(text, at) - 1)?;
    let (key, _) = line.split_once('=')?;
    let key = key.trim().trim_matches(['"', '\'']);
    KEYS.into_iter().find(|known| *known == key)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt as _,
    };

    use super::*;

    fn written(text: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proxy.toml");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    fn refused(text: &[u8], mode: u32) -> Report {
        let (_folder, path) = written(text, mode);
        let report = ProxyFile::read(&path).unwrap_err();
        assert!(report.to_string().contains(path.to_str().unwrap()), "{report}");
        report
    }

    #[test]
    fn it_says_what_flags_say_and_on_which_line() {
        let text = "# the corporate proxy\nproxy-https = 'https://me:canary@proxy.corp:3129'\n\n\
                    proxy-skip-range = '10.0.0.0/8'\nproxy-cert = 'ca.pem'\n";
        let (folder, path) = written(text.as_bytes(), 0o600);
        let file = ProxyFile::read(&path).unwrap();
        assert_eq!(file.args().proxy_cert, Some(folder.path().join("ca.pem")), "from the file's folder");
        assert_eq!(file.args().proxy_skip_range.as_deref(), Some("10.0.0.0/8"));
        assert!(file.args().proxy_http.is_none() && file.args().proxy_credentials_file.is_none());
        let place = path.display();
        assert_eq!(
            file.origin("proxy-skip-range").to_string(),
            format!("proxy-skip-range in {place}, line 4")
        );
        assert_eq!(file.origin("proxy-https").to_string(), format!("proxy-https in {place}, line 2"));
        assert!(!format!("{file:?}").contains("canary"));
        let empty = written(b"proxy-cert = ''\n", 0o600);
        assert_eq!(
            ProxyFile::read(&empty.1).unwrap().args().proxy_cert,
            Some(PathBuf::new()),
            "none, said so"
        );
    }

    #[test]
    fn t29_what_can_not_be_read_is_told_with_line_and_key_and_without_the_password() {
        for (text, parts) in [
            ("\nproxy-https = 5\n", ["line 2, proxy-https", "string"]),
            ("proxy-https = 'http://me:canary@h\n", ["line 1, proxy-https", "string"]),
            ("proxy-http = ''\nproxy-https = http://me:canary@h\n", ["line 2, proxy-https", ""]),
            ("proxy-http = ''\n\nproxy-http = ''\n", ["line 3, proxy-http", "duplicate"]),
            ("proxy-credentials = 'me:canary'\n", ["line 1", "proxy-credentials"]),
            ("[proxy]\nhttps = 'http://me:canary@h'\n", ["line 1", "proxy"]),
        ] {
            let report = refused(text.as_bytes(), 0o600);
            assert_eq!(report.fault, Fault::ConfigInvalid, "{text}");
            let said = format!("{report} {report:?}");
            assert!(parts.iter().all(|part| said.contains(part)) && !said.contains("canary"), "{said}");
        }
        assert!(refused(b"\xff", 0o600).to_string().contains("UTF-8"));
        let long = vec![b'#'; MAX_FILE as usize + 1];
        assert!(refused(&long, 0o600).to_string().contains("64 KiB"));
        let report = ProxyFile::read(Path::new("/nowhere/proxy.toml")).unwrap_err();
        assert_eq!(report.fault, Fault::FileUnreadable);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(ProxyFile::read(folder.path()).unwrap_err().fault, Fault::FileUnreadable);
    }

    #[test]
    fn t29_whoever_can_write_it_has_no_password_sent_elsewhere() {
        for text in [
            "proxy-https = 'http://me:canary@h'\n",
            "proxy-https = 'me:canary@h'\n",
            "proxy-http = 'http://me@h'\n",
            "proxy-credentials-file = 'login'\n",
        ] {
            for mode in [0o602, 0o620, 0o666] {
                let report = refused(text.as_bytes(), mode);
                assert_eq!(report.fault, Fault::FileUnreadable, "{text}");
                assert!(report.to_string().contains("chmod 600"), "{report}");
            }
            let (_folder, path) = written(text.as_bytes(), 0o644);
            let file = ProxyFile::read(&path).unwrap();
            assert_eq!(file.is_readable_by_all(), text.contains('@'), "{text}");
        }
        let (_folder, path) = written(b"proxy-https = 'http://h:1'\n", 0o666);
        assert!(ProxyFile::read(&path).is_ok(), "no password can be had by it");
    }
}

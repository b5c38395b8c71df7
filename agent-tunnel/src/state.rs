//! What an agent keeps: the cluster's identity key, and which relays it joined.
//!
//! All of it stands in the data directory, readable by its owner only. In a pod, whose directory does not outlive it, it is
//! kept in a Secret of the cluster as well ([`crate::secret`]).

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::{BASE64, HEXLOWER};
use serde::{Deserialize, Serialize};
use towline_tunnel::{
    carrier::dial::RelayAddress,
    fault::{Fault, Report},
    ids::KeyHash,
    keys::{SigningKey, VerifyingKey, write_secret},
};

/// The cluster's identity key; its hash is the cluster's id.
pub const IDENTITY: &str = "identity-key.pem";
/// Where the agent that runs serves its metrics, for `towline-agent health`.
pub const METRICS_ADDRESS: &str = "metrics-address";

/// Which of an agent's relays: each is joined by itself, and knows nothing of the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rank {
    /// The one that every agent has.
    #[default]
    First,
    /// One beside it, where it is configured.
    Second,
}

impl Rank {
    /// Both.
    pub const ALL: [Self; 2] = [Self::First, Self::Second];

    /// For people and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
        }
    }

    /// The argument that its enrolment token is given by.
    pub fn token_argument(self) -> &'static str {
        match self {
            Self::First => "--enrolment-token-file",
            Self::Second => "--second-enrolment-token-file",
        }
    }

    /// The file that says which relay was joined.
    pub fn relay_file(self) -> &'static str {
        match self {
            Self::First => "relay.json",
            Self::Second => "second-relay.json",
        }
    }

    /// The file with the enrolment token that the relay refused last.
    pub fn refused_file(self) -> &'static str {
        match self {
            Self::First => "refused-token.json",
            Self::Second => "second-refused-token.json",
        }
    }

    /// The file with the authority of the relay's outer TLS, where it is its own.
    fn ca_file(self) -> &'static str {
        match self {
            Self::First => "relay-ca.pem",
            Self::Second => "second-relay-ca.pem",
        }
    }
}

/// A relay that this cluster was enrolled at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Where it is.
    pub relay: RelayAddress,
    /// The hash of its identity key: nothing is said to another.
    pub relay_key: KeyHash,
    /// The key that signs its tickets, pinned when the cluster was enrolled.
    pub tickets: VerifyingKey,
    /// The authority of its outer TLS (PEM), where it is its own.
    pub ca_pem: Option<String>,
    /// SHA-256 of the secret that was used, so that a token is not used twice.
    pub used_secret: [u8; 32],
}

#[derive(Deserialize, Serialize)]
struct Kept {
    relay: String,
    relay_key: String,
    ticket_key: String,
    used_secret: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca_pem: Option<String>,
}

impl Membership {
    /// As it stands in the file.
    pub fn to_json(&self) -> String {
        let file = Kept {
            relay: self.relay.to_string(),
            relay_key: self.relay_key.to_string(),
            ticket_key: BASE64.encode(self.tickets.spki()),
            used_secret: HEXLOWER.encode(&self.used_secret),
            ca_pem: self.ca_pem.clone(),
        };
        serde_json::to_string_pretty(&file).unwrap_or_default() + "\n"
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// What about it is wrong.
    pub fn from_json(text: &[u8]) -> Result<Self, String> {
        let file: Kept = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let spki = BASE64.decode(file.ticket_key.as_bytes()).map_err(|_| "ticket_key is not base64")?;
        let used = HEXLOWER.decode(file.used_secret.as_bytes()).ok().and_then(|used| used.try_into().ok());
        Ok(Self {
            relay: RelayAddress::parse(&file.relay).map_err(|report| report.detail)?,
            relay_key: file.relay_key.parse().map_err(|_| "relay_key is not a key's hash")?,
            tickets: VerifyingKey::from_spki(&spki).map_err(|_| "ticket_key is not a key")?,
            used_secret: used.ok_or("used_secret is not 64 hexadecimal digits")?,
            ca_pem: file.ca_pem,
        })
    }
}

/// An enrolment token that the relay refused: only the relay knows whether one was used before, and says it once one is shown to it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct RefusedToken {
    /// SHA-256 of its secret, hexadecimal.
    secret: String,
    /// Why, in the relay's words.
    pub said: String,
    /// When, in seconds of the Unix epoch by this machine's clock.
    pub at: u64,
}

impl RefusedToken {
    /// A refusal of the token with this secret.
    pub fn new(secret: &[u8], said: &str, now: SystemTime) -> Self {
        // A relay's words have a bound of their own; what is kept is no longer than a line.
        let said = said.chars().take(300).collect();
        let at = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { secret: HEXLOWER.encode(digest(&SHA256, secret).as_ref()), said, at }
    }

    /// Whether it is of the token with this secret.
    pub fn is_of(&self, secret: &[u8]) -> bool {
        self.secret == HEXLOWER.encode(digest(&SHA256, secret).as_ref())
    }

    /// As it stands in the file.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Reads the file's text; a note that can't be read says nothing.
    pub fn from_json(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }
}

/// The data directory.
#[derive(Clone, Debug)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// Opens it; makes it (mode 0700) where it isn't there.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn open(path: &Path) -> Result<Self, Report> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| Report::caused_by(Fault::FileUnwritable, path.display().to_string(), error))?;
        Ok(Self(path.to_owned()))
    }

    /// The path of one of its files.
    pub fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    /// The cluster's identity key; a new one where there is none.
    ///
    /// # Errors
    /// If it can't be read or written, or others can read it.
    pub fn identity(&self) -> Result<Arc<SigningKey>, Report> {
        SigningKey::load_or_create(&self.path(IDENTITY)).map(Arc::new)
    }

    /// Whether there is an identity key.
    pub fn has_identity(&self) -> bool {
        self.path(IDENTITY).exists()
    }

    /// Keeps an identity key that was kept elsewhere.
    ///
    /// # Errors
    /// If it can't be written, or there is one already.
    pub fn put_identity(&self, pem: &[u8]) -> Result<(), Report> {
        write_secret(&self.path(IDENTITY), pem)
    }

    /// The relay that was joined, if one was.
    ///
    /// # Errors
    /// If the file is there and can't be used.
    pub fn membership(&self, rank: Rank) -> Result<Option<Membership>, Report> {
        let path = self.path(rank.relay_file());
        let name = path.display().to_string();
        match fs::read(&path) {
            Ok(text) => Membership::from_json(&text)
                .map(Some)
                .map_err(|why| Report::new(Fault::FileUnreadable, format!("{name}: {why}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Report::caused_by(Fault::FileUnreadable, name, error)),
        }
    }

    /// Keeps which relay was joined, in place of what was there.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn keep_membership(&self, rank: Rank, membership: &Membership) -> Result<(), Report> {
        self.replace(rank.relay_file(), membership.to_json().as_bytes()).map(|_| ())
    }

    /// The token that the relay refused last, if it did and that is known.
    pub fn refused(&self, rank: Rank) -> Option<RefusedToken> {
        RefusedToken::from_json(&fs::read(self.path(rank.refused_file())).ok()?)
    }

    /// Keeps a refusal, in place of the one before.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn keep_refused(&self, rank: Rank, refused: &RefusedToken) -> Result<(), Report> {
        self.replace(rank.refused_file(), refused.to_json().as_bytes()).map(|_| ())
    }

    /// Forgets a relay that is configured no more: whoever names another one later does not come back to it.
    ///
    /// # Errors
    /// If a file can't be removed.
    pub fn forget(&self, rank: Rank) -> Result<(), Report> {
        for file in [rank.relay_file(), rank.refused_file(), rank.ca_file()] {
            let path = self.path(file);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Report::caused_by(Fault::FileUnwritable, path.display().to_string(), error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A file with the authority of a relay's outer TLS, for whoever reads certificates from files.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn relay_ca(&self, rank: Rank, pem: &str) -> Result<PathBuf, Report> {
        let path = self.path(rank.ca_file());
        // Each dial asks: a file that is right is left alone.
        if fs::read(&path).is_ok_and(|is| is == pem.as_bytes()) {
            return Ok(path);
        }
        self.replace(rank.ca_file(), pem.as_bytes())
    }

    /// Writes a file whole or not at all, readable by its owner only.
    fn replace(&self, file: &str, bytes: &[u8]) -> Result<PathBuf, Report> {
        let path = self.path(file);
        let temporary = self.path(&format!("{file}.new-{}", std::process::id()));
        let write = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            // The name is on disk only once the folder is.
            File::open(&self.0)?.sync_all()
        };
        match write() {
            Ok(()) => Ok(path),
            Err(error) => {
                let _gone = fs::remove_file(&temporary);
                Err(Report::caused_by(Fault::FileUnwritable, path.display().to_string(), error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn membership() -> Membership {
        Membership {
            relay: RelayAddress::parse("https://relay.example:8443").unwrap(),
            relay_key: KeyHash::of_spki(b"relay"),
            tickets: SigningKey::generate().public(),
            ca_pem: Some("-----BEGIN CERTIFICATE-----\n".into()),
            used_secret: [7; 32],
        }
    }

    #[test]
    fn what_is_kept_is_found_again_and_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::open(&folder.path().join("a/b")).unwrap();
        assert_eq!(dir.membership(Rank::First).unwrap(), None);
        assert!(!dir.has_identity());
        let identity = dir.identity().unwrap();
        assert_eq!(dir.identity().unwrap().public(), identity.public());
        for mut kept in [membership(), membership()] {
            kept.ca_pem = kept.ca_pem.filter(|_| kept.used_secret == [7; 32]);
            dir.keep_membership(Rank::First, &kept).unwrap();
            assert_eq!(dir.membership(Rank::First).unwrap(), Some(kept));
            assert_eq!(dir.membership(Rank::Second).unwrap(), None);
        }
        for file in [IDENTITY, Rank::First.relay_file()] {
            assert_eq!(fs::metadata(dir.path(file)).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
        }
        assert_eq!(fs::metadata(folder.path().join("a/b")).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(dir.path("")).unwrap().count(), 2, "nothing half-written is left");
    }

    #[test]
    fn a_damaged_file_is_named_with_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::open(folder.path()).unwrap();
        for (from, to) in
            [("relay_key\": \"", "relay_key\": \"!"), ("{", ""), ("https", "ftp"), ("0707", "07")]
        {
            for rank in Rank::ALL {
                fs::write(dir.path(rank.relay_file()), membership().to_json().replacen(from, to, 1)).unwrap();
                let report = dir.membership(rank).unwrap_err();
                assert_eq!(report.fault, Fault::FileUnreadable);
                assert!(report.detail.contains(rank.relay_file()), "{report}");
            }
        }
    }

    #[test]
    fn a_folder_that_can_not_be_made_is_named() {
        let report = DataDir::open(Path::new("/proc/nothing/here")).unwrap_err();
        assert_eq!(report.fault, Fault::FileUnwritable);
        assert!(report.detail.contains("/proc/nothing/here"), "{report}");
    }
}

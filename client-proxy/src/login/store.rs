//! What is kept of a login: in the desktop's keyring, or in a file of mode 0600 in the state folder.
//!
//! One file for each profile and audience says where the rest is. Whoever renews holds its lock: of a refresh token that is
//! replaced at each use, the second use would end the login.

use std::{
    fs::{File, TryLockError},
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{task::spawn_blocking, time::Instant};
use towline_tunnel::{
    fault::{Fault, Report},
    session::message::Secret,
};
use tracing::warn;

use super::{secret_tool::SecretTool, settings::Kind};
use crate::{
    local::StateFolder,
    token::{Purpose, Token},
};

/// Another process holds the lock for a few questions to the provider.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(25);

/// Where a login is to be kept.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// In the keyring where there is one, otherwise in a file.
    #[default]
    Auto,
    /// In the keyring, or not at all.
    Keyring,
    /// In a file.
    File,
}

/// A login as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeptLogin {
    pub(super) issuer: String,
    pub(super) client: String,
    pub(super) kind: Kind,
    /// Of the ID token at login: a renewed one must have the same.
    pub(super) subject: Option<String>,
    pub(super) token: Token,
    pub(super) refresh: Option<Secret>,
}

/// The file.
#[derive(Deserialize, Serialize)]
struct Record {
    version: u32,
    issuer: String,
    client: String,
    access_token: bool,
    subject: Option<String>,
    /// Absent where the keyring has them.
    secrets: Option<Secrets>,
}

#[derive(Deserialize, Serialize)]
struct Secrets {
    token: String,
    refresh: Option<String>,
    /// Whose they are, in the keyring: they may outlive the file that says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    of: Option<Of>,
}

#[derive(Clone, Deserialize, Serialize)]
struct Of {
    issuer: String,
    client: String,
}

/// A login in the keyring that may not be the one in use.
pub(super) struct LeftBehind {
    pub(super) issuer: String,
    pub(super) client: String,
    pub(super) refresh: Secret,
}

const VERSION: u32 = 1;

/// Keeps logins.
#[derive(Clone, Debug)]
pub struct Store {
    folder: StateFolder,
    keyring: SecretTool,
}

impl Store {
    /// Logins that are kept below this state folder.
    ///
    /// # Errors
    /// If the folder can't be made, or others may look inside.
    pub fn open(state: &Path) -> Result<Self, Report> {
        let folder = StateFolder::open(state)?;
        Ok(Self { folder: StateFolder::open(&folder.path().join("logins"))?, keyring: SecretTool::default() })
    }

    #[cfg(test)]
    pub(super) fn with_keyring(mut self, keyring: SecretTool) -> Self {
        self.keyring = keyring;
        self
    }

    /// Where a login would be kept that is kept in a file.
    pub(super) fn place(&self, name: &str, purpose: Purpose) -> String {
        self.folder.path().join(file(name, purpose)).display().to_string()
    }

    /// Held while a login is renewed, replaced or removed.
    ///
    /// # Errors
    /// If another process holds it for too long.
    pub(super) async fn lock(&self, name: &str, purpose: Purpose) -> Result<File, Report> {
        let lock_name = format!("{}.lock", file(name, purpose));
        let lock = self.folder.lock_file(&lock_name)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => tokio::time::sleep(POLL).await,
                Err(TryLockError::WouldBlock) => {
                    return Err(damaged(format!("another process holds {lock_name}")));
                }
                Err(TryLockError::Error(error)) => return Err(damaged(format!("{lock_name}: {error}"))),
            }
        }
    }

    /// What is kept, if anything is.
    ///
    /// # Errors
    /// If it can't be read.
    pub(super) async fn read(&self, name: &str, purpose: Purpose) -> Result<Option<KeptLogin>, Report> {
        let Some(record) = self.record(name, purpose).await? else { return Ok(None) };
        let secrets = match record.secrets {
            Some(secrets) => secrets,
            None => match self.keyring.lookup(&account(name, purpose)).await? {
                Some(found) => serde_json::from_slice(found.reveal())
                    .map_err(|_| damaged("what the keyring has is no login of ours"))?,
                // Somebody removed it there.
                None => return Ok(None),
            },
        };
        let token = Token::parse(&secrets.token).ok_or_else(|| damaged("no token is in it"))?;
        Ok(Some(KeptLogin {
            issuer: record.issuer,
            client: record.client,
            kind: if record.access_token { Kind::Access } else { Kind::Id },
            subject: record.subject,
            token,
            refresh: secrets.refresh.map(Secret::new),
        }))
    }

    async fn record(&self, name: &str, purpose: Purpose) -> Result<Option<Record>, Report> {
        let (folder, file) = (self.folder.clone(), file(name, purpose));
        let read = off_runtime(move || folder.read(&file)).await?;
        let record = read.map(|text| serde_json::from_slice::<Record>(text.reveal()));
        let record = record.transpose().map_err(|_| damaged(self.place(name, purpose)))?;
        match record {
            Some(record) if record.version != VERSION => {
                Err(damaged(format!("{} is of another version of towline", self.place(name, purpose))))
            }
            other => Ok(other),
        }
    }

    /// Keeps a login in place of the one before; says whether the keyring has it. The caller holds the lock.
    ///
    /// # Errors
    /// If it can't be kept.
    pub(super) async fn write(
        &self,
        name: &str,
        purpose: Purpose,
        keep: Keep,
        login: &KeptLogin,
    ) -> Result<bool, Report> {
        let text = |secret: &Secret| secret.reveal_text().unwrap_or_default().to_owned();
        let refresh = login.refresh.as_ref().map(text);
        let mut secrets = Secrets { token: text(&login.token.secret), refresh, of: None };
        secrets.of = Some(Of { issuer: login.issuer.clone(), client: login.client.clone() });
        let in_keyring = match keep {
            Keep::File => false,
            Keep::Keyring => self.to_keyring(name, purpose, &secrets).await.map(|()| true)?,
            Keep::Auto if self.keyring.may_work() => {
                let kept = self.to_keyring(name, purpose, &secrets).await;
                if let Err(report) = &kept {
                    warn!(%report, "the keyring did not take the login: it is kept in a file");
                }
                kept.is_ok()
            }
            Keep::Auto => false,
        };
        let leaves_keyring = !in_keyring && self.in_keyring(name, purpose).await;
        // The file says it already.
        secrets.of = None;
        let record = Record {
            version: VERSION,
            issuer: login.issuer.clone(),
            client: login.client.clone(),
            access_token: login.kind == Kind::Access,
            subject: login.subject.clone(),
            secrets: (!in_keyring).then_some(secrets),
        };
        let bytes = json(&record)?;
        let (folder, file) = (self.folder.clone(), file(name, purpose));
        off_runtime(move || folder.write(&file, bytes.reveal())).await?;
        if leaves_keyring {
            warn!("the login was in the keyring, and is in a file from now on");
            self.clear_earlier(name, purpose).await;
        }
        Ok(in_keyring)
    }

    async fn to_keyring(&self, name: &str, purpose: Purpose, secrets: &Secrets) -> Result<(), Report> {
        self.keyring.store(&account(name, purpose), &json(secrets)?).await
    }

    /// What the keyring has under this name, whether or not it is in use: a login that went to a file while the keyring was out of reach
    /// left it there. None where nobody can tell whose it is.
    pub(super) async fn left_in_keyring(&self, name: &str, purpose: Purpose) -> Option<LeftBehind> {
        if !self.keyring.may_work() {
            return None;
        }
        let found = self.keyring.lookup(&account(name, purpose)).await.ok().flatten()?;
        let Secrets { token, refresh, of } = serde_json::from_slice(found.reveal()).ok()?;
        let refresh = refresh.map(Secret::new)?;
        let Of { issuer, client } = of.or_else(|| {
            // Of a version that did not write it down: an ID token says it itself.
            let claims = Token::parse(&token)?.claims();
            let text = |name: &str| claims[name].as_str().map(str::to_owned);
            Some(Of { issuer: text("iss")?, client: text("aud")? })
        })?;
        Some(LeftBehind { issuer, client, refresh })
    }

    /// Forgets a login; whether there was one. The caller holds the lock.
    ///
    /// # Errors
    /// If it can't be forgotten.
    pub(super) async fn remove(&self, name: &str, purpose: Purpose) -> Result<bool, Report> {
        // A damaged file is removed all the same, and whatever the keyring may have with it.
        let in_keyring = self
            .record(name, purpose)
            .await
            .map_or(true, |record| record.is_some_and(|record| record.secrets.is_none()));
        if in_keyring {
            self.keyring.clear(&account(name, purpose)).await?;
        } else if self.keyring.may_work() {
            // One that was made before the file's, and could not be reached then.
            self.clear_earlier(name, purpose).await;
        }
        let (folder, file) = (self.folder.clone(), file(name, purpose));
        off_runtime(move || folder.remove(&file)).await
    }

    /// Clears the keyring of a login that is not the one in use: where that fails, somebody is told and nothing else is held up.
    async fn clear_earlier(&self, name: &str, purpose: Purpose) {
        if let Err(report) = self.keyring.clear(&account(name, purpose)).await {
            warn!(%report, "an earlier login may still be in the keyring: `towline logout` on the desktop removes it");
        }
    }

    /// Whether the keyring has it.
    pub(super) async fn in_keyring(&self, name: &str, purpose: Purpose) -> bool {
        self.record(name, purpose)
            .await
            .is_ok_and(|record| record.is_some_and(|record| record.secrets.is_none()))
    }
}

fn json(value: &impl Serialize) -> Result<Secret, Report> {
    serde_json::to_vec(value)
        .map(Secret::new)
        .map_err(|error| Report::caused_by(Fault::Internal, "a login can't be written down", error))
}

fn damaged(what: impl Into<String>) -> Report {
    Report::new(Fault::LoginStoreUnusable, what)
}

fn account(name: &str, purpose: Purpose) -> String {
    format!("{name}.{}", purpose.word())
}

fn file(name: &str, purpose: Purpose) -> String {
    format!("{}.json", account(name, purpose))
}

async fn off_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Report> + Send + 'static,
) -> Result<T, Report> {
    let done = spawn_blocking(work).await;
    done.map_err(|error| Report::caused_by(Fault::Internal, "a task ended early", error))?
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn login(text: &str) -> KeptLogin {
        KeptLogin {
            issuer: "https://idp".into(),
            client: "c".into(),
            kind: Kind::Id,
            subject: Some("ada".into()),
            token: Token::parse(text).unwrap(),
            refresh: Some(Secret::new("canary-refresh")),
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state")).unwrap();
        (folder, store)
    }

    #[tokio::test]
    async fn a_login_is_kept_for_its_owner_alone_and_forgotten() {
        let (_folder, store) = store();
        assert_eq!(store.read("p", Purpose::Relay).await.unwrap(), None);
        let kept = login("canary-token");
        assert!(!store.write("p", Purpose::Relay, Keep::File, &kept).await.unwrap());
        assert_eq!(store.read("p", Purpose::Relay).await.unwrap().as_ref(), Some(&kept));
        assert_eq!(store.read("p", Purpose::Cluster).await.unwrap(), None);
        assert_eq!(store.read("q", Purpose::Relay).await.unwrap(), None);
        let path = store.place("p", Purpose::Relay);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!format!("{kept:?}").contains("canary"));
        assert!(store.remove("p", Purpose::Relay).await.unwrap());
        assert!(!store.remove("p", Purpose::Relay).await.unwrap());
        assert!(fs::metadata(path).is_err());
    }

    #[tokio::test]
    async fn a_file_that_others_can_read_or_that_is_damaged_is_not_believed() {
        let (_folder, store) = store();
        store.write("p", Purpose::Relay, Keep::File, &login("t")).await.unwrap();
        let path = store.place("p", Purpose::Relay);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(store.read("p", Purpose::Relay).await.unwrap_err().fault, Fault::FileUnreadable);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "{\"secrets\":\"canary").unwrap();
        let report = store.read("p", Purpose::Relay).await.unwrap_err();
        assert_eq!(report.fault, Fault::LoginStoreUnusable);
        assert!(!report.to_string().contains("canary"));
    }

    /// A program with the arguments and the behaviour of libsecret's.
    fn keyring(folder: &Path) -> SecretTool {
        let path = folder.join("secret-tool");
        let script = format!(
            "#!/bin/sh\ncd {}\nverb=$1; shift\ncase $1 in --label=*) shift;; esac\n\
             [ \"$1 $2 $3\" = 'service towline account' ] || exit 2\n\
             [ -e locked ] && {{ echo no keyring >&2; exit 1; }}\n\
             case $verb in store) cat > \"kept-$4\";; lookup) cat \"kept-$4\" 2>/dev/null;; clear) rm -f \"kept-$4\";; esac\n",
            folder.display()
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        SecretTool::at(path, true)
    }

    /// Logging in again where the keyring is out of reach, and where it does not work: the earlier login is not left there for good.
    #[tokio::test]
    async fn a_login_that_goes_to_a_file_leaves_none_in_the_keyring() {
        let (folder, store) = store();
        let in_keyring = folder.path().join("kept-p.relay");
        let store = store.with_keyring(keyring(folder.path()));
        assert!(store.write("p", Purpose::Relay, Keep::Auto, &login("first")).await.unwrap());
        assert!(!store.write("p", Purpose::Relay, Keep::File, &login("second")).await.unwrap());
        assert!(!in_keyring.exists(), "the keyring's is cleared as soon as the file has one");

        // Nothing can be cleared while the keyring is locked; what is new is kept all the same.
        assert!(store.write("p", Purpose::Relay, Keep::Auto, &login("third")).await.unwrap());
        fs::write(folder.path().join("locked"), "").unwrap();
        assert!(!store.write("p", Purpose::Relay, Keep::Auto, &login("fourth")).await.unwrap());
        assert_eq!(store.read("p", Purpose::Relay).await.unwrap(), Some(login("fourth")));
        fs::remove_file(folder.path().join("locked")).unwrap();
        assert!(in_keyring.exists());
        assert!(store.remove("p", Purpose::Relay).await.unwrap());
        assert!(!in_keyring.exists(), "logging out clears both");
    }

    /// Whoever logs out has it revoked, too.
    #[tokio::test]
    async fn a_login_that_was_left_in_the_keyring_says_whose_it_is() {
        let (folder, store) = store();
        let store = store.with_keyring(keyring(folder.path()));
        assert!(store.left_in_keyring("p", Purpose::Relay).await.is_none());
        store.write("p", Purpose::Relay, Keep::Auto, &login("first")).await.unwrap();
        fs::write(folder.path().join("locked"), "").unwrap();
        assert!(store.left_in_keyring("p", Purpose::Relay).await.is_none(), "out of reach");
        let second = KeptLogin { refresh: Some(Secret::new("canary-second")), ..login("second") };
        assert!(!store.write("p", Purpose::Relay, Keep::Auto, &second).await.unwrap());
        fs::remove_file(folder.path().join("locked")).unwrap();
        let left = store.left_in_keyring("p", Purpose::Relay).await.unwrap();
        assert_eq!((left.issuer.as_str(), left.client.as_str()), ("https://idp", "c"));
        assert_eq!(left.refresh, Secret::new("canary-refresh"));

        // As versions before wrote it.
        let id = data_encoding::BASE64URL_NOPAD.encode(br#"{"iss":"https://idp","aud":"c"}"#);
        let old = format!(r#"{{"token":"e30.{id}.c2ln","refresh":"canary-old"}}"#);
        fs::write(folder.path().join("kept-p.relay"), old).unwrap();
        let left = store.left_in_keyring("p", Purpose::Relay).await.unwrap();
        assert_eq!((left.issuer.as_str(), left.client.as_str()), ("https://idp", "c"));
        fs::write(folder.path().join("kept-p.relay"), r#"{"token":"opaque","refresh":"canary"}"#).unwrap();
        assert!(
            store.left_in_keyring("p", Purpose::Relay).await.is_none(),
            "shown to nobody who may be another"
        );
    }

    #[tokio::test]
    async fn in_a_keyring_no_file_has_the_secrets() {
        let (folder, store) = store();
        let store = store.with_keyring(keyring(folder.path()));
        let kept = login("canary-token");
        assert!(store.write("p", Purpose::Cluster, Keep::Keyring, &kept).await.unwrap());
        assert!(store.in_keyring("p", Purpose::Cluster).await);
        let written = fs::read_to_string(store.place("p", Purpose::Cluster)).unwrap();
        assert!(!written.contains("canary") && written.contains("https://idp"), "{written}");
        assert_eq!(store.read("p", Purpose::Cluster).await.unwrap(), Some(kept));
        assert!(folder.path().join("kept-p.cluster").exists());
        // A keyring that is away has not lost the login.
        fs::write(folder.path().join("locked"), "").unwrap();
        let report = store.read("p", Purpose::Cluster).await.unwrap_err();
        assert!(report.fault == Fault::LoginStoreUnusable && report.to_string().contains("no keyring"));
        assert!(store.remove("p", Purpose::Cluster).await.is_err());
        fs::remove_file(folder.path().join("locked")).unwrap();
        store.remove("p", Purpose::Cluster).await.unwrap();
        assert!(!folder.path().join("kept-p.cluster").exists());
    }

    #[tokio::test]
    async fn without_a_keyring_one_that_is_demanded_is_missed() {
        let (_folder, store) = store();
        let store = store.with_keyring(SecretTool::at("/nonexistent/secret-tool", false));
        let report = store.write("p", Purpose::Relay, Keep::Keyring, &login("t")).await.unwrap_err();
        assert_eq!(report.fault, Fault::LoginStoreUnusable);
        assert_eq!(store.read("p", Purpose::Relay).await.unwrap(), None);
    }

    #[tokio::test]
    async fn one_process_renews_at_a_time() {
        let (_folder, store) = store();
        let held = store.lock("p", Purpose::Relay).await.unwrap();
        store.lock("p", Purpose::Cluster).await.unwrap();
        let (waiting, other) = (store.clone(), store.lock("q", Purpose::Relay));
        other.await.unwrap();
        let mut waiting = tokio::spawn(async move { waiting.lock("p", Purpose::Relay).await.map(|_| ()) });
        assert!(tokio::time::timeout(4 * POLL, &mut waiting).await.is_err(), "the lock is held");
        drop(held);
        waiting.await.unwrap().unwrap();
    }
}

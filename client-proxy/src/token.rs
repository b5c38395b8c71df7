//! Bearer tokens from files, read again when the file changes.
//!
//! The client judges a token only where that spares a person a puzzle or keeps a secret from the wrong eyes: one
//! that is over is not sent, and one that the cluster would accept is never shown to the relay (THREATS T46). All
//! else is the relay's and the agent's to verify.

use std::{
    fs::{self, File, Metadata},
    io::Read as _,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use data_encoding::BASE64URL_NOPAD;
use serde_json::Value;
use towline_tunnel::{
    fault::{Fault, Report},
    session::message::{MAX_TOKEN, Secret},
};

/// A clock that runs ahead by less than this calls no good token expired.
const SKEW: Duration = Duration::from_secs(60);

/// Whom a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The relay: opens channels.
    Relay,
    /// The cluster: says who is calling.
    Cluster,
}

impl Purpose {
    fn expired(self) -> Fault {
        match self {
            Self::Relay => Fault::RelayTokenExpired,
            Self::Cluster => Fault::ClusterTokenExpired,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay token",
            Self::Cluster => "cluster token",
        }
    }
}

/// One token. Its text does not print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The token itself.
    pub secret: Secret,
    audiences: Vec<String>,
    expires: Option<SystemTime>,
}

impl Token {
    /// Reads a token. What is no JWT has no audiences and no end that we know of.
    fn parse(text: &str) -> Option<Self> {
        let token = text.trim();
        if token.is_empty() || token.len() > MAX_TOKEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let claims = claims(token).unwrap_or_default();
        let audiences = match &claims["aud"] {
            Value::String(one) => vec![one.clone()],
            Value::Array(many) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        let expires = claims["exp"]
            .as_u64()
            .and_then(|exp| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(exp)));
        Some(Self { secret: Secret::new(token), audiences, expires })
    }

    /// An audience that both tokens name.
    pub fn shared_audience<'a>(&'a self, other: &Self) -> Option<&'a str> {
        self.audiences.iter().find(|audience| other.audiences.contains(audience)).map(String::as_str)
    }
}

/// The claims of a JWT, unverified.
fn claims(token: &str) -> Option<Value> {
    let mut parts = token.split('.');
    let (Some(_), Some(body), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    serde_json::from_slice(&BASE64URL_NOPAD.decode(body.as_bytes()).ok()?).ok()
}

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

    /// The token that the file holds now. One look at the file's metadata, unless it has changed.
    ///
    /// # Errors
    /// If the file can't be read, does not hold one token, or the token's time is over.
    pub fn current(&self, now: SystemTime) -> Result<Token, Report> {
        let token = self.token()?;
        match token.expires {
            Some(end) if end.checked_add(SKEW).is_some_and(|end| now > end) => Err(Report::new(
                self.purpose.expired(),
                format!("{}, ended at {}", self.path.display(), at(end)),
            )),
            _ => Ok(token),
        }
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

    fn unusable(&self, why: &str) -> Report {
        let detail = format!("{} {}: {why}", self.purpose.name(), self.path.display());
        Report::new(Fault::TokenFileUnusable, detail)
    }
}

fn at(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time)
        .map_or_else(|_| "a time beyond reckoning".to_owned(), |time| time.to_string())
}

/// The two tokens of one person.
#[derive(Debug)]
pub struct Tokens {
    relay: TokenFile,
    cluster: TokenFile,
    /// Whether the relay may see a token that the cluster would accept.
    shared_audience: bool,
}

impl Tokens {
    /// The tokens in these files. With `shared_audience` both may name one audience: then the relay can be you
    /// on every cluster that accepts this audience.
    pub fn new(relay: PathBuf, cluster: PathBuf, shared_audience: bool) -> Self {
        let relay = TokenFile::new(relay, Purpose::Relay);
        Self { relay, cluster: TokenFile::new(cluster, Purpose::Cluster), shared_audience }
    }

    /// What may be sent to the relay.
    ///
    /// # Errors
    /// If there is no such token, or the cluster would accept it too.
    pub fn for_relay(&self, now: SystemTime) -> Result<Secret, Report> {
        let token = self.relay.current(now)?;
        if !self.shared_audience {
            // A cluster token that can't be read now is told to whoever needs it; nothing leaves until it was seen.
            let cluster = self.cluster.token()?;
            let shared = token.shared_audience(&cluster).map(|audience| format!("for audience {audience}"));
            let same = (token.secret == cluster.secret).then(|| "the same token".to_owned());
            if let Some(how) = shared.or(same) {
                return Err(self.relay.unusable(&format!(
                    "the cluster would accept it too ({how}), so that the relay could act as you there; use two tokens"
                )));
            }
        }
        Ok(token.secret)
    }

    /// What is sent to the agent, inside inner TLS.
    ///
    /// # Errors
    /// If there is no such token.
    pub fn for_cluster(&self, now: SystemTime) -> Result<Secret, Report> {
        self.cluster.current(now).map(|token| token.secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn jwt(claims: &str) -> String {
        format!("e30.{}.canary", BASE64URL_NOPAD.encode(claims.as_bytes()))
    }

    fn tokens(relay: &str, cluster: &str) -> (tempfile::TempDir, Tokens) {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            fs::write(folder.path().join(name), text).unwrap();
            folder.path().join(name)
        };
        let tokens = Tokens::new(path("relay", relay), path("cluster", cluster), false);
        (folder, tokens)
    }

    #[test]
    fn a_file_is_read_again_when_it_changes() {
        let (folder, tokens) = tokens("one\n", "c");
        assert_eq!(tokens.for_relay(NOW).unwrap().reveal(), b"one");
        assert_eq!(tokens.for_relay(NOW).unwrap().reveal(), b"one");
        fs::write(folder.path().join("relay"), "two").unwrap();
        assert_eq!(tokens.for_relay(NOW).unwrap().reveal(), b"two");
        // Of the same length, by rename: as a Secret's mount does it.
        fs::write(folder.path().join("new"), "six").unwrap();
        fs::rename(folder.path().join("new"), folder.path().join("relay")).unwrap();
        assert_eq!(tokens.for_relay(NOW).unwrap().reveal(), b"six");
        fs::remove_file(folder.path().join("relay")).unwrap();
        assert_eq!(tokens.for_relay(NOW).unwrap_err().fault, Fault::TokenFileUnusable);
    }

    #[test]
    fn what_is_not_one_token_is_refused_and_not_repeated() {
        let long = "x".repeat(MAX_TOKEN + 1);
        for bad in ["", "\n", "canary canary", "canary\ncanary", "canaré", long.as_str()] {
            let (_folder, tokens) = tokens("r", bad);
            let report = tokens.for_cluster(NOW).unwrap_err();
            assert_eq!(report.fault, Fault::TokenFileUnusable, "{bad:.10}");
            let said = report.to_string();
            assert!(said.contains("cluster token") && !said.contains("canar"), "{said}");
        }
    }

    #[test]
    fn a_token_whose_time_is_over_is_not_sent() {
        let (_folder, tokens) = tokens(&jwt(r#"{"exp":1000}"#), &jwt(r#"{"exp":1000}"#));
        let after = |seconds| NOW + Duration::from_secs(seconds);
        tokens.for_cluster(after(1059)).unwrap();
        let relay = tokens.relay.current(after(1061)).unwrap_err();
        assert_eq!(relay.fault, Fault::RelayTokenExpired);
        assert!(relay.to_string().contains("1970-01-01T00:16:40Z"), "{relay}");
        assert_eq!(tokens.for_cluster(after(1061)).unwrap_err().fault, Fault::ClusterTokenExpired);
        let (_folder, endless) = self::tokens("r", &jwt(r#"{"exp":9223372036854775807}"#));
        endless.for_cluster(NOW).unwrap();
    }

    /// Whatever the relay says its audience is, the client asks only its own files.
    #[test]
    fn t46_a_token_that_the_cluster_would_accept_is_never_shown_to_the_relay() {
        for (relay, cluster) in [
            (r#"{"aud":"towline-cluster"}"#, r#"{"aud":["x","towline-cluster"]}"#),
            (r#"{"aud":["towline-relay","towline-cluster"]}"#, r#"{"aud":"towline-cluster"}"#),
        ] {
            let (_folder, mut tokens) = tokens(&jwt(relay), &jwt(cluster));
            let report = tokens.for_relay(NOW).unwrap_err();
            assert_eq!(report.fault, Fault::TokenFileUnusable);
            assert!(report.to_string().contains("towline-cluster"), "{report}");
            tokens.shared_audience = true;
            tokens.for_relay(NOW).unwrap();
        }
        let (_folder, opaque) = tokens("same", "same");
        assert!(opaque.for_relay(NOW).is_err());
        let (_folder, apart) =
            tokens(&jwt(r#"{"aud":"towline-relay"}"#), &jwt(r#"{"aud":"towline-cluster"}"#));
        apart.for_relay(NOW).unwrap();
    }

    #[test]
    fn t29_a_token_does_not_print() {
        let (_folder, tokens) = tokens("canary-r", "canary-c");
        tokens.for_relay(NOW).unwrap();
        tokens.for_cluster(NOW).unwrap();
        let printed = format!("{tokens:?}");
        assert!(!printed.contains("canary"), "{printed}");
    }
}

//! The two bearer tokens: where they come from, and what is not sent to whom.
//!
//! The client judges a token only where that spares a person a puzzle or keeps a secret from the wrong eyes: one
//! that is over is not sent, and one that the cluster would accept is never shown to the relay (THREATS T46). All
//! else is the relay's and the agent's to verify.

mod file;
mod fresh;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use data_encoding::BASE64URL_NOPAD;
use serde_json::Value;
use towline_tunnel::{
    clock::Clock,
    fault::{Fault, Report},
    session::message::{MAX_TOKEN, Secret},
};

pub use file::TokenFile;
pub use fresh::Issue;
pub(crate) use fresh::due;

use fresh::Fresh;

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
    /// Both, in the order in which they are asked for.
    pub const BOTH: [Self; 2] = [Self::Relay, Self::Cluster];

    fn expired(self) -> Fault {
        match self {
            Self::Relay => Fault::RelayTokenExpired,
            Self::Cluster => Fault::ClusterTokenExpired,
        }
    }

    /// `relay` or `cluster`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Cluster => "cluster",
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
    issued: Option<SystemTime>,
    expires: Option<SystemTime>,
}

impl Token {
    /// Reads a token. What is no JWT has no audiences and no end that we know of.
    pub fn parse(text: &str) -> Option<Self> {
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
        let time = |claim: &str| {
            claims[claim]
                .as_u64()
                .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
        };
        Some(Self {
            secret: Secret::new(token),
            audiences,
            issued: time("iat").or_else(|| time("nbf")),
            expires: time("exp"),
        })
    }

    /// The same, with an end that was told beside it, where that comes earlier than its own.
    #[must_use]
    pub fn ending(mut self, told: Option<SystemTime>) -> Self {
        self.expires = [self.expires, told].into_iter().flatten().min();
        self
    }

    /// `aud`, one or many.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// An audience that both tokens name.
    pub fn shared_audience<'a>(&'a self, other: &Self) -> Option<&'a str> {
        self.audiences.iter().find(|audience| other.audiences.contains(audience)).map(String::as_str)
    }

    /// Whether it is a JWT, unverified, whose claims can be read.
    pub fn is_jwt(&self) -> bool {
        !self.claims().is_null()
    }

    /// Its claims, unverified; null where it is no JWT.
    pub fn claims(&self) -> Value {
        self.secret.reveal_text().and_then(claims).unwrap_or_default()
    }

    /// When it ends, if it says.
    pub fn expires(&self) -> Option<SystemTime> {
        self.expires
    }

    /// Whether its time is over, whatever a clock may be off.
    pub fn is_over(&self, now: SystemTime) -> bool {
        self.expires.and_then(|end| end.checked_add(SKEW)).is_some_and(|end| now > end)
    }

    /// Whether its end has come, by this clock.
    pub fn has_ended(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|end| now >= end)
    }

    /// Why two tokens are not two: an audience that both have, or one text.
    pub fn not_apart(&self, other: &Self) -> Option<String> {
        let shared = self.shared_audience(other).map(|audience| format!("for audience {audience}"));
        shared.or_else(|| (self.secret == other.secret).then(|| "the same token".to_owned()))
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

/// A time as people read it.
pub(crate) fn at(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time)
        .ok()
        .and_then(|time| time.round(jiff::Unit::Second).ok())
        .map_or_else(|| "a time beyond reckoning".to_owned(), |time| time.to_string())
}

/// Where a token is to come from.
#[derive(Clone, Debug)]
pub enum TokenFrom {
    /// A file that somebody else writes.
    File(PathBuf),
    /// It was read already, and stays what it is: from standard input.
    Given(Token),
    /// Whoever issues it, again and again.
    Issuer(Arc<dyn Issue>),
}

/// Where a token comes from, while the program runs.
#[derive(Debug)]
enum Source {
    File(TokenFile),
    Given(Token),
    Fresh(Fresh),
}

impl Source {
    async fn start(from: TokenFrom, purpose: Purpose, clock: &Clock) -> Result<Self, Report> {
        Ok(match from {
            TokenFrom::File(path) => Self::File(TokenFile::new(path, purpose)),
            TokenFrom::Given(token) => Self::Given(token),
            TokenFrom::Issuer(issuer) => Self::Fresh(Fresh::start(issuer, clock.clone()).await?),
        })
    }

    /// The token, whether or not its time is over.
    fn token(&self) -> Result<Token, Report> {
        match self {
            Self::File(file) => file.token(),
            Self::Given(token) => Ok(token.clone()),
            Self::Fresh(fresh) => Ok(fresh.token()),
        }
    }

    /// The token to be sent now.
    fn current(&self, purpose: Purpose, now: SystemTime) -> Result<Token, Report> {
        let token = self.token()?;
        if !token.is_over(now) {
            return Ok(token);
        }
        // Why there is no fresh one says more than that this one has ended.
        if let Self::Fresh(fresh) = self
            && let Some(trouble) = fresh.trouble()
        {
            return Err(trouble);
        }
        let end = token.expires.map(at).unwrap_or_default();
        Err(Report::new(purpose.expired(), format!("{}, ended at {end}", self.place())))
    }

    fn place(&self) -> String {
        match self {
            Self::File(file) => file.path().display().to_string(),
            Self::Given(_) => "standard input".to_owned(),
            Self::Fresh(fresh) => fresh.place(),
        }
    }

    fn not_apart(&self, how: &str) -> Report {
        let why = format!(
            "the cluster would accept it too ({how}), so that the relay could act as you there; use two tokens"
        );
        match self {
            Self::File(file) => file.unusable(&why),
            Self::Given(_) | Self::Fresh(_) => Report::new(Fault::TokensNotApart, why),
        }
    }
}

/// The two tokens of one person.
#[derive(Debug)]
pub struct Tokens {
    relay: Source,
    cluster: Source,
    /// Whether the relay may see a token that the cluster would accept.
    shared_audience: bool,
}

impl Tokens {
    /// Begins to have tokens from these places; what is issued is renewed until this is dropped. With
    /// `shared_audience` both may name one audience: then the relay can be you on every cluster that accepts it.
    ///
    /// # Errors
    /// If nobody is logged in, or whoever issues a token gives none.
    pub async fn start(
        relay: TokenFrom,
        cluster: TokenFrom,
        shared_audience: bool,
        clock: &Clock,
    ) -> Result<Self, Report> {
        let (relay, cluster) = tokio::try_join!(
            Source::start(relay, Purpose::Relay, clock),
            Source::start(cluster, Purpose::Cluster, clock)
        )?;
        Ok(Self { relay, cluster, shared_audience })
    }

    /// What may be sent to the relay.
    ///
    /// # Errors
    /// If there is no such token, or the cluster would accept it too.
    pub fn for_relay(&self, now: SystemTime) -> Result<Secret, Report> {
        let token = self.relay.current(Purpose::Relay, now)?;
        if !self.shared_audience {
            // A cluster token that can't be read now is told to whoever needs it; nothing leaves until it was seen.
            let cluster = self.cluster.token()?;
            if let Some(how) = token.not_apart(&cluster) {
                return Err(self.relay.not_apart(&how));
            }
        }
        Ok(token.secret)
    }

    /// What is sent to the agent, inside inner TLS.
    ///
    /// # Errors
    /// If there is no such token.
    pub fn for_cluster(&self, now: SystemTime) -> Result<Secret, Report> {
        self.cluster.current(Purpose::Cluster, now).map(|token| token.secret)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

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
        let file = |path, purpose| Source::File(TokenFile::new(path, purpose));
        let tokens = Tokens {
            relay: file(path("relay", relay), Purpose::Relay),
            cluster: file(path("cluster", cluster), Purpose::Cluster),
            shared_audience: false,
        };
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
        let relay = tokens.relay.current(Purpose::Relay, after(1061)).unwrap_err();
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

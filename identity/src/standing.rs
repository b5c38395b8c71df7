//! Whether a token or account is still good by its provider's own word, while something hangs on it.
//!
//! A signature says what held when the token was made. Where an operator wants to know within a minute that an account was disabled, the
//! provider is asked again and again: by introspection (RFC 7662, [`crate::introspection`]) or, of Entra, by Microsoft Graph. Only a
//! definite answer ends anything; a provider that can't be asked ends nothing, for the token has an end of its own.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use crate::cache::{self, TokenHash};

/// How often a provider is asked about one token or account, if nothing else is configured.
pub(crate) const EVERY: Duration = Duration::from_secs(20);
/// The longest time between two questions with which everything still ends within a minute (see `docs/identity.md`).
pub(crate) const LONGEST: Duration = Duration::from_secs(30);
/// After a question without an answer the next one comes so soon.
const AGAIN: Duration = Duration::from_secs(10);
/// An answer that takes longer is none.
const WITHIN: Duration = Duration::from_secs(5);
/// Questions to one provider at once.
const AT_ONCE: usize = 32;
/// Answers kept; a bound, since callers choose how many tokens there are.
const CAPACITY: usize = 16_384;
/// About one token or account there is one question at a time.
const TURNS: usize = 64;

/// What is asked about. Prints no token.
#[derive(Clone, PartialEq, Eq)]
pub struct Question {
    /// The `iss` of the token.
    pub(crate) issuer: String,
    pub(crate) about: About,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum About {
    /// The token itself, which has to be sent to whom it is from.
    Token { hash: TokenHash, token: String, subject: String },
    /// Whoever has this object id in a tenant.
    Account { tenant: String, object: String, is_app: bool },
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.about {
            About::Token { subject, .. } => write!(f, "Question(a token of {}#{subject})", self.issuer),
            About::Account { tenant, object, .. } => write!(f, "Question(the account {tenant}/{object})"),
        }
    }
}

impl Question {
    pub(crate) fn token(issuer: &str, token: &str, subject: &str) -> Self {
        let about =
            About::Token { hash: cache::hash(token), token: token.to_owned(), subject: subject.to_owned() };
        Self { issuer: issuer.to_owned(), about }
    }

    /// Whether it is about one token, whose place a newer one may take, and not about whose it is.
    pub fn is_of_token(&self) -> bool {
        matches!(self.about, About::Token { .. })
    }

    fn key(&self) -> Key {
        match &self.about {
            About::Token { hash, .. } => Key::Token(*hash),
            About::Account { tenant, object, .. } => Key::Account(format!("{tenant}/{object}")),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    Token(TokenHash),
    Account(String),
}

/// What the provider says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody is asked about such a token.
    Unasked,
    /// It is good.
    Good,
    /// It is not any more: why, in words for whoever had it.
    Ended(String),
    /// There is no definite answer: why.
    Unknown(String),
}

/// No definite answer, and when to ask again if the provider said so.
#[derive(Debug)]
pub(crate) struct NoAnswer {
    pub(crate) why: String,
    pub(crate) pause: Option<Duration>,
}

impl From<String> for NoAnswer {
    fn from(why: String) -> Self {
        Self { why, pause: None }
    }
}

impl From<&str> for NoAnswer {
    fn from(why: &str) -> Self {
        why.to_owned().into()
    }
}

/// A definite answer: good, or why not any more.
pub(crate) type Definite = Result<(), String>;

/// What one provider said, and how many questions it is asked at once.
pub(crate) struct Answers {
    every: Duration,
    known: Mutex<HashMap<Key, (Standing, Instant)>>,
    turns: [tokio::sync::Mutex<()>; TURNS],
    at_once: Semaphore,
    /// Whether the last question had an answer: of a provider that is away the log says so once.
    is_away: Mutex<bool>,
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answers(every {:?})", self.every)
    }
}

impl Answers {
    /// None yet; each is believed for `every`.
    pub(crate) fn new(every: Duration) -> Self {
        Self {
            every,
            known: Mutex::default(),
            turns: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            at_once: Semaphore::new(AT_ONCE),
            is_away: Mutex::default(),
        }
    }

    /// What is known without asking, and for how long it is believed.
    pub(crate) fn find(&self, question: &Question) -> Option<(Standing, Duration)> {
        self.look(&question.key())
    }

    fn look(&self, key: &Key) -> Option<(Standing, Duration)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (standing, until) = known.get(key)?;
        let left = until.saturating_duration_since(Instant::now());
        (!left.is_zero()).then(|| (standing.clone(), left))
    }

    /// What is known, or else what `ask` brings; and after which time to ask again.
    pub(crate) async fn have<F>(
        &self,
        question: &Question,
        ask: impl FnOnce(Instant) -> F,
    ) -> (Standing, Duration)
    where
        F: Future<Output = Result<Definite, NoAnswer>>,
    {
        let key = question.key();
        if let Some(known) = self.look(&key) {
            return known;
        }
        let deadline = Instant::now() + WITHIN;
        let asked = timeout_at(deadline, async {
            // One question about it at a time; those who wait find its answer.
            let _turn = self.turns[turn(&key)].lock().await;
            if let Some(known) = self.look(&key) {
                return Ok(known);
            }
            // It is never closed.
            let _permit = self.at_once.acquire().await;
            let asked = Instant::now();
            let standing = match ask(deadline).await? {
                Ok(()) => Standing::Good,
                Err(why) => Standing::Ended(why),
            };
            // Counted from before the question: a change behind the provider's look is seen by the next one.
            Ok(self.keep(&key, standing, asked + self.every))
        });
        let (why, pause) = match asked.await {
            Ok(Ok(known)) => {
                if !matches!(known.0, Standing::Unknown(_)) {
                    self.note(question, None);
                }
                return known;
            }
            Ok(Err(NoAnswer { why, pause })) => (why, pause),
            Err(_elapsed) => ("no answer within 5 s".to_owned(), None),
        };
        self.note(question, Some(&why));
        let pause = pause.unwrap_or(AGAIN).clamp(Duration::from_secs(1), LONGEST);
        self.keep(&key, Standing::Unknown(why), Instant::now() + pause)
    }

    fn keep(&self, key: &Key, standing: Standing, until: Instant) -> (Standing, Duration) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if known.len() >= CAPACITY {
            known.retain(|_, (_, until)| now < *until);
            if known.len() >= CAPACITY {
                known.clear();
            }
        }
        known.insert(key.clone(), (standing.clone(), until));
        (standing, until.saturating_duration_since(now))
    }

    /// Tells the log when a provider goes away and when it is back.
    fn note(&self, question: &Question, away: Option<&str>) {
        let mut is_away = self.is_away.lock().unwrap_or_else(PoisonError::into_inner);
        match away {
            Some(why) if !*is_away => tracing::warn!(
                issuer = question.issuer,
                why,
                "the provider does not say whether accounts are still good: what is open goes on, to its token's end at most"
            ),
            None if *is_away => {
                tracing::info!(
                    issuer = question.issuer,
                    "the provider says again whether accounts are still good"
                );
            }
            _ => {}
        }
        *is_away = away.is_some();
    }
}

/// Which turn is a key's.
fn turn(key: &Key) -> usize {
    let bytes: &[u8] = match key {
        Key::Token(hash) => hash,
        Key::Account(name) => name.as_bytes(),
    };
    bytes.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into())) % TURNS
}

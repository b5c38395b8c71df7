//! A token that is kept fresh in the background: long before it ends, and again and again where that fails.
//!
//! As long as the last token lives, nobody notices that whoever issues it is away.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio_util::task::AbortOnDropHandle;
use towline_identity::Pending;
use towline_tunnel::{
    backoff::{self, Backoff},
    clock::Clock,
    fault::Report,
};

use super::Token;

/// Ceilings of the delays after failures. The last is what a person waits for at most who has logged in again.
const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(30);
/// A token without an end is asked for again after this.
const ENDLESS: Duration = Duration::from_secs(300);
/// Whoever issues tokens that end at once is not asked more often.
const LEAST: Duration = Duration::from_secs(5);
/// The wall clock is looked at this often: the runtime's stands still while a laptop sleeps.
const LOOK: Duration = Duration::from_secs(15);

/// Whoever issues one kind of token: an identity provider to which somebody is logged in, a program, a CI system.
pub trait Issue: fmt::Debug + Send + Sync {
    /// A token that was issued before and is not over yet, if one is kept. Asks nobody.
    ///
    /// # Errors
    /// If what is kept can't be read.
    fn kept(&self, _now: SystemTime) -> Pending<'_, Result<Option<Token>, Report>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// A fresh token. Bounds its own time.
    ///
    /// # Errors
    /// If none is had.
    fn issue(&self, now: SystemTime) -> Pending<'_, Result<Token, Report>>;

    /// Whether another one is had when this one ends, without anybody's doing.
    fn renews(&self) -> bool {
        true
    }

    /// Where the token comes from or is kept, for people.
    fn place(&self) -> String;
}

/// The last token, and what went wrong since.
#[derive(Debug)]
struct Last {
    token: Token,
    trouble: Option<Report>,
}

/// A token that is renewed until this is dropped.
#[derive(Debug)]
pub(super) struct Fresh {
    last: Arc<Mutex<Last>>,
    issuer: Arc<dyn Issue>,
    _renewed: AbortOnDropHandle<()>,
}

impl Fresh {
    /// Begins with what is kept, or has a token issued.
    pub(super) async fn start(issuer: Arc<dyn Issue>, clock: Clock) -> Result<Self, Report> {
        let (token, trouble) = match issuer.kept(clock.now()).await? {
            // It only serves for a clock that runs ahead: where a newer one is to be had, nobody is to refuse this one first.
            Some(token) if token.has_ended(clock.now()) => match issuer.issue(clock.now()).await {
                Ok(newer) => (newer, None),
                Err(report) => (token, Some(report)),
            },
            Some(token) => (token, None),
            None => (issuer.issue(clock.now()).await?, None),
        };
        let due = due(&token, clock.now(), backoff::random());
        let last = Arc::new(Mutex::new(Last { token, trouble }));
        let renewing = renew(Arc::clone(&issuer), Arc::clone(&last), clock, due);
        Ok(Self { last, issuer, _renewed: AbortOnDropHandle::new(tokio::spawn(renewing)) })
    }

    pub(super) fn token(&self) -> Token {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).token.clone()
    }

    /// Why the last attempt to have a fresh one failed, if it did.
    pub(super) fn trouble(&self) -> Option<Report> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).trouble.clone()
    }

    pub(super) fn place(&self) -> String {
        self.issuer.place()
    }
}

/// When a token is to be renewed: after three quarters of its life, or a little earlier by chance, so that many who
/// began at once do not come at once.
pub(crate) fn due(token: &Token, seen: SystemTime, random: u64) -> SystemTime {
    let Some(end) = token.expires else { return seen + ENDLESS };
    let begun = token.issued.filter(|issued| *issued < end).unwrap_or(seen);
    let life = end.duration_since(begun).unwrap_or_default();
    let before = life / 4 + (life / 20).mul_f64(random as f64 / u64::MAX as f64);
    end.checked_sub(before).unwrap_or(end)
}

/// Renews for as long as it is polled. One attempt at a time.
async fn renew(issuer: Arc<dyn Issue>, last: Arc<Mutex<Last>>, clock: Clock, mut due_at: SystemTime) {
    let mut backoff = Backoff::new(FIRST, LAST);
    loop {
        until(due_at, &clock).await;
        let issued = issuer.issue(clock.now()).await;
        let now = clock.now();
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        match issued {
            Ok(token) => {
                due_at = due(&token, now, backoff::random()).max(now + LEAST);
                *last = Last { token, trouble: None };
                backoff.reset();
                tracing::debug!(place = issuer.place(), "a token was renewed");
            }
            Err(report) => {
                // The first failure is told; the rest is told where it matters, when the token is over.
                if last.trouble.as_ref().is_none_or(|known| known.fault != report.fault) {
                    tracing::warn!(%report, "a token was not renewed; the last one serves until it ends");
                }
                due_at = now + backoff.after_failure(report.delay(), backoff::random()).max(FIRST);
                last.trouble = Some(report);
            }
        }
    }
}

/// Waits until it is that late by the wall clock.
async fn until(time: SystemTime, clock: &Clock) {
    while let Ok(left) = time.duration_since(clock.now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    use data_encoding::BASE64URL_NOPAD;
    use tokio::time::{Instant, sleep};
    use towline_tunnel::fault::Fault;

    use super::*;

    const HOUR: u64 = 3600;

    fn clock() -> Clock {
        let began = Instant::now();
        Clock::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000) + began.elapsed())
    }

    fn token(number: u32, now: SystemTime, life: u64) -> Token {
        let issued = now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let claims = format!(r#"{{"iat":{issued},"exp":{},"n":{number}}}"#, issued + life);
        Token::parse(&format!("e30.{}.c2ln", BASE64URL_NOPAD.encode(claims.as_bytes()))).unwrap()
    }

    /// Issues numbered tokens of an hour, or fails.
    #[derive(Debug, Default)]
    struct Scripted {
        asked: AtomicU32,
        /// In seconds.
        life: AtomicU64,
        fault: Mutex<Option<Report>>,
        kept: Option<Token>,
    }

    impl Scripted {
        fn new(life: u64) -> Arc<Self> {
            Arc::new(Self { life: life.into(), ..Self::default() })
        }

        fn fail(&self, report: Option<Report>) {
            *self.fault.lock().unwrap() = report;
        }

        fn asked(&self) -> u32 {
            self.asked.load(Ordering::Relaxed)
        }
    }

    impl Issue for Scripted {
        fn kept(&self, _now: SystemTime) -> Pending<'_, Result<Option<Token>, Report>> {
            Box::pin(std::future::ready(Ok(self.kept.clone())))
        }

        fn issue(&self, now: SystemTime) -> Pending<'_, Result<Token, Report>> {
            let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
            let failed = self.fault.lock().unwrap().clone();
            let life = self.life.load(Ordering::Relaxed);
            Box::pin(async move { failed.map_or_else(|| Ok(token(number, now, life)), Err) })
        }

        fn place(&self) -> String {
            "a script".to_owned()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_renewed_after_three_quarters_of_its_life() {
        let (issuer, clock) = (Scripted::new(HOUR), clock());
        let fresh = Fresh::start(issuer.clone(), clock.clone()).await.unwrap();
        sleep(Duration::from_secs(HOUR * 7 / 10 - 1)).await;
        assert_eq!(issuer.asked(), 1);
        sleep(Duration::from_secs(HOUR / 20 + 2)).await;
        assert_eq!((issuer.asked(), fresh.token().claims()["n"].as_u64()), (2, Some(2)));
        drop(fresh);
        sleep(Duration::from_secs(10 * HOUR)).await;
        assert_eq!(issuer.asked(), 2, "nobody renews what nobody has");
    }

    /// Ten minutes of an issuer that is away cost nothing while the token lives; the first failure is not the last try.
    #[tokio::test(start_paused = true)]
    async fn an_issuer_that_is_away_ends_nothing_whose_token_lives() {
        let (issuer, clock) = (Scripted::new(HOUR), clock());
        let fresh = Fresh::start(issuer.clone(), clock.clone()).await.unwrap();
        sleep(Duration::from_secs(HOUR * 7 / 10 - 1)).await;
        issuer.fail(Some(Fault::IdpUnreachable.into()));
        sleep(Duration::from_secs(600)).await;
        let tries = issuer.asked();
        assert!((10..=200).contains(&tries), "{tries} questions in 10 minutes");
        assert!(!fresh.token().is_over(clock.now()));
        assert_eq!(fresh.trouble().unwrap().fault, Fault::IdpUnreachable);
        issuer.fail(None);
        sleep(LAST + LOOK).await;
        assert!(fresh.trouble().is_none() && fresh.token().claims()["n"].as_u64() > Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_token_is_over_the_reason_why_there_is_no_other_is_told() {
        let (issuer, clock) = (Scripted::new(HOUR), clock());
        let source = super::super::Source::Fresh(Fresh::start(issuer.clone(), clock.clone()).await.unwrap());
        let purpose = super::super::Purpose::Cluster;
        issuer.fail(Some(Fault::LoginEnded.into()));
        sleep(Duration::from_secs(HOUR)).await;
        source.current(purpose, clock.now()).unwrap();
        sleep(Duration::from_secs(120)).await;
        assert_eq!(source.current(purpose, clock.now()).unwrap_err().fault, Fault::LoginEnded);
        issuer.fail(None);
        sleep(LAST + LOOK).await;
        source.current(purpose, clock.now()).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_issues_tokens_that_are_over_is_not_asked_all_the_time() {
        let issuer = Scripted::new(0);
        let _fresh = Fresh::start(issuer.clone(), clock()).await.unwrap();
        sleep(Duration::from_secs(60)).await;
        assert!(issuer.asked() <= 14, "{}", issuer.asked());
    }

    /// Between its end and what is allowed for clocks a token may be refused anywhere.
    #[tokio::test(start_paused = true)]
    async fn a_kept_token_whose_end_has_come_is_renewed_before_it_is_used() {
        let clock = clock();
        let ended = token(7, clock.now() - Duration::from_secs(HOUR), HOUR);
        let with_kept =
            || Arc::new(Scripted { life: HOUR.into(), kept: Some(ended.clone()), ..Scripted::default() });
        let fresh = Fresh::start(with_kept(), clock.clone()).await.unwrap();
        assert_eq!(fresh.token().claims()["n"].as_u64(), Some(1));
        // Nobody to ask: it serves while it may.
        let away = with_kept();
        away.fail(Some(Fault::IdpUnreachable.into()));
        let fresh = Fresh::start(away, clock.clone()).await.unwrap();
        assert_eq!(fresh.token().claims()["n"].as_u64(), Some(7));
        assert_eq!(fresh.trouble().unwrap().fault, Fault::IdpUnreachable);
    }

    #[test]
    fn a_token_is_due_before_it_ends_whatever_it_says() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let of = |claims: &str| {
            Token::parse(&format!("e30.{}.c2ln", BASE64URL_NOPAD.encode(claims.as_bytes()))).unwrap()
        };
        assert_eq!(due(&of("{}"), now, 0), now + ENDLESS);
        let end = now + Duration::from_secs(400);
        assert_eq!(due(&of(r#"{"exp":1000400}"#), now, 0), end - Duration::from_secs(100));
        assert_eq!(due(&of(r#"{"exp":1000400,"iat":2000000}"#), now, 0), end - Duration::from_secs(100));
        assert!(due(&of(r#"{"exp":9223372036854775807,"iat":0}"#), now, u64::MAX) > now);
        assert_eq!(due(&of(r#"{"exp":5}"#), now, 0), SystemTime::UNIX_EPOCH + Duration::from_secs(5));
    }
}

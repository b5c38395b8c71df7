//! Asks a user's identity provider again and again whether it still stands by them, as long as something of theirs is open.
//!
//! Only a definite no ends anything. A provider that is away ends nothing: the token has an end of its own.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use towline_identity::{Question, Standing, Verifier};
use towline_tunnel::{
    clock::Clock,
    fault::{Fault, Report},
};
use tracing::info;

/// A provider may end a token when its login is renewed. The client posts the newer one within 5 s, and has this long for it.
const SUCCESSOR_WITHIN: Duration = Duration::from_secs(8);
/// The first request with a token waits no longer for the provider; who asks on is [`Asking`].
const FIRST_WITHIN: Duration = Duration::from_secs(3);

/// Asks while it is held.
#[derive(Debug)]
pub(crate) struct Asking {
    question: watch::Sender<Question>,
    _task: AbortOnDropHandle<()>,
}

impl Asking {
    /// Cancels `disowned` once the provider says no.
    pub(crate) fn begin(
        question: Question,
        verifier: Arc<Verifier>,
        clock: Clock,
        disowned: CancellationToken,
    ) -> Self {
        let (question, asked) = watch::channel(question);
        let task = tokio::spawn(async move {
            if let Some(why) = denied(&verifier, asked, &clock).await {
                info!(why, "what is open ends");
                disowned.cancel();
            }
        });
        Self { question, _task: AbortOnDropHandle::new(task) }
    }

    /// Whether it asks about this now.
    pub(crate) fn is_about(&self, question: &Question) -> bool {
        *self.question.borrow() == *question
    }

    /// Asks about this from now on.
    pub(crate) fn go_on_with(&self, question: Question) {
        self.question.send_if_modified(|asked| {
            let is_new = *asked != question;
            *asked = question;
            is_new
        });
    }
}

/// Waits for a no that stands; nothing if nobody is left to hear of it.
async fn denied(verifier: &Verifier, mut asked: watch::Receiver<Question>, clock: &Clock) -> Option<String> {
    // A no to one token, and when it is the last word. A newer token that is good takes it back; one of which nothing can be learned
    // does not.
    let mut no: Option<(String, Instant)> = None;
    loop {
        let question = asked.borrow_and_update().clone();
        let (standing, again) = verifier.standing(&question, clock.now()).await;
        match standing {
            Standing::Ended(why) if !question.is_of_token() => return Some(why),
            Standing::Ended(why) => {
                no.get_or_insert_with(|| (why, Instant::now() + SUCCESSOR_WITHIN));
            }
            Standing::Unasked | Standing::Good => no = None,
            Standing::Unknown(_) => {}
        }
        let left = no.as_ref().map(|(_, at)| at.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return no.map(|(why, _)| why);
        }
        let pause = left.map_or(again, |left| left.min(again));
        tokio::select! {
            () = sleep(pause) => {}
            newer = asked.changed() => newer.ok()?,
        }
    }
}

/// Lets a request pass unless the provider says no. Asked is only about what is not being asked already (`is_asked`).
///
/// # Errors
/// If it said no.
pub(crate) async fn check(
    verifier: &Verifier,
    question: &Question,
    is_asked: bool,
    clock: &Clock,
) -> Result<(), Report> {
    let standing = match verifier.known_standing(question) {
        None if !is_asked => {
            let asked = timeout(FIRST_WITHIN, verifier.standing(question, clock.now())).await;
            asked.ok().map(|(standing, _)| standing)
        }
        known => known,
    };
    match standing {
        Some(Standing::Ended(why)) => Err(Report::new(Fault::AccountEnded, why)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Mutex, PoisonError},
        time::SystemTime,
    };

    use bytes::Bytes;
    use data_encoding::BASE64URL_NOPAD;
    use http::{Request, Response};
    use towline_identity::{Fetch, FetchError, IssuerSettings, Pending, TrustSettings};
    use towline_tunnel::keys::SigningKey;

    use super::*;
    use crate::authority::{Authorities, Authority, Ended};

    const ISSUER: &str = "https://idp.example";
    const MINUTE: Duration = Duration::from_secs(60);

    /// The provider, as far as it is asked here.
    #[derive(Default)]
    struct Provider {
        /// Tokens with these marks are not active.
        ended: Mutex<Vec<u32>>,
        is_away: Mutex<bool>,
        /// Of these it says nothing.
        unknown: Mutex<Vec<u32>>,
        asked: Mutex<Vec<Instant>>,
    }

    fn held<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    impl Fetch for Provider {
        fn send(&self, request: Request<Bytes>) -> Pending<'_, Result<Response<Bytes>, FetchError>> {
            held(&self.asked).push(Instant::now());
            Box::pin(async move {
                if *held(&self.is_away) {
                    // No sooner than whoever asks gives up.
                    sleep(Duration::from_secs(3600)).await;
                }
                let body = String::from_utf8_lossy(request.body()).into_owned();
                if held(&self.unknown).iter().any(|mark| body.contains(&token(*mark))) {
                    return Ok(Response::builder().status(400).body(Bytes::new()).unwrap());
                }
                let is_active = !held(&self.ended).iter().any(|mark| body.contains(&token(*mark)));
                Ok(Response::new(Bytes::from(format!(r#"{{"active":{is_active}}}"#))))
            })
        }
    }

    fn token(mark: u32) -> String {
        let part = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
        let claims = format!(r#"{{"iss":"{ISSUER}","sub":"alice","mark":{mark}}}"#);
        format!("{}.{}.c2ln", part(r#"{"alg":"RS256"}"#), part(&claims))
    }

    struct Bench {
        provider: Arc<Provider>,
        verifier: Arc<Verifier>,
        authorities: Authorities,
        key: SigningKey,
        clock: Clock,
        begun: Instant,
        /// Its secret is read at each question.
        _folder: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let (secret, file) = (folder.path().join("secret"), folder.path().join("introspection.yaml"));
            std::fs::write(&secret, "s").unwrap();
            let text = format!(
                "apiVersion: towline.dev/v1\nkind: IntrospectionConfiguration\nissuers:\n\
                 - {{url: '{ISSUER}', endpoint: '{ISSUER}/introspect', clientId: c, clientSecretFile: {}}}\n",
                secret.display()
            );
            std::fs::write(&file, text).unwrap();
            let settings = TrustSettings {
                oidc: Some(IssuerSettings {
                    issuer_url: ISSUER.into(),
                    client_id: "cluster".into(),
                    ..IssuerSettings::default()
                }),
                introspection_config: Some(file),
                ..TrustSettings::default()
            };
            let trust = settings.load().unwrap();
            let provider = Arc::new(Provider::default());
            let fetch: Arc<dyn Fetch> = Arc::clone(&provider) as _;
            let verifier = Arc::new(Verifier::with_fetch(trust, fetch).unwrap());
            let begun = Instant::now();
            let clock = Clock::new(move || SystemTime::UNIX_EPOCH + begun.elapsed());
            let authorities = Authorities::new(clock.clone());
            Self {
                provider,
                verifier,
                authorities,
                key: SigningKey::generate(),
                clock,
                begun,
                _folder: folder,
            }
        }

        fn question(&self, mark: u32) -> Question {
            self.verifier.question(&token(mark)).unwrap()
        }

        /// As a request with this token does.
        async fn request(&self, mark: u32) -> Result<Arc<Authority>, Report> {
            let (question, key) = (self.question(mark), self.key.public().hash());
            let held = self.authorities.find(key, "alice");
            let is_asked = held.is_some_and(|held| held.asks(&question));
            check(&self.verifier, &question, is_asked, &self.clock).await?;
            let day = SystemTime::UNIX_EPOCH + Duration::from_secs(24 * 3600);
            let authority = self.authorities.renew(key, "alice", day);
            authority.keep_asking(question, &self.verifier);
            Ok(authority)
        }

        fn asked(&self) -> usize {
            held(&self.provider.asked).len()
        }
    }

    /// At whatever moment between two questions the account is disabled.
    #[tokio::test(start_paused = true)]
    async fn a_disabled_account_ends_within_a_minute() {
        for after in [0, 1, 19, 20, 21, 39, 41, 600] {
            let bench = Bench::new();
            let authority = bench.request(1).await.unwrap();
            sleep(Duration::from_secs(after)).await;
            held(&bench.provider.ended).push(1);
            let disabled = Instant::now();
            assert_eq!(timeout(MINUTE, authority.ended()).await, Ok(Ended::Account), "after {after} s");
            assert!(disabled.elapsed() <= Duration::from_secs(30), "{:?}", disabled.elapsed());
            assert_eq!(bench.request(1).await.unwrap_err().fault, Fault::AccountEnded);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_is_asked_every_20_s_for_as_long_as_something_is_open_however_much_is_asked_for() {
        let bench = Bench::new();
        let authority = bench.request(1).await.unwrap();
        for _ in 0..600 {
            bench.request(1).await.unwrap();
            sleep(Duration::from_secs(1)).await;
        }
        assert!((28..=32).contains(&bench.asked()), "{}", bench.asked());
        drop(authority);
        sleep(MINUTE).await;
        let asked = bench.asked();
        sleep(10 * MINUTE).await;
        assert_eq!(bench.asked(), asked);
    }

    /// It is away for ten minutes: nothing ends, and new requests pass; then it says no.
    #[tokio::test(start_paused = true)]
    async fn a_provider_that_can_not_be_asked_ends_nothing_and_a_definite_answer_does() {
        let bench = Bench::new();
        let authority = bench.request(1).await.unwrap();
        *held(&bench.provider.is_away) = true;
        held(&bench.provider.ended).push(1);
        assert!(timeout(10 * MINUTE, authority.ended()).await.is_err());
        let asked = Instant::now();
        bench.request(2).await.unwrap();
        assert!(asked.elapsed() <= FIRST_WITHIN, "{:?}", asked.elapsed());
        bench.request(1).await.unwrap();
        *held(&bench.provider.is_away) = false;
        assert_eq!(timeout(MINUTE, authority.ended()).await, Ok(Ended::Account));
        assert!(bench.begun.elapsed() > 10 * MINUTE);
    }

    /// A login was renewed: the provider has ended the token that the agent knows, and the client is about to post the next.
    #[tokio::test(start_paused = true)]
    async fn a_newer_token_takes_the_place_of_one_that_was_ended() {
        let bench = Bench::new();
        let authority = bench.request(1).await.unwrap();
        held(&bench.provider.ended).push(1);
        // It was asked about the first at 20 s.
        sleep(Duration::from_secs(26)).await;
        let same = bench.request(2).await.unwrap();
        assert!(Arc::ptr_eq(&authority, &same));
        assert!(timeout(10 * MINUTE, authority.ended()).await.is_err());
        held(&bench.provider.ended).push(2);
        assert_eq!(timeout(MINUTE, authority.ended()).await, Ok(Ended::Account));
        // The account is enabled again, and there is a third.
        let fresh = bench.request(3).await.unwrap();
        assert!(timeout(MINUTE, fresh.ended()).await.is_err());
    }

    /// Newer tokens of which the provider says nothing, again and again, take no earlier no back.
    #[tokio::test(start_paused = true)]
    async fn a_no_stands_until_a_newer_token_is_good() {
        let bench = Bench::new();
        let authority = bench.request(1).await.unwrap();
        *held(&bench.provider.unknown) = vec![2, 4];
        held(&bench.provider.ended).push(1);
        let disabled = Instant::now();
        let alternate = async {
            // It is asked about the first at 20 s.
            sleep(Duration::from_secs(22)).await;
            loop {
                for mark in [2, 4] {
                    sleep(Duration::from_secs(3)).await;
                    let _refused = bench.request(mark).await;
                }
            }
        };
        tokio::select! {
            ended = timeout(MINUTE, authority.ended()) => assert_eq!(ended, Ok(Ended::Account)),
            () = alternate => {}
        }
        assert!(disabled.elapsed() <= MINUTE);
    }
}

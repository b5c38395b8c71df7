//! A token in, an identity or a reason out.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use crate::{
    Accepted, Dial, Direct, Explanation, Fetch, FetchError, Identity, Trust, TrustSettings, VerifyError,
    cache::{self, Verified},
    entra::{Nonces, Proof},
    issuer::{Issuer, Judged},
    keys::REFRESH,
    standing::{EVERY, Question, Standing},
    token::{self, Kind, Object},
    trace::{Trace, quoted},
};

/// Files are looked at this often.
const LOOK: Duration = Duration::from_secs(10);

/// Everything that a change of the configuration replaces at once.
#[derive(Debug, Default)]
struct Trusted {
    issuers: Vec<Arc<Issuer>>,
    verified: Verified,
}

impl Trusted {
    /// Whose a token says that it is. Asked before a stranger's token can make us ask anyone for keys.
    fn issuer(&self, claims: &Object) -> Result<(&Issuer, usize), VerifyError> {
        let iss = claims.text("iss").ok_or(VerifyError::Issuer)?;
        let mut known = self.issuers.iter().filter_map(|issuer| Some((&**issuer, issuer.source(iss)?)));
        known.next().ok_or(VerifyError::Issuer)
    }
}

/// How issuers are asked.
enum Asking {
    Https(Arc<dyn Dial>),
    By(Arc<dyn Fetch>),
}

/// Verifies tokens of any number of issuers.
pub struct Verifier {
    trusted: RwLock<Arc<Trusted>>,
    asking: Asking,
    /// Outlives changes of the configuration: a proof is used once.
    nonces: Nonces,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

impl Verifier {
    /// A verifier that asks issuers by https.
    ///
    /// # Errors
    /// If an issuer's authorities can't be used.
    pub fn new(trust: impl Into<Trust>) -> Result<Self, FetchError> {
        Self::over(trust, Arc::new(Direct))
    }

    /// A verifier that reaches issuers another way; TLS is end to end all the same.
    ///
    /// # Errors
    /// If an issuer's authorities can't be used.
    pub fn over(trust: impl Into<Trust>, dial: Arc<dyn Dial>) -> Result<Self, FetchError> {
        Self::with(trust.into(), Asking::Https(dial))
    }

    /// A verifier that gets the issuers' documents from elsewhere altogether.
    ///
    /// # Errors
    /// None by itself; as [`Verifier::new`].
    pub fn with_fetch(trust: impl Into<Trust>, fetch: Arc<dyn Fetch>) -> Result<Self, FetchError> {
        Self::with(trust.into(), Asking::By(fetch))
    }

    fn with(trust: Trust, asking: Asking) -> Result<Self, FetchError> {
        let verifier = Self { trusted: RwLock::default(), asking, nonces: Nonces::default() };
        verifier.replace(trust)?;
        Ok(verifier)
    }

    fn trusted(&self) -> Arc<Trusted> {
        Arc::clone(&self.trusted.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Trusts others from now on. Keys of issuers that stay are kept; verdicts are not.
    ///
    /// # Errors
    /// If an issuer's authorities can't be used; everything is as before then.
    pub fn replace(&self, trust: impl Into<Trust>) -> Result<(), FetchError> {
        let before = self.trusted();
        let issuers = trust.into().issuers.into_iter().map(|config| {
            let fetch = match &self.asking {
                Asking::Https(dial) => Issuer::fetch(&config, dial)?,
                Asking::By(fetch) => Arc::clone(fetch),
            };
            Ok(Arc::new(Issuer::new(config, &fetch, &before.issuers)))
        });
        let issuers = issuers.collect::<Result<_, FetchError>>()?;
        let fresh = Trusted { issuers, verified: Verified::default() };
        *self.trusted.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        Ok(())
    }

    /// Who the token says is calling, at `now`. Asks the issuer only where the key is not known.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub async fn verify(&self, token: &str, now: SystemTime) -> Result<Identity, VerifyError> {
        self.check(token, now).await.map(|accepted| accepted.identity)
    }

    /// As [`Verifier::verify`], with what the audit must say beside the name.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub async fn check(&self, token: &str, now: SystemTime) -> Result<Accepted, VerifyError> {
        // Before anything that takes longer the longer it is.
        token::check_length(token).map_err(VerifyError::Malformed)?;
        let trusted = self.trusted();
        let hash = cache::hash(token);
        if let Some(accepted) = trusted.verified.find(&hash, now) {
            return Ok(accepted);
        }
        let generation = trusted.verified.generation();
        let (accepted, until) = self.judge(&trusted, token, now, &mut Trace::off()).await?;
        if let Some(until) = until {
            trusted.verified.keep(hash, accepted.clone(), until, (generation, now));
        }
        Ok(accepted)
    }

    /// Rule by rule, what the token would become or why it is refused.
    pub async fn explain(&self, token: &str, now: SystemTime) -> Explanation {
        let mut trace = Trace::on();
        let judged = self.judge(&self.trusted(), token, now, &mut trace).await;
        Explanation::new(trace.into_steps(), judged.map(|(accepted, _)| accepted))
    }

    /// What is to be asked about a token that was verified while something hangs on it: of issuers that `--introspection-config` or
    /// `checkAccounts` names; nothing otherwise.
    pub fn question(&self, token: &str) -> Option<Question> {
        let trusted = self.trusted();
        if trusted.issuers.iter().all(|issuer| issuer.asks_nobody()) {
            return None;
        }
        let outer = token::parse(token).ok()?;
        let of = |token: &str, claims: &Object| trusted.issuer(claims).ok()?.0.question(token, claims);
        match outer.kind {
            Kind::Bearer => of(token, &outer.claims),
            Kind::Proof => {
                let inner = Proof::token(&outer).ok()?;
                of(inner, &token::parse(inner).ok()?.claims)
            }
        }
    }

    /// What the issuer last said of it, if that still counts. Asks nobody.
    pub fn known_standing(&self, question: &Question) -> Option<Standing> {
        let trusted = self.trusted();
        let issuer = trusted.issuers.iter().find(|issuer| issuer.source(&question.issuer).is_some())?;
        issuer.known(question)
    }

    /// Whether its issuer still stands by it, and after which time to ask again. An answer is believed for a while, and whoever asks
    /// about the same meanwhile gets that one; it takes at most 5 s.
    pub async fn standing(&self, question: &Question, now: SystemTime) -> (Standing, Duration) {
        let trusted = self.trusted();
        let mut issuers = trusted.issuers.iter();
        match issuers.find(|issuer| issuer.source(&question.issuer).is_some() && !issuer.asks_nobody()) {
            Some(issuer) => issuer.standing(question, now).await,
            None => (Standing::Unasked, EVERY),
        }
    }

    /// A verdict, and until when it may be repeated; never that of a proof, which is good once.
    async fn judge(
        &self,
        trusted: &Trusted,
        token: &str,
        now: SystemTime,
        trace: &mut Trace,
    ) -> Result<(Accepted, Option<SystemTime>), VerifyError> {
        let outer = token::parse(token).map_err(VerifyError::Malformed)?;
        match outer.kind {
            Kind::Bearer => {
                trace.held("form", || "a signed token".into());
                let (issuer, source) = trusted.issuer(&outer.claims)?;
                trace.held("issuer", || quoted(outer.claims.text("iss").unwrap_or_default()));
                if issuer.pop().is_some_and(|rules| rules.required) {
                    return Err(VerifyError::Proof("is missing, and a plain bearer is not taken"));
                }
                let (accepted, until) = issuer.judge(&outer, source, now, false, trace).await?;
                Ok((accepted, Some(until)))
            }
            Kind::Proof => {
                let inner = Proof::token(&outer)?;
                let inner = token::parse(inner).map_err(VerifyError::Malformed)?;
                if inner.kind != Kind::Bearer {
                    return Err(VerifyError::Proof("is around another proof"));
                }
                trace.held("form", || "a signed request around a signed token".into());
                let (issuer, source) = trusted.issuer(&inner.claims)?;
                trace.held("issuer", || quoted(inner.claims.text("iss").unwrap_or_default()));
                let rules = issuer.pop().ok_or(VerifyError::Proof("is not taken from this issuer"))?;
                let proof = Proof::check(&outer, rules, now)?;
                proof.check_bound(&inner.claims)?;
                trace.held("proof", || "by the key that the token names".into());
                let (accepted, _until): Judged = issuer.judge(&inner, source, now, true, trace).await?;
                self.nonces.spend(proof, now)?;
                Ok((accepted, None))
            }
        }
    }

    /// Asks for all keys now; for a check at start. A failure leaves the last good set.
    ///
    /// # Errors
    /// The first, if some can't be had; all are asked for.
    pub async fn refresh(&self) -> Result<(), FetchError> {
        let trusted = self.trusted();
        let mut first = Ok(());
        for keys in trusted.issuers.iter().flat_map(|issuer| issuer.keys()) {
            if let Err(error) = keys.refresh().await {
                tracing::warn!(
                    issuer = keys.issuer(), %error,
                    "the issuer's keys can't be had (check its URL, --oidc-ca-file and the network); the last ones stay, and they are asked for again when a token needs them"
                );
                first = first.and(Err(error));
            }
        }
        trusted.verified.clear();
        first
    }

    /// Refreshes the keys every hour; whoever runs this owns it.
    pub async fn keep_fresh(&self) {
        loop {
            tokio::time::sleep(REFRESH).await;
            // What failed is in the log, and the last keys stay.
            let _asked = self.refresh().await;
        }
    }

    /// Looks at the settings' files every 10 s, and takes up what changed. What can't be read, or has a fault, leaves
    /// everything as it is. Whoever runs this owns it.
    pub async fn keep_loaded(&self, settings: &TrustSettings) {
        let told = |trust: &Trust| format!("{trust:?}");
        let mut last = settings.load().map(|trust| told(&trust)).map_err(|error| error.to_string());
        loop {
            tokio::time::sleep(LOOK).await;
            // Small files, and rarely: not worth a thread.
            let loaded = settings.load();
            let fresh = loaded.as_ref().map(told).map_err(ToString::to_string);
            if fresh == last {
                continue;
            }
            match loaded {
                Ok(trust) => {
                    let issuers = trust.names();
                    match self.replace(trust) {
                        Ok(()) => tracing::info!(issuers, "the trusted issuers changed"),
                        Err(error) => tracing::error!(%error, "the trusted issuers stay as they were"),
                    }
                }
                Err(error) => tracing::error!(%error, "the trusted issuers stay as they were"),
            }
            last = fresh;
        }
    }
}

//! A person's login: made in one visit of the provider, kept, renewed by refresh tokens, and ended.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use towline_identity::Pending;
use towline_tunnel::{
    clock::Clock,
    fault::{Fault, Report},
    session::message::Secret,
};

use super::{
    Prompt, Who, browser, device,
    oauth::{self, Grant},
    provider::{Provider, wrong},
    settings::{Flow, Registration, Settings},
    store::{KeptLogin, Store},
    uses,
};
use crate::token::{Issue, Purpose, Token, at, due};

/// Logs a person in, for both audiences, and keeps that. `say` is told what the person must do.
///
/// # Errors
/// If the provider can't be reached or refuses, nobody finishes in time, the tokens are not two of one person, or they can't be
/// kept. Then what was kept before stays.
pub async fn interactive(
    settings: &Settings,
    store: &Store,
    say: &(dyn Fn(&Prompt) + Sync),
    clock: &Clock,
) -> Result<Vec<Who>, Report> {
    let provider = Provider::discover(settings).await?;
    let registrations = Purpose::BOTH.map(|purpose| settings.of(purpose));
    let granted = match settings.flow {
        Flow::Device => {
            let grants = device::log_in(&provider, &registrations, say, clock).await?;
            grants.into_iter().map(|grant| (grant, None)).collect()
        }
        _ => browser::log_in(&provider, settings, &registrations, say, clock).await?,
    };
    let mut logins = Vec::new();
    for ((grant, nonce), of) in granted.into_iter().zip(registrations) {
        logins.push(login(&provider, of, grant, nonce.as_ref(), clock.now()).await?);
    }
    if let [relay, cluster] = logins.as_slice() {
        check_pair(relay, cluster, settings.shared_audience)?;
    }
    let mut people = Vec::new();
    for (purpose, login) in Purpose::BOTH.into_iter().zip(&logins) {
        let _lock = store.lock(&settings.name, purpose).await?;
        store.write(&settings.name, purpose, settings.keep, login).await?;
        people.push(Who::of(
            purpose,
            &login.token,
            place(settings, purpose, store).await,
            login.refresh.is_some(),
        ));
    }
    Ok(people)
}

async fn place(settings: &Settings, purpose: Purpose, store: &Store) -> String {
    if store.in_keyring(&settings.name, purpose).await {
        "the keyring".to_owned()
    } else {
        store.place(&settings.name, purpose)
    }
}

/// What was granted, once its ID token is known to be the provider's, and an answer to this login.
async fn login(
    provider: &Provider,
    of: &Registration,
    grant: Grant,
    nonce: Option<&Secret>,
    now: SystemTime,
) -> Result<KeptLogin, Report> {
    let subject = match &grant.id {
        Some(id) => Some(provider.verify(id, of, nonce.and_then(Secret::reveal_text), now).await?),
        None if of.is_openid() => {
            return Err(wrong("no ID token came, and one was asked for (scope openid)"));
        }
        None => None,
    };
    Ok(KeptLogin {
        issuer: provider.issuer().to_owned(),
        client: of.client.clone(),
        kind: of.kind,
        subject,
        token: grant.token,
        refresh: grant.refresh,
    })
}

/// Two audiences and one person, or the agent would refuse what the relay lets through.
fn check_pair(relay: &KeptLogin, cluster: &KeptLogin, shared_audience: bool) -> Result<(), Report> {
    let not_apart = |why: String| Err(Report::new(Fault::TokensNotApart, why));
    if !shared_audience && let Some(how) = relay.token.not_apart(&cluster.token) {
        return not_apart(format!(
            "the cluster would accept the relay's token too ({how}), so that the relay could act as you there"
        ));
    }
    let (one, other) = (relay.token.claims(), cluster.token.claims());
    // Entra's `sub` differs between applications; `oid` is whom relay and agent compare there.
    let claim = if one["oid"].is_string() && other["oid"].is_string() { "oid" } else { "sub" };
    let of = |claims: &serde_json::Value| claims[claim].as_str().unwrap_or_default().to_owned();
    let (one, other) = (of(&one), of(&other));
    if one != other {
        return not_apart(format!("they are of two people: {one:?} and {other:?} ({claim})"));
    }
    Ok(())
}

/// A login that is kept, for one audience.
pub struct Session(Arc<Inner>);

struct Inner {
    settings: Settings,
    purpose: Purpose,
    store: Store,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The token that was given out last.
    token: Option<Token>,
    /// The refresh token that was refused: it is not shown again.
    refused: Option<Secret>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({}, {:?})", self.0.settings.name, self.0.purpose)
    }
}

impl Session {
    /// The login of this profile, whether or not there is one yet.
    pub fn new(settings: &Settings, purpose: Purpose, store: Store) -> Self {
        let inner = Inner { settings: settings.clone(), purpose, store, seen: Mutex::default() };
        Self(Arc::new(inner))
    }
}

impl Inner {
    fn of(&self) -> &Registration {
        self.settings.of(self.purpose)
    }

    async fn read(&self) -> Result<KeptLogin, Report> {
        let needed = |why: String| Report::new(Fault::LoginNeeded, why);
        let name = &self.settings.name;
        let kept = self.store.read(name, self.purpose).await?;
        let kept = kept.ok_or_else(|| needed(format!("profile {name}")))?;
        let of = self.of();
        if kept.issuer != self.settings.issuer || kept.client != of.client || kept.kind != of.kind {
            let (issuer, client) = (&kept.issuer, &kept.client);
            return Err(needed(format!("profile {name} has changed; the login is of {client} at {issuer}")));
        }
        Ok(kept)
    }

    fn seen<T>(&self, with: impl FnOnce(&mut Seen) -> T) -> T {
        with(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn give(&self, token: &Token) -> Token {
        self.seen(|seen| seen.token = Some(token.clone()));
        token.clone()
    }

    /// Renews, unless another process has just done so.
    async fn renew(&self, now: SystemTime) -> Result<Token, Report> {
        let _lock = self.store.lock(&self.settings.name, self.purpose).await?;
        let kept = self.read().await?;
        let is_new = self.seen(|seen| seen.token.as_ref() != Some(&kept.token));
        if is_new && due(&kept.token, now, 0) > now {
            return Ok(self.give(&kept.token));
        }
        let ended = |why: String| Report::new(Fault::LoginEnded, why);
        let refresh = kept.refresh.clone().ok_or_else(|| {
            let end = kept.token.expires().map(at).unwrap_or_default();
            ended(format!("the provider gave no refresh token; the token ends at {end}"))
        })?;
        if self.seen(|seen| seen.refused.as_ref() == Some(&refresh)) {
            return Err(ended("the provider refused to renew it".to_owned()));
        }
        let provider = Provider::discover(&self.settings).await?;
        let _use = uses::begin().await;
        let renewed = oauth::refresh(&provider, self.of(), &refresh, now).await;
        let renewed = renewed.inspect_err(|report| {
            if report.fault == Fault::LoginEnded {
                self.seen(|seen| seen.refused = Some(refresh.clone()));
            }
        })?;
        // A refresh token that was replaced is kept whatever else is wrong: the old one is worth nothing any more.
        let is_replaced = renewed.successor.is_some();
        let mut login = KeptLogin { refresh: renewed.successor.or(Some(refresh)), ..kept };
        if is_replaced {
            // Before anybody is asked whether the token is sound: this process may be killed meanwhile. The token stays the one before.
            let kept = self.store.write(&self.settings.name, self.purpose, self.settings.keep, &login).await;
            if let Err(report) = kept {
                tracing::warn!(%report, "a renewed login was not kept yet");
            }
        }
        let checked = match renewed.grant {
            Ok(grant) => self.check(&provider, &grant, &login, now).await.map(|()| grant.token),
            Err(report) => Err(report),
        };
        if let Ok(token) = &checked {
            login.token = token.clone();
        }
        self.store.write(&self.settings.name, self.purpose, self.settings.keep, &login).await?;
        checked.map(|token| self.give(&token))
    }

    /// OpenID Connect Core 1.0, section 12.2: the same issuer, audience and subject as before.
    async fn check(
        &self,
        provider: &Provider,
        granted: &Grant,
        login: &KeptLogin,
        now: SystemTime,
    ) -> Result<(), Report> {
        let Some(id) = &granted.id else { return Ok(()) };
        let subject = provider.verify(id, self.of(), None, now).await?;
        if login.subject.as_ref().is_some_and(|before| *before != subject) {
            return Err(wrong("the renewed ID token is of another person"));
        }
        Ok(())
    }
}

impl Issue for Session {
    fn kept(&self, now: SystemTime) -> Pending<'_, Result<Option<Token>, Report>> {
        Box::pin(async move {
            let kept = self.0.read().await?;
            Ok((!kept.token.is_over(now)).then(|| self.0.give(&kept.token)))
        })
    }

    fn issue(&self, now: SystemTime) -> Pending<'_, Result<Token, Report>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            // Not to be broken off between a refresh token's use and the keeping of its successor: whoever waits may go, and the
            // program's end waits for it (`uses`). It bounds its own time (a lock, a few questions).
            let renewed = tokio::spawn(async move { inner.renew(now).await }).await;
            renewed.map_err(|error| Report::caused_by(Fault::Internal, "a task ended early", error))?
        })
    }

    fn place(&self) -> String {
        format!("the login of profile {}", self.0.settings.name)
    }
}

/// Who is logged in for one audience; asks nobody.
///
/// # Errors
/// If nobody is, or what is kept can't be read.
pub(super) async fn who(settings: &Settings, purpose: Purpose, store: &Store) -> Result<Who, Report> {
    let session = Session::new(settings, purpose, store.clone());
    let kept = session.0.read().await?;
    Ok(Who::of(purpose, &kept.token, place(settings, purpose, store).await, kept.refresh.is_some()))
}

/// What became of a login that was to end.
#[derive(Debug)]
pub struct Ended {
    /// For which audience.
    pub purpose: Purpose,
    /// Whether anything was kept.
    pub was_kept: bool,
    /// Whether the provider was told to forget it too; `false` where it can't be told.
    pub revoked: Result<bool, Report>,
}

/// Tells the provider to forget these; whether it could be told.
async fn revoke(
    settings: &Settings,
    of: &Registration,
    tokens: Vec<Secret>,
    clock: &Clock,
) -> Result<bool, Report> {
    if tokens.is_empty() {
        return Ok(false);
    }
    let provider = Provider::discover(settings).await?;
    let mut told = Ok(true);
    for token in &tokens {
        // One that is refused keeps nobody from telling of the other.
        let revoked = oauth::revoke(&provider, of, token, clock.now()).await;
        told = match (told, revoked) {
            (Err(report), _) | (Ok(_), Err(report)) => Err(report),
            (Ok(all), Ok(this)) => Ok(all && this),
        };
    }
    told
}

/// Forgets a login, and tells the provider (RFC 7009). What is kept here goes even if the provider can't be told.
///
/// # Errors
/// If what is kept can't be removed.
pub async fn log_out(settings: &Settings, store: &Store, clock: &Clock) -> Result<Vec<Ended>, Report> {
    let mut all = Vec::new();
    for purpose in Purpose::BOTH {
        let _lock = store.lock(&settings.name, purpose).await?;
        let kept = store.read(&settings.name, purpose).await.ok().flatten();
        let refresh = kept.filter(|kept| kept.issuer == settings.issuer).and_then(|kept| kept.refresh);
        // One that could not be reached when it was replaced, or whose file is damaged: it is cleared with the rest.
        let of = settings.of(purpose);
        let earlier = store.left_in_keyring(&settings.name, purpose).await;
        let earlier = earlier.filter(|left| left.issuer == settings.issuer && left.client == of.client);
        let earlier = earlier.map(|left| left.refresh).filter(|left| refresh.as_ref() != Some(left));
        let revoked = revoke(settings, of, [refresh, earlier].into_iter().flatten().collect(), clock).await;
        let was_kept = store.remove(&settings.name, purpose).await?;
        all.push(Ended { purpose, was_kept, revoked });
    }
    Ok(all)
}

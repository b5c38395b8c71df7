//! Microsoft Graph, for users with more groups than a token holds, and for groups' names.
//!
//! Only ever asked at the configured host. Whatever goes wrong means *no groups*: fewer rights, and a line in the audit.

mod account;
mod names;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Cloud,
    credential::{self, AccessToken, Credential},
    is_guid,
};
use crate::Fetch;

/// Groups are believed for this long.
const KEEP: Duration = Duration::from_secs(300);
/// A failure is believed for this long, so that a user who knocks is not passed on to Graph each time.
const KEEP_FAILURE: Duration = Duration::from_secs(30);
/// All of it takes no longer: a request waits for it.
const WITHIN: Duration = Duration::from_secs(5);
/// Where a 429 names no time.
const DEFAULT_PAUSE: Duration = Duration::from_secs(1);
/// Pages read.
const MAX_PAGES: usize = 20;
/// Groups taken; each becomes a header towards the apiserver.
const MAX_GROUPS: usize = 1000;
/// Users kept.
const CAPACITY: usize = 4096;
/// Users asked for at once.
const TURNS: usize = 16;

/// What Graph said, and until when it is believed.
#[derive(Clone, Debug)]
struct Known {
    groups: Result<Vec<String>, String>,
    until: Instant,
}

impl Known {
    fn holds(&self, now: Instant) -> bool {
        now < self.until
    }
}

/// Keeps an answer. Where there is no room, those that hold no more make some, and if they are none, all do.
fn remember(known: &mut HashMap<String, Known>, user: String, fresh: Known, now: Instant) {
    if known.len() >= CAPACITY {
        known.retain(|_, known| known.holds(now));
        if known.len() >= CAPACITY {
            known.clear();
        }
    }
    known.insert(user, fresh);
}

/// Who asks, where, and what is known.
pub(crate) struct Graph {
    cloud: Cloud,
    credential: Credential,
    fetch: Arc<dyn Fetch>,
    tokens: Mutex<HashMap<String, (AccessToken, Instant)>>,
    known: Mutex<HashMap<String, Known>>,
    names: names::Known,
    turns: [tokio::sync::Mutex<()>; TURNS],
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph({})", self.cloud.graph)
    }
}

#[derive(Deserialize)]
struct Page {
    value: Vec<Member>,
    #[serde(rename = "@odata.nextLink")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Member {
    id: String,
}

impl Graph {
    pub(crate) fn new(cloud: Cloud, credential: Credential, fetch: Arc<dyn Fetch>) -> Self {
        Self {
            cloud,
            credential,
            fetch,
            tokens: Mutex::default(),
            known: Mutex::default(),
            names: names::Known::default(),
            turns: Default::default(),
        }
    }

    /// The address of the metadata service, if the credential is the machine's.
    pub(crate) fn plain_authority(credential: &Credential) -> Option<&str> {
        credential.plain_authority()
    }

    fn find(&self, user: &str) -> Option<Known> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(user).filter(|known| known.holds(Instant::now())).cloned()
    }

    /// The ids of all groups of a user or application, and for how long they may be believed.
    pub(crate) async fn groups(
        &self,
        tenant: &str,
        object: &str,
        is_app: bool,
        now: SystemTime,
    ) -> (Result<Vec<String>, String>, Duration) {
        let user = format!("{tenant}/{object}");
        let known = match self.find(&user) {
            Some(known) => known,
            None => {
                // One question for a user at a time; those who wait find its answer.
                let _turn = self.turns[turn(&user)].lock().await;
                match self.find(&user) {
                    Some(known) => known,
                    None => self.learn(user, tenant, object, is_app, now).await,
                }
            }
        };
        (known.groups, known.until.saturating_duration_since(Instant::now()))
    }

    async fn learn(&self, user: String, tenant: &str, object: &str, is_app: bool, now: SystemTime) -> Known {
        let deadline = Instant::now() + WITHIN;
        let asked = timeout_at(deadline, self.ask(tenant, object, is_app, now, deadline)).await;
        let (groups, keep) = match asked {
            Ok(Ok(groups)) => (Ok(groups), KEEP),
            Ok(Err(Failure { why, pause })) => (Err(why), pause.unwrap_or(KEEP_FAILURE).min(KEEP)),
            Err(_elapsed) => (Err("no answer within 5 s".to_owned()), KEEP_FAILURE),
        };
        let fresh = Known { groups, until: Instant::now() + keep };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        remember(&mut known, user, fresh.clone(), Instant::now());
        fresh
    }

    /// Where a user or an application is.
    fn address(&self, object: &str, is_app: bool) -> String {
        let kind = if is_app { "servicePrincipals" } else { "users" };
        format!("{}/v1.0/{kind}/{object}", self.cloud.graph)
    }

    async fn ask(
        &self,
        tenant: &str,
        object: &str,
        is_app: bool,
        now: SystemTime,
        deadline: Instant,
    ) -> Result<Vec<String>, Failure> {
        let token = self.token(tenant, now, deadline).await?;
        let graph = &self.cloud.graph;
        let account = self.address(object, is_app);
        let mut url =
            format!("{account}/transitiveMemberOf/microsoft.graph.group?$select=id&$count=true&$top=999");
        let mut groups = Vec::new();
        for _page in 0..MAX_PAGES {
            let body = self.send(|| get(&url, &token), deadline).await?;
            let page: Page =
                serde_json::from_slice(&body).map_err(|_| "Graph's answer is no list of groups")?;
            for member in page.value {
                if !is_guid(&member.id) {
                    return Err("Graph names a group by no id".into());
                }
                groups.push(member.id);
            }
            if groups.len() > MAX_GROUPS {
                return Err("the user has more than 1,000 groups".into());
            }
            match page.next {
                None => return Ok(groups),
                // Whatever Graph says, its token goes nowhere else.
                Some(next) if next.starts_with(&format!("{graph}/v1.0/")) => url = next,
                Some(_) => return Err("Graph's next page is elsewhere".into()),
            }
        }
        Err("Graph has more than 20 pages".into())
    }

    async fn token(&self, tenant: &str, now: SystemTime, deadline: Instant) -> Result<AccessToken, Failure> {
        {
            let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((token, until)) = tokens.get(tenant)
                && Instant::now() < *until
            {
                return Ok(token.clone());
            }
        }
        let request = self.credential.request(&self.cloud.login, tenant, &self.cloud.graph, now)?;
        let body = self.send(|| Ok(request.clone()), deadline).await?;
        let (token, life) = credential::answer(&body)?;
        // Asked for anew while the old one still lives.
        let until = Instant::now() + life.saturating_sub(Duration::from_secs(300)).max(life / 2);
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.insert(tenant.to_owned(), (token.clone(), until));
        Ok(token)
    }

    fn forget_tokens(&self) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Sends, and after a 429 or 503 once more when it is time, if that is before the deadline.
    async fn send(
        &self,
        request: impl Fn() -> Result<Request<Bytes>, http::Error>,
        deadline: Instant,
    ) -> Result<Bytes, Failure> {
        loop {
            let request = request().map_err(|error| Failure::from(error.to_string()))?;
            let response =
                self.fetch.send(request).await.map_err(|error| Failure::from(error.to_string()))?;
            match response.status() {
                StatusCode::OK => return Ok(response.into_body()),
                status @ (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) => {
                    let pause = retry_after(response.headers());
                    if Instant::now() + pause >= deadline {
                        return Err(Failure { why: format!("answered {status}"), pause: Some(pause) });
                    }
                    sleep(pause).await;
                }
                status => {
                    if status == StatusCode::UNAUTHORIZED {
                        // The token may have been withdrawn: the next question asks for another.
                        self.forget_tokens();
                    }
                    return Err(format!("answered {status}").into());
                }
            }
        }
    }
}

fn get(url: &str, token: &AccessToken) -> Result<Request<Bytes>, http::Error> {
    Request::get(url)
        .header(header::AUTHORIZATION, format!("Bearer {}", token.0))
        .header("consistencylevel", "eventual")
        .body(Bytes::new())
}

/// Which turn is a user's.
fn turn(user: &str) -> usize {
    user.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % TURNS
}

/// Why there are no groups, and when to ask again if Graph said so.
#[derive(Debug)]
struct Failure {
    why: String,
    pause: Option<Duration>,
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self { why, pause: None }
    }
}

impl From<&str> for Failure {
    fn from(why: &str) -> Self {
        why.to_owned().into()
    }
}

/// `Retry-After` in seconds (RFC 9110, section 10.2.3), at least one: a date is taken for a second.
pub(crate) fn retry_after(headers: &HeaderMap) -> Duration {
    retry_after_text(headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()))
}

fn retry_after_text(text: Option<&str>) -> Duration {
    let seconds = text.and_then(|text| text.trim().parse().ok());
    seconds.map_or(DEFAULT_PAUSE, Duration::from_secs).max(DEFAULT_PAUSE)
}

#[cfg(test)]
mod tests;

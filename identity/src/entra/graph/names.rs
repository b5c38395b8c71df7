//! What groups are called, for operators who want names in place of ids.
//!
//! A name is whatever somebody typed, and two groups may have one: whoever may make groups could then make themselves a member of another
//! one's. So a name counts only if no other group of the tenant has it now, and if it can be taken for nothing else.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, header};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use super::{Failure, Graph, KEEP, KEEP_FAILURE, MAX_PAGES, WITHIN, retry_after_text, turn};
use crate::{
    claims::{check_name, check_reserved},
    entra::{
        credential::{AccessToken, encoded},
        is_guid,
    },
};

/// Ids in one question (`getByIds` takes 1,000).
const IDS: usize = 1000;
/// Questions in one batch: Graph takes no more.
const BATCH: usize = 20;
/// Groups, and users for whom it failed, that are kept.
const CAPACITY: usize = 16_384;
/// Groups that are named in a line of the audit.
const TOLD: usize = 3;

/// A group's name, or why it has none here.
type Name = Result<String, &'static str>;

/// What is known of names.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// By tenant and id.
    groups: Mutex<HashMap<String, (Name, Instant)>>,
    /// By tenant and user: why none were had.
    failed: Mutex<HashMap<String, (String, Instant)>>,
}

/// A user's groups by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Named {
    /// With the prefix.
    pub(crate) groups: Vec<String>,
    /// Which are missing, and why; for people.
    pub(crate) left_out: Option<String>,
}

/// One group as Graph lists it.
#[derive(Deserialize)]
struct Group {
    id: String,
    #[serde(rename = "displayName")]
    name: Option<String>,
}

#[derive(Deserialize)]
struct Page {
    value: Vec<Group>,
    #[serde(rename = "@odata.nextLink")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Batch {
    responses: Vec<Answer>,
}

/// One answer of a batch.
#[derive(Deserialize)]
struct Answer {
    id: String,
    status: u16,
    #[serde(default)]
    headers: HashMap<String, String>,
    #[serde(default)]
    body: Value,
}

impl Known {
    fn name(&self, key: &str) -> Option<(Name, Instant)> {
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.get(key).filter(|(_, until)| Instant::now() < *until).cloned()
    }

    fn failure(&self, user: &str) -> Option<(String, Instant)> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get(user).filter(|(_, until)| Instant::now() < *until).cloned()
    }
}

/// Keeps one, and no more than there is room for.
fn keep<T>(known: &Mutex<HashMap<String, (T, Instant)>>, key: String, value: T, until: Instant) {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if known.len() >= CAPACITY {
        let now = Instant::now();
        known.retain(|_, (_, until)| now < *until);
        if known.len() >= CAPACITY {
            known.clear();
        }
    }
    known.insert(key, (value, until));
}

impl Graph {
    /// What the groups with these ids are called, each with `prefix`, and for how long that may be believed. Whatever goes wrong is for all
    /// of them.
    pub(crate) async fn names(
        &self,
        (tenant, object): (&str, &str),
        ids: &[String],
        prefix: &str,
        now: SystemTime,
    ) -> (Result<Named, String>, Duration) {
        let user = format!("{tenant}/{object}");
        let known = match self.known_names(tenant, ids) {
            Some(known) => Ok(known),
            None => {
                let _turn = self.turns[turn(&user)].lock().await;
                match (self.known_names(tenant, ids), self.names.failure(&user)) {
                    (Some(known), _) => Ok(known),
                    (None, Some(failure)) => Err(failure),
                    (None, None) => self.learn_names(&user, tenant, ids, prefix, now).await,
                }
            }
        };
        let (named, until) = match known {
            Ok((names, until)) => (Ok(named(ids, names, prefix)), until),
            Err((why, until)) => (Err(why), until),
        };
        (named, until.saturating_duration_since(Instant::now()))
    }

    /// All of them, in their order, if all are known; and until when.
    fn known_names(&self, tenant: &str, ids: &[String]) -> Option<(Vec<Name>, Instant)> {
        let mut until = Instant::now() + KEEP;
        let names = ids.iter().map(|id| {
            let (name, known_until) = self.names.name(&format!("{tenant}/{id}"))?;
            until = until.min(known_until);
            Some(name)
        });
        let names = names.collect::<Option<Vec<Name>>>()?;
        Some((names, until))
    }

    async fn learn_names(
        &self,
        user: &str,
        tenant: &str,
        ids: &[String],
        prefix: &str,
        now: SystemTime,
    ) -> Result<(Vec<Name>, Instant), (String, Instant)> {
        let deadline = Instant::now() + WITHIN;
        let asked = timeout_at(deadline, self.ask_names(tenant, ids, prefix, now, deadline)).await;
        let failure = match asked {
            Ok(Ok(())) => match self.known_names(tenant, ids) {
                Some(known) => return Ok(known),
                None => Failure::from("more groups than there is room for"),
            },
            Ok(Err(failure)) => failure,
            // What was learnt until then is kept: the next question is shorter.
            Err(_elapsed) => Failure::from("no names within 5 s"),
        };
        let until = Instant::now() + failure.pause.unwrap_or(KEEP_FAILURE).min(KEEP);
        keep(&self.names.failed, user.to_owned(), failure.why.clone(), until);
        Err((failure.why, until))
    }

    async fn ask_names(
        &self,
        tenant: &str,
        ids: &[String],
        prefix: &str,
        now: SystemTime,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let token = self.token(tenant, now, deadline).await?;
        let unknown: Vec<&String> =
            ids.iter().filter(|id| self.names.name(&format!("{tenant}/{id}")).is_none()).collect();
        let learnt = |id: &str, name: Name| {
            keep(&self.names.groups, format!("{tenant}/{id}"), name, Instant::now() + KEEP);
        };
        for ids in unknown.chunks(IDS) {
            let mut found = self.called(ids, &token, deadline).await?;
            let mut usable = Vec::new();
            for id in ids {
                match found
                    .remove(id.as_str())
                    .ok_or("there is no such group")
                    .and_then(|name| name.check(prefix))
                {
                    Ok(name) => usable.push((id.as_str(), name)),
                    Err(why) => learnt(id, Err(why)),
                }
            }
            for some in usable.chunks(BATCH) {
                for (id, name) in self.only(some, &token, deadline).await? {
                    learnt(id, name);
                }
            }
        }
        Ok(())
    }

    /// What Graph calls them, by id.
    async fn called(
        &self,
        ids: &[&String],
        token: &AccessToken,
        deadline: Instant,
    ) -> Result<HashMap<String, Typed>, Failure> {
        let graph = &self.cloud.graph;
        let wanted: HashSet<&str> = ids.iter().map(|id| id.as_str()).collect();
        let first = format!("{graph}/v1.0/directoryObjects/getByIds?$select=id,displayName");
        let question = json!({ "ids": ids, "types": ["group"] }).to_string();
        let mut body = self.send(|| post(&first, token, &question), deadline).await?;
        let mut found = HashMap::new();
        for _page in 0..MAX_PAGES {
            let page: Page =
                serde_json::from_slice(&body).map_err(|_| "Graph's answer is no list of groups")?;
            for Group { id, name } in page.value {
                if !wanted.contains(id.as_str()) || found.insert(id, Typed(name)).is_some() {
                    return Err("Graph names a group twice, or one that was not asked for".into());
                }
            }
            let Some(next) = page.next else { return Ok(found) };
            // As with pages of members.
            if !next.starts_with(&format!("{graph}/v1.0/")) {
                return Err("Graph's next page is elsewhere".into());
            }
            body = self.send(|| super::get(&next, token), deadline).await?;
        }
        Err("Graph has more than 20 pages".into())
    }

    /// Of at most [`BATCH`] groups the names that no other group has.
    async fn only<'a>(
        &self,
        groups: &[(&'a str, String)],
        token: &AccessToken,
        deadline: Instant,
    ) -> Result<Vec<(&'a str, Name)>, Failure> {
        let url = format!("{}/v1.0/$batch", self.cloud.graph);
        let requests = groups.iter().enumerate().map(|(at, (_, name))| {
            let filter = encoded(&format!("displayName eq '{}'", name.replace('\'', "''")));
            let url = format!("/groups?$filter={filter}&$select=id&$top=2");
            json!({ "id": at.to_string(), "method": "GET", "url": url })
        });
        let question = json!({ "requests": requests.collect::<Vec<_>>() }).to_string();
        loop {
            let body = self.send(|| post(&url, token, &question), deadline).await?;
            let Batch { responses } =
                serde_json::from_slice(&body).map_err(|_| "Graph's answer is no batch")?;
            match judged(groups, &responses) {
                Err(Failure { pause: Some(pause), .. }) if Instant::now() + pause < deadline => {
                    sleep(pause).await
                }
                judged => return judged,
            }
        }
    }
}

/// A group's name as it was typed.
struct Typed(Option<String>);

impl Typed {
    /// The name, if it can be a group's here.
    fn check(self, prefix: &str) -> Name {
        let name = self.0.ok_or("it has no name")?;
        if name.trim() != name {
            return Err("its name is blank, or has white space around it");
        }
        // Bindings may name others by their ids.
        if is_guid(&name.to_ascii_lowercase()) {
            return Err("its name looks like an id");
        }
        if check_name("groups", &name).is_err() {
            return Err("its name is blank, too long, or has a control character");
        }
        let whole = format!("{prefix}{name}");
        if check_name("groups", &whole).is_err() || check_reserved(&whole).is_err() {
            return Err("its name is reserved, or too long");
        }
        Ok(name)
    }
}

/// Which of the names are only these groups', by the answers of one batch.
fn judged<'a>(groups: &[(&'a str, String)], answers: &[Answer]) -> Result<Vec<(&'a str, Name)>, Failure> {
    let judge = |(at, (id, name)): (usize, &(&'a str, String))| {
        let answer = answers.iter().find(|answer| answer.id == at.to_string());
        let answer = answer.ok_or("Graph left a question of a batch unanswered")?;
        if answer.status != 200 {
            let why = format!("answered {} in a batch", answer.status);
            let pause = matches!(answer.status, 429 | 503).then(|| {
                let named = answer.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("retry-after"));
                retry_after_text(named.map(|(_, value)| value.as_str()))
            });
            return Err(Failure { why, pause });
        }
        let found = answer.body["value"].as_array().ok_or("Graph's answer is no list of groups")?;
        let found: Vec<&str> = found.iter().filter_map(|group| group["id"].as_str()).collect();
        let name = match found[..] {
            [only] if only == *id => Ok(name.clone()),
            [] | [_] => Err("its name is not, or no longer, its own"),
            _ => Err("another group has the same name"),
        };
        Ok((*id, name))
    };
    groups.iter().enumerate().map(judge).collect()
}

fn named(ids: &[String], names: Vec<Name>, prefix: &str) -> Named {
    let mut left_out = Vec::new();
    let mut groups = Vec::new();
    for (id, name) in ids.iter().zip(names) {
        match name {
            Ok(name) => groups.push(format!("{prefix}{name}")),
            Err(why) => left_out.push(format!("{id} ({why})")),
        }
    }
    let more = left_out.len().saturating_sub(TOLD);
    left_out.truncate(TOLD);
    let told = (!left_out.is_empty()).then(|| match more {
        0 => left_out.join(", "),
        more => format!("{}, and {more} more", left_out.join(", ")),
    });
    Named { groups, left_out: told }
}

fn post(url: &str, token: &AccessToken, body: &str) -> Result<Request<Bytes>, http::Error> {
    Request::post(url)
        .header(header::AUTHORIZATION, format!("Bearer {}", token.0))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Bytes::copy_from_slice(body.as_bytes()))
}

//! Whether the verified user may act as somebody else: one SubjectAccessReview (authorization.k8s.io/v1) for each part.
//!
//! The questions and their words are those of kube-apiserver's own check of `Impersonate-*` (verb `impersonate`), asked
//! for the whole verified user with the agent's own account. Only a clear yes is one, and only a yes is remembered, for
//! as short a time as a change of roles may go unnoticed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use towline_identity::{Identity, Principal};
use towline_tunnel::fault::{Fault, Report};
use tracing::warn;

use super::{Part, Wanted};
use crate::{
    dial::{Apiserver, status_message},
    impersonate::AUTHENTICATED,
};

const PATH: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
/// A yes is repeated for this long, counted from before the question.
const REMEMBERED: Duration = Duration::from_secs(5);
/// All parts of one request together; the caller waits for it.
const WITHIN: Duration = Duration::from_secs(5);
/// Questions at once for one user, however many requests they are for: nobody keeps others from being judged.
const AT_ONCE: usize = 4;
/// Questions at once for all callers: kube-apiserver has other work.
const AT_ONCE_ALL: usize = 16;
/// Answers remembered at once; beyond it every question is asked.
const MAX_REMEMBERED: usize = 4096;

type Question = [u8; 32];

/// Asks, and remembers who was allowed.
#[derive(Debug)]
pub struct Reviews {
    places: Semaphore,
    users: Mutex<HashMap<String, Places>>,
    allowed: Mutex<HashMap<Question, Instant>>,
}

/// A user's places, and how many need them. The number changes under the map's lock alone.
#[derive(Debug)]
struct Places {
    needed_by: usize,
    places: Arc<Semaphore>,
}

/// A user's places, remembered for as long as somebody needs them.
struct OfUser<'a> {
    reviews: &'a Reviews,
    user: String,
    places: Arc<Semaphore>,
}

impl Drop for OfUser<'_> {
    fn drop(&mut self) {
        let mut users = self.reviews.users();
        if let Some(of_user) = users.get_mut(&self.user) {
            of_user.needed_by -= 1;
            if of_user.needed_by == 0 {
                users.remove(&self.user);
            }
        }
    }
}

impl Default for Reviews {
    fn default() -> Self {
        Self { places: Semaphore::new(AT_ONCE_ALL), users: Mutex::default(), allowed: Mutex::default() }
    }
}

#[derive(Deserialize)]
struct Review {
    status: Status,
}

#[derive(Deserialize)]
struct Status {
    allowed: bool,
    #[serde(default)]
    denied: bool,
}

impl Reviews {
    /// Whether `identity` may act as `wanted`, every part of it.
    ///
    /// # Errors
    /// If a part is denied (403), or can't be judged in time (503): both mean no.
    pub async fn judge(
        &self,
        apiserver: &Apiserver,
        identity: &Identity,
        wanted: &Wanted,
    ) -> Result<(), Report> {
        let parts = wanted.parts()?;
        let asking: Vec<_> = parts.iter().map(|part| self.allow(apiserver, identity, part)).collect();
        // The first no ends it: further questions change nothing.
        let all = stream::iter(asking).buffer_unordered(AT_ONCE).try_collect::<()>();
        timeout(WITHIN, all).await.unwrap_or_else(|_| Err(unjudged("kube-apiserver does not answer in time")))
    }

    async fn allow(&self, apiserver: &Apiserver, identity: &Identity, part: &Part<'_>) -> Result<(), Report> {
        let body = question(identity, part).to_string();
        let key = hash(&body);
        if self.remembers(&key) {
            return Ok(());
        }
        let ends = |_| unjudged("the agent ends");
        let of_user = self.of_user(&identity.principal);
        let _users = of_user.places.acquire().await.map_err(ends)?;
        let _place = self.places.acquire().await.map_err(ends)?;
        let asked = Instant::now();
        let answered = apiserver.call(Method::POST, PATH, "application/json", body.into_bytes()).await;
        let (code, answer) = answered.map_err(|report| {
            warn!(%report, "a SubjectAccessReview can't be had");
            unjudged(report.fault.title())
        })?;
        if !(200..300).contains(&code) {
            warn!(code, message = status_message(&answer), "a SubjectAccessReview was refused");
            return Err(unjudged(format!("kube-apiserver answered {code}")));
        }
        let review: Review =
            serde_json::from_slice(&answer).map_err(|_| unjudged("the answer is no SubjectAccessReview"))?;
        if !review.status.allowed || review.status.denied {
            return Err(denied(identity, part));
        }
        self.remember(key, asked + REMEMBERED);
        Ok(())
    }

    fn users(&self) -> MutexGuard<'_, HashMap<String, Places>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of_user(&self, principal: &Principal) -> OfUser<'_> {
        let user = principal.to_string();
        let mut users = self.users();
        let of_user = users
            .entry(user.clone())
            .or_insert_with(|| Places { needed_by: 0, places: Arc::new(Semaphore::new(AT_ONCE)) });
        of_user.needed_by += 1;
        let places = Arc::clone(&of_user.places);
        drop(users);
        OfUser { reviews: self, user, places }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Question, Instant>> {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembers(&self, key: &Question) -> bool {
        self.lock().get(key).is_some_and(|until| Instant::now() < *until)
    }

    fn remember(&self, key: Question, until: Instant) {
        let mut allowed = self.lock();
        if allowed.len() >= MAX_REMEMBERED {
            let now = Instant::now();
            allowed.retain(|_, until| now < *until);
        }
        if allowed.len() < MAX_REMEMBERED {
            allowed.insert(key, until);
        }
    }
}

/// The review's object. It holds the whole user and the whole part, so that it names the question as well.
fn question(identity: &Identity, part: &Part<'_>) -> Value {
    let groups: Vec<&str> = identity.groups.iter().map(String::as_str).chain([AUTHENTICATED]).collect();
    // As `Impersonate-Extra-` would bring it to kube-apiserver.
    let extra: serde_json::Map<String, Value> =
        identity.extra.iter().map(|(key, values)| (key.to_ascii_lowercase(), json!(values))).collect();
    json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": identity.username,
            "groups": groups,
            "uid": identity.uid.as_deref().unwrap_or_default(),
            "extra": extra,
            "resourceAttributes": {
                "verb": "impersonate",
                "group": part.group,
                "version": "v1",
                "resource": part.resource,
                "subresource": part.subresource,
                "namespace": part.namespace,
                "name": part.name,
            },
        },
    })
}

fn hash(body: &str) -> Question {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, body.as_bytes()).as_ref());
    hash
}

fn unjudged(what: impl Into<String>) -> Report {
    Report::new(Fault::ActingUnjudged, what)
}

fn denied(identity: &Identity, part: &Part<'_>) -> Report {
    let mut resource = part.resource.to_owned();
    for (separator, more) in [("/", part.subresource), (".", part.group)] {
        if !more.is_empty() {
            resource = format!("{resource}{separator}{more}");
        }
    }
    let namespace =
        if part.namespace.is_empty() { String::new() } else { format!(" in {:?}", part.namespace) };
    Report::new(
        Fault::ActingDenied,
        format!("{:?} may not impersonate {resource} {:?}{namespace}", identity.username, part.name),
    )
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::SystemTime};

    use super::*;

    fn identity(username: &str, groups: &[&str]) -> Identity {
        Identity {
            username: username.into(),
            groups: groups.iter().map(|group| (*group).into()).collect(),
            uid: Some("4711".into()),
            extra: BTreeMap::from([("Example.org/Team".to_owned(), vec!["a".to_owned()])]),
            principal: Principal { issuer: "https://idp".into(), subject: "1".into() },
            issued_at: None,
            expires_at: SystemTime::UNIX_EPOCH,
        }
    }

    const BOB: Part<'_> = Part { group: "", resource: "users", subresource: "", namespace: "", name: "bob" };

    #[test]
    fn the_question_is_about_the_whole_verified_user() {
        assert_eq!(
            question(&identity("alice", &["dev"]), &BOB)["spec"],
            json!({
                "user": "alice",
                "groups": ["dev", "system:authenticated"],
                "uid": "4711",
                "extra": { "example.org/team": ["a"] },
                "resourceAttributes": {
                    "verb": "impersonate", "group": "", "version": "v1", "resource": "users",
                    "subresource": "", "namespace": "", "name": "bob",
                },
            })
        );
    }

    /// As kubectl and rules of RBAC write a resource.
    #[test]
    fn a_no_names_what_may_not_be_impersonated() {
        let alice = identity("alice", &[]);
        let told = |part| denied(&alice, &part).detail;
        assert_eq!(told(BOB), r#""alice" may not impersonate users "bob""#);
        let account = Part { resource: "serviceaccounts", namespace: "ops", ..BOB };
        assert_eq!(told(account), r#""alice" may not impersonate serviceaccounts "bob" in "ops""#);
        let group = "authentication.k8s.io";
        let extra = Part { group, resource: "userextras", subresource: "scopes", name: "view", ..BOB };
        let expected = r#""alice" may not impersonate userextras/scopes.authentication.k8s.io "view""#;
        assert_eq!(told(extra), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_yes_is_remembered_for_five_seconds_and_for_nobody_else() {
        let reviews = Reviews::default();
        let key = |identity: &Identity, part: &Part<'_>| hash(&question(identity, part).to_string());
        let alice = identity("alice", &["dev"]);
        let asked = key(&alice, &BOB);
        reviews.remember(asked, Instant::now() + REMEMBERED);
        assert!(reviews.remembers(&asked));
        for (identity, part) in [
            (identity("alice", &["dev", "ops"]), BOB),
            (identity("alice", &[]), BOB),
            (identity("ali", &["dev"]), BOB),
            (Identity { uid: None, ..alice.clone() }, BOB),
            (Identity { extra: BTreeMap::new(), ..alice.clone() }, BOB),
            (alice.clone(), Part { resource: "groups", ..BOB }),
            (alice.clone(), Part { name: "bobby", ..BOB }),
        ] {
            assert!(!reviews.remembers(&key(&identity, &part)), "{identity:?} {part:?}");
        }
        tokio::time::advance(REMEMBERED - Duration::from_millis(1)).await;
        assert!(reviews.remembers(&asked));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!reviews.remembers(&asked));
    }

    #[tokio::test]
    async fn t53_one_user_does_not_take_all_places_and_is_forgotten_afterwards() {
        let reviews = Reviews::default();
        let of = |subject: &str| Principal { issuer: "https://idp".into(), subject: subject.into() };
        let (first, second) = (reviews.of_user(&of("1")), reviews.of_user(&of("1")));
        let taken: Vec<_> = (0..AT_ONCE).map(|_| first.places.try_acquire().unwrap()).collect();
        assert!(second.places.try_acquire().is_err(), "another request of the same user");
        assert!(reviews.of_user(&of("2")).places.try_acquire().is_ok());
        drop(taken);
        drop(first);
        assert!(reviews.users().contains_key("https://idp#1"), "the second still waits");
        drop(second);
        assert!(reviews.users().is_empty());
        // What is dropped at once elsewhere, and holds the places a moment longer, leaves no entry behind.
        let (first, second) = (reviews.of_user(&of("1")), reviews.of_user(&of("1")));
        let _longer = Arc::clone(&first.places);
        drop((first, second));
        assert!(reviews.users().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_remembered_than_there_is_place_for_and_what_is_over_makes_room() {
        let reviews = Reviews::default();
        for n in 0..=MAX_REMEMBERED {
            reviews.remember(hash(&n.to_string()), Instant::now() + REMEMBERED);
        }
        assert_eq!(reviews.lock().len(), MAX_REMEMBERED);
        tokio::time::advance(REMEMBERED).await;
        reviews.remember(hash("next"), Instant::now() + REMEMBERED);
        assert_eq!(reviews.lock().len(), 1);
    }
}

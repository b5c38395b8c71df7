//! Who may open which cluster, decided from memory for each OPEN.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc, time::SystemTime};

use towline_tunnel::{ids::ClusterId, proto::CloseReason, role::DocumentId};

use crate::{
    authenticate::ClientPeer,
    registry::{Cluster, Duty, Grants, Registry, Role, SubjectKind},
    roles::{self, Offer},
};

/// Longest answer to "which group?": a token with more groups than this is judged by its first ones only.
/// Entra sends at most 200; a lookup each is what one OPEN may cost.
pub const MAX_GROUPS: usize = 1000;

/// More groups don't fit where they are told.
const GROUPS_TOLD: usize = 16;

/// A caller, as the relay's verifier knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Made from the token's claims by the relay's rules.
    pub username: String,
    /// Issuer, `#` and stable claim.
    pub principal: String,
    /// Groups of the relay token.
    pub groups: Vec<String>,
}

/// Whether a caller may open a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// They may.
    Allow {
        /// The cluster.
        cluster: Arc<Cluster>,
        /// When the last assignment that lets them in ends, if it does.
        until: Option<SystemTime>,
    },
    /// They may not.
    Deny(CloseReason),
}

impl Decision {
    /// Whether they may.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }
}

/// Where somebody has a duty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// The whole relay.
    pub whole: bool,
    /// These clusters, if not.
    pub clusters: BTreeSet<ClusterId>,
}

impl Reach {
    /// Whether it covers the cluster, or the whole relay if none is given.
    pub fn covers(&self, cluster: Option<ClusterId>) -> bool {
        self.whole || cluster.is_some_and(|cluster| self.clusters.contains(&cluster))
    }
}

/// Decides from role assignments, as last read from the registry.
#[derive(Clone, Debug)]
pub struct AccessControl {
    registry: Registry,
}

impl AccessControl {
    /// Decides from this registry's snapshot.
    pub fn new(registry: Registry) -> Self {
        Self { registry }
    }

    /// Whether the caller may open the cluster with this id now.
    pub fn decide(&self, caller: &Caller, cluster: ClusterId, now: SystemTime) -> Decision {
        let known = self.registry.snapshot();
        let Some(cluster) = known.cluster(cluster).filter(|cluster| cluster.enabled) else {
            return Decision::Deny(CloseReason::ClusterUnknown);
        };
        let assigned = known.grants(cluster.id).and_then(|grants| given(grants, caller, now));
        let signed = roles::given(known.documents(), caller, cluster.id, now);
        let ends = [assigned.map(|(_, _, until)| until), signed.map(|given| given.until)];
        // Of two ways in the one that lasts longer says until when.
        match ends.into_iter().flatten().reduce(|a, b| a.zip(b).map(|(a, b)| a.max(b))) {
            Some(until) => Decision::Allow { cluster: Arc::clone(cluster), until },
            None => Decision::Deny(CloseReason::Forbidden),
        }
    }

    /// The cluster's name; empty where there is none with this id.
    pub fn name(&self, cluster: ClusterId) -> String {
        self.registry.snapshot().cluster(cluster).map(|cluster| cluster.name.clone()).unwrap_or_default()
    }

    /// By which role the caller may open the cluster now, for the audit; nothing where they may not.
    pub fn why(&self, caller: &Caller, cluster: ClusterId, now: SystemTime) -> String {
        let known = self.registry.snapshot();
        let given = known.grants(cluster).and_then(|grants| given(grants, caller, now));
        if let Some((kind, subject, _)) = given {
            return format!("{} of {kind} {subject}", Role::ClusterUser);
        }
        let signed = roles::given(known.documents(), caller, cluster, now);
        signed
            .map_or_else(String::new, |given| format!("{} of {} by {}", given.role, given.subject, given.by))
    }

    /// The role documents that go with a stream of the caller's to the cluster.
    pub fn offer(&self, caller: &Caller, cluster: ClusterId, now: SystemTime) -> Offer {
        roles::offer(self.registry.snapshot().documents(), caller, cluster, now)
    }

    /// Whether all documents that went with a stream still stand.
    pub fn stand(&self, offered: &[DocumentId], now: SystemTime) -> bool {
        roles::stands(self.registry.snapshot().documents(), offered, now)
    }

    /// The same for the cluster with this name: what a client may ask before it has an id.
    pub fn resolve(&self, caller: &Caller, name: &str, now: SystemTime) -> Decision {
        match self.cluster_named(name) {
            Some(id) => self.decide(caller, id, now),
            None => Decision::Deny(CloseReason::ClusterUnknown),
        }
    }

    /// The id that the name has now.
    pub fn cluster_named(&self, name: &str) -> Option<ClusterId> {
        self.registry.snapshot().cluster_named(name).map(|cluster| cluster.id)
    }

    /// What would let this caller in, as an administrator types it at the relay: who they are here, only the relay knows. What is
    /// longest comes last, since it travels as a detail, which is cut.
    pub fn remedy(&self, caller: &Caller, cluster: ClusterId) -> String {
        let known = self.registry.snapshot();
        let name = known.cluster(cluster).map_or_else(|| cluster.to_string(), |known| known.name.clone());
        remedy(caller, Role::ClusterUser.name(), Some(&name))
    }

    /// Whether the client's token is from before its user's sessions were revoked: at the relay, and if `cluster` is given, towards that too.
    pub fn is_revoked(&self, client: &ClientPeer, cluster: Option<ClusterId>, now: SystemTime) -> bool {
        self.registry.snapshot().revocations().refuse(&client.caller, client.issued_at, cluster, now)
    }

    /// Where the caller has this duty now.
    pub fn reach(&self, caller: &Caller, duty: Duty, now: SystemTime) -> Reach {
        let known = self.registry.snapshot();
        let mut reach = Reach::default();
        for (kind, subject) in names(caller) {
            for cluster in known.duties().places(kind, subject, duty, now) {
                match cluster {
                    Some(cluster) => {
                        reach.clusters.insert(cluster);
                    }
                    None => reach.whole = true,
                }
            }
        }
        reach
    }

    /// What would give this caller the duty, as [`AccessControl::remedy`].
    pub fn duty_remedy(&self, caller: &Caller, duty: Duty, cluster: Option<&str>) -> String {
        remedy(caller, duty.name(), cluster)
    }
}

/// All that a caller is called.
fn names(caller: &Caller) -> impl Iterator<Item = (SubjectKind, &String)> {
    let groups = caller.groups.iter().take(MAX_GROUPS).map(|group| (SubjectKind::Group, group));
    [(SubjectKind::User, &caller.username), (SubjectKind::Principal, &caller.principal)]
        .into_iter()
        .chain(groups)
}

fn remedy(caller: &Caller, role: &str, cluster: Option<&str>) -> String {
    let mut command = format!("towline-relay role assign --user {} --role {role}", quoted(&caller.username));
    if let Some(cluster) = cluster {
        command.push_str(" --cluster ");
        command.push_str(cluster);
    }
    if caller.groups.is_empty() {
        return format!("{command}; your token names no groups");
    }
    let groups: Vec<_> = caller.groups.iter().take(GROUPS_TOLD).map(|group| quoted(group)).collect();
    format!("{command}; or --group with one of yours: {}", groups.join(" "))
}

/// A word for a shell (POSIX, Shell Command Language, 2.2.2): names come from tokens.
fn quoted(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''")).into()
}

/// Of the grants that let this caller in at `now` the one that ends last, if it ends: by which of their names, and when.
fn given<'a>(
    grants: &Grants,
    caller: &'a Caller,
    now: SystemTime,
) -> Option<(SubjectKind, &'a String, Option<SystemTime>)> {
    names(caller)
        .filter_map(|(kind, subject)| Some((kind, subject, grants.end(kind, subject)?)))
        .filter(|(_, _, end)| end.is_none_or(|end| now < end))
        .reduce(|a, b| {
            let is_later = a.2.is_some_and(|a| b.2.is_none_or(|b| b > a));
            if is_later { b } else { a }
        })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use towline_tunnel::keys::SigningKey;

    use super::*;
    use crate::registry::{EnrolmentOffer, RoleAssignment};

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn alice() -> Caller {
        Caller {
            username: "alice".into(),
            principal: "https://idp#1".into(),
            groups: vec!["dev".into(), "ops".into()],
        }
    }

    /// A registry with two clusters, `a` and `b`.
    struct Fixture {
        _folder: tempfile::TempDir,
        registry: Registry,
        a: ClusterId,
        b: ClusterId,
    }

    impl Fixture {
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let registry = Registry::open(folder.path()).await.unwrap();
            let mut ids = Vec::new();
            for (n, name) in ["a", "b"].into_iter().enumerate() {
                let offer = EnrolmentOffer {
                    secret_hash: [n as u8; 32],
                    name: name.parse().unwrap(),
                    replaces: false,
                    expires_at: at(10),
                };
                registry.offer_enrolment(&offer, at(0)).await.unwrap();
                let key = SigningKey::generate().public();
                registry.enrol(&offer.secret_hash, &key, at(0)).await.unwrap();
                ids.push(key.cluster_id());
            }
            Self { _folder: folder, registry, a: ids[0], b: ids[1] }
        }

        async fn assign(&self, kind: SubjectKind, subject: &str, cluster: ClusterId, end: Option<u64>) {
            let assignment = RoleAssignment {
                kind,
                subject: subject.into(),
                role: Role::ClusterUser,
                cluster,
                expires_at: end.map(at),
            };
            self.registry.assign_role(&assignment, at(0)).await.unwrap();
        }

        fn decide(&self, caller: &Caller, cluster: ClusterId, now: u64) -> Decision {
            AccessControl::new(self.registry.clone()).decide(caller, cluster, at(now))
        }
    }

    #[tokio::test]
    async fn who_may_not_is_told_what_an_administrator_types_to_let_them_in() {
        let fixture = Fixture::new().await;
        let access = AccessControl::new(fixture.registry.clone());
        let alice = Caller {
            username: "https://idp#it's \"alice\"; reboot".into(),
            groups: vec!["dev".into(), "our ops".into()],
            ..alice()
        };
        assert_eq!(
            access.remedy(&alice, fixture.a),
            r#"towline-relay role assign --user 'https://idp#it'\''s "alice"; reboot' --role cluster-user --cluster a; or --group with one of yours: dev 'our ops'"#
        );
        let nobody = Caller { username: "bob@example.com".into(), groups: Vec::new(), ..alice };
        let said = access.remedy(&nobody, fixture.b);
        assert!(said.contains("--user bob@example.com --role") && said.ends_with("no groups"), "{said}");
    }

    #[tokio::test]
    async fn t14_a_role_on_one_cluster_opens_no_other() {
        let fixture = Fixture::new().await;
        fixture.assign(SubjectKind::User, "alice", fixture.a, None).await;
        assert!(fixture.decide(&alice(), fixture.a, 1).is_allowed());
        assert_eq!(fixture.decide(&alice(), fixture.b, 1), Decision::Deny(CloseReason::Forbidden));
        let nowhere = SigningKey::generate().public().cluster_id();
        assert_eq!(fixture.decide(&alice(), nowhere, 1), Decision::Deny(CloseReason::ClusterUnknown));
    }

    #[tokio::test]
    async fn each_of_a_callers_names_may_let_them_in() {
        for (kind, subject) in [
            (SubjectKind::User, "alice"),
            (SubjectKind::Principal, "https://idp#1"),
            (SubjectKind::Group, "ops"),
        ] {
            let fixture = Fixture::new().await;
            fixture.assign(kind, subject, fixture.a, None).await;
            assert!(fixture.decide(&alice(), fixture.a, 1).is_allowed(), "{kind}");
        }
    }

    /// A username is what its owner may have chosen: it opens nothing that was given to a group or a principal.
    #[tokio::test]
    async fn a_name_of_one_kind_is_not_taken_for_another() {
        let fixture = Fixture::new().await;
        fixture.assign(SubjectKind::Group, "alice", fixture.a, None).await;
        fixture.assign(SubjectKind::Principal, "alice", fixture.a, None).await;
        fixture.assign(SubjectKind::User, "ops", fixture.a, None).await;
        fixture.assign(SubjectKind::User, "https://idp#1", fixture.a, None).await;
        fixture.assign(SubjectKind::User, "ALICE", fixture.a, None).await;
        assert_eq!(fixture.decide(&alice(), fixture.a, 1), Decision::Deny(CloseReason::Forbidden));
    }

    #[tokio::test]
    async fn the_assignment_that_lasts_longest_decides() {
        let fixture = Fixture::new().await;
        fixture.assign(SubjectKind::User, "alice", fixture.a, Some(100)).await;
        fixture.assign(SubjectKind::Group, "dev", fixture.a, Some(200)).await;
        let until = |now| match fixture.decide(&alice(), fixture.a, now) {
            Decision::Allow { until, .. } => until,
            Decision::Deny(reason) => panic!("{reason:?}"),
        };
        assert_eq!(until(50), Some(at(200)));
        assert_eq!(until(150), Some(at(200)));
        assert_eq!(fixture.decide(&alice(), fixture.a, 200), Decision::Deny(CloseReason::Forbidden));
        fixture.assign(SubjectKind::Group, "ops", fixture.a, None).await;
        assert_eq!(until(50), None);
    }

    #[tokio::test]
    async fn a_name_is_resolved_for_those_who_may_open_it() {
        let fixture = Fixture::new().await;
        fixture.assign(SubjectKind::User, "alice", fixture.a, None).await;
        let access = AccessControl::new(fixture.registry.clone());
        assert!(
            matches!(access.resolve(&alice(), "a", at(1)), Decision::Allow { cluster, .. } if cluster.id == fixture.a)
        );
        assert_eq!(access.resolve(&alice(), "b", at(1)), Decision::Deny(CloseReason::Forbidden));
        assert_eq!(access.resolve(&alice(), "c", at(1)), Decision::Deny(CloseReason::ClusterUnknown));
    }
}

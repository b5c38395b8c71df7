use std::{os::unix::fs::PermissionsExt as _, sync::mpsc};

use tokio::time::timeout;
use towline_tunnel::{
    fault::{Fault, Report},
    ids::InstanceId,
    keys::SigningKey,
};

use super::*;
use crate::certificates::{Holder, Issued};

const WITHIN: Duration = Duration::from_secs(10);

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn later(seconds: u64) -> SystemTime {
    now() + Duration::from_secs(seconds)
}

async fn offer(registry: &Registry, secret: u8, name: &str, replaces: bool) -> [u8; 32] {
    let offer = EnrolmentOffer {
        secret_hash: [secret; 32],
        name: name.parse().unwrap(),
        replaces,
        expires_at: later(3600),
    };
    registry.offer_enrolment(&offer, now()).await.unwrap();
    offer.secret_hash
}

async fn enrol(registry: &Registry, secret: u8, name: &str, key: &SigningKey) -> Enrolled {
    let hash = offer(registry, secret, name, false).await;
    registry.enrol(&hash, &key.public(), now()).await.unwrap()
}

fn assignment(cluster: towline_tunnel::ids::ClusterId, subject: &str) -> RoleAssignment {
    RoleAssignment {
        kind: SubjectKind::User,
        subject: subject.into(),
        role: Role::ClusterUser,
        cluster,
        expires_at: None,
    }
}

#[tokio::test]
async fn what_is_enrolled_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let key = SigningKey::generate();
    let registry = Registry::open(folder.path()).await.unwrap();
    assert_eq!(enrol(&registry, 1, "edge-7", &key).await, Enrolled::Yes { name: "edge-7".into() });
    registry.close().await;

    let registry = Registry::open(folder.path()).await.unwrap();
    let snapshot = registry.snapshot();
    let cluster = snapshot.cluster_named("edge-7").unwrap();
    assert_eq!((cluster.id, cluster.key, cluster.enabled), (key.public().cluster_id(), key.public(), true));
    assert_eq!(cluster.enrolled_at, now());
    assert_eq!(snapshot.find(&cluster.id.to_string()).unwrap().name, "edge-7");
    assert!(snapshot.find("edge-8").is_none());
}

#[tokio::test]
async fn t31_an_enrolment_token_works_once() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).await.unwrap();
    let (first, second) = (SigningKey::generate(), SigningKey::generate());
    let hash = offer(&registry, 1, "edge-7", false).await;
    assert!(matches!(registry.enrol(&hash, &first.public(), now()).await.unwrap(), Enrolled::Yes { .. }));
    assert_eq!(registry.enrol(&hash, &first.public(), now()).await.unwrap(), Enrolled::TokenUsed);
    assert_eq!(registry.enrol(&hash, &second.public(), now()).await.unwrap(), Enrolled::TokenUsed);
    assert_eq!(registry.enrol(&[9; 32], &first.public(), now()).await.unwrap(), Enrolled::TokenUnknown);
    assert_eq!(registry.snapshot().clusters().count(), 1);
}

#[tokio::test]
async fn t31_of_two_that_race_for_a_token_one_wins() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).await.unwrap();
    let other_process = Registry::open(folder.path()).await.unwrap();
    for round in 0..10 {
        let name = format!("edge-{round}");
        let hash = offer(&registry, round, &name, false).await;
        let (a, b) = (SigningKey::generate().public(), SigningKey::generate().public());
        let (a, b) = tokio::join!(registry.enrol(&hash, &a, now()), other_process.enrol(&hash, &b, now()));
        let [won, lost] = match (a.unwrap(), b.unwrap()) {
            (won @ Enrolled::Yes { .. }, lost) | (lost, won) => [won, lost],
        };
        // For the token and nothing else: that the name is taken by then is another reason.
        assert!(matches!(won, Enrolled::Yes { .. }) && lost == Enrolled::TokenUsed, "{won:?}, {lost:?}");
    }
}

#[tokio::test]
async fn an_enrolment_token_ends() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).await.unwrap();
    let hash = offer(&registry, 1, "edge-7", false).await;
    let key = SigningKey::generate().public();
    assert_eq!(registry.enrol(&hash, &key, later(3600)).await.unwrap(), Enrolled::TokenExpired);
    assert!(matches!(registry.enrol(&hash, &key, later(3599)).await.unwrap(), Enrolled::Yes { .. }));
}

#[tokio::test]
async fn t31_a_name_and_a_key_belong_to_each_other_until_an_operator_says_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).await.unwrap();
    let (a, b) = (SigningKey::generate(), SigningKey::generate());
    let name = |name: &str| name.to_owned();
    assert_eq!(enrol(&registry, 1, "a", &a).await, Enrolled::Yes { name: name("a") });
    assert_eq!(enrol(&registry, 2, "b", &b).await, Enrolled::Yes { name: name("b") });
    assert_eq!(
        enrol(&registry, 3, "a", &a).await,
        Enrolled::Yes { name: name("a") },
        "again, with a new token"
    );
    assert_eq!(enrol(&registry, 4, "b", &a).await, Enrolled::EnrolledElsewhere { name: name("a") });
    let newcomer = SigningKey::generate();
    assert_eq!(enrol(&registry, 5, "a", &newcomer).await, Enrolled::NameTaken { name: name("a") });
    // What was refused did not use the token up.
    assert!(matches!(registry.enrol(&[5; 32], &a.public(), now()).await.unwrap(), Enrolled::Yes { .. }));
}

#[tokio::test]
async fn a_replacing_cluster_inherits_the_roles_of_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).await.unwrap();
    let (old, new) = (SigningKey::generate(), SigningKey::generate());
    enrol(&registry, 1, "edge-7", &old).await;
    registry.assign_role(&assignment(old.public().cluster_id(), "alice"), now()).await.unwrap();
    let hash = offer(&registry, 2, "edge-7", true).await;
    assert!(matches!(registry.enrol(&hash, &new.public(), now()).await.unwrap(), Enrolled::Yes { .. }));
    let snapshot = registry.snapshot();
    assert_eq!(snapshot.cluster_named("edge-7").unwrap().id, new.public().cluster_id());
    assert!(snapshot.cluster(old.public().cluster_id()).is_none());
    let grants = snapshot.grants(new.public().cluster_id()).unwrap();
    assert_eq!(grants.end(SubjectKind::User, "alice"), Some(None));
    assert!(snapshot.grants(old.public().cluster_id()).is_none());
}

#[tokio::test]
async fn roles_are_assigned_changed_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).await.unwrap();
    let key = SigningKey::generate();
    enrol(&registry, 1, "edge-7", &key).await;
    let mut alice = assignment(key.public().cluster_id(), "alice");
    assert!(registry.assign_role(&alice, now()).await.unwrap());
    alice.expires_at = Some(later(60));
    assert!(!registry.assign_role(&alice, now()).await.unwrap());
    assert_eq!(registry.role_assignments().await.unwrap(), [alice.clone()]);
    let end = |registry: &Registry| {
        registry.snapshot().grants(alice.cluster).and_then(|grants| grants.end(SubjectKind::User, "alice"))
    };
    assert_eq!(end(&registry), Some(Some(later(60))));
    assert!(registry.remove_role(&alice).await.unwrap());
    assert!(!registry.remove_role(&alice).await.unwrap());
    assert_eq!(end(&registry), None);
    let gone = assignment(SigningKey::generate().public().cluster_id(), "alice");
    assert!(registry.assign_role(&gone, now()).await.is_err(), "no role on a cluster that is not there");
}

/// The command line changes the file; the serving relay sees it without being told.
#[tokio::test]
async fn changes_of_another_process_arrive() {
    let folder = tempfile::tempdir().unwrap();
    let serving = Registry::open(folder.path()).await.unwrap();
    let mut changes = serving.changes();
    let following = tokio::spawn(follow(serving.clone(), |_| {}));
    let command_line = Registry::open(folder.path()).await.unwrap();
    let key = SigningKey::generate();
    enrol(&command_line, 1, "edge-7", &key).await;
    let id = key.public().cluster_id();
    timeout(WITHIN, changes.wait_for(|snapshot| snapshot.cluster(id).is_some())).await.unwrap().unwrap();
    command_line.assign_role(&assignment(id, "alice"), now()).await.unwrap();
    timeout(WITHIN, changes.wait_for(|snapshot| snapshot.grants(id).is_some())).await.unwrap().unwrap();
    command_line.remove_cluster(id).await.unwrap();
    timeout(WITHIN, changes.wait_for(|snapshot| snapshot.cluster(id).is_none())).await.unwrap().unwrap();
    following.abort();
}

#[tokio::test]
async fn what_is_known_goes_on_while_the_file_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let serving = Registry::open(folder.path()).await.unwrap();
    let key = SigningKey::generate();
    enrol(&serving, 1, "edge-7", &key).await;
    let (told, heard) = mpsc::channel();
    let following = tokio::spawn(follow(serving.clone(), move |available| told.send(available).unwrap()));
    let hear = |heard: mpsc::Receiver<bool>| {
        tokio::task::spawn_blocking(move || (heard.recv_timeout(WITHIN).unwrap(), heard))
    };
    let (path, aside) = (folder.path().join(FILE), folder.path().join("aside"));
    std::fs::rename(&path, &aside).unwrap();
    let (available, heard) = hear(heard).await.unwrap();
    assert!(!available);
    assert!(serving.snapshot().cluster_named("edge-7").is_some());
    let report: Report = serving.remove_cluster(key.public().cluster_id()).await.unwrap_err().into();
    assert_eq!(report.fault, Fault::RelayDatabase);
    std::fs::rename(&aside, &path).unwrap();
    let (available, _) = hear(heard).await.unwrap();
    assert!(available);
    assert!(serving.remove_cluster(key.public().cluster_id()).await.unwrap());
    following.abort();
}

/// A thief of the database can write rows, but an id stays the hash of its key.
#[tokio::test]
async fn t44_a_row_with_another_clusters_key_is_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).await.unwrap();
    let (real, forged) = (SigningKey::generate(), SigningKey::generate());
    enrol(&registry, 1, "edge-7", &real).await;
    sqlx::query("UPDATE clusters SET key = ?")
        .bind(&forged.public().spki()[..])
        .execute(&registry.pool)
        .await
        .unwrap();
    registry.refresh().await.unwrap();
    assert!(registry.snapshot().cluster(real.public().cluster_id()).is_none());
    assert!(registry.snapshot().cluster_named("edge-7").is_none());
}

#[tokio::test]
async fn instances_are_seen_revoked_and_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).await.unwrap();
    let key = SigningKey::generate();
    enrol(&registry, 1, "edge-7", &key).await;
    let cluster = key.public().cluster_id();
    let (one, two) = (InstanceId::random(), InstanceId::random());
    for id in [one, two] {
        let holder = Holder { cluster, instance: id, key: SigningKey::generate().public() };
        let issued = Issued { der: vec![], serial: "0a".into(), not_after: later(3600) };
        assert_eq!(registry.record_certificate(&holder, &issued, 9, now()).await.unwrap(), Recorded::Yes);
        assert_eq!(
            registry.record_certificate(&holder, &issued, 9, now()).await.unwrap(),
            Recorded::Yes,
            "renewed"
        );
        let thief = Holder { key: SigningKey::generate().public(), ..holder };
        assert_eq!(
            registry.record_certificate(&thief, &issued, 9, now()).await.unwrap(),
            Recorded::Taken,
            "an id is its first holder's"
        );
    }
    let before = registry.snapshot().revision;
    let seen = Sighting { instance: one, presence: Presence::Online, program: "towline-agent/0.1".into() };
    registry.note_presence(std::slice::from_ref(&seen), now()).await.unwrap();
    registry.refresh().await.unwrap();
    assert_eq!(registry.snapshot().revision, before, "who is online changes no decision");

    let find =
        |all: Vec<Instance>, id| all.into_iter().find(|instance: &Instance| instance.id == id).unwrap();
    let first = find(registry.instances().await.unwrap(), one);
    assert!(
        first.is_online(later(60)) && !first.is_online(later(90)),
        "a relay that was killed notes nothing more"
    );
    assert_eq!((first.program.as_str(), first.last_seen), ("towline-agent/0.1", Some(now())));
    assert!(!find(registry.instances().await.unwrap(), two).is_online(now()));

    assert!(registry.revoke_instance(one, now()).await.unwrap());
    assert!(!registry.revoke_instance(InstanceId::random(), now()).await.unwrap());
    assert!(registry.snapshot().is_revoked(one) && !registry.snapshot().is_revoked(two));
    registry.begin_serving(later(60)).await.unwrap();
    assert!(registry.instances().await.unwrap().iter().all(|instance| !instance.is_online(now())));
    registry.begin_serving(later(30 * 24 * 3600)).await.unwrap();
    assert!(registry.instances().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_registry_that_cannot_be_used_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let opened = |registry: Result<Registry, RegistryError>| Report::from(registry.unwrap_err());
    let missing = opened(Registry::open(&folder.path().join("nowhere")).await);
    assert_eq!(missing.fault, Fault::RelayDatabase);
    assert!(missing.to_string().contains("folder exists"), "{missing}");

    std::fs::write(folder.path().join(FILE), "no database at all, but a text of some length".repeat(200))
        .unwrap();
    let damaged = opened(Registry::open(folder.path()).await);
    assert!(damaged.to_string().contains("not an SQLite database"), "{damaged}");

    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).await.unwrap();
    sqlx::query("INSERT INTO _sqlx_migrations VALUES (99, 'future', 0, TRUE, x'00', 0)")
        .execute(&registry.pool)
        .await
        .unwrap();
    registry.close().await;
    let newer = opened(Registry::open(folder.path()).await);
    assert!(newer.to_string().contains("newer towline-relay"), "{newer}");
}

#[tokio::test]
async fn a_locked_registry_is_an_error_within_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).await.unwrap();
    let other = Registry::open(folder.path()).await.unwrap();
    let held = other.writing().await.unwrap();
    let refused = timeout(WITHIN, offer_result(&registry)).await.unwrap();
    assert!(refused.unwrap_err().to_string().contains("locked by another process"));
    held.rollback().await.unwrap();
    offer_result(&registry).await.unwrap();
}

async fn offer_result(registry: &Registry) -> Result<(), RegistryError> {
    let offer = EnrolmentOffer {
        secret_hash: [1; 32],
        name: "x".parse().unwrap(),
        replaces: false,
        expires_at: later(1),
    };
    registry.offer_enrolment(&offer, now()).await
}

#[tokio::test]
async fn the_file_is_its_owners_alone() {
    let folder = tempfile::tempdir().unwrap();
    let _registry = Registry::open(folder.path()).await.unwrap();
    for name in [FILE, "registry.sqlite-wal"] {
        let mode = std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
}

fn revocation(
    subject: &str,
    cluster: Option<towline_tunnel::ids::ClusterId>,
    until: SystemTime,
) -> Revocation {
    Revocation {
        kind: SubjectKind::User,
        subject: subject.into(),
        cluster,
        issued_until: until,
        revoked_at: now(),
        revoked_by: "a test".into(),
    }
}

#[tokio::test]
async fn of_two_revocations_the_later_time_holds_and_the_forgotten_make_room() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).await.unwrap();
    assert!(registry.revoke(&revocation("alice", None, later(3600))).await.unwrap());
    assert!(registry.revoke(&revocation("alice", None, now())).await.unwrap());
    let [held] = &registry.revocations().await.unwrap()[..] else { panic!("one row for each subject") };
    assert_eq!(held.issued_until, later(3600));
    registry.refresh().await.unwrap();
    let of = |subject: &str, at| registry.snapshot().revocations().of(SubjectKind::User, subject, None, at);
    assert_eq!(of("alice", now()), Some(later(3600)));
    assert_eq!(of("alice", later(3600) + REMEMBERED_FOR), None);
    let long_after =
        Revocation { revoked_at: later(3601) + REMEMBERED_FOR, ..revocation("bob", None, later(9_000_000)) };
    assert!(registry.revoke(&long_after).await.unwrap());
    let held: Vec<_> = registry.revocations().await.unwrap().into_iter().map(|of| of.subject).collect();
    assert_eq!(held, ["bob"]);
}

/// Otherwise a new key under the old name would let back in whom somebody has put out.
#[tokio::test]
async fn what_is_revoked_at_a_cluster_and_who_has_duties_there_stays_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).await.unwrap();
    let (first, second) = (SigningKey::generate(), SigningKey::generate());
    enrol(&registry, 1, "edge-7", &first).await;
    let (old, new) = (first.public().cluster_id(), second.public().cluster_id());
    let duty = DutyAssignment {
        kind: SubjectKind::Group,
        subject: "ops".into(),
        duty: Duty::Operator,
        cluster: Some(old),
        expires_at: Some(later(60)),
    };
    assert!(registry.assign_duty(&duty, now()).await.unwrap());
    assert!(registry.revoke(&revocation("alice", Some(old), now())).await.unwrap());
    let hash = offer(&registry, 2, "edge-7", true).await;
    assert!(matches!(registry.enrol(&hash, &second.public(), now()).await.unwrap(), Enrolled::Yes { .. }));
    let known = registry.snapshot();
    assert_eq!(known.revocations().of(SubjectKind::User, "alice", Some(new), now()), Some(now()));
    assert_eq!(known.revocations().of(SubjectKind::User, "alice", None, now()), None);
    let places =
        |at| -> Vec<_> { known.duties().places(SubjectKind::Group, "ops", Duty::Operator, at).collect() };
    assert_eq!((places(now()), places(later(60))), (vec![Some(new)], vec![]));
    registry.remove_cluster(new).await.unwrap();
    assert!(registry.duties().await.unwrap().is_empty() && registry.revocations().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_duty_everywhere_and_one_somewhere_are_two() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).await.unwrap();
    let key = SigningKey::generate();
    enrol(&registry, 1, "edge-7", &key).await;
    let everywhere = DutyAssignment {
        kind: SubjectKind::User,
        subject: "olga".into(),
        duty: Duty::Auditor,
        cluster: None,
        expires_at: None,
    };
    let somewhere = DutyAssignment { cluster: Some(key.public().cluster_id()), ..everywhere.clone() };
    for held in [&everywhere, &somewhere] {
        assert!(registry.assign_duty(held, now()).await.unwrap());
        assert!(!registry.assign_duty(held, now()).await.unwrap(), "it is there already");
    }
    assert_eq!(registry.duties().await.unwrap(), [everywhere.clone(), somewhere.clone()]);
    assert!(registry.remove_duty(&everywhere).await.unwrap());
    assert!(!registry.remove_duty(&everywhere).await.unwrap());
    assert_eq!(registry.duties().await.unwrap(), [somewhere]);
}

use std::time::{Duration, UNIX_EPOCH};

use towline_tunnel::{
    keys::SigningKey,
    role::{RoleName, Subject, read_offer},
};

use super::*;
use crate::registry::{Registry, Stored};

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

fn alice() -> Caller {
    Caller { username: "alice".into(), principal: "https://idp#alice".into(), groups: vec!["dev".into()] }
}

struct World {
    _folder: tempfile::TempDir,
    registry: Registry,
    organisation: SigningKey,
    cluster: ClusterId,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::open(folder.path()).await.unwrap();
        let organisation = SigningKey::generate();
        registry.trust_key(&organisation.public(), at(0)).await.unwrap();
        Self { _folder: folder, registry, organisation, cluster: ClusterId::of_spki(b"edge") }
    }

    async fn put(&self, statement: Statement, life: Option<u64>) -> DocumentId {
        let signed = Document::new(statement, at(0), life.map(Duration::from_secs)).sign(&self.organisation);
        let signer = self.organisation.public();
        assert_eq!(self.registry.store_document(&signed, &signer, "", at(0)).await.unwrap(), Stored::New);
        signed.document().id
    }

    async fn assign(&self, subject: Subject, role: RoleName, scope: &str, life: Option<u64>) -> DocumentId {
        self.put(Statement::Assignment { subject, role, scope: scope.parse().unwrap() }, life).await
    }

    async fn place(&self, group: &str) -> DocumentId {
        self.put(Statement::Placement { cluster: self.cluster, group: group.parse().unwrap() }, None).await
    }

    fn offered(&self, now: u64) -> Vec<DocumentId> {
        let offer = offer(self.registry.snapshot().documents(), &alice(), self.cluster, at(now));
        let read: Vec<DocumentId> = offer
            .bytes
            .iter()
            .flat_map(|bytes| read_offer(bytes).unwrap())
            .map(|bytes| SignedDocument::read(bytes).unwrap().document().id)
            .collect();
        assert_eq!(offer.documents.as_deref().unwrap_or_default(), read);
        read
    }
}

fn hers() -> Subject {
    Subject::Principal("https://idp#alice".into())
}

#[tokio::test]
async fn what_concerns_the_caller_and_the_cluster_is_offered_and_nothing_else() {
    let world = World::new().await;
    assert_eq!(world.offered(0), []);
    let elsewhere = format!("cluster:{}", ClusterId::of_spki(b"other"));
    world.assign(hers(), RoleName::Admin, &elsewhere, None).await;
    world.assign(Subject::Principal("https://idp#bob".into()), RoleName::Admin, "organisation", None).await;
    let in_eu = world.assign(Subject::Group("dev".into()), RoleName::Writer, "group:eu", None).await;
    assert_eq!(world.offered(0), [], "the cluster is in no group");
    let placed = world.place("eu/retail").await;
    assert_eq!(world.offered(0), [placed, in_eu]);
    let short = world.assign(hers(), RoleName::ClusterAdmin, "organisation", Some(10)).await;
    assert_eq!(world.offered(0), [placed, short, in_eu]);
    assert_eq!(world.offered(10), [placed, in_eu]);
}

#[tokio::test]
async fn where_not_all_fit_the_strongest_are_offered() {
    let world = World::new().await;
    for _ in 0..MAX_OFFERED {
        world.assign(hers(), RoleName::Viewer, "organisation", None).await;
    }
    let admin = world.assign(hers(), RoleName::Admin, "organisation", Some(10)).await;
    let offered = world.offered(0);
    assert_eq!((offered.len(), offered[0]), (MAX_OFFERED, admin));
}

#[tokio::test]
async fn a_signed_role_opens_the_way_and_ends_with_its_documents() {
    let world = World::new().await;
    let known = || world.registry.snapshot();
    let role = |now| given(known().documents(), &alice(), world.cluster, at(now)).map(|given| given.role);
    let ids = [world.assign(hers(), RoleName::Viewer, "group:eu", Some(10)).await, world.place("eu").await];
    assert_eq!(role(0), Some(RoleName::Viewer));
    assert!(stands(known().documents(), &ids, at(9)) && !stands(known().documents(), &ids, at(10)));
    world.registry.withdraw_document(ids[1], "", at(1)).await.unwrap();
    assert_eq!(role(1), None);
    assert!(!stands(known().documents(), &ids, at(1)));
}

use std::{collections::BTreeMap, time::UNIX_EPOCH};

use towline_identity::Principal;
use towline_tunnel::{
    ids::KeyHash,
    role::{Subject, write_offer},
    ticket::MAX_LIFE,
};

use super::*;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

fn alice() -> Identity {
    Identity {
        username: "alice".into(),
        groups: vec!["dev".into()],
        uid: None,
        extra: BTreeMap::new(),
        principal: Principal { issuer: "https://idp".into(), subject: "alice".into() },
        issued_at: None,
        expires_at: at(100_000),
    }
}

struct World {
    organisation: SigningKey,
    roles: Roles,
}

impl World {
    fn new(ceiling: RoleName) -> Self {
        let (organisation, identity) = (SigningKey::generate(), SigningKey::generate());
        let settings = RoleSettings { ceiling, keys: vec![organisation.public()], fresh_for: FRESH_FOR };
        Self { organisation, roles: Roles::new(settings, &identity) }
    }

    fn signed(&self, statement: Statement, issued: u64) -> Bytes {
        Document::new(statement, at(issued), None).sign(&self.organisation).bytes().clone()
    }

    fn assignment(&self, role: RoleName, scope: &str) -> Bytes {
        self.signed(assignment(role, scope), 0)
    }

    fn placement(&self, group: &str, issued: u64) -> Bytes {
        let statement = Statement::Placement { cluster: self.roles.cluster, group: group.parse().unwrap() };
        self.signed(statement, issued)
    }

    /// A ticket that vouches for these documents, and the offer.
    fn ticket(&self, documents: &[Bytes], issued: u64) -> (Ticket, Option<Bytes>) {
        let offer = write_offer(documents);
        let run_key = KeyHash::of_spki(b"run");
        let mut ticket =
            Ticket::new(self.roles.cluster, "https://idp#alice".into(), run_key, at(issued), MAX_LIFE);
        ticket.offer = offer.as_deref().map(hash_offer);
        (ticket, offer)
    }

    fn role(&self, documents: &[Bytes]) -> Option<RoleName> {
        let (ticket, offer) = self.ticket(documents, 0);
        let offered = self.roles.take(&ticket, offer.as_ref(), at(1));
        self.roles.role_of(&offered, &alice(), at(1)).map(|granted| granted.role)
    }
}

fn assignment(role: RoleName, scope: &str) -> Statement {
    let subject = Subject::Principal("https://idp#alice".into());
    Statement::Assignment { subject, role, scope: scope.parse().unwrap() }
}

#[test]
fn t51_a_role_counts_for_no_more_than_the_ceiling() {
    let world = World::new(RoleName::Writer);
    assert_eq!(world.role(&[world.assignment(RoleName::Viewer, "organisation")]), Some(RoleName::Viewer));
    assert_eq!(
        world.role(&[world.assignment(RoleName::ClusterAdmin, "organisation")]),
        Some(RoleName::Writer)
    );
    assert_eq!(world.role(&[world.assignment(RoleName::ClusterUser, "organisation")]), None);
}

#[test]
fn t51_what_another_key_signed_or_the_ticket_does_not_vouch_for_gives_nothing() {
    let world = World::new(RoleName::ClusterAdmin);
    let forged = Document::new(assignment(RoleName::Admin, "organisation"), at(0), None);
    let forged = forged.sign(&SigningKey::generate()).bytes().clone();
    assert_eq!(world.role(std::slice::from_ref(&forged)), None);
    let viewer = world.assignment(RoleName::Viewer, "organisation");
    assert_eq!(world.role(&[forged, viewer.clone()]), Some(RoleName::Viewer), "the others still count");
    let (ticket, offer) = world.ticket(std::slice::from_ref(&viewer), 0);
    let role = |ticket: &Ticket, now| {
        let offered = world.roles.take(ticket, offer.as_ref(), at(now));
        world.roles.role_of(&offered, &alice(), at(now)).map(|granted| granted.role)
    };
    assert_eq!(role(&ticket, 60), Some(RoleName::Viewer));
    assert_eq!(role(&ticket, 61), None, "the stamp is old");
    let (other, _) = world.ticket(&[world.assignment(RoleName::Viewer, "organisation")], 0);
    assert_eq!(role(&other, 1), None);
    assert_eq!(role(&Ticket { offer: None, ..ticket }, 1), None);
}

#[test]
fn t51_a_cluster_is_not_moved_back_by_an_older_placement() {
    let world = World::new(RoleName::ClusterAdmin);
    let writer = world.assignment(RoleName::Writer, "group:eu");
    let (old, new) = (world.placement("eu", 0), world.placement("us", 1));
    assert_eq!(world.role(&[writer.clone(), old.clone()]), Some(RoleName::Writer));
    assert_eq!(world.role(&[writer.clone(), new]), None);
    assert_eq!(world.role(&[writer.clone(), old]), None, "the relay offers what was replaced");
    assert_eq!(world.role(&[writer, world.placement("eu/again", 2)]), Some(RoleName::Writer));
}

#[test]
fn a_stream_that_is_taken_up_again_keeps_its_role_only_while_the_relay_vouches_for_it() {
    let world = World::new(RoleName::ClusterAdmin);
    let documents = [
        world.assignment(RoleName::Writer, "group:eu"),
        world.placement("eu", 0),
        world.assignment(RoleName::Viewer, "organisation"),
    ];
    let (ticket, offer) = world.ticket(&documents, 0);
    let offered = world.roles.take(&ticket, offer.as_ref(), at(1));
    world.roles.role_of(&offered, &alice(), at(1)).unwrap();
    let without = |gone: usize| {
        let left: Vec<Bytes> =
            documents.iter().enumerate().filter(|(n, _)| *n != gone).map(|(_, d)| d.clone()).collect();
        world.ticket(&left, 2)
    };
    let (again, offer) = without(2);
    world.roles.renew(&offered, &again, offer.as_ref(), at(2));
    assert!(!offered.gone().is_cancelled(), "nothing hangs on that one");
    for needed in [1, 0] {
        let held = world.roles.take(&ticket, world.ticket(&documents, 0).1.as_ref(), at(1));
        world.roles.role_of(&held, &alice(), at(1)).unwrap();
        let (again, offer) = without(needed);
        world.roles.renew(&held, &again, offer.as_ref(), at(2));
        assert!(held.gone().is_cancelled(), "{needed}");
        assert_eq!(world.roles.role_of(&held, &alice(), at(2)), None, "nothing new begins with it");
        // Nor what had not begun when the relay stopped vouching for it.
        let idle = world.roles.take(&ticket, world.ticket(&documents, 0).1.as_ref(), at(1));
        world.roles.renew(&idle, &again, offer.as_ref(), at(2));
        assert!(!idle.gone().is_cancelled());
        let left = world.roles.role_of(&idle, &alice(), at(2)).map(|granted| granted.role);
        assert_eq!(left, Some(RoleName::Viewer), "{needed}");
    }
}

#[test]
fn the_groups_names_are_this_clusters_alone_and_last_as_long_as_its_key() {
    let key = SigningKey::generate();
    let groups = Groups::of(&key);
    assert_eq!(groups, Groups::of(&key));
    assert_ne!(groups, Groups::of(&SigningKey::generate()));
    let group = groups.group(RoleName::Viewer).unwrap();
    let suffix = group.strip_prefix("towline:role:viewer:").unwrap();
    assert!(suffix.len() == SUFFIX && suffix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
    assert_eq!(groups.up_to(RoleName::Writer).len(), 2);
    assert_eq!(groups.group(RoleName::ClusterUser), None);
}

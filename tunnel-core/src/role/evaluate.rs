//! Which role somebody has on a cluster, by which document, and until when.
//!
//! The agent asks it of the documents that were offered with a stream, the relay of those that it keeps, and `towline role explain` of
//! those that it was shown: one answer for all. Signatures are judged before.

use std::time::{Duration, SystemTime};

use super::{Document, DocumentId, GroupPath, RoleName, Scope, Statement, Subject};
use crate::ids::ClusterId;

/// A document may count this much before its time: the clock that it was made by may be ahead. It never counts after it.
pub const SKEW: Duration = Duration::from_secs(45);

/// Whose role is asked for, by verified names.
#[derive(Clone, Copy, Debug)]
pub struct Person<'a> {
    /// Issuer, `#` and stable claim.
    pub principal: &'a str,
    /// Groups.
    pub groups: &'a [String],
}

/// A role, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The role.
    pub role: RoleName,
    /// By which document.
    pub by: DocumentId,
    /// Where that holds.
    pub scope: Scope,
    /// For whom it was made.
    pub subject: Subject,
    /// The placement that brings the cluster under that scope, if it is a group's.
    pub placed_by: Option<DocumentId>,
    /// When the first of the two ends, if one does.
    pub until: Option<SystemTime>,
}

/// What an assignment does for one person on one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It gives its role.
    Gives,
    /// It is for somebody else.
    OtherSubject,
    /// It holds elsewhere.
    OtherScope,
    /// Its time has not come.
    NotYet,
    /// Its time is over.
    Ended,
}

/// What documents say about one person on one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evaluation {
    /// The strongest role that is given; of several ways to it the one that lasts longest.
    pub given: Option<Given>,
    /// The group that the cluster is in, by which placement, and until when.
    pub placed: Option<(GroupPath, DocumentId, Option<SystemTime>)>,
    /// Each assignment, in the order of the documents.
    pub findings: Vec<(DocumentId, Finding)>,
}

/// What these documents, all of them signed by the organisation, say about a person on a cluster now.
pub fn evaluate<'d>(
    documents: impl IntoIterator<Item = &'d Document, IntoIter: Clone>,
    person: Person<'_>,
    cluster: ClusterId,
    now: SystemTime,
) -> Evaluation {
    let documents = documents.into_iter();
    let mut evaluation =
        Evaluation { placed: placed(documents.clone(), cluster, now), ..Evaluation::default() };
    for document in documents {
        let Statement::Assignment { subject, role, scope } = &document.statement else { continue };
        let group = evaluation.placed.as_ref().map(|(group, ..)| group);
        let finding = if !person.is(subject) {
            Finding::OtherSubject
        } else if !scope.covers(cluster, group) {
            Finding::OtherScope
        } else {
            document.standing(now)
        };
        evaluation.findings.push((document.id, finding));
        if finding != Finding::Gives {
            continue;
        }
        let placement = evaluation.placed.as_ref().filter(|_| matches!(scope, Scope::Group(_)));
        let given = Given {
            role: *role,
            by: document.id,
            scope: scope.clone(),
            subject: subject.clone(),
            placed_by: placement.map(|(_, by, _)| *by),
            until: earlier(document.expires, placement.and_then(|(.., until)| *until)),
        };
        if evaluation.given.as_ref().is_none_or(|held| given.is_better_than(held)) {
            evaluation.given = Some(given);
        }
    }
    evaluation
}

/// The placement that counts: of those whose time has come the one that was issued last. Where that is over, an older one does not
/// come back.
fn placed<'d>(
    documents: impl Iterator<Item = &'d Document>,
    cluster: ClusterId,
    now: SystemTime,
) -> Option<(GroupPath, DocumentId, Option<SystemTime>)> {
    let of_cluster = documents.filter_map(|document| match &document.statement {
        Statement::Placement { cluster: of, group } if *of == cluster => Some((document, group)),
        _ => None,
    });
    let (newest, group) = of_cluster
        .filter(|(document, _)| document.standing(now) != Finding::NotYet)
        .max_by_key(|(document, _)| (document.issued, document.id))?;
    (newest.standing(now) == Finding::Gives).then(|| (group.clone(), newest.id, newest.expires))
}

fn earlier(a: Option<SystemTime>, b: Option<SystemTime>) -> Option<SystemTime> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl Person<'_> {
    fn is(&self, subject: &Subject) -> bool {
        match subject {
            Subject::Principal(principal) => principal == self.principal,
            Subject::Group(group) => self.groups.contains(group),
        }
    }
}

impl Document {
    /// Whether its time has come, and is not over.
    pub fn standing(&self, now: SystemTime) -> Finding {
        if self.expires.is_some_and(|end| now >= end) {
            Finding::Ended
        } else if now + SKEW < self.not_before {
            Finding::NotYet
        } else {
            Finding::Gives
        }
    }
}

impl Given {
    fn is_better_than(&self, other: &Self) -> bool {
        let lasts_longer = match (self.until, other.until) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(mine), Some(others)) => mine > others,
        };
        self.role > other.role || (self.role == other.role && lasts_longer)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn cluster() -> ClusterId {
        ClusterId::of_spki(b"edge-7")
    }

    fn made(statement: Statement, life: Option<u64>) -> Document {
        Document::new(statement, at(NOW), life.map(Duration::from_secs))
    }

    fn alice(role: RoleName, scope: &str, life: Option<u64>) -> Document {
        of(Subject::Principal("https://idp#alice".into()), role, scope, life)
    }

    fn of(subject: Subject, role: RoleName, scope: &str, life: Option<u64>) -> Document {
        made(Statement::Assignment { subject, role, scope: scope.parse().unwrap() }, life)
    }

    fn placement(group: &str, issued: u64, life: Option<u64>) -> Document {
        let statement = Statement::Placement { cluster: cluster(), group: group.parse().unwrap() };
        Document::new(statement, at(issued), life.map(Duration::from_secs))
    }

    fn asked(documents: &[Document], now: u64) -> Evaluation {
        let groups = ["dev".to_owned()];
        let person = Person { principal: "https://idp#alice", groups: &groups };
        evaluate(documents, person, cluster(), at(now))
    }

    fn role(documents: &[Document], now: u64) -> Option<RoleName> {
        asked(documents, now).given.map(|given| given.role)
    }

    #[test]
    fn roles_are_inherited_downwards_and_the_strongest_counts() {
        let here = format!("cluster:{}", cluster());
        let mut documents = vec![alice(RoleName::Viewer, "organisation", None)];
        assert_eq!(role(&documents, NOW), Some(RoleName::Viewer));
        documents.push(alice(RoleName::Writer, "group:eu", None));
        assert_eq!(role(&documents, NOW), Some(RoleName::Viewer), "the cluster is in no group");
        documents.push(placement("eu/retail", NOW, None));
        assert_eq!(role(&documents, NOW), Some(RoleName::Writer));
        documents.push(alice(RoleName::ClusterUser, &here, None));
        assert_eq!(role(&documents, NOW), Some(RoleName::Writer));
        documents.push(of(Subject::Group("dev".into()), RoleName::Admin, &here, None));
        let given = asked(&documents, NOW).given.unwrap();
        assert_eq!((given.role, given.by, given.placed_by), (RoleName::Admin, documents[4].id, None));
    }

    #[test]
    fn t51_what_is_for_somebody_else_or_elsewhere_gives_nothing() {
        let elsewhere = format!("cluster:{}", ClusterId::of_spki(b"other"));
        let documents = [
            of(Subject::Principal("https://idp#bob".into()), RoleName::Admin, "organisation", None),
            of(Subject::Group("https://idp#alice".into()), RoleName::Admin, "organisation", None),
            of(Subject::Principal("dev".into()), RoleName::Admin, "organisation", None),
            alice(RoleName::Admin, &elsewhere, None),
            alice(RoleName::Admin, "group:us", None),
            placement("eu", NOW, None),
        ];
        let evaluation = asked(&documents, NOW);
        assert_eq!(evaluation.given, None);
        let findings: Vec<_> = evaluation.findings.iter().map(|(_, finding)| *finding).collect();
        let (subject, scope) = (Finding::OtherSubject, Finding::OtherScope);
        assert_eq!(findings, [subject, subject, subject, scope, scope]);
    }

    #[test]
    fn a_document_counts_in_its_time_only() {
        let documents = [alice(RoleName::Viewer, "organisation", Some(100))];
        assert_eq!(role(&documents, NOW - 45), Some(RoleName::Viewer), "its maker's clock may be ahead");
        assert_eq!(role(&documents, NOW - 46), None);
        assert_eq!(asked(&documents, NOW - 46).findings[0].1, Finding::NotYet);
        assert_eq!(role(&documents, NOW + 99), Some(RoleName::Viewer));
        assert_eq!(asked(&documents, NOW + 100).findings[0].1, Finding::Ended);
    }

    #[test]
    fn of_two_ways_to_a_role_the_one_that_lasts_longest_says_until_when() {
        let mut documents = vec![alice(RoleName::Viewer, "organisation", Some(100))];
        assert_eq!(asked(&documents, NOW).given.unwrap().until, Some(at(NOW + 100)));
        documents.push(alice(RoleName::Viewer, "group:eu", Some(300)));
        documents.push(placement("eu", NOW, Some(200)));
        let given = asked(&documents, NOW).given.unwrap();
        assert_eq!((given.until, given.placed_by), (Some(at(NOW + 200)), Some(documents[2].id)));
        documents.push(alice(RoleName::Viewer, "organisation", None));
        assert_eq!(asked(&documents, NOW).given.unwrap().until, None);
    }

    #[test]
    fn t51_a_cluster_is_where_it_was_placed_last_and_an_older_placement_does_not_come_back() {
        let writer = || alice(RoleName::Writer, "group:eu", None);
        let documents = [writer(), placement("eu", NOW - 10, None), placement("us", NOW, None)];
        assert_eq!(role(&documents, NOW), None);
        let documents = [writer(), placement("eu", NOW - 10, None), placement("us", NOW, Some(5))];
        assert_eq!(role(&documents, NOW + 6), None);
        let documents = [writer(), placement("eu", NOW - 10, None), placement("us", NOW + 100, None)];
        assert_eq!(role(&documents, NOW), Some(RoleName::Writer), "the move is yet to come");
        let elsewhere =
            Statement::Placement { cluster: ClusterId::of_spki(b"other"), group: "eu".parse().unwrap() };
        assert_eq!(role(&[writer(), made(elsewhere, None)], NOW), None);
    }
}

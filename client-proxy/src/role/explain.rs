//! Why somebody has a role on a cluster, or lacks one: the agent's own evaluation, in words.

use std::{fmt::Write as _, time::SystemTime};

use jiff::Timestamp;
use towline_tunnel::{
    ids::ClusterId,
    role::{Document, Finding, Person, RoleName, SignedDocument, Statement, evaluate},
};

/// Of whom, and where.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Issuer, `#` and stable claim.
    pub principal: String,
    /// Their groups, as agents name them.
    pub groups: Vec<String>,
    /// The cluster.
    pub cluster: ClusterId,
    /// The agent's ceiling, where it is known.
    pub ceiling: Option<RoleName>,
}

/// `2026-11-21T06:54:52Z`.
pub(crate) fn moment(at: SystemTime) -> String {
    Timestamp::try_from(at)
        .and_then(|at| at.round(jiff::Unit::Second))
        .map_or_else(|_| "?".to_owned(), |at| at.to_string())
}

/// Which role these documents give, by which of them, and what each other one lacks.
pub fn explain(documents: &[SignedDocument], asked: &Asked, now: SystemTime) -> String {
    let all = documents.iter().map(SignedDocument::document);
    let person = Person { principal: &asked.principal, groups: &asked.groups };
    let evaluation = evaluate(all.clone(), person, asked.cluster, now);
    let mut text = String::new();
    let _ = writeln!(text, "{} on cluster {}", asked.principal, asked.cluster);
    let _ = match &evaluation.placed {
        Some((group, by, _)) => writeln!(text, "  the cluster is in group:{group} (placement {by})"),
        None => writeln!(
            text,
            "  the cluster is in no group: only organisation and cluster:{} reach it",
            asked.cluster
        ),
    };
    for (id, finding) in &evaluation.findings {
        let Some(document) = all.clone().find(|document| document.id == *id) else { continue };
        let Statement::Assignment { subject, role, scope } = &document.statement else { continue };
        let said = match finding {
            Finding::Gives => format!("gives {role}{}", ends(document)),
            // Not everybody else's assignments: only those that come near.
            Finding::OtherSubject => continue,
            Finding::OtherScope => format!("would give {role}, but not here"),
            Finding::NotYet => format!("would give {role} from {}", moment(document.not_before)),
            Finding::Ended => format!("gave {role}{}", ends(document)),
        };
        let _ = writeln!(text, "  {id}: {subject} at {scope} {said}");
    }
    let Some(given) = &evaluation.given else {
        let _ = write!(
            text,
            "role: none\n  to give one: towline role assign --principal '{}' --role ROLE --scope cluster:{} --key FILE\n  the relay lets in whom a role or `towline-relay role assign --role cluster-user` names; what the cluster's own RBAC gives is not seen here",
            asked.principal, asked.cluster
        );
        return text;
    };
    let counts = asked.ceiling.map_or(given.role, |ceiling| given.role.min(ceiling));
    let until = given.until.map_or_else(String::new, |until| format!(", until {}", moment(until)));
    let _ = write!(text, "role: {counts} (by {} at {}{until})", given.by, given.scope);
    let _ = match asked.ceiling {
        Some(ceiling) if ceiling < given.role => {
            write!(text, "\n  lowered from {} by the agent's --max-relay-role {ceiling}", given.role)
        }
        Some(_) => Ok(()),
        None => write!(
            text,
            "\n  at most the agent's --max-relay-role, which only the cluster knows; without one, nothing"
        ),
    };
    let _ = match counts.cluster_role() {
        Some(cluster_role) => write!(
            text,
            "\n  inside the cluster: ClusterRole {cluster_role}, where `towline-agent roles manifest` is applied"
        ),
        None => write!(text, "\n  opens the way, and grants nothing inside the cluster"),
    };
    text
}

fn ends(document: &Document) -> String {
    document.expires.map_or_else(String::new, |end| format!(" until {}", moment(end)))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use towline_tunnel::{keys::SigningKey, role::Subject};

    use super::*;

    #[test]
    fn it_says_which_assignment_gives_and_what_the_others_lack() {
        let (key, now) = (SigningKey::generate(), UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let cluster = ClusterId::of_spki(b"edge");
        let made = |statement, life: Option<u64>| {
            Document::new(statement, now, life.map(Duration::from_secs)).sign(&key)
        };
        let assignment = |subject, role, scope: &str| Statement::Assignment {
            subject,
            role,
            scope: scope.parse().unwrap(),
        };
        let alice = || Subject::Principal("https://idp#alice".into());
        let documents = [
            made(assignment(alice(), RoleName::Viewer, "organisation"), Some(5)),
            made(assignment(Subject::Group("dev".into()), RoleName::Admin, "group:eu"), Some(3600)),
            made(assignment(alice(), RoleName::ClusterAdmin, "group:us"), None),
            made(
                assignment(Subject::Principal("https://idp#bob".into()), RoleName::Admin, "organisation"),
                None,
            ),
            made(Statement::Placement { cluster, group: "eu/retail".parse().unwrap() }, None),
        ];
        let mut asked = Asked {
            principal: "https://idp#alice".into(),
            groups: vec!["dev".into()],
            cluster,
            ceiling: Some(RoleName::Writer),
        };
        let ids = documents.each_ref().map(|signed| signed.document().id.to_string());
        let text = explain(&documents, &asked, now + Duration::from_secs(10));
        for said in [
            format!("{}: principal https://idp#alice at organisation gave viewer", ids[0]),
            format!("{}: group dev at group:eu gives admin", ids[1]),
            format!(
                "{}: principal https://idp#alice at group:us would give cluster-admin, but not here",
                ids[2]
            ),
            format!("in group:eu/retail (placement {})", ids[4]),
            format!("role: writer (by {} at group:eu, until 2027-01-15T09:00:00Z)", ids[1]),
            "lowered from admin by the agent's --max-relay-role writer".to_owned(),
            "ClusterRole edit".to_owned(),
        ] {
            assert!(text.contains(&said), "{said} is missing in {text}");
        }
        assert!(!text.contains(&ids[3]), "somebody else's assignment is not told: {text}");
        asked.principal = "https://idp#carol".into();
        asked.groups.clear();
        let none = explain(&documents, &asked, now);
        assert!(
            none.contains("role: none")
                && none.contains("towline role assign --principal 'https://idp#carol'")
        );
    }
}

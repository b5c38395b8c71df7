//! `towline role list`: documents as a table, those that are asked for.

use clap::Args;
use data_encoding::BASE64;
use serde_json::{Value, json};
use towline_relay::cli::table;
use towline_tunnel::{
    fault::Report,
    ids::ClusterId,
    role::{RoleName, Scope, SignedDocument, Statement, Subject},
};

use super::{
    AtRelay, Output, SubjectArgument,
    names::{ClusterArgument, name_of},
    shown,
};
use crate::{
    cli::{json as printed, profile::Profile, say},
    role::moment,
};

/// Arguments of `towline role list`.
#[derive(Args, Clone, Debug)]
pub struct List {
    /// Those of others, too, which needs the role `auditor` at the relay.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    subject: SubjectArgument,
    /// Only assignments of this role.
    #[arg(long)]
    role: Option<RoleName>,
    /// Only what names this cluster: assignments on it alone, and its placement. Its id, or a name in the profile.
    #[arg(long, value_name = "CLUSTER")]
    cluster: Option<ClusterArgument>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    at: AtRelay,
}

/// What is asked for.
#[derive(Default)]
struct Filter {
    subject: Option<Subject>,
    role: Option<RoleName>,
    cluster: Option<ClusterId>,
}

impl List {
    pub(super) async fn list(&self) -> Result<(), Report> {
        let profile = Profile::load(self.at.profile.as_deref())?;
        let filter = Filter {
            subject: self.subject.clone().subject(&profile)?,
            role: self.role,
            cluster: self.cluster.as_ref().map(|cluster| cluster.id(&profile)).transpose()?,
        };
        let mut documents = shown(&self.at, !self.all).await?;
        documents.retain(|signed| filter.covers(&signed.document().statement));
        say(&match self.output {
            Output::Json => printed(&documents.iter().map(item).collect::<Vec<_>>())?,
            Output::Text => people(&documents, &profile),
        });
        Ok(())
    }
}

impl Filter {
    fn covers(&self, statement: &Statement) -> bool {
        let no_subject = self.subject.is_none() && self.role.is_none();
        match statement {
            Statement::Assignment { subject, role, scope } => {
                self.subject.as_ref().is_none_or(|wanted| wanted == subject)
                    && self.role.is_none_or(|wanted| wanted == *role)
                    && self.cluster.is_none_or(|wanted| *scope == Scope::Cluster(wanted))
            }
            Statement::Placement { cluster, .. } => {
                no_subject && self.cluster.is_none_or(|wanted| wanted == *cluster)
            }
            Statement::Removal { .. } => no_subject && self.cluster.is_none(),
        }
    }
}

fn people(documents: &[SignedDocument], profile: &Profile) -> String {
    let called = |id: ClusterId| name_of(id, profile).map_or_else(String::new, |name| format!(" ({name})"));
    let rows: Vec<_> = documents
        .iter()
        .map(|signed| {
            let document = signed.document();
            let [who, role, place] = match &document.statement {
                Statement::Assignment { subject, role, scope } => {
                    let called = match scope {
                        Scope::Cluster(id) => called(*id),
                        _ => String::new(),
                    };
                    [subject.to_string(), role.to_string(), format!("{scope}{called}")]
                }
                Statement::Placement { cluster, group } => [
                    format!("cluster {cluster}{}", called(*cluster)),
                    "is in".to_owned(),
                    format!("group:{group}"),
                ],
                Statement::Removal { of } => ["-".to_owned(), "removal of".to_owned(), of.to_string()],
            };
            let ends = document.expires.map_or_else(|| "never".to_owned(), moment);
            [document.id.to_string(), who, role, place, ends]
        })
        .collect();
    table(["ID", "WHO", "ROLE", "WHERE", "ENDS"], &rows)
}

fn item(signed: &SignedDocument) -> Value {
    let document = signed.document();
    let (what, place) = match &document.statement {
        Statement::Assignment { subject, role, scope } => (format!("{subject}: {role}"), scope.to_string()),
        Statement::Placement { cluster, group } => (format!("cluster {cluster}"), format!("group:{group}")),
        Statement::Removal { of } => (format!("removal of {of}"), String::new()),
    };
    json!({
        "id": document.id.to_string(), "what": what, "where": place, "expiresAt": document.expires.map(moment),
        "document": BASE64.encode(signed.bytes()),
    })
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use towline_tunnel::{keys::SigningKey, role::Document};

    use super::*;

    #[test]
    fn a_table_has_what_is_asked_for_and_names_beside_ids() {
        let (one, two) = (ClusterId::of_spki(b"one"), ClusterId::of_spki(b"two"));
        let ada = Subject::Principal("https://idp#ada".into());
        let assignment =
            |subject: &Subject, role, scope| Statement::Assignment { subject: subject.clone(), role, scope };
        let statements = [
            assignment(&ada, RoleName::Writer, Scope::Cluster(one)),
            assignment(&ada, RoleName::Viewer, Scope::Organisation),
            assignment(&Subject::Group("dev".into()), RoleName::Writer, Scope::Cluster(two)),
            Statement::Placement { cluster: one, group: "eu".parse().unwrap() },
        ];
        let covered = |filter: &Filter| statements.iter().map(|one| filter.covers(one)).collect::<Vec<_>>();
        assert_eq!(covered(&Filter::default()), [true; 4]);
        let of_ada = Filter { subject: Some(ada.clone()), ..Filter::default() };
        assert_eq!(covered(&of_ada), [true, true, false, false]);
        assert_eq!(
            covered(&Filter { role: Some(RoleName::Writer), ..Filter::default() }),
            [true, false, true, false]
        );
        assert_eq!(covered(&Filter { cluster: Some(one), ..Filter::default() }), [true, false, false, true]);

        let key = SigningKey::generate();
        let documents: Vec<_> =
            statements.map(|statement| Document::new(statement, UNIX_EPOCH, None).sign(&key)).into();
        let text = people(&documents, &Profile::pinning("work", &[("edge-7", one)]));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("ID ") && lines[0].ends_with("ENDS"), "{text}");
        assert!(
            lines[1].contains("principal https://idp#ada")
                && lines[1].contains(&format!("cluster:{one} (edge-7)"))
        );
        assert!(lines[3].contains(&format!("cluster:{two} ")) && lines[4].contains("is in"), "{text}");
    }
}

//! `towline-relay role`.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use towline_tunnel::{
    fault::{Fault, Report},
    ids::ClusterId,
    values::duration,
};

use super::{Format, Place, clusters::find, documents, print, print_json, table};
use crate::{
    registry::{Duty, DutyAssignment, Registry, Role as ClusterRole, RoleAssignment, SubjectKind},
    values::moment,
};

#[derive(Debug, Subcommand)]
pub(super) enum Role {
    /// Give somebody a role on a cluster, or at the relay
    Assign {
        #[command(flatten)]
        which: Which,
        /// End it after this time
        #[arg(long, value_name = "TIME", value_parser = duration)]
        expires_in: Option<Duration>,
    },
    /// List who has which role
    List {
        #[command(flatten)]
        place: Place,
        /// How
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// Take a role away
    Remove {
        #[command(flatten)]
        which: Which,
    },
    /// Take role documents that this organisation key has signed
    TrustKey(documents::Key),
    /// Neither take nor offer what this organisation key has signed any more
    DistrustKey(documents::Key),
    /// List the organisation keys that are trusted
    Keys(Place),
    /// List the role documents that organisations signed
    Documents(documents::List),
    /// Take role documents from a file (`towline role … --out FILE`)
    Put(documents::Put),
    /// Offer a role document no longer, nor take it again: works without the organisation's key
    Withdraw(documents::Withdraw),
}

#[derive(Args, Debug)]
pub(super) struct Which {
    #[command(flatten)]
    subject: Subject,
    /// What they may do
    #[arg(long, value_enum)]
    role: RoleName,
    /// Name or id of the cluster; `auditor` and `operator` are for the whole relay without it
    #[arg(long, value_name = "NAME", required_if_eq("role", "cluster-user"))]
    cluster: Option<String>,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RoleName {
    /// Open streams to the cluster's agent; grants nothing inside
    ClusterUser,
    /// Read the audit (`towline audit`)
    Auditor,
    /// Revoke people's sessions (`towline revoke`)
    Operator,
}

/// A role on a cluster, or a duty at the relay.
enum Given {
    Role(RoleAssignment),
    Duty(DutyAssignment),
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Subject {
    /// The username that the relay makes from the token
    #[arg(long)]
    user: Option<String>,
    /// Issuer, `#` and the token's subject
    #[arg(long, value_parser = principal)]
    principal: Option<String>,
    /// A group of the relay token
    #[arg(long)]
    group: Option<String>,
}

/// Any other text would match nobody, in silence.
pub(super) fn principal(text: &str) -> Result<String, String> {
    match text.split_once('#') {
        Some((issuer, subject)) if issuer.contains("://") && !subject.is_empty() => Ok(text.to_owned()),
        _ => Err("a principal is the issuer's URL, `#` and the `sub` of the token, such as \
                  https://idp.example.com#4711"
            .to_owned()),
    }
}

impl Subject {
    fn parse(self) -> Result<(SubjectKind, String), Report> {
        let given = [
            (SubjectKind::User, self.user),
            (SubjectKind::Principal, self.principal),
            (SubjectKind::Group, self.group),
        ];
        let given = given.into_iter().find_map(|(kind, subject)| subject.map(|subject| (kind, subject)));
        given
            .filter(|(_, subject)| !subject.is_empty() && !subject.contains(char::is_control))
            .ok_or_else(|| Report::new(Fault::ConfigInvalid, "--user, --principal or --group needs a name"))
    }
}

impl Which {
    async fn assignment(self, expires_at: Option<SystemTime>) -> Result<(Registry, Given, String), Report> {
        let registry = self.place.registry().await?;
        let cluster = self.cluster.as_deref().map(|name| find(&registry, name)).transpose()?;
        let (kind, subject) = self.subject.parse()?;
        let place = cluster.as_ref().map_or("the whole relay", |cluster| cluster.name.as_str());
        let id = cluster.as_ref().map(|cluster| cluster.id);
        let duty = |duty| DutyAssignment { kind, subject: subject.clone(), duty, cluster: id, expires_at };
        let (given, role) = match (self.role, id) {
            (RoleName::ClusterUser, Some(cluster)) => {
                let role = ClusterRole::ClusterUser;
                let subject = subject.clone();
                (Given::Role(RoleAssignment { kind, subject, role, cluster, expires_at }), role.name())
            }
            (RoleName::ClusterUser, None) => {
                return Err(Report::new(Fault::ConfigInvalid, "the role cluster-user needs --cluster"));
            }
            (RoleName::Auditor, _) => (Given::Duty(duty(Duty::Auditor)), Duty::Auditor.name()),
            (RoleName::Operator, _) => (Given::Duty(duty(Duty::Operator)), Duty::Operator.name()),
        };
        let said = format!("{kind} {subject}: {role} on {place}");
        Ok((registry, given, said))
    }
}

impl Role {
    pub(super) async fn run(self, now: SystemTime) -> Result<(), Report> {
        match self {
            Self::Assign { which, expires_in } => {
                let (registry, given, said) = which.assignment(expires_in.map(|span| now + span)).await?;
                let new = match given {
                    Given::Role(role) => registry.assign_role(&role, now).await?,
                    Given::Duty(duty) => registry.assign_duty(&duty, now).await?,
                };
                print(&format!("{said} ({})", if new { "assigned" } else { "was assigned already" }))
            }
            Self::Remove { which } => {
                let (registry, given, said) = which.assignment(None).await?;
                let removed = match given {
                    Given::Role(role) => registry.remove_role(&role).await?,
                    Given::Duty(duty) => registry.remove_duty(&duty).await?,
                };
                if removed {
                    print(&format!("{said} (removed)"))
                } else {
                    Err(Report::new(Fault::ConfigInvalid, format!("there is no such assignment: {said}")))
                }
            }
            Self::List { place, output } => list(&place.registry().await?, output).await,
            Self::TrustKey(key) => key.trust(now).await,
            Self::DistrustKey(key) => key.distrust().await,
            Self::Keys(place) => documents::keys(&place.registry().await?),
            Self::Documents(which) => which.run(now).await,
            Self::Put(put) => put.run(now).await,
            Self::Withdraw(withdraw) => withdraw.run(now).await,
        }
    }
}

/// One line of the list.
struct Row {
    /// None for the whole relay.
    cluster: Option<ClusterId>,
    kind: SubjectKind,
    subject: String,
    role: &'static str,
    expires_at: Option<SystemTime>,
}

async fn list(registry: &Registry, output: Format) -> Result<(), Report> {
    let known = registry.snapshot();
    let roles = registry.role_assignments().await?;
    let roles = roles.into_iter().map(|of| Row {
        cluster: Some(of.cluster),
        kind: of.kind,
        subject: of.subject,
        role: of.role.name(),
        expires_at: of.expires_at,
    });
    let duties = registry.duties().await?;
    let duties = duties.into_iter().map(|of| Row {
        cluster: of.cluster,
        kind: of.kind,
        subject: of.subject,
        role: of.duty.name(),
        expires_at: of.expires_at,
    });
    let assignments: Vec<Row> = duties.chain(roles).collect();
    let name = |row: &Row| {
        row.cluster.map(|id| known.cluster(id).map_or_else(|| id.to_string(), |c| c.name.clone()))
    };
    match output {
        Format::Table => {
            let rows: Vec<_> = assignments
                .iter()
                .map(|assignment| {
                    [
                        name(assignment).unwrap_or_else(|| "*".to_owned()),
                        assignment.kind.to_string(),
                        assignment.subject.clone(),
                        assignment.role.to_owned(),
                        assignment.expires_at.map_or_else(|| "never".to_owned(), moment),
                    ]
                })
                .collect();
            print(&table(["CLUSTER", "KIND", "SUBJECT", "ROLE", "EXPIRES"], &rows))
        }
        Format::Json => {
            let items: Vec<_> = assignments
                .iter()
                .map(|assignment| {
                    json!({
                        "cluster": name(assignment), "clusterId": assignment.cluster.map(|id| id.to_string()),
                        "kind": assignment.kind, "subject": assignment.subject, "role": assignment.role,
                        "expiresAt": assignment.expires_at.map(moment),
                    })
                })
                .collect();
            print_json(&items)
        }
    }
}

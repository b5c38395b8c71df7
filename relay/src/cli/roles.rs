//! `towline-relay role`.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use serde_json::json;
use towline_tunnel::{
    fault::{Fault, Report},
    values::duration,
};

use super::{Format, Place, clusters::find, print, table::table};
use crate::{
    registry::{Registry, Role as RoleName, RoleAssignment, SubjectKind},
    values::moment,
};

#[derive(Debug, Subcommand)]
pub(super) enum Role {
    /// Give somebody a role on a cluster
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
}

#[derive(Args, Debug)]
pub(super) struct Which {
    #[command(flatten)]
    subject: Subject,
    /// What they may do
    #[arg(long, value_enum)]
    role: RoleName,
    /// Name or id of the cluster
    #[arg(long, value_name = "NAME")]
    cluster: String,
    #[command(flatten)]
    place: Place,
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
fn principal(text: &str) -> Result<String, String> {
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
    async fn assignment(
        self,
        expires_at: Option<SystemTime>,
    ) -> Result<(Registry, RoleAssignment, String), Report> {
        let registry = self.place.registry().await?;
        let cluster = find(&registry, &self.cluster)?;
        let (kind, subject) = self.subject.parse()?;
        let said = format!("{kind} {subject}: {} on {}", self.role, cluster.name);
        Ok((
            registry,
            RoleAssignment { kind, subject, role: self.role, cluster: cluster.id, expires_at },
            said,
        ))
    }
}

impl Role {
    pub(super) async fn run(self, now: SystemTime) -> Result<(), Report> {
        match self {
            Self::Assign { which, expires_in } => {
                let (registry, assignment, said) =
                    which.assignment(expires_in.map(|span| now + span)).await?;
                let new = registry.assign_role(&assignment, now).await?;
                print(&format!("{said} ({})", if new { "assigned" } else { "was assigned already" }))
            }
            Self::Remove { which } => {
                let (registry, assignment, said) = which.assignment(None).await?;
                if registry.remove_role(&assignment).await? {
                    print(&format!("{said} (removed)"))
                } else {
                    Err(Report::new(Fault::ConfigInvalid, format!("there is no such assignment: {said}")))
                }
            }
            Self::List { place, output } => list(&place.registry().await?, output).await,
        }
    }
}

async fn list(registry: &Registry, output: Format) -> Result<(), Report> {
    let known = registry.snapshot();
    let assignments = registry.role_assignments().await?;
    let name = |assignment: &RoleAssignment| {
        known.cluster(assignment.cluster).map_or_else(|| assignment.cluster.to_string(), |c| c.name.clone())
    };
    match output {
        Format::Table => {
            let rows: Vec<_> = assignments
                .iter()
                .map(|assignment| {
                    [
                        name(assignment),
                        assignment.kind.to_string(),
                        assignment.subject.clone(),
                        assignment.role.to_string(),
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
                        "cluster": name(assignment), "clusterId": assignment.cluster.to_string(),
                        "kind": assignment.kind, "subject": assignment.subject, "role": assignment.role,
                        "expiresAt": assignment.expires_at.map(moment),
                    })
                })
                .collect();
            print(&json!(items).to_string())
        }
    }
}

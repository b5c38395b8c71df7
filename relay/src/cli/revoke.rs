//! `towline-relay revoke` and `revocations`: what `towline revoke` does, by whoever runs the relay.

use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::json;
use towline_tunnel::{
    fault::{Fault, Report},
    values::duration,
};

use super::{Format, Place, clusters::find, print, print_json, roles::principal, table};
use crate::{
    registry::{AuditRow, REMEMBERED_FOR, Revocation, SubjectKind},
    revoke::{LONGEST_LOCK, record},
    values::moment,
};

#[derive(Args, Debug)]
pub(super) struct Revoke {
    #[command(flatten)]
    whose: Whose,
    /// Only towards the cluster with this name or id
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Lock them out for this time, at most 30d: tokens that are issued within it are refused, too
    #[arg(long = "for", value_name = "TIME", value_parser = lock, conflicts_with = "undo")]
    lock: Option<Duration>,
    /// Take an earlier revocation back: their old tokens are accepted again
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Whose {
    /// The username that the relay makes from the token
    #[arg(long)]
    user: Option<String>,
    /// Issuer, `#` and the token's subject
    #[arg(long, value_parser = principal)]
    principal: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct Revocations {
    #[command(flatten)]
    place: Place,
    /// How
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

fn lock(text: &str) -> Result<Duration, String> {
    let lock = duration(text)?;
    if lock > LONGEST_LOCK { Err("nobody is locked out for more than 30d".to_owned()) } else { Ok(lock) }
}

impl Revoke {
    pub(super) async fn run(self, now: SystemTime) -> Result<(), Report> {
        let registry = self.place.registry().await?;
        let cluster = self.cluster.as_deref().map(|name| find(&registry, name)).transpose()?;
        let (kind, subject) = match (self.whose.user, self.whose.principal) {
            (Some(user), _) => (SubjectKind::User, user),
            (None, principal) => (SubjectKind::Principal, principal.unwrap_or_default()),
        };
        if subject.is_empty() || subject.contains(char::is_control) {
            return Err(Report::new(Fault::ConfigInvalid, "--user or --principal needs a name"));
        }
        let at = cluster.as_ref().map(|cluster| format!(" at {}", cluster.name)).unwrap_or_default();
        let id = cluster.as_ref().map(|cluster| cluster.id);
        if self.undo {
            if registry.forgive(kind, &subject, id).await? {
                return print(&format!("{kind} {subject}{at} (no longer revoked)"));
            }
            let why = format!("there is no such revocation: {kind} {subject}{at}");
            return Err(Report::new(Fault::ConfigInvalid, why));
        }
        let revocation = Revocation {
            kind,
            subject,
            cluster: id,
            issued_until: now + self.lock.unwrap_or_default(),
            revoked_at: now,
            revoked_by: format!("uid {} on the relay's host", rustix::process::getuid().as_raw()),
        };
        if !registry.revoke(&revocation).await? {
            return Err(Report::new(Fault::RelayLimit, "too many revocations are remembered"));
        }
        let event = record(&revocation, cluster.as_deref(), None, "towline-relay");
        registry.note_audit(&[AuditRow::from(&event)]).await?;
        let until = moment(revocation.issued_until);
        let Revocation { kind, subject, .. } = revocation;
        print(&format!("{kind} {subject}{at} (revoked; tokens issued until {until} are refused)"))
    }
}

impl Revocations {
    pub(super) async fn run(self, now: SystemTime) -> Result<(), Report> {
        let registry = self.place.registry().await?;
        let known = registry.snapshot();
        let mut all = registry.revocations().await?;
        all.retain(|of| now < of.issued_until + REMEMBERED_FOR);
        let name = |of: &Revocation| {
            of.cluster.map(|id| known.cluster(id).map_or_else(|| id.to_string(), |c| c.name.clone()))
        };
        match self.output {
            Format::Table => {
                let rows: Vec<_> = all
                    .iter()
                    .map(|of| {
                        [
                            name(of).unwrap_or_else(|| "*".to_owned()),
                            of.kind.to_string(),
                            of.subject.clone(),
                            moment(of.issued_until),
                            moment(of.revoked_at),
                            of.revoked_by.clone(),
                        ]
                    })
                    .collect();
                print(&table(["CLUSTER", "KIND", "SUBJECT", "TOKENS UNTIL", "REVOKED", "BY"], &rows))
            }
            Format::Json => {
                let items: Vec<_> = all
                    .iter()
                    .map(|of| {
                        json!({
                            "cluster": name(of), "clusterId": of.cluster.map(|id| id.to_string()), "kind": of.kind,
                            "subject": of.subject, "issuedUntil": moment(of.issued_until),
                            "revokedAt": moment(of.revoked_at), "revokedBy": of.revoked_by,
                        })
                    })
                    .collect();
                print_json(&items)
            }
        }
    }
}

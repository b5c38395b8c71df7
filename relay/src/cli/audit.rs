//! `towline-relay audit`.

use std::time::SystemTime;

use clap::Args;
use towline_tunnel::fault::Report;

use super::{Format, Place, print, print_json, table};
use crate::{
    registry::{AuditFilter, AuditRow},
    values::{Since, moment, since},
};

#[derive(Args, Debug)]
pub(super) struct Audit {
    /// Only what this username or principal did, or what was done to them
    #[arg(long)]
    user: Option<String>,
    /// Only what concerns the cluster with this name (as it was then) or id
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Only channels that were open within this time (24h, 7d) or after this moment (2026-11-21T08:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Since>,
    /// Only what was refused
    #[arg(long)]
    refused: bool,
    /// The newest so many
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    place: Place,
    /// How
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Audit {
    pub(super) async fn run(self, now: SystemTime) -> Result<(), Report> {
        let registry = self.place.registry().await?;
        let since = self.since.map(|since| since.at(now));
        let filter = AuditFilter {
            user: self.user,
            cluster: self.cluster,
            since,
            refused: self.refused,
            limit: self.limit,
            ..AuditFilter::default()
        };
        let rows = registry.audit(&filter).await?;
        match self.output {
            Format::Table => print(&people(&rows)),
            Format::Json => print_json(&rows),
        }
    }
}

fn people(rows: &[AuditRow]) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let cluster = if row.cluster.is_empty() { &row.cluster_id } else { &row.cluster };
            [
                moment(row.began_at),
                row.ended_at.map_or_else(|| "still open".to_owned(), moment),
                if row.user.is_empty() { row.principal.clone() } else { row.user.clone() },
                match cluster.as_str() {
                    "" if row.tally.streams > 0 => "(further ones)".to_owned(),
                    cluster => cluster.to_owned(),
                },
                row.verdict.clone(),
                row.why.clone(),
                row.source.clone(),
                row.tally.streams.to_string(),
                row.tally.bytes_to_agent.to_string(),
                row.tally.bytes_to_client.to_string(),
                row.ending.clone(),
                row.channel.clone(),
            ]
        })
        .collect();
    let headings = [
        "BEGAN",
        "ENDED",
        "USER",
        "CLUSTER",
        "VERDICT",
        "WHY",
        "FROM",
        "STREAMS",
        "BYTES TO AGENT",
        "TO CLIENT",
        "ENDING",
        "CHANNEL",
    ];
    table(headings, &rows)
}

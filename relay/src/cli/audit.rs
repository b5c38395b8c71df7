//! `towline-relay audit`.

use std::time::{Duration, SystemTime};

use clap::Args;
use jiff::Timestamp;
use towline_tunnel::{
    fault::{Fault, Report},
    values::duration,
};

use super::{Format, Place, print, table::table};
use crate::{
    registry::{AuditFilter, AuditRow},
    values::moment,
};

#[derive(Args, Debug)]
pub(super) struct Audit {
    /// Only what this username or principal did
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    Span(Duration),
    Moment(SystemTime),
}

fn since(text: &str) -> Result<Since, String> {
    match text.parse::<Timestamp>() {
        Ok(moment) => Ok(Since::Moment(moment.into())),
        Err(_) => duration(text).map(Since::Span).map_err(|_| {
            format!(
                "{text:?} is neither a time span such as 24h or 7d nor a moment such as 2026-11-21T08:00:00Z"
            )
        }),
    }
}

impl Audit {
    pub(super) async fn run(self, now: SystemTime) -> Result<(), Report> {
        let registry = self.place.registry().await?;
        let since = self.since.map(|since| match since {
            Since::Span(span) => now.checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH),
            Since::Moment(moment) => moment,
        });
        let filter = AuditFilter {
            user: self.user,
            cluster: self.cluster,
            since,
            refused: self.refused,
            limit: self.limit,
        };
        let rows = registry.audit(&filter).await?;
        match self.output {
            Format::Table => print(&people(&rows)),
            Format::Json => {
                let text = serde_json::to_string(&rows);
                print(&text.map_err(|error| Report::caused_by(Fault::Internal, "audit records", error))?)
            }
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
                row.user.clone(),
                if cluster.is_empty() { "(further ones)".to_owned() } else { cluster.clone() },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_span_or_a_moment() {
        assert_eq!(since("24h"), Ok(Since::Span(Duration::from_secs(86_400))));
        let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        assert_eq!(since("2027-01-15T08:00:00Z"), Ok(Since::Moment(moment)));
        assert_eq!(since("2027-01-15T09:00:00+01:00"), Ok(Since::Moment(moment)));
        for bad in ["", "yesterday", "5", "2027-01-15"] {
            assert!(since(bad).is_err(), "{bad:?}");
        }
    }
}

//! `towline audit`: who opened what through the relay.

use std::{
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::Args;
use serde_json::Value;
use towline_relay::{
    cli::table,
    values::{Since, since},
};
use towline_tunnel::{
    fault::Report,
    session::question::{AuditQuestion, Topic},
};

use super::{AtRelay, Output, json, say};

/// Arguments of `towline audit`.
#[derive(Args, Clone, Debug)]
pub struct AuditArguments {
    /// Only what this username or principal did, or what was done to them.
    #[arg(long)]
    pub user: Option<String>,
    /// Only what concerns the cluster with this name (as it was then) or id.
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Only channels that were open within this time (24h, 7d) or after this moment (2026-11-21T08:00:00Z).
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<Since>,
    /// Only what was refused.
    #[arg(long)]
    pub refused: bool,
    /// The newest so many.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Which relay.
    #[command(flatten)]
    pub at: AtRelay,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Shows them, the oldest first.
pub(super) async fn execute(arguments: AuditArguments) -> Result<ExitCode, Report> {
    let question = AuditQuestion {
        user: arguments.user,
        cluster: arguments.cluster,
        since: arguments.since.map(|since| {
            since.at(SystemTime::now()).duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
        }),
        refused: arguments.refused,
    };
    let (relay, _profile) = arguments.at.connect().await?;
    let most = usize::try_from(arguments.limit).unwrap_or(usize::MAX);
    let records: Result<Vec<Value>, Report> = relay.list(Topic::AUDIT, &question, most).await;
    relay.close().await;
    let mut records = records?;
    records.reverse();
    match arguments.output {
        Output::Json => say(&json(&records)?),
        Output::Text => say(&people(&records)),
    }
    Ok(ExitCode::SUCCESS)
}

const COLUMNS: [(&str, &[&str]); 12] = [
    ("BEGAN", &["beganAt"]),
    ("ENDED", &["endedAt"]),
    ("USER", &["user", "principal"]),
    ("CLUSTER", &["cluster", "clusterId"]),
    ("VERDICT", &["verdict"]),
    ("WHY", &["why"]),
    ("FROM", &["source"]),
    ("STREAMS", &["streams"]),
    ("BYTES TO AGENT", &["bytesToAgent"]),
    ("TO CLIENT", &["bytesToClient"]),
    ("ENDING", &["ending"]),
    ("CHANNEL", &["channel"]),
];

/// Of each column's members the first that says something.
fn people(records: &[Value]) -> String {
    let cell = |record: &Value, members: &[&str]| {
        let said = members.iter().find_map(|member| match &record[*member] {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        });
        let nothing = if members == ["endedAt"] { "still open" } else { "" };
        said.unwrap_or_else(|| nothing.to_owned())
    };
    let rows: Vec<_> =
        records.iter().map(|record| COLUMNS.map(|(_, members)| cell(record, members))).collect();
    table(COLUMNS.map(|(heading, _)| heading), &rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn people_see_a_line_for_each_record() {
        let shown = people(&[
            json!({"beganAt": "t1", "endedAt": null, "user": "ada", "cluster": "edge-7", "verdict": "allowed", "streams": 2}),
            json!({"beganAt": "t2", "endedAt": "t3", "user": "", "principal": "https://idp#1", "verdict": "revoked"}),
        ]);
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(
            lines[1].contains("still open") && lines[1].contains("ada") && lines[1].contains(" 2"),
            "{shown}"
        );
        assert!(lines[2].contains("https://idp#1") && lines[2].contains("revoked"), "{shown}");
    }
}

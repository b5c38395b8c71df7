//! `towline list`: the clusters that somebody may open.

use std::process::ExitCode;

use clap::Args;
use towline_relay::cli::table;
use towline_tunnel::{
    fault::Report,
    session::question::{ClusterItem, Topic},
};

use super::{AtRelay, Output, json, say};

/// More are not shown.
const MOST: usize = 100_000;

/// Arguments of `towline list`.
#[derive(Args, Clone, Debug)]
pub struct ListArguments {
    /// Which relay.
    #[command(flatten)]
    pub at: AtRelay,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Lists them. A name that the profile pins to another id is told: the relay says one thing, and the person another.
pub(super) async fn execute(arguments: ListArguments) -> Result<ExitCode, Report> {
    let (relay, profile) = arguments.at.connect().await?;
    let clusters: Result<Vec<ClusterItem>, Report> = relay.list(Topic::CLUSTERS, &(), MOST).await;
    relay.close().await;
    let clusters = clusters?;
    for cluster in &clusters {
        if let Some(pin) = profile.clusters.get(&cluster.name)
            && *pin != cluster.id
        {
            tracing::warn!(
                name = cluster.name,
                relay = cluster.id,
                profile = pin,
                "the relay gives this name to another cluster than your profile does; your profile's id stays the pin"
            );
        }
    }
    match arguments.output {
        Output::Json => say(&json(&clusters)?),
        Output::Text => say(&people(&clusters)),
    }
    Ok(ExitCode::SUCCESS)
}

fn people(clusters: &[ClusterItem]) -> String {
    let rows: Vec<_> = clusters
        .iter()
        .map(|cluster| {
            [
                cluster.name.clone(),
                if cluster.online { "yes" } else { "no" }.to_owned(),
                cluster.online_since.clone().unwrap_or_else(|| "-".to_owned()),
                cluster.until.clone().unwrap_or_else(|| "never".to_owned()),
                cluster.id.clone(),
            ]
        })
        .collect();
    table(["NAME", "ONLINE", "SINCE", "YOUR ROLE ENDS", "ID"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_what_is_there_and_since_when() {
        let item = |name: &str, online| ClusterItem {
            name: name.into(),
            id: "abc".into(),
            online,
            online_since: online.then(|| "2026-11-21T08:00:00Z".into()),
            until: None,
        };
        let shown = people(&[item("edge-7", true), item("edge-8\u{1b}[2J", false)]);
        assert_eq!(
            shown,
            "NAME         ONLINE   SINCE                  YOUR ROLE ENDS   ID\n\
             edge-7       yes      2026-11-21T08:00:00Z   never            abc\n\
             edge-8 [2J   no       -                      never            abc"
        );
    }
}

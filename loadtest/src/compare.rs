//! The whole journey beside its peers, and the relay alone beside one hop of haproxy: bytes a second, small requests,
//! new connections.
//!
//! Both ways run in turns (A B B A) between the same ends, each after a warm-up; one peer runs at a time.

mod measure;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::block_in_place,
};

use self::measure::{Compared, Size};
use crate::{
    direct::Direct,
    path::Path,
    peers::Kind,
    rig::{
        Rig,
        paths::Simulated,
        programs::{Lines, Programs},
    },
    terms::Terms,
    told::Told,
};

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Only these peers; `haproxy` and `ssh` are all of theirs
    #[arg(long, value_delimiter = ',', value_name = "PEER", value_parser = wanted)]
    only: Vec<Wanted>,
    /// Only these parts: goodput, latency, opens
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    parts: Vec<Part>,
    /// How many streams at once, one measurement each
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16], value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    streams: Vec<u16>,
    /// Small GETs a second, each wanted at a time fixed beforehand
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
    /// Connections that they go over
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// Fetch and build nothing: peers that are not there yet are left out
    #[arg(long)]
    no_build: bool,
}

/// A part of the command.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Part {
    /// Bytes a second
    Goodput,
    /// Small GETs
    Latency,
    /// New connections
    Opens,
}

/// Peers that one word of `--only` means.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Wanted(Vec<Kind>);

fn wanted(word: &str) -> Result<Wanted, String> {
    let kinds = Kind::value_variants();
    let meant: Vec<Kind> = kinds
        .iter()
        .copied()
        .filter(|kind| kind.name() == word || kind.name().split('-').next() == Some(word))
        .collect();
    if meant.is_empty() {
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        return Err(format!("one of {}", names.join(", ")));
    }
    Ok(Wanted(meant))
}

impl Arguments {
    fn kinds(&self) -> Vec<Kind> {
        let named = |kind: &Kind| self.only.iter().any(|wanted| wanted.0.contains(kind));
        let kinds = Kind::value_variants().iter().copied();
        kinds.filter(|kind| self.only.is_empty() || named(kind)).collect()
    }

    fn wants(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }
}

/// Measures it.
///
/// # Errors
/// If something can't be set up, or fails; or if a peer that was asked for is missing.
pub async fn run(arguments: Arguments, terms: &Terms, told: &mut Told) -> anyhow::Result<()> {
    // Peers are in process groups of their own, which the terminal's Ctrl-C does not reach: they go with this future.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        measured = measure(&arguments, terms, told) => measured,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}

async fn measure(arguments: &Arguments, terms: &Terms, told: &mut Told) -> anyhow::Result<()> {
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    for kind in arguments.kinds() {
        let peer = kind.peer();
        let found = match arguments.no_build {
            true => peer.find().with_context(|| peer.fix()),
            false => block_in_place(|| peer.ensure()),
        };
        match found {
            Ok(installed) => there.push((kind, installed)),
            Err(error) => {
                told.remark(&format!("NOT COMPARED: {} is missing: {error:#}", kind.name()));
                missing.push(kind.name());
            }
        }
    }
    if there.is_empty() {
        bail!("missing: {}", missing.join(", "));
    }
    let rig = Rig::start(&[]).await?;
    let direct = Direct::tls(&rig.far);
    let (mut relay, mut journey) = (None, None);
    let mut rows = Vec::new();
    for (kind, installed) in there {
        let ours: &dyn Path = match kind {
            Kind::HaproxyX1 => {
                if relay.is_none() {
                    relay = Some(Simulated::relay_alone(&rig).await?);
                }
                relay.as_ref().context("it was just made")?
            }
            _ => {
                if journey.is_none() {
                    journey = Some(Programs::start(&rig, "journey", Lines::default())?);
                }
                journey.as_ref().context("it was just made")?
            }
        };
        let theirs = kind.start(&installed, &rig.far).await?;
        let size = Size { rate: arguments.rate.into(), connections: arguments.connections.into(), terms };
        let compared = Compared { ours, theirs: &theirs, direct: &direct, rig: &rig, size };
        if arguments.wants(Part::Goodput) {
            for streams in &arguments.streams {
                compared.goodput((*streams).into(), told).await?;
            }
        }
        if arguments.wants(Part::Latency) {
            compared.latency(told).await?;
        }
        // What is new through the relay alone is a stream, and not a connection with a handshake.
        if arguments.wants(Part::Opens) && kind != Kind::HaproxyX1 {
            compared.opens(told).await?;
        }
        rows.push((ours.name().to_owned(), kind));
    }
    if !terms.json {
        told.remark(&summary(&rows, told));
    }
    if !arguments.only.is_empty() && !missing.is_empty() {
        bail!("asked for, and missing: {}", missing.join(", "));
    }
    Ok(())
}

/// All ratios once more: a line for each peer.
fn summary(rows: &[(String, Kind)], told: &Told) -> String {
    let mut lines =
        vec!["\nratios towline/peer (goodput, opens: more is better; ms and CPU: less is better)".to_owned()];
    for (ours, kind) in rows {
        let ratios: Vec<String> = told
            .figures()
            .iter()
            .filter(|figure| figure.against.as_deref() == Some(kind.name()))
            .filter_map(|figure| Some((figure, figure.ratio?)))
            .map(|(figure, ratio)| {
                let what = figure.name.replace(&format!(", {ours}"), "");
                let interval =
                    figure.ci95.map_or_else(String::new, |(low, high)| format!(" ({low:.2} – {high:.2})"));
                format!("    {what:<44} {ratio:>6.2}{interval}")
            })
            .collect();
        lines.push(format!("{ours} against {}\n{}", kind.name(), ratios.join("\n")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Figure;

    #[test]
    fn a_word_means_a_peer_or_all_configurations_of_it() {
        assert_eq!(wanted("ssh-j").unwrap(), Wanted(vec![Kind::SshJ]));
        assert_eq!(wanted("ssh").unwrap(), Wanted(vec![Kind::SshRl, Kind::SshJ]));
        assert_eq!(wanted("haproxy").unwrap().0.len(), 3);
        let refused = wanted("nginx").unwrap_err();
        assert!(refused.contains("haproxy-x3") && refused.contains("remotedialer"), "{refused}");
    }

    #[test]
    fn the_summary_has_a_line_for_each_ratio_and_none_for_what_has_none() {
        let mut told = Told::new(true, None, "compare").unwrap();
        told.note(Figure::of_pairs("goodput, towline, 1 stream", "Gb/s", "ssh-j", &[(2.0, 1.0)]));
        told.note(Figure::once("goodput, ssh-j, 1 stream", "Gb/s", 1.0, 1));
        let text = summary(&[("towline".to_owned(), Kind::SshJ)], &told);
        assert_eq!(text.matches("1 stream").count(), 1, "{text}");
        assert!(
            text.contains("towline against ssh-j")
                && text.contains("goodput, 1 stream")
                && text.contains("2.00"),
            "{text}"
        );
    }
}

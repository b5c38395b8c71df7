//! What each carrier costs beside websockets: the relay alone, measured in turns.

use towline_tunnel::carrier::rung::Rung;

use super::{Arguments, load_name, pairs};
use crate::{
    figure::Figure,
    path::Path as _,
    rig::{Rig, paths::Simulated},
    terms::Terms,
    told::Told,
    transfer::{Direction, Load},
};

/// A carrier below the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Slower {
    /// One request over HTTP/2
    #[value(alias = "h2")]
    Http2,
    /// A pair of HTTP/1.1 requests
    Pair,
}

impl Slower {
    fn rung(self) -> Rung {
        match self {
            Self::Http2 => Rung::Http2,
            Self::Pair => Rung::Pair,
        }
    }
}

/// Measures those that were asked for: bytes a second, and the relay's CPU for each GB.
///
/// # Errors
/// If something can't be set up, or fails.
pub(super) async fn run(
    rig: &Rig,
    arguments: &Arguments,
    directions: &[Direction],
    terms: &Terms,
    told: &mut Told,
) -> anyhow::Result<()> {
    let websocket = Simulated::relay_by(rig, Rung::WebSocket).await?;
    for slower in &arguments.rung {
        let path = Simulated::relay_by(rig, slower.rung()).await?;
        for direction in directions {
            for streams in &arguments.streams {
                let load = Load { direction: *direction, ..Load::down((*streams).into(), terms) };
                let moved = pairs(rig, &path, &websocket, load, terms, told).await?;
                let costs: Vec<(f64, f64)> = moved
                    .iter()
                    .map(|(ours, theirs)| {
                        (ours.core_seconds_per_gigabyte(), theirs.core_seconds_per_gigabyte())
                    })
                    .collect();
                let name = format!("relay CPU, {}, {}", path.name(), load_name(load));
                told.note(Figure::of_pairs(name, "core s/GB", websocket.name(), &costs));
            }
        }
    }
    Ok(())
}

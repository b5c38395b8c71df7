//! Bytes a second: the relay alone, the whole journey, and one stream on a long line.

mod carriers;
mod lines;

use clap::Args;

use crate::{
    direct::Direct,
    figure::Figure,
    path::Path,
    rig::{
        Rig,
        paths::Simulated,
        programs::{Lines, Programs},
    },
    terms::Terms,
    told::Told,
    transfer::{self, Direction, Load, Moved},
};

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// How many streams at once, one measurement each
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16], value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    streams: Vec<u16>,
    /// Only these parts: relay, journey, lines
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Only what these carriers cost the relay, each in turns with websockets (direct to the relay, http2 is RFC 8441)
    #[arg(long, value_delimiter = ',', value_name = "CARRIER")]
    rung: Vec<carriers::Slower>,
    /// Also towards the far end, as `cp` to a pod
    #[arg(long)]
    up: bool,
}

/// A part of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The relay between a client and an agent that are in this process
    Relay,
    /// The three programs
    Journey,
    /// One stream on long lines
    Lines,
}

/// Measures it.
///
/// # Errors
/// If something can't be set up, or fails.
pub async fn run(arguments: Arguments, terms: &Terms, told: &mut Told) -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let wants = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let directions = if arguments.up { vec![Direction::Down, Direction::Up] } else { vec![Direction::Down] };
    if !arguments.rung.is_empty() {
        return carriers::run(&rig, &arguments, &directions, terms, told).await;
    }
    let direct = Direct::tls(&rig.far);
    if wants(Part::Relay) {
        let alone = Simulated::relay_alone(&rig).await?;
        let inner = Simulated::end_to_end(&rig).await?;
        for direction in &directions {
            for streams in &arguments.streams {
                let load = Load { direction: *direction, ..Load::down((*streams).into(), terms) };
                let moved = pairs(&rig, &alone, &direct, load, terms, told).await?;
                let each: Vec<f64> =
                    moved.iter().map(|(moved, _)| moved.core_seconds_per_gigabyte()).collect();
                let name = format!("relay CPU, {}", load_name(load));
                told.note(Figure::of_runs(name, "core s/GB", &each));
                pairs(&rig, &inner, &direct, load, terms, told).await?;
            }
        }
    }
    if wants(Part::Journey) {
        let programs = Programs::start(&rig, "journey", Lines::default())?;
        for direction in &directions {
            for streams in &arguments.streams {
                let load = Load { direction: *direction, ..Load::down((*streams).into(), terms) };
                let moved = pairs(&rig, &programs, &direct, load, terms, told).await?;
                let each: Vec<f64> =
                    moved.iter().map(|(moved, _)| moved.core_seconds_per_gigabyte()).collect();
                let name = format!("towline's three programs, CPU, {}", load_name(load));
                told.note(Figure::of_runs(name, "core s/GB", &each));
            }
        }
    }
    if wants(Part::Lines) {
        lines::run(&rig, terms, told).await?;
    }
    Ok(())
}

/// Measures a path and another in turns, and tells it; and what the other alone did.
///
/// # Errors
/// If one of them fails.
pub async fn pairs(
    rig: &Rig,
    path: &dyn Path,
    other: &dyn Path,
    load: Load,
    terms: &Terms,
    told: &mut Told,
) -> anyhow::Result<Vec<(Moved, Moved)>> {
    let far = rig.far.far();
    let what = format!("{} and {}, {}", path.name(), other.name(), load_name(load));
    let moved = told
        .in_turns(
            &what,
            terms.runs(),
            async || transfer::run(path, far, load).await,
            async || transfer::run(other, far, load).await,
        )
        .await?;
    let speeds: Vec<(f64, f64)> =
        moved.iter().map(|(ours, theirs)| (ours.gigabits(), theirs.gigabits())).collect();
    told.note(Figure::of_pairs(name_of(path, load), "Gb/s", other.name(), &speeds));
    let alone = name_of(other, load);
    if told.figures().iter().all(|figure| figure.name != alone) {
        let theirs: Vec<f64> = speeds.iter().map(|pair| pair.1).collect();
        told.note(Figure::of_runs(alone, "Gb/s", &theirs));
    }
    Ok(moved)
}

fn name_of(path: &dyn Path, load: Load) -> String {
    format!("goodput, {}, {}", path.name(), load_name(load))
}

fn load_name(load: Load) -> String {
    let way = match load.direction {
        Direction::Down => "",
        Direction::Up => ", up",
    };
    match load.streams {
        1 => format!("1 stream{way}"),
        more => format!("{more} streams{way}"),
    }
}

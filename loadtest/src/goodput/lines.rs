//! One stream on a long line: whether its window finds the line's size, and how soon.

use std::time::{Duration, Instant};

use crate::{
    direct::Direct,
    figure::Figure,
    line::{Line, Nature},
    path::Path,
    rig::{Rig, paths::Simulated},
    terms::Terms,
    told::Told,
    transfer::{Direction, Running},
};

/// Round trips and rates (bits a second).
const LINES: [(u64, f64); 2] = [(50, 230e6), (100, 500e6)];
/// A run is at least so long: what it takes to reach full speed is a part of it.
const AT_LEAST: Duration = Duration::from_secs(3);
/// From here on it counts; full speed is to be reached within this.
const COUNTED_FROM: Duration = Duration::from_secs(1);
/// How often the speed is looked at.
const STEP: Duration = Duration::from_millis(50);
/// Full speed is this much of the line's rate, over two steps.
const FULL: f64 = 0.9;

/// What one run saw.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Bits a second, once it counted.
    rate: f64,
    /// Until full speed; none where it was never reached.
    full_after: Option<Duration>,
}

pub(super) async fn run(rig: &Rig, terms: &Terms, told: &mut Told) -> anyhow::Result<()> {
    for (round_trip, rate) in LINES {
        let nature = Nature::new(Duration::from_millis(round_trip), Some(rate));
        let ours = Line::to(rig.relay.address(), nature).await?;
        let theirs = Line::to(rig.far.plain(), nature).await?;
        let towline = Simulated::over_a_line(rig, ours.address()).await?;
        let direct = Direct::to("direct TCP", theirs.address(), None);
        let line = format!("{round_trip} ms × {:.0} Mb/s", rate / 1e6);
        let window = terms.window().max(AT_LEAST);
        let seen = told
            .in_turns(
                &format!("one stream at {line}"),
                terms.runs(),
                async || one(&towline, rate, window).await,
                async || one(&direct, rate, window).await,
            )
            .await?;
        let rates: Vec<(f64, f64)> =
            seen.iter().map(|(ours, theirs)| (ours.rate / 1e6, theirs.rate / 1e6)).collect();
        told.note(Figure::of_pairs(format!("one stream at {line}"), "Mb/s", direct.name(), &rates));
        for (name, pick) in [("towline", 0), ("direct TCP", 1)] {
            let times: Vec<f64> = seen
                .iter()
                .map(|(ours, theirs)| if pick == 0 { ours } else { theirs })
                // Never reached is as long as it was looked at, which is too long.
                .map(|seen| seen.full_after.unwrap_or(window).as_secs_f64())
                .collect();
            told.note(Figure::of_runs(
                format!("one stream at {line}, {name}, until full speed"),
                "s",
                &times,
            ));
        }
    }
    Ok(())
}

async fn one(path: &dyn Path, rate: f64, window: Duration) -> anyhow::Result<Seen> {
    let begun = Instant::now();
    let mut running = Running::start(path, Direction::Down, 1).await?;
    let mut samples = vec![(begun.elapsed(), running.all())];
    while begun.elapsed() < window {
        running.go_on(STEP).await?;
        samples.push((begun.elapsed(), running.all()));
    }
    drop(running);
    Ok(seen(&samples, rate))
}

/// From samples (since the beginning, bytes so far).
fn seen(samples: &[(Duration, u64)], rate: f64) -> Seen {
    let speed = |from: &(Duration, u64), to: &(Duration, u64)| {
        (to.1 - from.1) as f64 * 8.0 / (to.0 - from.0).as_secs_f64()
    };
    let full_after = samples
        .windows(3)
        .find(|samples| speed(&samples[0], &samples[2]) >= FULL * rate)
        .map(|samples| samples[0].0);
    let counted: Vec<_> = samples.iter().filter(|sample| sample.0 >= COUNTED_FROM).collect();
    let rate = match (counted.first(), counted.last()) {
        (Some(from), Some(to)) if to.0 > from.0 => speed(from, to),
        _ => 0.0,
    };
    Seen { rate, full_after }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_speed_is_seen_when_it_is_reached_and_counted_from_a_second_on() {
        let at = |step: u64| Duration::from_millis(50 * step);
        // 1 Mbit/s is 6,250 bytes a step: half of it for ten steps, then all.
        let samples: Vec<_> = (0..=60)
            .map(|step| (at(step), if step <= 10 { step * 3125 } else { 31_250 + (step - 10) * 6250 }))
            .collect();
        let found = seen(&samples, 1e6);
        assert_eq!(found.full_after, Some(at(10)));
        assert!((found.rate - 1e6).abs() < 1.0, "{}", found.rate);
        assert_eq!(seen(&samples[..8], 1e6).full_after, None);
    }
}

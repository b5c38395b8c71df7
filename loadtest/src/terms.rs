//! How much is measured, the same flags for every command.

use std::{path::PathBuf, time::Duration};

use clap::Args;

/// How much is measured, and how it is told.
#[derive(Args, Clone, Debug)]
pub struct Terms {
    /// One JSON object a line: name, unit, value, ratio, against, ci95, n
    #[arg(long, global = true)]
    pub json: bool,

    /// Runs of each measurement; pairs (A B B A) where there is something to compare with
    #[arg(long, global = true, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,

    /// Seconds of one run
    #[arg(long, global = true, default_value_t = 2.0, value_name = "S", value_parser = seconds)]
    seconds: f64,

    /// Seconds of the same load before a run, which don't count
    #[arg(long, global = true, default_value_t = 0.5, value_name = "S", value_parser = seconds)]
    warm_up: f64,

    /// The whole command gives up after so many seconds
    #[arg(long, global = true, default_value_t = 900.0, value_name = "S", value_parser = seconds)]
    within: f64,

    /// Folder that keeps each command's lines for `report`
    #[arg(long, global = true, default_value = "target/loadtest", value_name = "DIR")]
    pub results: PathBuf,
}

impl Terms {
    /// Runs of each measurement.
    pub fn runs(&self) -> usize {
        self.runs.into()
    }

    /// How long one run takes.
    pub fn window(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// The same load before it, which does not count.
    pub fn warm_up(&self) -> Duration {
        Duration::from_secs_f64(self.warm_up)
    }

    /// The whole command's.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs_f64(self.within)
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.05..=7200.0).contains(&value) => Ok(value),
        _ => Err("seconds, from 0.05 to 7200".into()),
    }
}

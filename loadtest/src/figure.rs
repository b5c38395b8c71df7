//! One measured quantity, and how it is told.

use serde::{Deserialize, Serialize};

use crate::stats::{interval, median};

/// One measured quantity. Its JSON is one object with exactly these keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured, and of what.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// The median of its runs.
    pub value: f64,
    /// The median of the ratios value/other of pairs that ran one after the other.
    pub ratio: Option<f64>,
    /// What the ratio is against.
    pub against: Option<String>,
    /// The 95 % confidence interval: of the ratio where there is one, of the value otherwise. From three runs on.
    pub ci95: Option<(f64, f64)>,
    /// How many runs or pairs; for percentiles, how many samples.
    pub n: usize,
}

impl Figure {
    /// One that was measured once, over `n` of what it is about.
    pub fn once(name: impl Into<String>, unit: &str, value: f64, n: usize) -> Self {
        Self { name: name.into(), unit: unit.into(), value, ratio: None, against: None, ci95: None, n }
    }

    /// From several runs.
    pub fn of_runs(name: impl Into<String>, unit: &str, values: &[f64]) -> Self {
        Self { ci95: interval(values), ..Self::once(name, unit, median(values), values.len()) }
    }

    /// From pairs (value, other) that ran one after the other.
    pub fn of_pairs(name: impl Into<String>, unit: &str, against: &str, pairs: &[(f64, f64)]) -> Self {
        let ratios: Vec<f64> = pairs.iter().map(|(value, other)| value / other).collect();
        let values: Vec<f64> = pairs.iter().map(|pair| pair.0).collect();
        Self {
            ratio: Some(median(&ratios)),
            against: Some(against.into()),
            ci95: interval(&ratios),
            ..Self::once(name, unit, median(&values), pairs.len())
        }
    }

    /// A line for people; as wide as [`HEAD`].
    pub fn line(&self) -> String {
        let interval =
            self.ci95.map_or_else(String::new, |(low, high)| format!(" ({} – {})", short(low), short(high)));
        let (alone, ratio) = match (self.ratio, &self.against) {
            (Some(ratio), Some(against)) => {
                (String::new(), format!("{}{interval} × {against}", short(ratio)))
            }
            _ => (interval, String::new()),
        };
        let value = format!("{:>10} {}{alone}", short(self.value), self.unit);
        format!("{:<58} {:<32} {:<40} n={}", self.name, value, ratio, self.n)
    }

    /// A line for programs.
    pub fn json(&self) -> String {
        // A number that is none has no JSON; whoever reads this is to see that, and not a zero.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The first figure of each command: how busy the machine was before it began; `n` is how many cores it has.
pub const LOAD: &str = "load average of the machine, before";

/// Stands above [`Figure::line`]s.
pub const HEAD: &str = "what                                                                 value                        ratio (95 %)";

/// Three digits, and no more than are worth reading.
pub fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 1.0 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_give_the_median_of_their_ratios() {
        let pairs: Vec<(f64, f64)> = (1..=9).map(|n| (2.0 * f64::from(n), f64::from(n))).collect();
        let figure = Figure::of_pairs("x", "ms", "direct", &pairs);
        assert_eq!((figure.value, figure.ratio, figure.n), (10.0, Some(2.0), 9));
        assert_eq!(figure.ci95, Some((2.0, 2.0)));
    }

    #[test]
    fn a_line_for_programs_has_exactly_these_keys_and_reads_back() {
        let figure = Figure::of_pairs("x", "ms", "direct", &[(1.0, 2.0)]);
        assert_eq!(
            figure.json(),
            r#"{"name":"x","unit":"ms","value":1.0,"ratio":0.5,"against":"direct","ci95":null,"n":1}"#
        );
        assert_eq!(serde_json::from_str::<Figure>(&figure.json()).unwrap(), figure);
        let alone = Figure::of_runs("y", "", &[1.0, 2.0, 3.0]).json();
        assert!(alone.contains(r#""ratio":null,"against":null,"ci95":[1.0,3.0]"#), "{alone}");
    }
}

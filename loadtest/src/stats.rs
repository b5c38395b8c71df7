//! Figures and how they are told.

use serde_json::json;

/// One measured quantity, directly and through towline.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What was measured.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Directly; none where there is no direct way.
    pub direct: Option<f64>,
    /// Through towline.
    pub through: f64,
    /// The median of the ratios through/direct of pairs that ran one after the other.
    pub ratio: Option<f64>,
    /// The 95 % confidence interval of that median (bootstrap).
    pub ci95: Option<(f64, f64)>,
    /// How many pairs.
    pub n: usize,
}

impl Figure {
    /// From pairs (direct, through).
    pub fn of_pairs(name: &'static str, unit: &'static str, pairs: &[(f64, f64)]) -> Self {
        let ratios: Vec<f64> = pairs.iter().map(|(direct, through)| through / direct).collect();
        let column = |pick: fn(&(f64, f64)) -> f64| median(&pairs.iter().map(pick).collect::<Vec<_>>());
        Self {
            name,
            unit,
            direct: Some(column(|pair| pair.0)),
            through: column(|pair| pair.1),
            ratio: Some(median(&ratios)),
            ci95: Some(bootstrap(&ratios)),
            n: pairs.len(),
        }
    }

    /// Of towline alone.
    pub fn alone(name: &'static str, unit: &'static str, value: f64, n: usize) -> Self {
        Self { name, unit, direct: None, through: value, ratio: None, ci95: None, n }
    }

    /// A line for people.
    pub fn line(&self) -> String {
        let direct = self.direct.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        let ratio = self
            .ratio
            .zip(self.ci95)
            .map_or_else(String::new, |(ratio, (low, high))| format!("{ratio:.2} ({low:.2} – {high:.2})"));
        format!(
            "{:<34} {:>10} {:>10} {:<8} {:<22} n={}",
            self.name,
            direct,
            format!("{:.2}", self.through),
            self.unit,
            ratio,
            self.n
        )
    }

    /// A line for programs.
    pub fn json(&self) -> String {
        json!({
            "name": self.name, "unit": self.unit, "value": self.through, "ratio": self.ratio,
            "against": self.direct.map(|_| "direct"), "direct": self.direct, "ci95": self.ci95, "n": self.n,
        })
        .to_string()
    }
}

/// The middle one; the mean of the two middle ones where there are two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The 95 % confidence interval of the median, from 2,000 resamples. The same input gives the same answer.
fn bootstrap(values: &[f64]) -> (f64, f64) {
    if values.is_empty() {
        return (f64::NAN, f64::NAN);
    }
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut medians: Vec<f64> = (0..2000)
        .map(|_| {
            let resample: Vec<f64> = values
                .iter()
                .map(|_| {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    values[(state >> 33) as usize % values.len()]
                })
                .collect();
            median(&resample)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    (medians[50], medians[1949])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_their_intervals() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        let pairs: Vec<(f64, f64)> = (1..=9).map(|n| (f64::from(n), 2.0 * f64::from(n))).collect();
        let figure = Figure::of_pairs("x", "ms", &pairs);
        assert_eq!((figure.ratio, figure.ci95, figure.n), (Some(2.0), Some((2.0, 2.0)), 9));
        let scattered: Vec<f64> = (0..100).map(f64::from).collect();
        let (low, high) = bootstrap(&scattered);
        assert!(low > 35.0 && low < 50.0 && high > 50.0 && high < 65.0, "{low} {high}");
    }
}

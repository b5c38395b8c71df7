//! What is made of the numbers: medians, their intervals, turns, fairness.

use hdrhistogram::Histogram;

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
///
/// Nothing where there are too few values to say anything: with two, every resample's median lies between them.
pub fn interval(values: &[f64]) -> Option<(f64, f64)> {
    if values.len() < 3 {
        return None;
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
    Some((medians[50], medians[1949]))
}

/// Jain's index of fairness: 1 where all got the same, 1/n where one got all.
pub fn jain(shares: &[f64]) -> f64 {
    let (sum, squares) =
        shares.iter().fold((0.0, 0.0), |(sum, squares), share| (sum + share, squares + share * share));
    if squares == 0.0 { f64::NAN } else { sum * sum / (shares.len() as f64 * squares) }
}

/// Runs both one after the other, and the other way round the next time: A B B A. What drifts while the machine warms
/// up, or while something else runs on it, is shared by both.
///
/// # Errors
/// The first that one of them meets.
pub async fn in_turns<T>(
    runs: usize,
    mut first: impl AsyncFnMut() -> anyhow::Result<T>,
    mut second: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<Vec<(T, T)>> {
    let mut results = Vec::with_capacity(runs);
    for run in 0..runs {
        if run % 2 == 0 {
            let one = first().await?;
            results.push((one, second().await?));
        } else {
            let other = second().await?;
            results.push((first().await?, other));
        }
    }
    Ok(results)
}

/// Times from 1 µs to a minute, in microseconds, to three digits.
///
/// # Panics
/// Never: the bounds are sound.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are sound")
}

/// A percentile of [`histogram`], in milliseconds.
pub fn millis(micros: &Histogram<u64>, quantile: f64) -> f64 {
    micros.value_at_quantile(quantile) as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_their_intervals() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        let scattered: Vec<f64> = (0..100).map(f64::from).collect();
        let (low, high) = interval(&scattered).unwrap();
        assert!(low > 35.0 && low < 50.0 && high > 50.0 && high < 65.0, "{low} {high}");
        assert_eq!(interval(&[2.0; 9]), Some((2.0, 2.0)));
        assert_eq!(interval(&[1.0, 2.0]), None);
    }

    #[test]
    fn fairness_is_one_where_all_got_the_same() {
        assert_eq!(jain(&[5.0; 16]), 1.0);
        assert_eq!(jain(&[1.0, 0.0, 0.0, 0.0]), 0.25);
        assert!(jain(&[]).is_nan());
    }

    #[tokio::test]
    async fn turns_are_taken_a_b_b_a() {
        let order = std::cell::RefCell::new(String::new());
        let turn = |name: char| order.borrow_mut().push(name);
        let pairs = in_turns(
            2,
            async || {
                turn('a');
                Ok('a')
            },
            async || {
                turn('b');
                Ok('b')
            },
        );
        assert_eq!(pairs.await.unwrap(), [('a', 'b'), ('a', 'b')]);
        assert_eq!(*order.borrow(), "abba");
    }
}

//! Durations and sizes as people write them.

use std::time::Duration;

use jiff::{Span, SpanRelativeTo};

/// `90s`, `1h 30m`, `7d`: a time span longer than nothing. A day is 24 hours.
///
/// # Errors
/// If the text is no such span.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time span such as 90s, 15m, 24h or 7d");
    let span: Span = text.parse().map_err(|_| wrong())?;
    let span = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    match Duration::try_from(span) {
        Ok(Duration::ZERO) => Err(format!("{text:?} is no time at all: it must be longer than nothing")),
        span => span.map_err(|_| wrong()),
    }
}

/// `64KiB`, `32MiB`, `1GiB`, or a plain number of bytes; not zero.
///
/// # Errors
/// If the text is no such size.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)]
        .into_iter()
        .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|number| (number, unit)))
        .unwrap_or((text, 1_u64));
    let number = number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    number
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| format!("{text:?} is not a size such as 64KiB, 32MiB or 1GiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_are_read_as_people_write_them() {
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 24 * 3600)));
        assert_eq!(bytes("64KiB"), Ok(65_536));
        assert_eq!(bytes("17"), Ok(17));
        assert_eq!(bytes("1 GiB"), Ok(1 << 30));
        for bad in ["", "5", "0s", "-1h", "1mo"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
        assert!(duration("0s").unwrap_err().contains("longer than nothing"));
        for bad in ["", "0", "MiB", "1.5MiB", "18446744073709551615GiB"] {
            assert!(bytes(bad).is_err(), "{bad:?}");
        }
    }
}

//! Moments as people read them.

use std::time::SystemTime;

use jiff::Timestamp;

/// `2026-11-21T06:54:52Z`: a moment as tables and JSON print it (RFC 3339).
pub fn moment(at: SystemTime) -> String {
    Timestamp::try_from(at)
        .and_then(|at| at.round(jiff::Unit::Second))
        .map_or_else(|_| "?".to_owned(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments_print_in_utc_to_the_second() {
        assert_eq!(
            moment(SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_250)),
            "2027-01-15T08:00:00Z"
        );
    }
}

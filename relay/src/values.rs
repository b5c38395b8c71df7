//! Moments as people read and write them.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use towline_tunnel::values::duration;

/// `2026-11-21T06:54:52Z`: a moment as tables and JSON print it (RFC 3339).
pub fn moment(at: SystemTime) -> String {
    Timestamp::try_from(at)
        .and_then(|at| at.round(jiff::Unit::Second))
        .map_or_else(|_| "?".to_owned(), |at| at.to_string())
}

/// A time in the past, as somebody typed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// So long ago.
    Span(Duration),
    /// Then.
    Moment(SystemTime),
}

impl Since {
    /// When that is.
    pub fn at(self, now: SystemTime) -> SystemTime {
        match self {
            Self::Span(span) => now.checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH),
            Self::Moment(moment) => moment,
        }
    }
}

/// A time span or a moment.
///
/// # Errors
/// If it is neither.
pub fn since(text: &str) -> Result<Since, String> {
    match text.parse::<Timestamp>() {
        Ok(moment) => Ok(Since::Moment(moment.into())),
        Err(_) => duration(text).map(Since::Span).map_err(|_| {
            format!(
                "{text:?} is neither a time span such as 24h or 7d nor a moment such as 2026-11-21T08:00:00Z"
            )
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_span_or_a_moment() {
        assert_eq!(since("24h"), Ok(Since::Span(Duration::from_secs(86_400))));
        let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        assert_eq!(since("2027-01-15T08:00:00Z"), Ok(Since::Moment(moment)));
        assert_eq!(since("2027-01-15T09:00:00+01:00"), Ok(Since::Moment(moment)));
        for bad in ["", "yesterday", "5", "2027-01-15"] {
            assert!(since(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Since::Span(Duration::from_secs(60)).at(moment), moment - Duration::from_secs(60));
    }

    #[test]
    fn moments_print_in_utc_to_the_second() {
        assert_eq!(
            moment(SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_250)),
            "2027-01-15T08:00:00Z"
        );
    }
}

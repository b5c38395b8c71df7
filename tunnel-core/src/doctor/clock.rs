//! The time, as people read it.

use std::time::SystemTime;

use jiff::Timestamp;

/// RFC 3339, seconds.
pub fn at(time: SystemTime) -> String {
    Timestamp::try_from(time)
        .ok()
        .and_then(|time| time.round(jiff::Unit::Second).ok())
        .map_or_else(|| "a time beyond reckoning".to_owned(), |time| time.to_string())
}

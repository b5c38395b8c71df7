//! The time, as checks see it.

use std::{fmt, sync::Arc, time::SystemTime};

use jiff::Timestamp;

/// Tells the time: the system's, or a test's.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self::new(SystemTime::now)
    }

    /// Any other.
    pub fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time now.
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// A time as people read it (RFC 3339, seconds).
pub(super) fn at(time: SystemTime) -> String {
    Timestamp::try_from(time)
        .ok()
        .and_then(|time| time.round(jiff::Unit::Second).ok())
        .map_or_else(|| "a time beyond reckoning".to_owned(), |time| time.to_string())
}

//! What a person is told when an HTTP library says that something went wrong below it.

use std::{error::Error, io};

use towline_tunnel::{
    fault::{Fault, Report},
    mux::StreamError,
};

/// The fault at the bottom of an error: what the relay, the agent or the end of a stream said. Where nothing of
/// ours is in it, the stream was cut.
pub fn report_of(error: &(dyn Error + 'static)) -> Report {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = known(error) {
            return found;
        }
        next = error.source();
    }
    Report::new(Fault::StreamTruncated, deepest(error))
}

fn known(error: &(dyn Error + 'static)) -> Option<Report> {
    if let Some(report) = error.downcast_ref::<Report>() {
        return Some(report.clone());
    }
    if let Some(stream) = error.downcast_ref::<StreamError>() {
        return Some(stream.clone().into());
    }
    // An IO error's `source` is the source of what it holds, not what it holds.
    let held: &(dyn Error + 'static) = error.downcast_ref::<io::Error>()?.get_ref()?;
    known(held)
}

fn deepest(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// Whether trying again may help, without anybody doing anything.
pub(super) fn may_pass(fault: Fault) -> bool {
    use towline_tunnel::fault::Outcome;
    matches!(
        fault.outcome(),
        Outcome::Unreachable | Outcome::Unavailable | Outcome::Cut | Outcome::Timeout | Outcome::TooMany
    )
}

#[cfg(test)]
mod tests {
    use towline_tunnel::mux::CloseReason;

    use super::*;

    #[test]
    fn the_reason_of_the_stream_is_found_under_other_errors() {
        let stream = StreamError { reason: CloseReason::AgentOffline, detail: "edge-7".into() };
        let wrapped = io::Error::other(io::Error::from(stream));
        let report = report_of(&wrapped);
        assert_eq!(report.fault, Fault::AgentOffline);
        assert!(report.to_string().contains("edge-7"));
        let report = report_of(&io::Error::other(Report::new(Fault::StreamTruncated, "half")));
        assert!(report.to_string().contains("half"));
        assert_eq!(report_of(&io::Error::other("x")).fault, Fault::StreamTruncated);
    }
}

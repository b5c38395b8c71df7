//! What becomes of a session that is left alone: one with keep-alives, as a proxy has it, and one that is silent.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use towline_tunnel::{
    doctor::Verdict,
    fault::{Fault, Report},
    mux::{Connection, StreamError},
    proto::link::PING_AFTER,
    session::control::Control,
};

use crate::dial::{Link, Session};

/// A peer that lives answers sooner.
const ANSWER_WITHIN: Duration = Duration::from_secs(6);

/// How a session that was left alone ended.
enum Ended {
    /// The relay said why.
    Sent(String),
    /// Nobody did.
    Cut { after: Duration, seen: String },
}

/// Leaves two sessions alone: this one, but for its keep-alives, and another one on which nothing at all is said.
pub(super) async fn look(
    session: &Session,
    another: impl Future<Output = Result<(Link, Session), Report>>,
    idle: Duration,
) -> Verdict<()> {
    // As often as a proxy does it, and in a short time some, too.
    session.connection.keep_silent(PING_AFTER.min(idle / 4));
    let (link, silent) = match another.await {
        Ok(begun) => begun,
        // The relay may be gone, and the first session with it.
        Err(report) => {
            return told(left(&session.connection, idle).await).unwrap_or_else(|| {
                Verdict::failed(report, "a second session beside the first, which stands")
            });
        }
    };
    // The relay may ask later than this; what ends first is what is looked for. By chance it is up to a quarter less.
    let silence = (idle + ANSWER_WITHIN) * 4 / 3;
    silent.connection.keep_silent(silence);
    let asked = silent.connection.control(Control::KeepSilent { silence }.encode(0));
    let (kept, silent_ended) = tokio::join!(left(&session.connection, idle), left(&silent.connection, idle));
    let silent_for = silent.connection.silent_for();
    let verdict = match (told(kept), silent_ended) {
        (Some(verdict), _) => verdict,
        (None, Some(Ended::Sent(why))) => sent(&why),
        (None, Some(Ended::Cut { after, seen })) => forgotten(after, &seen),
        // The relay is one that does not keep silent.
        (None, None) if !asked || silent_for < idle.mul_f64(0.7) => Verdict::ok(
            (),
            format!("the session stood for {} s without a stream, but for keep-alives", idle.as_secs()),
        ),
        (None, None) => match answers(&silent.connection).await {
            Ok(()) => Verdict::ok(
                (),
                format!("sessions stood for {} s without a stream, also without keep-alives", idle.as_secs()),
            ),
            Err(seen) => forgotten(idle, &seen),
        },
    };
    link.close().await;
    verdict
}

/// What the end of a session with keep-alives means; none where it did not end.
fn told(ended: Option<Ended>) -> Option<Verdict<()>> {
    Some(match ended? {
        Ended::Sent(why) => sent(&why),
        Ended::Cut { after, seen } => Verdict::failed(
            Report::new(Fault::ConnectionCut, format!("after {:.1} s: {seen}", after.as_secs_f64())),
            "keep-alives were sent every few seconds, and the relay said no goodbye",
        ),
    })
}

fn sent(why: &str) -> Verdict<()> {
    Verdict::skipped(format!("the relay asked to go elsewhere: {why}"))
}

/// Waits; says how it ended if it did.
async fn left(connection: &Connection, idle: Duration) -> Option<Ended> {
    let begun = Instant::now();
    let cut =
        |error: StreamError| Some(Ended::Cut { after: begun.elapsed(), seen: Report::from(error).detail });
    tokio::select! {
        // What the relay says itself is no cut.
        said = connection.going_away(), if !connection.is_closed() => match said {
            Ok(goaway) => Some(Ended::Sent(goaway.reason.text().to_owned())),
            Err(error) => cut(error),
        },
        error = connection.closed() => cut(error),
        () = sleep(idle) => None,
    }
}

/// Whether the relay still answers.
async fn answers(connection: &Connection) -> Result<(), String> {
    connection.check();
    tokio::select! {
        error = connection.closed() => Err(Report::from(error).detail),
        () = sleep(ANSWER_WITHIN) => Ok(()),
    }
}

/// A warning: what is sent every few seconds keeps a session.
fn forgotten(after: Duration, seen: &str) -> Verdict<()> {
    let seen =
        format!("a session on which nothing was said was cut after {:.0} s: {seen}", after.as_secs_f64());
    Verdict::warning(
        (),
        Report::new(Fault::IdleCut, seen),
        "another session, whose keep-alives went on, stood beside it",
    )
}

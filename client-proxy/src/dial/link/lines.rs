//! Lines for bulk beside the session: a stream that became bulk is moved to one, once, so that nothing that a person types stands behind it in
//! a kernel's buffer.

use std::{collections::VecDeque, sync::Arc};

use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use towline_tunnel::{
    fault::{Fault, Report},
    ids::StreamKey,
    mux::{Choice, Closed, Lines},
};

use super::{FAREWELL, Purpose, Session, Shared, State, establish};

/// Streams that wait for a line; the oldest stay where they are.
const MAX_WAITING: usize = 64;

/// Moves streams to lines until the link stops.
pub(super) async fn tend(shared: Arc<Shared>) {
    let mut lines = Lines::new(shared.config.lines);
    let mut waiting: VecDeque<StreamKey> = VecDeque::new();
    let mut drivers: Vec<AbortOnDropHandle<Closed>> = Vec::new();
    while !shared.stop.is_cancelled() {
        drivers.retain(|driver| !driver.is_finished());
        waiting.retain(|key| shared.keeper.keeps(*key));
        let look = lines.sweep();
        let retry = (!waiting.is_empty()).then(|| lines.retry_at());
        let next = look.into_iter().chain(retry).min();
        tokio::select! {
            key = shared.keeper.next_bulk() => {
                waiting.push_back(key);
                if waiting.len() > MAX_WAITING {
                    waiting.pop_front();
                }
            }
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            () = shared.stop.cancelled() => break,
        }
        tokio::select! {
            () = place(&shared, &mut lines, &mut waiting, &mut drivers) => {}
            () = shared.stop.cancelled() => break,
        }
    }
    lines.close();
    let deadline = Instant::now() + FAREWELL;
    for driver in drivers {
        let _late = timeout(deadline.saturating_duration_since(Instant::now()), driver).await;
    }
}

/// Finds a line for each that waits, as far as there are any.
async fn place(
    shared: &Shared,
    lines: &mut Lines,
    waiting: &mut VecDeque<StreamKey>,
    drivers: &mut Vec<AbortOnDropHandle<Closed>>,
) {
    while let Some(key) = waiting.front().copied() {
        let line = match lines.choose() {
            Choice::Line(line) => line,
            Choice::Nowhere => return,
            Choice::Dial => match dial(shared).await {
                Ok((session, driver)) => {
                    tracing::info!(channel = %session.channel, "a line beside the session");
                    drivers.push(driver);
                    lines.dialled(session.connection.clone());
                    session.connection
                }
                Err(report) => {
                    tracing::debug!(%report, "no line beside the session");
                    lines.failed(report.delay());
                    continue;
                }
            },
        };
        waiting.pop_front();
        let moved = shared.keeper.move_to(key, &line);
        tracing::debug!(stream = %key, moved, "a stream became bulk");
    }
}

/// The relay takes lines only of a process that has a session.
async fn dial(shared: &Shared) -> Result<(Session, AbortOnDropHandle<Closed>), Report> {
    let is_up = matches!(&shared.view.borrow().state, State::Up(session) if session.connection.is_open());
    if !is_up {
        return Err(Report::new(Fault::RelayUnreachable, "there is no session beside which a line could be"));
    }
    establish(shared, Purpose::Line).await
}

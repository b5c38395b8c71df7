//! Asking for the next certificate in time, over the session that carries.

use std::{convert::Infallible, future::pending};

use tokio::time::{Instant, sleep_until};
use towline_tunnel::{mux::Connection, session::control::Control};

use super::Uplink;
use crate::instance::Instance;

impl Uplink {
    /// Never returns.
    pub(super) async fn renew(&self) -> Infallible {
        let mut carrying = self.carrying.subscribe();
        let (mut number, mut not_before) = (0, Instant::now());
        loop {
            // One that was closed just now is still told for a moment.
            let stands = |found: &Option<Connection>| found.as_ref().is_some_and(|found| !found.is_closed());
            let stands = carrying.wait_for(stands).await.map(|found| found.clone());
            let Ok(Some(connection)) = stands else { return pending().await };
            let asking = self.ask(&connection, &mut number, &mut not_before);
            tokio::select! {
                () = asking => {}
                // By another session, whose beginning may have brought another certificate.
                changed = carrying.changed() => if changed.is_err() {
                    return pending().await;
                },
            }
        }
    }

    /// Asks over one session, again and again; returns once it is closed.
    async fn ask(&self, connection: &Connection, number: &mut u32, not_before: &mut Instant) {
        let instance = self.enrolment.instance();
        let mut due = (Instant::now() + instance.renew_in(self.clock.now())).max(*not_before);
        let mut asked = None;
        loop {
            tokio::select! {
                () = sleep_until(due) => {
                    *number = number.wrapping_add(1).max(1);
                    asked = Some(*number);
                    connection.control(instance.renewal().encode(*number));
                    due = Instant::now() + Instance::patience();
                    *not_before = due;
                }
                message = connection.next_control() => {
                    let Ok(message) = message else { return };
                    // Answers to nothing, and what a newer relay may say, are ignored.
                    if let Ok((id, answer)) = Control::decode(&message)
                        && asked == Some(id)
                        && let Some(next) = instance.answered(answer, self.clock.now())
                    {
                        asked = None;
                        due = Instant::now() + next;
                        *not_before = due;
                    }
                }
            }
        }
    }
}

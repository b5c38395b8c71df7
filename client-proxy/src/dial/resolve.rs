//! Which cluster has a name: the relay's claim, which only a person can confirm.

use std::time::Duration;

use tokio::time::timeout;
use towline_tunnel::{
    fault::{Fault, Report},
    ids::ClusterId,
    session::control::Control,
};

use super::Link;

/// The relay answers from memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The relay's answer. A name proves nothing: the id is the pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The id that the relay names.
    pub cluster: ClusterId,
    /// Whether an agent is connected.
    pub online: bool,
}

impl Link {
    /// Asks the relay for the id of a cluster's name.
    ///
    /// # Errors
    /// If there is no session, the relay knows no such cluster, or does not answer.
    pub async fn resolve(&self, name: &str) -> Result<Resolved, Report> {
        let mut questions = self.questions.lock().await;
        let session = self.session().await?;
        *questions += 1;
        let id = *questions;
        if !session.connection.control(Control::Resolve { name: name.to_owned() }.encode(id)) {
            return Err(Report::new(Fault::CarrierLost, "before a name could be asked for"));
        }
        let answer = async {
            loop {
                let payload = session.connection.next_control().await.map_err(Report::from)?;
                match Control::decode(&payload) {
                    Ok((of, Control::Resolved { cluster, name: named, online })) if of == id => {
                        if named != name {
                            return Err(Report::new(
                                Fault::ProtocolViolation,
                                "the relay answered for another name",
                            ));
                        }
                        return Ok(Resolved { cluster, online });
                    }
                    Ok((of, Control::Failed { reason, detail })) if of == id => {
                        let detail = if detail.is_empty() { name.to_owned() } else { detail };
                        return Err(Report::new(reason.fault(), detail));
                    }
                    // An answer to a question that was given up, or a message of a newer relay.
                    Ok(_) | Err(_) => {}
                }
            }
        };
        timeout(ANSWER_WITHIN, answer).await.unwrap_or_else(|_elapsed| {
            Err(Report::new(Fault::RelayTimeout, format!("asked which cluster is {name}")))
        })
    }
}

//! Questions to the relay beside streams, by CONTROL: one at a time.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use towline_tunnel::{
    fault::{Fault, Report},
    proto::CloseReason,
    session::{control::Control, question::Topic},
};

use super::Link;

/// A person's question may need the relay's registry.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// One part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where the next part begins; empty where there is none.
    pub cursor: Bytes,
    /// The topic's own, JSON.
    pub body: Bytes,
}

impl Link {
    /// Asks a person's question, from `cursor` on.
    ///
    /// # Errors
    /// If there is no session, the caller may not ask this, or the relay does not answer.
    pub async fn ask(&self, topic: Topic, cursor: Bytes, body: Bytes) -> Result<Part, Report> {
        match self.exchange(&Control::Ask { topic, cursor, body }, ANSWER_WITHIN, "a question").await? {
            Control::Answer { cursor, body } => Ok(Part { cursor, body }),
            Control::Failed { reason: CloseReason::FrameUnknown, .. } => {
                Err(Report::new(Fault::VersionUnsupported, "the relay does not know this question"))
            }
            Control::Failed { reason, detail } => Err(Report::new(reason.fault(), detail)),
            _ => Err(Report::new(Fault::ProtocolViolation, "the relay answered another question")),
        }
    }

    /// Asks, and waits for what answers that.
    pub(super) async fn exchange(
        &self,
        question: &Control,
        within: Duration,
        what: &str,
    ) -> Result<Control, Report> {
        let mut questions = self.questions.lock().await;
        let session = self.session().await?;
        *questions = questions.wrapping_add(1);
        let id = *questions;
        if !session.connection.control(question.encode(id)) {
            return Err(Report::new(Fault::CarrierLost, format!("before {what} could be asked")));
        }
        let answer = async {
            loop {
                let payload = session.connection.next_control().await.map_err(Report::from)?;
                match Control::decode(&payload) {
                    Ok((of, answer)) if of == id => return Ok(answer),
                    // An answer to a question that was given up, or a message of a newer relay.
                    Ok(_) | Err(_) => {}
                }
            }
        };
        timeout(within, answer)
            .await
            .unwrap_or_else(|_elapsed| Err(Report::new(Fault::RelayTimeout, format!("asked {what}"))))
    }
}

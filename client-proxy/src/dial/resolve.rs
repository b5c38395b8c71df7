//! Which cluster has a name: the relay's claim, which only a person can confirm.

use std::time::Duration;

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
        let question = Control::Resolve { name: name.to_owned() };
        match self.exchange(&question, ANSWER_WITHIN, &format!("which cluster is {name}")).await? {
            Control::Resolved { cluster, name: named, online } if named == name => {
                Ok(Resolved { cluster, online })
            }
            Control::Failed { reason, detail } => {
                let detail = if detail.is_empty() { name.to_owned() } else { detail };
                Err(Report::new(reason.fault(), detail))
            }
            _ => Err(Report::new(Fault::ProtocolViolation, "the relay answered for another name")),
        }
    }
}

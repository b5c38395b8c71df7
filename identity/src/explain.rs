//! Rule by rule, what a token would become or why it is refused: for `towline auth check`.

use std::fmt;

use crate::{Accepted, Step, VerifyError};

/// What became of each rule, in their order. Prints itself for people; never the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The rules that were looked at; the last one is the one that was broken, if one was.
    pub steps: Vec<Step>,
    /// What came of it.
    pub verdict: Result<Accepted, VerifyError>,
}

impl Explanation {
    pub(crate) fn new(mut steps: Vec<Step>, verdict: Result<Accepted, VerifyError>) -> Self {
        if let Err(error) = &verdict {
            steps.push(Step { rule: error.rule(), held: false, detail: error.to_string() });
        }
        Self { steps, verdict }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            let mark = if step.held { "ok" } else { "NO" };
            writeln!(f, "{mark:<3} {:<14} {}", step.rule, step.detail)?;
        }
        match &self.verdict {
            Ok(Accepted { identity, notes }) => {
                writeln!(f, "accepted as {:?}", identity.username)?;
                for group in &identity.groups {
                    writeln!(f, "    group {group:?}")?;
                }
                if let Some(uid) = &identity.uid {
                    writeln!(f, "    uid   {uid:?}")?;
                }
                for (key, values) in &identity.extra {
                    writeln!(f, "    extra {key:?} {values:?}")?;
                }
                for note in notes {
                    writeln!(f, "    note  {note}")?;
                }
                Ok(())
            }
            Err(error) => writeln!(f, "refused: {error}"),
        }
    }
}

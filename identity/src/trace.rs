//! What was looked at on the way to a verdict, for `explain`. Costs nothing where nobody asks.

/// One rule, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The rule: a few words that don't change between releases.
    pub rule: &'static str,
    /// Whether the token kept it. The first that it broke is the last step.
    pub held: bool,
    /// What was found. Names and times, never the token or its signature.
    pub detail: String,
}

/// Longest text of a token's that is repeated.
const LONGEST: usize = 200;

/// Steps so far, if they are wanted.
#[derive(Debug, Default)]
pub(crate) struct Trace(Option<Vec<Step>>);

impl Trace {
    pub(crate) fn off() -> Self {
        Self(None)
    }

    pub(crate) fn on() -> Self {
        Self(Some(Vec::new()))
    }

    pub(crate) fn held(&mut self, rule: &'static str, detail: impl FnOnce() -> String) {
        if let Some(steps) = &mut self.0 {
            steps.push(Step { rule, held: true, detail: detail() });
        }
    }

    pub(crate) fn into_steps(self) -> Vec<Step> {
        self.0.unwrap_or_default()
    }
}

/// A text of a stranger's, harmless on a terminal and not too long.
pub(crate) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(LONGEST).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{more}")
}

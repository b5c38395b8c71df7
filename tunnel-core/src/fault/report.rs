//! One occurrence of a fault, as a person or kubectl sees it.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    time::Duration,
};

use serde_json::json;

use super::{Fault, Hop, program};
use crate::backoff::MAX_HINT;

/// A fault that happened: which one, and what was seen.
///
/// `detail` is a lower-case phrase about this occurrence (a host name, a port, a file), never a secret: it is
/// printed, logged and sent to the caller. The underlying error, where there is one, stays in `source`.
#[derive(Debug)]
pub struct Report {
    /// The kind of fault.
    pub fault: Fault,
    /// What was seen this time; may be empty.
    pub detail: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    delay: Duration,
}

impl Report {
    /// An occurrence of `fault` with what was seen.
    pub fn new(fault: Fault, detail: impl Into<String>) -> Self {
        Self { fault, detail: detail.into(), source: None, delay: Duration::ZERO }
    }

    /// The same, with the error that caused it.
    pub fn caused_by(
        fault: Fault,
        detail: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { fault, detail: detail.into(), source: Some(source.into()), delay: Duration::ZERO }
    }

    /// The same, with a peer's wish when to be asked again; nothing where it is zero.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.delay = delay.min(MAX_HINT);
        self
    }

    /// How long a peer wishes not to be asked again; zero where it has no wish.
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// HTTP status code for an answer that carries this report.
    pub fn http_status(&self) -> u16 {
        self.fault.outcome().http_status()
    }

    /// Exit code for a process that ends because of this report.
    pub fn exit_code(&self) -> u8 {
        self.fault.outcome().exit_code()
    }

    /// The Kubernetes `Status` object (`v1`, kind `Status`) that kubectl prints as one line.
    pub fn status_json(&self) -> String {
        let mut details = json!({
            "causes": [{ "reason": self.fault.code(), "message": self.fault.cause() }],
        });
        if !self.delay.is_zero() {
            details["retryAfterSeconds"] = json!(self.delay.as_secs().max(1));
        }
        json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.to_string(),
            "reason": self.fault.outcome().status_reason(),
            "details": details,
            "code": self.http_status(),
        })
        .to_string()
    }
}

impl Report {
    /// What was seen, with the text of the error that caused it, where that isn't there already.
    fn seen(&self) -> Cow<'_, str> {
        match self.source.as_ref().map(ToString::to_string) {
            Some(source) if self.detail.is_empty() => source.into(),
            Some(source) if !self.detail.contains(&source) => format!("{}: {source}", self.detail).into(),
            _ => self.detail.as_str().into(),
        }
    }
}

impl Clone for Report {
    /// The source can't be cloned; its text moves into the copy's detail.
    fn clone(&self) -> Self {
        Self { fault: self.fault, detail: self.seen().into_owned(), source: None, delay: self.delay }
    }
}

impl fmt::Display for Report {
    /// `towline relay: cluster is not known (edge-7) [TL-REL-004]. To fix (you): …`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fault.hop() {
            Hop::Here => write!(f, "{}: {}", program(), self.fault.title())?,
            hop => write!(f, "towline {}: {}", hop.name(), self.fault.title())?,
        }
        let seen = self.seen();
        if !seen.is_empty() {
            f.write_str(" (")?;
            printed(&seen).try_for_each(|c| f.write_char(c))?;
            f.write_str(")")?;
        }
        write!(f, " [{}]. To fix ({}): {}", self.fault.code(), self.fault.who().name(), self.fault.remedy())
    }
}

/// What of a text goes to people's terminals: it may be a peer's words.
pub(crate) fn printed(text: &str) -> impl Iterator<Item = char> {
    text.chars().map(|c| match c {
        c if c.is_whitespace() => ' ',
        c if is_printed(c) => c,
        _ => char::REPLACEMENT_CHARACTER,
    })
}

/// Whether a terminal shows this and does nothing else: no escape sequences, no lines of somebody else's, no text in
/// another order than it stands.
pub(crate) fn is_printed(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl std::error::Error for Report {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as _)
    }
}

impl From<Fault> for Report {
    fn from(fault: Fault) -> Self {
        Self::new(fault, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_object_has_what_kubectl_prints() {
        let report = Report::new(Fault::ClusterUnknown, "edge-7");
        let status: serde_json::Value = serde_json::from_str(&report.status_json()).unwrap();
        assert_eq!(status["kind"], "Status");
        assert_eq!(status["code"], 404);
        assert_eq!(status["reason"], "NotFound");
        assert_eq!(status["details"]["causes"][0]["reason"], Fault::ClusterUnknown.code());
        let message = status["message"].as_str().unwrap();
        assert!(message.contains("edge-7") && message.contains("relay"), "{message}");
        assert!(status["details"]["retryAfterSeconds"].is_null());
        let report = report.retry_after(Duration::from_millis(2500));
        let status: serde_json::Value = serde_json::from_str(&report.clone().status_json()).unwrap();
        assert_eq!(status["details"]["retryAfterSeconds"], 2);
    }

    #[test]
    fn a_peers_words_do_nothing_to_a_terminal() {
        let words = "no\u{1b}]0;title\u{7} \u{9b}2J\r\nerror: \u{202e}ok é";
        let report = Report::new(Fault::ClusterUnknown, words);
        for text in [report.to_string(), report.clone().status_json()] {
            assert!(!text.contains(|c: char| !is_printed(c)) && text.contains("ok é"), "{text:?}");
        }
    }

    #[test]
    fn the_text_of_the_source_is_told_once_and_a_copy_keeps_it() {
        let report =
            Report::caused_by(Fault::RelayUnreachable, "dialling", std::io::Error::other("no route"));
        assert!(report.to_string().contains("(dialling: no route)"), "{report}");
        assert_eq!(report.clone().clone().to_string(), report.to_string());
        let report = Report::caused_by(Fault::PortBusy, "", std::io::Error::other("in use"));
        assert!(report.to_string().contains("(in use)"), "{report}");
    }
}

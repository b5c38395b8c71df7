//! What a check found, as people, scripts and other programs get it.

use std::{borrow::Cow, time::Duration};

use serde::{Deserialize, Serialize};

use super::Step;
use crate::{
    fault::{Fault, Report, Who, printed},
    json,
};

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should.
    Ok,
    /// It works, and something about it should be repaired.
    Warning,
    /// It does not work.
    Failed,
    /// It was not looked at.
    Skipped,
}

/// What one check found. It may have come from a program of another version: all of it is text, and an unknown code stands as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The step's name ([`Step::id`]); with `agent/` before it where the agent has looked.
    pub step: Cow<'static, str>,
    /// How it went.
    pub status: Status,
    /// The fault's code, where there is one (`docs/errors.md`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Cow<'static, str>>,
    /// What failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<Cow<'static, str>>,
    /// What was seen. Never a secret.
    pub seen: String,
    /// Why that is believed to be the cause.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<Cow<'static, str>>,
    /// Who can do it ([`Who::id`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<Cow<'static, str>>,
    /// A line for whoever that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hand_over: Option<String>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// Without what a terminal would act on.
fn clean(text: &str) -> String {
    printed(text).collect()
}

impl Finding {
    /// One that came from elsewhere, fit to be printed: a code that is known says itself what it means and what is to be done.
    pub(super) fn printable(self) -> Self {
        let (fault, status, seen) = (self.fault(), self.status, clean(&self.seen));
        let own = |text: Option<Cow<'static, str>>, of: fn(Fault) -> &'static str| match fault {
            Some(fault) => text.map(|_theirs| of(fault).into()),
            None => None,
        };
        Self {
            step: clean(&self.step).into(),
            code: self.code.map(|code| clean(&code).into()),
            title: own(self.title, Fault::title),
            why: clean(&self.why),
            remedy: own(self.remedy, Fault::remedy),
            who: own(self.who, |fault| fault.who().id()),
            hand_over: self.hand_over.and_then(|_theirs| fault.map(|fault| hand_over(fault, status, &seen))),
            seen,
            ..self
        }
    }

    pub(super) fn plain(step: Step, status: Status, seen: &str, took: Duration) -> Self {
        Self {
            step: step.id().into(),
            status,
            code: None,
            title: None,
            seen: printed(seen).collect(),
            why: String::new(),
            remedy: None,
            who: None,
            hand_over: None,
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        }
    }

    pub(super) fn faulty(step: Step, status: Status, report: &Report, why: &str, took: Duration) -> Self {
        let fault = report.fault;
        let seen = report.clone().detail;
        let plain = Self::plain(step, status, &seen, took);
        Self {
            code: Some(fault.code().into()),
            title: Some(fault.title().into()),
            why: if why.is_empty() { fault.cause().to_owned() } else { printed(why).collect() },
            remedy: Some(fault.remedy().into()),
            who: Some(fault.who().id().into()),
            hand_over: Some(hand_over(fault, status, &plain.seen)),
            ..plain
        }
    }

    /// The same, as found by somebody else: `agent/dns`.
    #[must_use]
    pub fn seen_by(mut self, place: &str) -> Self {
        self.step = format!("{place}/{}", self.step).into();
        self
    }

    /// The fault, where this version knows it.
    pub fn fault(&self) -> Option<Fault> {
        self.code.as_deref().and_then(Fault::of_code)
    }
}

/// One line that can be sent to somebody who knows nothing of this.
fn hand_over(fault: Fault, status: Status, seen: &str) -> String {
    let seen = if seen.is_empty() { String::new() } else { format!(" ({seen})") };
    let to = match fault.who() {
        Who::You => "Note".to_owned(),
        other => format!("For {}", other.name()),
    };
    let so = match status {
        Status::Warning => "works, but",
        Status::Ok | Status::Failed | Status::Skipped => "can't work because",
    };
    format!("{to}: towline {so} {}{seen} [{}]. Please {}.", fault.title(), fault.code(), fault.remedy())
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    /// Of this form; another number means another form.
    pub version: u32,
    /// The program and its version.
    pub program: String,
    /// The relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
    /// When it was made (RFC 3339).
    pub at: String,
    /// The worst of all.
    pub status: Status,
    /// What the process ends with.
    pub exit_code: u8,
    /// In the order of the journey.
    pub findings: Vec<Finding>,
}

/// The form that this version writes.
pub(super) const FORM: u32 = 1;

impl Diagnosis {
    /// The first thing that does not work.
    pub fn first_failed(&self) -> Option<&Finding> {
        first_failed(&self.findings)
    }

    /// As JSON, for people too.
    pub fn to_json(&self) -> String {
        json::to_string_pretty(self).unwrap_or_default()
    }
}

pub(super) fn first_failed(findings: &[Finding]) -> Option<&Finding> {
    findings.iter().find(|finding| finding.status == Status::Failed)
}

/// The exit code of the first that failed; success where none did, whatever was warned of.
pub(super) fn exit_code(findings: &[Finding]) -> u8 {
    first_failed(findings)
        .map_or(0, |finding| finding.fault().unwrap_or(Fault::Internal).outcome().exit_code())
}

/// The worst of all.
pub(super) fn worst(findings: &[Finding]) -> Status {
    let any = |status| findings.iter().any(|finding| finding.status == status);
    [Status::Failed, Status::Warning].into_iter().find(|status| any(*status)).unwrap_or(Status::Ok)
}

//! Running checks: each with a deadline, in order, told as they end.

use std::{fmt, time::SystemTime};

use tokio::time::{Instant, timeout_at};

use super::{
    Diagnosis, Finding, Status, Step,
    clock::at,
    finding::{FORM, exit_code, worst},
};
use crate::fault::{Fault, Report};

/// What a check says, and what the next one needs of it.
#[derive(Debug)]
pub struct Verdict<T> {
    value: Option<T>,
    said: Said,
}

#[derive(Debug)]
enum Said {
    Plain(Status, String),
    Faulty(Status, Report, String),
}

impl<T> Verdict<T> {
    /// It is as it should be.
    pub fn ok(value: T, seen: impl Into<String>) -> Self {
        Self { value: Some(value), said: Said::Plain(Status::Ok, seen.into()) }
    }

    /// It works; `report` says what about it should be repaired, `why` why that is believed (the fault's own cause where it is empty).
    pub fn warning(value: T, report: Report, why: impl Into<String>) -> Self {
        Self { value: Some(value), said: Said::Faulty(Status::Warning, report, why.into()) }
    }

    /// It does not work.
    pub fn failed(report: Report, why: impl Into<String>) -> Self {
        Self { value: None, said: Said::Faulty(Status::Failed, report, why.into()) }
    }

    /// There was nothing to look at.
    pub fn skipped(why: impl Into<String>) -> Self {
        Self { value: None, said: Said::Plain(Status::Skipped, why.into()) }
    }

    /// The value, or the report of why there is none: for a check that is part of another.
    pub(super) fn into_result(self) -> Result<T, Report> {
        match (self.value, self.said) {
            (Some(value), _) => Ok(value),
            (None, Said::Faulty(_, report, _)) => Err(report),
            (None, Said::Plain(_, seen)) => Err(Report::new(Fault::Internal, seen)),
        }
    }

    /// A failure's report and why it is believed, for a check that looks further then; anything else as it is.
    pub(super) fn failure(self) -> Result<Self, (Report, String)> {
        match self.said {
            Said::Faulty(Status::Failed, report, why) => Err((report, why)),
            said => Ok(Self { value: self.value, said }),
        }
    }

    /// The same, said of another value.
    pub(super) fn map<U>(self, of: impl FnOnce(T) -> U) -> Verdict<U> {
        Verdict { value: self.value.map(of), said: self.said }
    }

    /// What a plain result says: `seen` of its value, or its report.
    pub fn of(result: Result<T, Report>, seen: impl FnOnce(&T) -> String) -> Self {
        match result {
            Ok(value) => {
                let seen = seen(&value);
                Self::ok(value, seen)
            }
            Err(report) => Self::failed(report, ""),
        }
    }
}

/// Hears of each finding as it is made.
type Tell<'a> = Box<dyn FnMut(&Finding) + Send + 'a>;

/// Checks that run, and what they have found.
pub struct Examination<'a> {
    findings: Vec<Finding>,
    tell: Tell<'a>,
    until: Option<Instant>,
}

impl fmt::Debug for Examination<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Examination").field("findings", &self.findings).finish_non_exhaustive()
    }
}

impl<'a> Examination<'a> {
    /// Nothing is found yet; `tell` hears of each finding at once.
    pub fn new(tell: impl FnMut(&Finding) + Send + 'a) -> Self {
        Self { findings: Vec::new(), tell: Box::new(tell), until: None }
    }

    /// No check goes on after this, whatever its own deadline is.
    #[must_use]
    pub fn until(self, deadline: Instant) -> Self {
        Self { until: Some(deadline), ..self }
    }

    /// Runs a check. What the next ones need of it, if it did not fail.
    pub async fn check<T>(&mut self, step: Step, check: impl Future<Output = Verdict<T>>) -> Option<T> {
        let begun = Instant::now();
        let deadline = begun + step.within();
        let deadline = self.until.map_or(deadline, |until| deadline.min(until));
        let verdict = timeout_at(deadline, check)
            .await
            .unwrap_or_else(|_elapsed| Verdict::failed(Report::new(Fault::CheckLate, step.title()), ""));
        let took = begun.elapsed();
        self.add(match &verdict.said {
            Said::Plain(status, seen) => Finding::plain(step, *status, seen, took),
            Said::Faulty(status, report, why) => Finding::faulty(step, *status, report, why, took),
        });
        verdict.value
    }

    /// What a step says that takes no time.
    pub fn say<T>(&mut self, step: Step, verdict: Verdict<T>) -> Option<T> {
        let took = std::time::Duration::ZERO;
        self.add(match &verdict.said {
            Said::Plain(status, seen) => Finding::plain(step, *status, seen, took),
            Said::Faulty(status, report, why) => Finding::faulty(step, *status, report, why, took),
        });
        verdict.value
    }

    /// Steps that can't be looked at, and why.
    pub fn skip(&mut self, steps: &[Step], why: &str) {
        for step in steps {
            self.say(*step, Verdict::<()>::skipped(why));
        }
    }

    /// What somebody else has found. Their texts go to a terminal, and what to do about a fault is ours to say.
    pub fn add(&mut self, finding: Finding) {
        let finding = finding.printable();
        (self.tell)(&finding);
        self.findings.push(finding);
    }

    /// Whether anything has failed.
    pub fn has_failed(&self) -> bool {
        worst(&self.findings) == Status::Failed
    }

    /// Whether something has failed by this fault.
    pub fn has_failed_by(&self, fault: Fault) -> bool {
        self.findings.iter().any(|found| found.status == Status::Failed && found.fault() == Some(fault))
    }

    /// All that was found by `program`, of `relay`.
    pub fn finish(self, program: &str, relay: Option<String>, now: SystemTime) -> Diagnosis {
        Diagnosis {
            version: FORM,
            program: program.to_owned(),
            relay,
            at: at(now),
            status: worst(&self.findings),
            exit_code: exit_code(&self.findings),
            findings: self.findings,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use super::*;

    fn done(examination: Examination<'_>) -> Diagnosis {
        examination.finish("towline 1", None, SystemTime::UNIX_EPOCH)
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_hangs_ends_at_its_deadline_and_at_that_of_all() {
        let all = Step::Dns.within() + Duration::from_secs(1);
        let mut examination = Examination::new(|_| {}).until(Instant::now() + all);
        let begun = Instant::now();
        assert_eq!(examination.check(Step::Dns, pending::<Verdict<()>>()).await, None);
        assert_eq!(begun.elapsed(), Step::Dns.within());
        assert_eq!(examination.check(Step::Tls, pending::<Verdict<()>>()).await, None);
        assert_eq!(begun.elapsed(), all);
        let diagnosis = done(examination);
        assert_eq!(diagnosis.first_failed().unwrap().fault(), Some(Fault::CheckLate));
        assert_eq!(diagnosis.exit_code, Fault::CheckLate.outcome().exit_code());
    }

    #[tokio::test]
    async fn the_exit_code_is_that_of_the_first_failure_and_warnings_have_none() {
        let mut told = Vec::new();
        let mut examination = Examination::new(|finding| told.push(finding.step.clone()));
        let ok = examination.check(Step::Dns, async { Verdict::ok(5, "seen") }).await;
        assert_eq!(ok, Some(5));
        let dead = Report::new(Fault::AddressDead, "192.0.2.1\u{1b}[2J");
        examination.check(Step::Tcp, async { Verdict::warning((), dead, "") }).await;
        assert_eq!(exit_code(&examination.findings), 0);
        assert_eq!(worst(&examination.findings), Status::Warning);
        for fault in [Fault::UpgradeStripped, Fault::RelayTimeout] {
            examination.say(Step::Upgrade, Verdict::<()>::failed(fault.into(), "because"));
        }
        examination.skip(&[Step::Frames], "there is no carrier");
        let diagnosis = done(examination);
        assert_eq!(told, ["dns", "tcp", "upgrade", "upgrade", "frames"]);
        assert_eq!((diagnosis.exit_code, diagnosis.status), (10, Status::Failed));
        assert!(!diagnosis.findings[1].seen.contains('\u{1b}'), "a peer's words do nothing to a terminal");
        let again: Diagnosis = serde_json::from_str(&diagnosis.to_json()).unwrap();
        assert_eq!(again, diagnosis);
    }

    #[test]
    fn json_has_the_names_that_the_page_promises() {
        let mut examination = Examination::new(|_| {});
        examination
            .say(Step::Tls, Verdict::<()>::failed(Report::new(Fault::TlsIntercepted, "CN=Corp"), "because"));
        let json: serde_json::Value = serde_json::from_str(&done(examination).to_json()).unwrap();
        let finding = &json["findings"][0];
        assert_eq!((json["version"].as_u64(), json["status"].as_str()), (Some(1), Some("failed")));
        for (name, value) in [
            ("step", "tls"),
            ("status", "failed"),
            ("code", "TL-DOC-005"),
            ("seen", "CN=Corp"),
            ("why", "because"),
            ("who", "network-team"),
        ] {
            assert_eq!(finding[name], value, "{name}");
        }
        let line = finding["handOver"].as_str().unwrap();
        assert!(
            line.starts_with("For the network team: ")
                && line.contains("CN=Corp")
                && line.contains("TL-DOC-005")
        );
        assert!(finding["tookMs"].is_u64() && finding["title"].is_string() && finding["remedy"].is_string());
    }
}

//! Findings for people: a line each as they come, and the first failure in full at the end.

use super::{Diagnosis, Finding, Status, Step};
use crate::fault::Who;

/// Whether what is written may have colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    /// Text and nothing else.
    Plain,
    /// With ANSI colours: for a terminal, and where NO_COLOR is not set.
    Coloured,
}

impl Ink {
    /// For a place that is or is not a terminal (<https://no-color.org>).
    pub fn of(is_terminal: bool) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if is_terminal && !refused { Self::Coloured } else { Self::Plain }
    }

    fn paint(self, status: Status, text: &str) -> String {
        let colour = match (self, status) {
            (Self::Plain, _) => return text.to_owned(),
            (Self::Coloured, Status::Ok) => 32,
            (Self::Coloured, Status::Warning) => 33,
            (Self::Coloured, Status::Failed) => 31,
            (Self::Coloured, Status::Skipped) => 2,
        };
        format!("\u{1b}[{colour}m{text}\u{1b}[0m")
    }
}

/// The widest of all steps' names, with the agent's before it.
const WIDTH: usize = 20;

/// One finding, as a line.
pub fn line(finding: &Finding, ink: Ink) -> String {
    let mark = match finding.status {
        Status::Ok => "✓",
        Status::Warning => "!",
        Status::Failed => "✗",
        Status::Skipped => "-",
    };
    let step = format!("{:WIDTH$}", finding.step);
    let said = match (&finding.code, &finding.title) {
        (Some(code), Some(title)) => format!("{code} {title}"),
        _ => finding.seen.clone(),
    };
    let took = match finding.took_ms {
        0..100 => String::new(),
        ms => format!(" ({}.{} s)", ms / 1000, ms % 1000 / 100),
    };
    let text = format!("{mark} {step} {said}{took}");
    match finding.status {
        Status::Skipped => ink.paint(Status::Skipped, &text),
        status => format!("{} {step} {said}{took}", ink.paint(status, mark)),
    }
}

/// One finding in full: what was seen, why it is believed, what to do, and who is to do it.
pub fn explained(finding: &Finding, ink: Ink) -> String {
    let mut text = String::new();
    let title = finding.title.as_deref().unwrap_or("something is wrong");
    let code = finding.code.as_deref().unwrap_or("no code");
    text.push_str(&ink.paint(finding.status, &format!("{title} [{code}]")));
    text.push('\n');
    let who = finding.fault().map(crate::fault::Fault::who);
    let party = match who {
        Some(who) => who.name(),
        None => finding.who.as_deref().unwrap_or_default(),
    };
    let looked = finding.step.rsplit('/').next().and_then(Step::of_id).map_or("", Step::title);
    // Whoever can do it themselves needs no line to send.
    let line = finding.hand_over.as_deref().filter(|_| who != Some(Who::You)).unwrap_or_default();
    for (name, words) in [
        ("looked at", looked),
        ("seen", finding.seen.as_str()),
        ("why", finding.why.as_str()),
        ("to do", finding.remedy.as_deref().unwrap_or_default()),
        ("who", party),
        ("send them", line),
    ] {
        if !words.is_empty() {
            text.push_str(&format!("  {name:<10} {words}\n"));
        }
    }
    text
}

/// The end of a page: what failed first, in full, and all that was warned of.
pub fn conclusion(diagnosis: &Diagnosis, ink: Ink) -> String {
    let first = match diagnosis.first_failed() {
        Some(failed) => explained(failed, ink),
        None => "everything that was looked at works".to_owned(),
    };
    let warned = diagnosis.findings.iter().filter(|finding| finding.status == Status::Warning);
    let all = [first].into_iter().chain(warned.map(|finding| explained(finding, ink)));
    all.map(|part| part.trim_end().to_owned()).collect::<Vec<_>>().join("\n\n")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::{
        doctor::{Examination, Verdict},
        fault::{Fault, Report},
    };

    #[test]
    fn steps_are_aligned_and_the_failure_is_explained() {
        let mut examination = Examination::new(|_| {});
        examination.say(Step::Dns, Verdict::ok((), "relay.example is 192.0.2.1"));
        examination.say(
            Step::LargeFrames,
            Verdict::<()>::failed(Report::new(Fault::LargeFramesLost, "towards the relay"), "because"),
        );
        examination.skip(&[Step::Session], "not looked at");
        let found = examination.finish("towline 1", None, SystemTime::UNIX_EPOCH).findings;
        let lines: Vec<String> = found.iter().map(|finding| line(finding, Ink::Plain)).collect();
        assert_eq!(lines[0], "✓ dns                  relay.example is 192.0.2.1");
        assert_eq!(lines[1], "✗ large-frames         TL-DOC-009 large messages are swallowed on the way");
        assert_eq!(lines[2], "- session              not looked at");
        let told = explained(&found[1], Ink::Plain);
        for words in ["towards the relay", "because", "the network team", "For the network team: "] {
            assert!(told.contains(words), "{words}: {told}");
        }
        assert!(!told.contains('\u{1b}') && explained(&found[1], Ink::Coloured).contains("\u{1b}[31m"));
        let late = Finding {
            took_ms: u64::try_from(Duration::from_millis(4250).as_millis()).unwrap(),
            ..found[0].clone()
        };
        assert!(line(&late, Ink::Plain).ends_with("(4.2 s)"));
    }
}

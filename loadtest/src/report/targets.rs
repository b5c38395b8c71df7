//! What is wanted of which figure.

use crate::figure::Figure;

/// What is wanted of figures with these names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// For the case that nothing of it was measured.
    pub(super) what: &'static str,
    /// All of these stand in the name; the first begins it, and one with a `$` in front ends it.
    parts: &'static [&'static str],
    of: Of,
    bound: Bound,
}

#[derive(Clone, Copy, Debug)]
enum Of {
    Value,
    /// The ratio against what is called so.
    RatioTo(&'static str),
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// Whether a figure is as wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Yes.
    Met,
    /// No.
    Missed,
    /// It has no number to judge.
    Open,
}

const fn value(what: &'static str, parts: &'static [&'static str], bound: Bound) -> Target {
    Target { what, parts, of: Of::Value, bound }
}

const fn ratio(
    what: &'static str,
    parts: &'static [&'static str],
    against: &'static str,
    bound: Bound,
) -> Target {
    Target { what, parts, of: Of::RatioTo(against), bound }
}

use Bound::{AtLeast, AtMost};

/// All of them, in the order of the table.
pub(super) const TARGETS: &[Target] = &[
    ratio("relay alone beside one hop of haproxy", &["goodput, relay alone, "], "haproxy-x1", AtLeast(0.9)),
    value("relay CPU for each GB", &["relay CPU, ", "stream"], AtMost(1.2)),
    ratio("whole journey beside three hops of haproxy", &["goodput, towline, "], "haproxy-x3", AtLeast(0.8)),
    ratio("whole journey beside ssh -R and -L", &["goodput, towline, "], "ssh-rl", AtLeast(1.5)),
    ratio("whole journey beside ssh -J", &["goodput, towline, "], "ssh-j", AtLeast(4.0)),
    ratio("whole journey beside remotedialer", &["goodput, towline, "], "remotedialer", AtLeast(2.0)),
    ratio("one stream on long lines", &["one stream at "], "direct TCP", AtLeast(0.95)),
    value(
        "one stream on long lines, until full speed",
        &["one stream at ", ", towline, ", "$until full speed"],
        AtMost(1.0),
    ),
    ratio("added latency of a small GET, p50", &["small GET, ", "added", "$p50"], "haproxy-x3", AtMost(1.2)),
    ratio(
        "added latency of a small GET, p99",
        &["small GET, added by towline, ", "$p99"],
        "its own p50",
        AtMost(3.0),
    ),
    value("keystroke echo beside bulk, p99", &["keystroke echo, ", "beside ", "$, p99"], AtMost(5.0)),
    value("equal bulk streams", &["16 equal bulk streams, ", "$Jain's index"], AtLeast(0.99)),
    ratio(
        "a stalled reader: what the relay holds",
        &["a stalled reader, ", "$relay holds"],
        "its allowance",
        AtMost(1.0),
    ),
    value(
        "a stalled reader: what the client's end holds",
        &["a stalled reader, ", "$client's end holds"],
        AtMost(8192.0),
    ),
    ratio(
        "bulk streams beside a stalled reader",
        &["999 bulk streams beside a stalled reader"],
        "without it",
        AtLeast(0.95),
    ),
    value("idle pooled streams retain nothing", &["both ends hold for 1000 pooled streams"], AtMost(0.0)),
    value(
        "streams opened and ended",
        &["streams opened and ended, each core second of the relay"],
        AtLeast(20_000.0),
    ),
    value(
        "streams with inner TLS opened and ended",
        &["streams with inner TLS opened and ended, each core second of the relay"],
        AtLeast(2000.0),
    ),
    value("relay memory of an idle agent", &["relay, each of ", "$idle agents"], AtMost(32.0)),
    value("relay memory of an idle stream", &["relay, each of ", "$idle streams"], AtMost(2.0)),
    value("agent process", &["agent process, idle, resident"], AtMost(30.0)),
    value("agents after a relay restart, 95 %", &["", " agents, relay ", "$95 % back"], AtMost(15.0)),
    value("agents after a relay restart, all", &["", " agents, relay ", "$, all back"], AtMost(60.0)),
    ratio(
        "accepts a second",
        &["", " agents, relay ", "$most let in in a second"],
        "the budget",
        AtMost(1.0),
    ),
    value("a carrier that is cut", &["", ", cut every ", "$hashes equal"], AtLeast(1.0)),
];

impl Target {
    /// Whether it is about this figure.
    pub(super) fn is_about(&self, figure: &Figure) -> bool {
        let named = self.parts.iter().enumerate().all(|(number, part)| match part.strip_prefix('$') {
            Some(end) => figure.name.ends_with(end),
            None if number == 0 => figure.name.starts_with(part),
            None => figure.name.contains(part),
        });
        named
            && match self.of {
                Of::Value => true,
                Of::RatioTo(against) => figure.against.as_deref() == Some(against),
            }
    }

    pub(super) fn judge(&self, figure: &Figure) -> Verdict {
        let number = match self.of {
            Of::Value => Some(figure.value),
            Of::RatioTo(_) => figure.ratio,
        };
        match (number.filter(|number| number.is_finite()), self.bound) {
            (None, _) => Verdict::Open,
            (Some(number), AtLeast(least)) if number >= least => Verdict::Met,
            (Some(number), AtMost(most)) if number <= most => Verdict::Met,
            _ => Verdict::Missed,
        }
    }

    /// The ratio that is wanted, where it is one.
    pub(super) fn wanted_ratio(&self) -> Option<f64> {
        match (self.of, self.bound) {
            (Of::RatioTo(_), AtLeast(bound) | AtMost(bound)) => Some(bound),
            (Of::Value, _) => None,
        }
    }

    /// In words.
    pub(super) fn bound(&self) -> String {
        let (sign, bound) = match self.bound {
            AtLeast(bound) => ('≥', bound),
            AtMost(bound) => ('≤', bound),
        };
        match self.of {
            Of::Value => format!("{sign} {bound}"),
            Of::RatioTo(against) => format!("{sign} {bound} × {against}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(figure: &Figure) -> Vec<&'static str> {
        TARGETS.iter().filter(|target| target.is_about(figure)).map(|target| target.what).collect()
    }

    #[test]
    fn figures_find_their_targets_and_no_others() {
        let figure = |name: &str| Figure::once(name, "", 1.0, 1);
        assert_eq!(about(&figure("relay CPU, 16 streams")), ["relay CPU for each GB"]);
        assert_eq!(about(&figure("relay CPU, 1000 idle agents")), [""; 0]);
        assert_eq!(about(&figure("one stream at 50 ms × 230 Mb/s, direct TCP, until full speed")), [""; 0]);
        assert_eq!(
            about(&figure("8000 agents, relay killed, 95 % back")),
            ["agents after a relay restart, 95 %"]
        );
        let pairs = [(2.0, 1.0)];
        let one = Figure::of_pairs("goodput, relay alone, 1 stream", "Gb/s", "haproxy-x1", &pairs);
        assert_eq!(about(&one), ["relay alone beside one hop of haproxy"]);
        let other = Figure::of_pairs("goodput, relay alone, 1 stream", "Gb/s", "direct", &pairs);
        assert_eq!(about(&other), [""; 0]);
    }

    #[test]
    fn a_figure_without_a_number_is_open() {
        let target = &TARGETS[1];
        assert_eq!(target.judge(&Figure::once("", "", 1.2, 1)), Verdict::Met);
        assert_eq!(target.judge(&Figure::once("", "", 1.21, 1)), Verdict::Missed);
        assert_eq!(target.judge(&Figure::once("", "", f64::NAN, 1)), Verdict::Open);
    }
}

//! What the agent counts, for Prometheus.
//!
//! Handles are plain atomics, made once. Labels are few and of our own making: no caller, path or name is among them.

use std::sync::Arc;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use towline_tunnel::{
    carrier::rung::Rung,
    fault::Fault,
    observe::{self, Process},
    proto::ledger::Ledger,
};

use crate::state::Rank;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    fault: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OnCarrier {
    carrier: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AtRelay {
    relay: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Right {
    account: &'static str,
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

/// The agent's metrics. Clones count into the same ones.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Sessions with the relay, open now.
    pub sessions: Gauge,
    /// Lines for bulk beside them, open now.
    pub lines: Gauge,
    /// How many seconds the spare session may be silent, as far as this network is known to allow it.
    pub spare_silence: Gauge,
    /// Sessions with the relay, ever.
    pub sessions_opened: Counter,
    /// Streams, open now.
    pub streams: Gauge,
    /// Streams that were opened.
    pub opens: Counter,
    /// Upgraded connections (exec, cp, port-forward), open now.
    pub tunnels: Gauge,
    /// Bytes of request bodies and of tunnels' input.
    pub bytes_to_apiserver: Counter,
    /// Bytes of answers' bodies and of tunnels' output.
    pub bytes_to_callers: Counter,
    /// From a request's head to its answer's, in seconds.
    pub answer_seconds: Histogram,
    answers: Family<Code, Counter>,
    refusals: Family<Reason, Counter>,
    connect_failures: Family<Reason, Counter>,
    carriers: Family<OnCarrier, Counter>,
    relays: Family<AtRelay, Gauge>,
    rights: Family<Right, Gauge>,
    registry: Arc<Registry>,
}

impl Metrics {
    /// All at zero. Buffered bytes are read from the ledger when somebody asks.
    pub fn new(ledger: Ledger) -> Self {
        let mut registry = Registry::with_prefix("towline_agent");
        let gauge = |registry: &mut Registry, name: &str, help: &str| {
            let gauge = Gauge::<i64>::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let counter = |registry: &mut Registry, name: &str, help: &str| {
            let counter = Counter::<u64>::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let sessions = gauge(&mut registry, "sessions", "Sessions with the relay open now");
        let lines = gauge(&mut registry, "lines", "Lines for bulk, beside the sessions, open now");
        let spare_silence = gauge(
            &mut registry,
            "spare_silence_seconds",
            "How long the spare session may be silent, as far as this network is known to allow it",
        );
        let sessions_opened = counter(&mut registry, "sessions_opened", "Sessions with the relay that began");
        let streams = gauge(&mut registry, "streams", "Streams open now");
        let opens = counter(&mut registry, "opens", "Streams that were opened");
        let tunnels = gauge(&mut registry, "tunnels", "Upgraded connections open now");
        let bytes = Family::<Direction, Counter>::default();
        registry.register("bytes", "Bodies and upgraded connections, in bytes", bytes.clone());
        // 1 ms to 16 s.
        let answer_seconds = Histogram::new((0..15).map(|n| 0.001 * f64::from(1 << n)));
        registry.register(
            "answer_seconds",
            "From a request's head to its answer's, in seconds",
            answer_seconds.clone(),
        );
        let answers = Family::<Code, Counter>::default();
        registry.register("answers", "Answers by HTTP status", answers.clone());
        let refusals = Family::<Reason, Counter>::default();
        registry.register("refusals", "What the agent itself refused, by fault", refusals.clone());
        let connect_failures = Family::<Reason, Counter>::default();
        registry.register(
            "connect_failures",
            "Sessions with the relay that did not begin, by fault",
            connect_failures.clone(),
        );
        let carriers = Family::<OnCarrier, Counter>::default();
        registry.register(
            "carriers",
            "Sessions and lines with the relay that began, by carrier",
            carriers.clone(),
        );
        let relays = Family::<AtRelay, Gauge>::default();
        registry.register(
            "relay_connected",
            "Whether there is a session with this relay, the first or the second",
            relays.clone(),
        );
        let rights = Family::<Right, Gauge>::default();
        registry.register(
            "rights",
            "Rights of the agent's accounts that are missing or excessive; absent until they were asked for",
            rights.clone(),
        );
        registry.register_collector(Box::new(Process(ledger)));
        let direction = |direction| Direction { direction };
        Self {
            sessions,
            lines,
            spare_silence,
            sessions_opened,
            streams,
            opens,
            tunnels,
            bytes_to_apiserver: bytes.get_or_create_owned(&direction("to_apiserver")),
            bytes_to_callers: bytes.get_or_create_owned(&direction("to_callers")),
            answer_seconds,
            answers,
            refusals,
            connect_failures,
            carriers,
            relays,
            rights,
            registry: Arc::new(registry),
        }
    }

    /// Counts an answer, whoever gave it.
    pub fn answered(&self, status: u16) {
        self.answers.get_or_create(&Code { code: status }).inc();
    }

    /// Counts a session or line that began.
    pub fn connected_by(&self, rung: Rung) {
        self.carriers.get_or_create(&OnCarrier { carrier: rung.name() }).inc();
    }

    /// Whether there is a session with this relay.
    pub fn relay_connected(&self, rank: Rank, is: bool) {
        self.relays.get_or_create(&AtRelay { relay: rank.name() }).set(i64::from(is));
    }

    /// Counts a stream or request that the agent refused.
    pub fn refused(&self, fault: Fault) {
        self.refusals.get_or_create(&Reason { fault: fault.code() }).inc();
    }

    /// Counts a session that did not begin.
    pub fn connect_failed(&self, fault: Fault) {
        self.connect_failures.get_or_create(&Reason { fault: fault.code() }).inc();
    }

    /// How many rights of an account are missing, and how many too much.
    pub fn found_rights(&self, account: &'static str, missing: usize, excessive: usize) {
        for (verdict, count) in [("missing", missing), ("excessive", excessive)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.rights.get_or_create(&Right { account, verdict }).set(count);
        }
    }

    /// The page that Prometheus reads (OpenMetrics text).
    pub fn page(&self) -> String {
        observe::page(&self.registry)
    }
}

#[cfg(test)]
mod tests {
    use towline_tunnel::observe::Present;

    use super::*;

    #[test]
    fn the_page_has_every_metric_and_what_was_counted() {
        let ledger = Ledger::new(1000);
        let metrics = Metrics::new(ledger.clone());
        let present = Present::in_gauge(&metrics.sessions);
        drop(Present::in_gauge(&metrics.tunnels));
        metrics.opens.inc();
        metrics.answered(200);
        metrics.refused(Fault::ClusterTokenMissing);
        metrics.connect_failed(Fault::RelayUnreachable);
        metrics.connected_by(Rung::Pair);
        metrics.relay_connected(Rank::First, true);
        metrics.relay_connected(Rank::Second, false);
        metrics.found_rights("own", 0, 2);
        metrics.bytes_to_callers.inc_by(5);
        metrics.answer_seconds.observe(0.02);
        assert!(ledger.reserve(300, true));
        let page = metrics.page();
        drop(present);
        for line in [
            "towline_agent_sessions 1",
            r#"towline_agent_carriers_total{carrier="pair"} 1"#,
            r#"towline_agent_relay_connected{relay="first"} 1"#,
            r#"towline_agent_relay_connected{relay="second"} 0"#,
            "towline_agent_sessions_opened_total 0",
            "towline_agent_streams 0",
            "towline_agent_tunnels 0",
            "towline_agent_opens_total 1",
            r#"towline_agent_bytes_total{direction="to_apiserver"} 0"#,
            r#"towline_agent_bytes_total{direction="to_callers"} 5"#,
            r#"towline_agent_answers_total{code="200"} 1"#,
            r#"towline_agent_refusals_total{fault="TL-IDN-001"} 1"#,
            r#"towline_agent_connect_failures_total{fault="TL-NET-001"} 1"#,
            r#"towline_agent_rights{account="own",verdict="missing"} 0"#,
            r#"towline_agent_rights{account="own",verdict="excessive"} 2"#,
            "towline_agent_answer_seconds_count 1",
            "towline_agent_buffered_bytes 300",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is missing from\n{page}");
        }
        assert!(metrics.page().contains("towline_agent_sessions 0"));
    }
}

//! What the relay counts, for Prometheus.
//!
//! Handles are plain atomics, made once: counting on the path of a stream costs no lock and no look-up.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use towline_tunnel::{
    carrier::{dial::Errand, rung::Rung},
    observe::{self, Present, Process},
    proto::{CloseReason, ledger::Ledger},
};

/// Where something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Before a session: TCP, TLS, HTTP, WebSocket.
    Connection,
    /// At a session's beginning: HELLO to WELCOME.
    Session,
    /// At OPEN.
    Stream,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Session => "session",
            Self::Stream => "stream",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    stage: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OnCarrier {
    carrier: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

/// The relay's metrics. Clones count into the same ones.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Sessions of clients, open now.
    pub client_sessions: Gauge,
    /// Sessions of agents, open now.
    pub agent_sessions: Gauge,
    /// Sessions of clients, ever.
    pub client_sessions_opened: Counter,
    /// Sessions of agents, ever.
    pub agent_sessions_opened: Counter,
    /// Sessions, open now, by how their bytes travel.
    carriers: [Gauge; 3],
    /// Streams, open now.
    pub streams: Gauge,
    /// Streams that were opened.
    pub opens: Counter,
    /// Bytes of stream data written towards agents.
    pub bytes_to_agents: Counter,
    /// Bytes of stream data written towards clients.
    pub bytes_to_clients: Counter,
    /// From an accepted TCP connection to WELCOME, in seconds.
    pub handshake_seconds: Histogram,
    /// From a client's OPEN to the agent's OPENED, in seconds.
    pub open_seconds: Histogram,
    /// Of sessions that wait for their turn to begin, now.
    accepts_waiting: Gauge,
    /// Sessions that took their turn: those whose streams wait, and others.
    accepts: [Counter; 2],
    /// What they waited for it, in seconds.
    accept_wait_seconds: Histogram,
    /// Times that accept(2) gave no connection, mostly for want of open files.
    pub accept_errors: Counter,
    /// 1 while the registry's file can be used.
    pub registry_available: Gauge,
    /// Agent instances whose identity has two live holders, now.
    pub duplicate_holders: Gauge,
    /// Times that such a second holder was found.
    pub duplicate_alarms: Counter,
    /// Ways to identity providers that agents were given.
    pub issuer_opens: Counter,
    /// Bytes on them, both ways.
    pub issuer_bytes: Counter,
    refusals: Family<Refusal, Counter>,
    registry: Arc<Registry>,
}

impl Metrics {
    /// All at zero. Buffered bytes are read from the ledger when somebody asks.
    pub fn new(ledger: Ledger) -> Self {
        let mut registry = Registry::with_prefix("towline_relay");
        let sessions = Family::<Kind, Gauge>::default();
        registry.register("sessions", "Authenticated sessions open now", sessions.clone());
        let opened = Family::<Kind, Counter>::default();
        registry.register("sessions_opened", "Authenticated sessions that began", opened.clone());
        let carriers = Family::<OnCarrier, Gauge>::default();
        registry.register("carriers", "Authenticated sessions open now, by carrier", carriers.clone());
        let streams = Gauge::default();
        registry.register("streams", "Streams open now", streams.clone());
        let opens = Counter::default();
        registry.register("opens", "Streams that were opened", opens.clone());
        let bytes = Family::<Direction, Counter>::default();
        registry.register("bytes", "Stream data passed on, in bytes", bytes.clone());
        let refusals = Family::<Refusal, Counter>::default();
        registry.register("refusals", "What was refused, and why", refusals.clone());
        // 1 ms to 16 s: a deadline of 10 s falls into the last bucket but one.
        let latencies = || Histogram::new((0..15).map(|n| 0.001 * f64::from(1 << n)));
        let handshake_seconds = latencies();
        registry.register(
            "handshake_seconds",
            "From TCP accept to WELCOME, in seconds",
            handshake_seconds.clone(),
        );
        let open_seconds = latencies();
        registry.register("open_seconds", "From OPEN to OPENED, in seconds", open_seconds.clone());
        let accepts_waiting = Gauge::default();
        registry.register(
            "accepts_waiting",
            "Peers that wait for a turn of --accept-rate",
            accepts_waiting.clone(),
        );
        let accepts = Family::<Kind, Counter>::default();
        registry.register("accepts", "Turns of --accept-rate that were taken", accepts.clone());
        let accept_wait_seconds = latencies();
        registry.register(
            "accept_wait_seconds",
            "Wait for such a turn, in seconds",
            accept_wait_seconds.clone(),
        );
        let accept_errors = Counter::default();
        registry.register(
            "accept_errors",
            "Connections that could not be accepted, mostly for want of open files",
            accept_errors.clone(),
        );
        let registry_available = Gauge::default();
        registry.register(
            "registry_available",
            "1 while the registry can be used",
            registry_available.clone(),
        );
        let duplicate_holders = Gauge::default();
        registry.register(
            "duplicate_holders",
            "Agent instances whose identity has two live holders now",
            duplicate_holders.clone(),
        );
        let duplicate_alarms = Counter::default();
        registry.register(
            "duplicate_alarms",
            "Second live holders of an agent instance's identity that were found",
            duplicate_alarms.clone(),
        );
        let issuer_opens = Counter::default();
        registry.register(
            "issuer_opens",
            "Connections to identity providers that were made for agents",
            issuer_opens.clone(),
        );
        let issuer_bytes = Counter::default();
        registry.register(
            "issuer_bytes",
            "Bytes passed on between agents and identity providers, both ways",
            issuer_bytes.clone(),
        );
        registry.register_collector(Box::new(Process(ledger)));

        let kind = |kind| Kind { kind };
        let direction = |direction| Direction { direction };
        Self {
            client_sessions: sessions.get_or_create_owned(&kind("client")),
            agent_sessions: sessions.get_or_create_owned(&kind("agent")),
            client_sessions_opened: opened.get_or_create_owned(&kind("client")),
            agent_sessions_opened: opened.get_or_create_owned(&kind("agent")),
            carriers: Rung::ALL.map(|rung| carriers.get_or_create_owned(&OnCarrier { carrier: rung.name() })),
            streams,
            opens,
            bytes_to_agents: bytes.get_or_create_owned(&direction("to_agent")),
            bytes_to_clients: bytes.get_or_create_owned(&direction("to_client")),
            handshake_seconds,
            open_seconds,
            accepts_waiting,
            accepts: ["resuming", "new"].map(|name| accepts.get_or_create_owned(&kind(name))),
            accept_wait_seconds,
            accept_errors,
            registry_available,
            duplicate_holders,
            duplicate_alarms,
            issuer_opens,
            issuer_bytes,
            refusals,
            registry: Arc::new(registry),
        }
    }

    /// Counts a refusal. Reasons are few and of our own making: a peer can't make up labels.
    pub fn refused(&self, stage: Stage, reason: CloseReason) {
        self.refusals.get_or_create(&Refusal { stage: stage.name(), reason: reason.text() }).inc();
    }

    /// A session is on a carrier of this kind, until this is dropped.
    pub fn carries(&self, rung: Rung) -> Present {
        let [websocket, http2, pair] = &self.carriers;
        Present::in_gauge(match rung {
            Rung::WebSocket => websocket,
            Rung::Http2 => http2,
            Rung::Pair => pair,
        })
    }

    /// A peer waits for its turn, until this is dropped.
    pub fn waits(&self) -> Present {
        Present::in_gauge(&self.accepts_waiting)
    }

    /// Its turn came.
    pub fn accepted(&self, errand: Errand, after: Duration) {
        let [resuming, new] = &self.accepts;
        match errand {
            Errand::GoOn => resuming.inc(),
            Errand::Begin => new.inc(),
        };
        self.accept_wait_seconds.observe(after.as_secs_f64());
    }

    /// The page that Prometheus reads (OpenMetrics text).
    pub fn page(&self) -> String {
        observe::page(&self.registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_metric_and_what_was_counted() {
        let ledger = Ledger::new(1000);
        let metrics = Metrics::new(ledger.clone());
        metrics.client_sessions.inc();
        metrics.agent_sessions.inc_by(2);
        metrics.opens.inc();
        metrics.bytes_to_agents.inc_by(5);
        metrics.handshake_seconds.observe(0.02);
        metrics.refused(Stage::Stream, CloseReason::Forbidden);
        metrics.accepted(Errand::GoOn, Duration::from_millis(3));
        let waits = [metrics.waits(), metrics.waits()];
        drop(metrics.waits());
        let carried = metrics.carries(Rung::Http2);
        assert!(ledger.reserve(300, true));
        let page = metrics.clone().page();
        for line in [
            r#"towline_relay_sessions{kind="client"} 1"#,
            r#"towline_relay_sessions{kind="agent"} 2"#,
            r#"towline_relay_carriers{carrier="http2"} 1"#,
            r#"towline_relay_carriers{carrier="websocket"} 0"#,
            "towline_relay_streams 0",
            "towline_relay_opens_total 1",
            r#"towline_relay_bytes_total{direction="to_agent"} 5"#,
            r#"towline_relay_bytes_total{direction="to_client"} 0"#,
            r#"towline_relay_refusals_total{stage="stream",reason="forbidden"} 1"#,
            "towline_relay_handshake_seconds_count 1",
            "towline_relay_open_seconds_count 0",
            r#"towline_relay_accepts_total{kind="resuming"} 1"#,
            r#"towline_relay_accepts_total{kind="new"} 0"#,
            "towline_relay_accepts_waiting 2",
            "towline_relay_accept_wait_seconds_count 1",
            "towline_relay_accept_errors_total 0",
            "towline_relay_buffered_bytes 300",
            "towline_relay_registry_available 0",
            "towline_relay_duplicate_holders 0",
            "towline_relay_duplicate_alarms_total 0",
            "towline_relay_issuer_opens_total 0",
            "towline_relay_issuer_bytes_total 0",
            "towline_relay_tasks 0",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is missing from\n{page}");
        }
        drop((waits, carried));
    }
}

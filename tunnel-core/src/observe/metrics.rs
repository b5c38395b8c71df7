//! Metrics that each program has.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, text},
    metrics::gauge::{ConstGauge, Gauge},
    registry::Registry,
};
use tokio::runtime::Handle;

use crate::proto::ledger::Ledger;

/// Counts something as there for as long as this lives, however its task ends.
#[derive(Debug)]
pub struct Present(Gauge);

impl Present {
    /// One more, until this is dropped.
    pub fn in_gauge(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Of the process: bytes promised to peers, and tasks. Read when somebody asks.
#[derive(Debug)]
pub struct Process(pub Ledger);

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let tasks = Handle::try_current().map_or(0, |runtime| runtime.metrics().num_alive_tasks());
        let tasks = u64::try_from(tasks).unwrap_or(u64::MAX);
        let told = [
            ("buffered_bytes", "Bytes promised to peers beyond each stream's floor", self.0.promised()),
            ("tasks", "Tasks of the runtime that have not ended", tasks),
        ];
        for (name, help, value) in told {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// The page that Prometheus reads (OpenMetrics text).
pub fn page(registry: &Registry) -> String {
    let mut page = String::new();
    // Writing to a String does not fail; what an encoder can't write is missing from the page.
    let _written = text::encode(&mut page, registry);
    page
}

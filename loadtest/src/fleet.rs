//! Agents without a cluster: sessions with a relay, as many as wanted, from one process.

use std::{path::Path, time::SystemTime};

use anyhow::Context as _;
use bytes::BytesMut;
use tokio::task::JoinSet;
use towline_tunnel::{
    carrier::dial::{Dialler, RelayAddress},
    enrolment::{EnrolmentToken, JOIN},
    ids::InstanceId,
    keys::SigningKey,
    mux::{Connection, EndpointConfig, Ledger, Side},
    session::{self, Identify, message::Secret},
};

/// Sessions that are open; dropping it ends them.
#[derive(Debug)]
pub struct Fleet {
    connections: Vec<Connection>,
    drivers: JoinSet<()>,
}

impl Fleet {
    /// Enrols one cluster with the token, and opens `count` sessions of instances of it.
    ///
    /// # Errors
    /// If one of them is refused.
    pub async fn connect(token: &str, ca_file: &Path, count: usize) -> anyhow::Result<Self> {
        let token = EnrolmentToken::decode(token)?;
        anyhow::ensure!(SystemTime::now() < token.expires, "the enrolment token is over");
        let cluster = SigningKey::generate();
        let dialler = Dialler::new(RelayAddress::parse(&token.relay.to_string())?, Some(ca_file))?;
        let (mut connections, mut drivers) = (Vec::with_capacity(count), JoinSet::new());
        let join = Secret::new(JOIN);
        for number in 0..count {
            let secret = if number == 0 { &token.secret } else { &join };
            let (key, instance) = (SigningKey::generate(), InstanceId::random());
            let (carrier, exporter) = dialler.dial().await?;
            let identify = Identify::Enrol { secret, cluster: &cluster, instance, key: &key };
            let session = session::connect(carrier, exporter, token.relay_key, identify)
                .await
                .with_context(|| format!("session {number}"))?;
            let config = EndpointConfig {
                side: Side::Dialler,
                max_streams: 16,
                ledger: Ledger::new(1 << 20),
                instance,
                jitter: u8::try_from(number % 256).unwrap_or(0),
            };
            let (connection, driver) = Connection::new(session.channel, BytesMut::new(), config);
            connections.push(connection);
            drivers.spawn(async move {
                driver.run().await;
            });
        }
        Ok(Self { connections, drivers })
    }

    /// How many are still open.
    pub fn open(&self) -> usize {
        self.connections.iter().filter(|connection| connection.is_open()).count()
    }

    /// Ends all of them.
    pub async fn end(mut self) {
        self.drivers.shutdown().await;
    }
}

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {}

/// Measures it.
///
/// # Errors
/// If something can't be set up, or fails.
#[expect(clippy::unused_async, reason = "the others wait")]
pub async fn run(
    _arguments: Arguments,
    _terms: &crate::terms::Terms,
    _told: &mut crate::told::Told,
) -> anyhow::Result<()> {
    anyhow::bail!("not measured yet")
}

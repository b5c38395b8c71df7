//! Ways to identity providers for agents that reach nothing but the relay: to the hosts that its operator has named (`--issuer-host`), and
//! to nothing else. TLS is between the agent and the provider: what passes here is ciphertext.
//!
//! The far end of such a stream is an endpoint of the relay's own, joined by a pipe in memory. An agent's stream goes on to it as a client's
//! goes on to an agent: with the same windows, resets and bounds.

mod reach;

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy, duplex, split},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use towline_tunnel::{
    ids::{ChannelId, ClusterId, InstanceId},
    issuer_host::IssuerHost,
    mux::{Connection, EndpointConfig, MuxStream, Side, drive},
    proto::{CloseReason, OpenRequest, leg::LegConfig},
};
use tracing::{debug, info, warn};

use crate::{
    app::Relay,
    audit::{Channel, Record, Verdict},
    authenticate::AgentPeer,
    dial::Refusal,
    forward::{RelayConn, Route},
    metrics::Stage,
};

/// Streams at once, of all agents together.
const STREAMS: usize = 64;
/// Streams of one cluster at once.
const OF_ONE: u32 = 4;
/// Streams that one cluster may begin in a minute: keys are asked for once an hour, and when a token has an unknown one.
const A_MINUTE: u32 = 60;
/// What is promised for all of them, in bytes, beyond 16 KiB each way for each.
const BUFFERED: u64 = 4 << 20;
/// A stream says within this where it leads.
const SAID_WITHIN: Duration = Duration::from_secs(5);
/// A question and its answer take no longer.
const LIFE: Duration = Duration::from_secs(30);
/// Bytes in each direction: agents take no longer answers than 1 MiB.
const BYTES: u64 = 2 << 20;
/// In the pipe between the two.
const PIPE: usize = 64 * 1024;
/// Where the far end broke, which it never should.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What agents may reach, and what is open.
#[derive(Debug, Default)]
pub(crate) struct Issuers {
    hosts: Vec<IssuerHost>,
    /// The relay's own end.
    far: Mutex<Weak<RelayConn>>,
    /// Begun in the minute that began then. One row for a cluster that is enrolled, at most.
    begun: Mutex<HashMap<ClusterId, (Instant, u32)>>,
}

impl Issuers {
    /// Leads to these hosts.
    pub(crate) fn new(hosts: Vec<IssuerHost>) -> Self {
        Self { hosts, ..Self::default() }
    }

    /// Opens the other half of an agent's stream, `from`. Where it leads is in its first bytes.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn open(
        &self,
        agent: &AgentPeer,
        channel: ChannelId,
        request: OpenRequest,
        from: Route,
    ) -> Result<Route, Refusal> {
        if self.hosts.is_empty() {
            let why = "this relay leads to no identity providers (towline-relay serve --issuer-host)";
            return Err((CloseReason::Forbidden, why.into()));
        }
        let cluster = agent.cluster.id;
        let far = self.far.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        let far = far.ok_or((CloseReason::InternalError, "".into()))?;
        // Held until it is open: of two that come at once, the other one counts.
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let many = |what: &'static str| Err((CloseReason::LimitReached, what.into()));
        if far.streams_to(Some(cluster)) >= OF_ONE {
            return many("too many ways to identity providers at once");
        }
        let (since, count) = begun.entry(cluster).or_insert_with(|| (Instant::now(), 0));
        if since.elapsed() >= Duration::from_secs(60) {
            (*since, *count) = (Instant::now(), 0);
        }
        if *count >= A_MINUTE {
            return many("too many ways to identity providers in a minute");
        }
        *count += 1;
        let key = request.key;
        let request =
            OpenRequest { cluster, channel: Some(channel), share: 0, ticket: None, offer: None, ..request };
        let stream = far
            .open(request, from)
            .map_err(|reason| (reason, "too many ways to identity providers".into()))?;
        drop(begun);
        Ok(Route { conn: far, stream, key, documents: None })
    }

    fn allows(&self, host: &IssuerHost) -> bool {
        self.hosts.contains(host)
    }
}

/// The far end; never returns where there is something to lead to.
pub(crate) async fn serve(relay: Arc<Relay>) {
    if relay.switchboard().issuers().hosts.is_empty() {
        return;
    }
    loop {
        let ended = serve_once(&relay).await;
        warn!(ended, "the ways to identity providers were cut, and are there again");
        sleep(AGAIN_AFTER).await;
    }
}

async fn serve_once(relay: &Arc<Relay>) -> &'static str {
    let issuers = relay.switchboard().issuers();
    let (near, far) = duplex(PIPE);
    let ledger = relay.ledger().child(BUFFERED);
    let leg = LegConfig { side: Side::Acceptor, max_streams: STREAMS, ledger: ledger.clone(), jitter: 0 };
    let conn = RelayConn::to_own_end(leg, Arc::clone(relay.switchboard()), relay.limits().open_timeout);
    let _closes = CloseOnDrop(Arc::clone(&conn));
    let config = EndpointConfig {
        side: Side::Dialler,
        max_streams: STREAMS,
        ledger,
        instance: InstanceId::random(),
        jitter: 0,
    };
    let (connection, driver) = Connection::new(far, BytesMut::new(), config);
    *issuers.far.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&conn);
    let mut streams = JoinSet::new();
    let accepting = async {
        while let Ok((request, stream)) = connection.accept().await {
            while streams.try_join_next().is_some() {}
            streams.spawn(carry(request, stream, Arc::clone(relay)));
        }
    };
    let stop = conn.stop().clone();
    tokio::select! {
        _closed = drive(near, &*conn, BytesMut::new(), stop) => "the relay's half ended",
        _closed = driver.run() => "the far half ended",
        () = accepting => "the far half takes no streams",
    }
}

/// The other halves of its streams are told, however it ends.
struct CloseOnDrop(Arc<RelayConn>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// One stream, from its first bytes to its end.
async fn carry(request: OpenRequest, mut stream: MuxStream, relay: Arc<Relay>) {
    let carried = timeout(LIFE, carry_within(&request, &mut stream, &relay)).await;
    let (reason, why) = match carried {
        Ok(Ok(())) => return,
        Ok(Err(refusal)) => refusal,
        Err(_elapsed) => (CloseReason::Timeout, "it took too long".to_owned()),
    };
    if reason == CloseReason::Detached {
        // Whoever has an answer lets go without a word.
        debug!(cluster = %request.cluster, why, "a way to an identity provider has ended");
    } else {
        relay.metrics().refused(Stage::Stream, reason);
        info!(cluster = %request.cluster, reason = reason.text(), why, "a way to an identity provider was refused");
    }
    stream.reset(reason, &why);
}

async fn carry_within(
    request: &OpenRequest,
    stream: &mut MuxStream,
    relay: &Relay,
) -> Result<(), (CloseReason, String)> {
    let issuers = relay.switchboard().issuers();
    let read = timeout(SAID_WITHIN, IssuerHost::read(stream)).await;
    let read = read.map_err(|_| (CloseReason::Timeout, "it does not say where it leads".to_owned()))?;
    let host = read.map_err(|error| (CloseReason::FrameMalformed, error.to_string()))?;
    let allowed = issuers.allows(&host);
    tell(request, &host, allowed, relay);
    if !allowed {
        let why = format!(
            "{host} is none of the hosts that the relay leads to (towline-relay serve --issuer-host)"
        );
        return Err((CloseReason::Forbidden, why));
    }
    relay.metrics().issuer_opens.inc();
    let tcp = reach::reach(&host).await.map_err(|why| (CloseReason::Timeout, format!("{host}: {why}")))?;
    let (mut from_provider, mut to_provider) = tcp.into_split();
    let (from_agent, mut to_agent) = split(stream);
    let mut from_agent = from_agent.take(BYTES);
    let up = async {
        copy(&mut from_agent, &mut to_provider).await?;
        to_provider.shutdown().await
    };
    let mut bounded = (&mut from_provider).take(BYTES);
    let down = async {
        copy(&mut bounded, &mut to_agent).await?;
        to_agent.shutdown().await
    };
    // Half-closing is kept; a break of one direction ends both.
    let carried = tokio::try_join!(up, down).map(|_both| ());
    carried.map_err(|error| (CloseReason::Detached, format!("{host}: {error}")))
}

/// A line of the audit: no user's, and the cluster's all the same.
fn tell(request: &OpenRequest, host: &IssuerHost, allowed: bool, relay: &Relay) {
    let known = relay.registry().snapshot();
    let name = known.cluster(request.cluster).map(|cluster| cluster.name.clone()).unwrap_or_default();
    info!(cluster = %request.cluster, name, %host, allowed, "an agent asks for a way to an identity provider");
    let channel = Channel {
        // A record is one of a channel, a cluster and a verdict: under the agent's own channel its second way would be taken for the first.
        id: ChannelId::random(),
        user: String::new(),
        principal: String::new(),
        source: nowhere(),
        program: "towline-agent".to_owned(),
    };
    let verdict = if allowed { Verdict::Allowed } else { Verdict::Refused(CloseReason::Forbidden) };
    let session = request.channel.map(|channel| format!(" ({channel})")).unwrap_or_default();
    let why = format!("the cluster's agent{session}, to the identity provider {host}");
    let at = relay.clock().now();
    relay.audit().tell(Record::event(channel, Some((request.cluster, name)), verdict, why, at));
}

fn nowhere() -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, 0).into()
}

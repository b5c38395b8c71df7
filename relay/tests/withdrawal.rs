//! What is withdrawn ends, however its end falls in with its begin.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod common;

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use bytes::BytesMut;
use common::{Bench, SOON, eventually, limits};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex},
    time::{Instant, timeout},
};
use towline_relay::{accept, handshakes::Handshakes, registry::RoleAssignment};
use towline_tunnel::{
    carrier::{dial::Errand, websocket::WebSocketCarrier},
    ids::InstanceId,
    keys::SigningKey,
    mux::{CloseReason, Connection, EndpointConfig, Ledger, Side, StreamError},
    session::{Identify, connect},
};

#[derive(Debug, Default)]
enum Gate {
    /// Everything passes.
    #[default]
    Open,
    /// Once something was read, the next write shuts it.
    Armed { read: bool },
    /// Nothing is read.
    Shut(Option<Waker>),
}

/// A peer that stops reading once it has said who it is.
struct Slow {
    io: DuplexStream,
    gate: Arc<Mutex<Gate>>,
}

impl AsyncRead for Slow {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut gate = this.gate.lock().unwrap();
        if let Gate::Shut(waker) = &mut *gate {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        if let (Gate::Armed { read }, Poll::Ready(Ok(()))) = (&mut *gate, &polled) {
            *read = true;
        }
        polled
    }
}

impl AsyncWrite for Slow {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let mut gate = this.gate.lock().unwrap();
        if matches!(*gate, Gate::Armed { read: true }) {
            *gate = Gate::Shut(None);
        }
        Pin::new(&mut this.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The relay has decided, and says so to a peer that does not listen. Nobody knows of the session yet when the
/// instance is revoked, so that nobody ends it.
#[tokio::test]
async fn an_instance_that_is_revoked_while_it_is_let_in_does_not_stay() {
    let bench = Bench::new(limits()).await;
    let secret = bench.enrolment_secret("edge").await;
    let (cluster, key, instance) = (SigningKey::generate(), SigningKey::generate(), InstanceId::random());
    // WELCOME, with a certificate in it, does not fit.
    let (ours, relays) = duplex(128);
    let exporter = Some([7; 32]);
    let deadline = Instant::now() + SOON;
    let from = SocketAddr::from(([192, 0, 2, 1], 1));
    let handshake = Handshakes::new(1).enter(from.ip()).unwrap().come().await.unwrap();
    let relay = Arc::clone(bench.relay.relay());
    let served = tokio::spawn(accept::connection(relays, exporter, false, from, deadline, handshake, relay));
    let gate = Arc::<Mutex<Gate>>::default();
    let slow = Slow { io: ours, gate: Arc::clone(&gate) };
    let carrier = WebSocketCarrier::client(slow, "relay", Errand::Begin).await.unwrap();
    *gate.lock().unwrap() = Gate::Armed { read: false };
    let pin = bench.relay.identity_hash();
    let connecting = tokio::spawn(async move {
        let identify = Identify::Enrol { secret: &secret, cluster: &cluster, instance, key: &key };
        connect(carrier, exporter, pin, identify).await
    });
    let registry = bench.relay.registry();
    eventually("it is recorded", async || {
        registry.instances().await.unwrap().iter().any(|of| of.id == instance)
    })
    .await;
    assert!(registry.revoke_instance(instance, SystemTime::now()).await.unwrap());
    assert!(!connecting.is_finished());
    let shut = std::mem::take(&mut *gate.lock().unwrap());
    if let Gate::Shut(Some(waker)) = shut {
        waker.wake();
    }
    let session = timeout(SOON, connecting).await.unwrap().unwrap().unwrap();
    let config = EndpointConfig {
        side: Side::Dialler,
        max_streams: 10,
        ledger: Ledger::new(1 << 20),
        instance,
        jitter: 0,
    };
    let (connection, driver) = Connection::new(session.channel, BytesMut::new(), config);
    let _driver = tokio::spawn(driver.run());
    let closed = timeout(SOON, connection.closed()).await.expect("the session ends");
    assert!(matches!(closed.reason, CloseReason::CertificateRefused | CloseReason::Detached), "{closed:?}");
    timeout(SOON, served).await.unwrap().unwrap();
}

/// Nothing changes in the registry when a role's time is over.
#[tokio::test]
async fn a_role_that_ends_ends_its_streams() {
    let bench = Bench::new(limits()).await;
    let agent = bench.echo("edge").await;
    let expires_at = Some(SystemTime::now() + Duration::from_secs(3));
    let assignment = RoleAssignment { expires_at, ..bench.assignment("alice", agent.cluster()) };
    bench.relay.registry().assign_role(&assignment, SystemTime::now()).await.unwrap();
    bench.allow("bob", agent.cluster()).await;
    let (alice, bob) = (bench.client("alice").await, bench.client("bob").await);
    let (mut hers, mut his) = (alice.open(agent.cluster()), bob.open(agent.cluster()));
    for stream in [&mut hers, &mut his] {
        stream.write_all(b"x").await.unwrap();
        assert_eq!(timeout(SOON, stream.read_u8()).await.unwrap().unwrap(), b'x');
    }
    let ended = timeout(SOON, hers.read_u8()).await.expect("it ends with the role").unwrap_err();
    let reason = ended.get_ref().and_then(|error| error.downcast_ref::<StreamError>()).unwrap().reason;
    assert_eq!(reason, CloseReason::Forbidden);
    his.write_all(b"y").await.unwrap();
    assert_eq!(timeout(SOON, his.read_u8()).await.unwrap().unwrap(), b'y');
}

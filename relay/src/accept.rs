//! From a TCP connection to a session: TLS, HTTP, carrier, handshake; all within one deadline.

mod beside;
mod pairs;
mod requests;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use towline_tunnel::{
    carrier::{ReadAhead, rung::Rung, tune, websocket::WebSocketCarrier},
    drain::DrainWatcher,
    ids::ChannelId,
    mux::{Closed, Side, drive},
    observe::Present,
    proto::{CloseReason, leg::LegConfig},
    session::{self, AcceptError, Channel, Exporter, control::Control},
    ticket::SKEW,
};
use tracing::{debug, info, warn};

use beside::Beside;
pub use pairs::Pairs;
pub use requests::{Door, UpgradeError};
use requests::{First, Requests};

use crate::{
    app::Relay,
    audit::Account,
    authenticate::{ClientPeer, Peer},
    forward::{Arrival, Owner, RelayConn},
    handshakes::{Handshake, Handshakes, Turn},
    metrics::Stage,
    places::Place,
    questions::{self, OPEN_QUESTIONS, Question},
};

/// After an error of accept(2), mostly EMFILE: there is nothing to accept with until something closes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes that a connection's task may have: each idle agent costs so much for as long as it is connected.
const LARGEST_TASK: usize = 4 * 1024;
/// While it goes on, it is said in the log this often.
const ACCEPT_TOLD_EVERY: Duration = Duration::from_secs(10);

/// Takes connections until the drain begins; then waits for those that are open.
pub async fn listen(listener: TcpListener, relay: Arc<Relay>, drain: DrainWatcher) {
    let acceptor = TlsAcceptor::from(relay.tls());
    let handshakes = Handshakes::new(relay.limits().max_handshakes);
    let mut connections = JoinSet::new();
    let mut told = None;
    loop {
        // Where all places are taken and nobody has too many, connections wait in the kernel's backlog: each handshake
        // before them ends within its deadline.
        let accepted = tokio::select! {
            () = drain.begun() => break,
            accepted = async { handshakes.room().await; listener.accept().await } => accepted,
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                log_panic(ended);
                continue;
            }
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                relay.metrics().accept_errors.inc();
                if told.is_none_or(|told: Instant| told.elapsed() >= ACCEPT_TOLD_EVERY) {
                    told = Some(Instant::now());
                    warn!(%error, "no connection could be accepted (towline_relay_accept_errors_total counts on)");
                }
                // Of one connection that has gone already, and nothing to wait for.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    let _drains = timeout(ACCEPT_PAUSE, drain.begun()).await;
                }
                continue;
            }
        };
        let Some(turn) = handshakes.enter(from.ip()) else {
            relay.metrics().refused(Stage::Connection, CloseReason::LimitReached);
            debug!(%from, "a connection was closed: too many of its address wait for a place (--max-handshakes)");
            continue;
        };
        let (relay, acceptor) = (Arc::clone(&relay), acceptor.clone());
        let task = async move { tcp(stream, from, &acceptor, turn, relay).await };
        debug_assert!(
            size_of_val(&task) <= LARGEST_TASK,
            "a connection's task has {} bytes",
            size_of_val(&task)
        );
        connections.spawn(task);
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        log_panic(ended);
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked");
    }
}

async fn tcp(stream: TcpStream, from: SocketAddr, acceptor: &TlsAcceptor, turn: Turn, relay: Arc<Relay>) {
    let time = relay.limits().handshake_timeout;
    let Ok(Some(handshake)) = timeout(time, turn.come()).await else {
        relay.metrics().refused(Stage::Connection, CloseReason::LimitReached);
        debug!(%from, "a connection was closed: there was no place for it in time (--max-handshakes)");
        return;
    };
    // Whoever had to wait for a place has all of the time that others have, or would be taken for slow.
    let deadline = Instant::now() + time;
    if let Err(error) = tune(&stream) {
        debug!(%from, %error, "a connection was dead at once");
        return;
    }
    // In a box of its own, which is gone once it is done: a handshake needs many times what a session does.
    let begun = Box::pin(begin_tls(stream, acceptor, from, deadline, handshake, &relay)).await;
    match begun {
        Some(Start::WebSocket(begun)) => run(begun, from, &relay).await,
        Some(Start::Beside(beside)) => Box::pin(beside.serve(from, &relay)).await,
        None => {}
    }
}

async fn begin_tls(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    from: SocketAddr,
    deadline: Instant,
    handshake: Handshake,
    relay: &Arc<Relay>,
) -> Option<Start<TlsStream<ReadAhead<TcpStream>>>> {
    match handshake.step(deadline, acceptor.accept(ReadAhead::new(stream))).await {
        Ok(Ok(stream)) => {
            let exporter = session::exporter(stream.get_ref().1);
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            begin(stream, exporter, http2, from, deadline, handshake, relay).await
        }
        Ok(Err(error)) => {
            relay.metrics().refused(Stage::Connection, CloseReason::FrameMalformed);
            debug!(%from, %error, "a TLS handshake failed");
            None
        }
        Err(late) => {
            relay.metrics().refused(Stage::Connection, late);
            debug!(%from, reason = late.text(), "a TLS handshake was not finished");
            None
        }
    }
}

/// Serves one connection, whose outer TLS (if any) ended before, until it ends.
///
/// `exporter` is that TLS's, and `deadline` what remains for the handshake.
pub async fn connection<IO>(
    io: IO,
    exporter: Option<Exporter>,
    http2: bool,
    from: SocketAddr,
    deadline: Instant,
    handshake: Handshake,
    relay: Arc<Relay>,
) where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let begun = Box::pin(begin(io, exporter, http2, from, deadline, handshake, &relay)).await;
    match begun {
        Some(Start::WebSocket(begun)) => run(begun, from, &relay).await,
        Some(Start::Beside(beside)) => Box::pin(beside.serve(from, &relay)).await,
        None => {}
    }
}

/// What a connection led to. Boxed, as is what is in it: a task keeps room for each that it ever holds.
enum Start<IO> {
    /// It is a carrier.
    WebSocket(Box<Begun<WebSocketCarrier<IO>>>),
    /// Its requests are, or parts of some.
    Beside(Box<Beside>),
}

/// Whose session it is, and what it has of the relay.
struct Begun<C> {
    /// Boxed: it would stand in the session's task once for each function that it is handed to.
    channel: Box<Channel<C>>,
    rung: Rung,
    id: ChannelId,
    /// Boxed, too.
    peer: Box<Peer>,
    place: Place,
    /// When its turn came.
    turn: Instant,
}

/// HTTP and the session's handshake.
async fn begin<IO>(
    io: IO,
    exporter: Option<Exporter>,
    http2: bool,
    from: SocketAddr,
    deadline: Instant,
    handshake: Handshake,
    relay: &Arc<Relay>,
) -> Option<Start<IO>>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let limit = relay.limits().max_header_bytes;
    let door = Door::of(relay, from.ip());
    let turn = Arc::clone(&door.turn);
    let mut requests = Requests::new(io, http2, limit, door);
    let failed = match handshake.step(deadline, requests.first()).await {
        Ok(Ok(First::WebSocket { carrier, watched })) => {
            let turn = turn.get().copied().unwrap_or_else(Instant::now);
            let arrived = Arrived { carrier, exporter, rung: Rung::WebSocket, watched, turn };
            return session(arrived, from, deadline, handshake, relay).await.map(Start::WebSocket);
        }
        Ok(Ok(First::Found(first))) => {
            let beside = Beside { requests, first, exporter, deadline, handshake };
            return Some(Start::Beside(Box::new(beside)));
        }
        Ok(Ok(First::Nothing)) => return None,
        Ok(Err(error)) => {
            debug!(%from, %error, "an HTTP connection ended");
            CloseReason::FrameMalformed
        }
        Err(late) => {
            debug!(%from, reason = late.text(), "a connection did not become a session");
            late
        }
    };
    relay.metrics().refused(Stage::Connection, failed);
    // Who had to make room for another address did not waste the turn.
    if turn.get().is_some() && failed != CloseReason::LimitReached {
        relay.authenticator().note_waste(from.ip());
    }
    None
}

/// Speaks HTTP with a peer until its upgrade is answered: what follows is a carrier. None where it asked for something
/// else, and was answered. Takes as long as the peer does.
///
/// # Errors
/// If the peer does not speak HTTP, or sends bytes too early.
pub async fn upgrade<IO>(
    io: IO,
    http2: bool,
    max_header_bytes: u64,
    door: Door,
) -> Result<Option<WebSocketCarrier<IO>>, UpgradeError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    match Requests::new(io, http2, max_header_bytes, door).first().await? {
        First::WebSocket { carrier, .. } => Ok(Some(carrier)),
        First::Nothing | First::Found(_) => Ok(None),
    }
}

/// A carrier on which a session may begin.
struct Arrived<C> {
    carrier: C,
    /// Of the TLS that it has around it, if any ends here.
    exporter: Option<Exporter>,
    rung: Rung,
    /// Whether its dialler wants to know soon if nothing comes of what it sends.
    watched: bool,
    /// When its turn came.
    turn: Instant,
}

async fn session<C>(
    arrived: Arrived<C>,
    from: SocketAddr,
    deadline: Instant,
    handshake: Handshake,
    relay: &Relay,
) -> Option<Box<Begun<C>>>
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Arrived { carrier, exporter, rung, watched, turn } = arrived;
    let begun = Instant::now();
    let address = from.ip();
    let admit = |credential| admit(credential, address, relay);
    let accepting = session::accept_watched(carrier, exporter, relay.identity(), watched, admit);
    let accepted = match handshake.step(deadline, accepting).await {
        Ok(accepted) => accepted,
        Err(CloseReason::Timeout) => Err(AcceptError::Timeout),
        Err(evicted) => {
            relay.metrics().refused(Stage::Session, evicted);
            info!(%from, "a handshake's place was needed for another address (--max-handshakes)");
            return None;
        }
    };
    let (channel, welcome, (peer, place)) = match accepted {
        Ok(accepted) => accepted,
        Err(error) => {
            match &error {
                AcceptError::Proof | AcceptError::Message(_) => relay.authenticator().note_failure(address),
                // A bad network may do the same, and a relay that is busy.
                AcceptError::Io(_) | AcceptError::Timeout | AcceptError::Carrier(_) => {
                    relay.authenticator().note_waste(address)
                }
                // Nothing else would stop whoever asks for ever for what it can't have.
                AcceptError::Version => relay.authenticator().note_waste(address),
                AcceptError::Refused(refused)
                    if matches!(
                        refused.reason,
                        CloseReason::LimitReached | CloseReason::Forbidden | CloseReason::UserRevoked
                    ) =>
                {
                    relay.authenticator().note_waste(address);
                }
                // Counted as failures already, or the relay's own doing.
                AcceptError::Refused(_) => {}
            }
            relay.metrics().refused(Stage::Session, error.reason());
            info!(%from, carrier = rung.name(), %error, "a session was refused");
            return None;
        }
    };
    drop(handshake);
    relay.metrics().handshake_seconds.observe(begun.elapsed().as_secs_f64());
    let channel = Box::new(channel);
    Some(Box::new(Begun { channel, rung, id: welcome.channel, peer: Box::new(peer), place, turn }))
}

async fn admit(
    credential: session::Credential,
    address: IpAddr,
    relay: &Relay,
) -> Result<(session::Welcome, (Peer, Place)), session::Refused> {
    if let Some(refused) = relay.draining() {
        return Err(refused);
    }
    let mut place = relay.places().enter(address)?;
    let (welcome, peer) = relay.authenticator().authenticate(credential, address).await?;
    place.of_peer(&peer).inspect_err(|_full| {
        if let Peer::Agent(agent) = &peer {
            relay.sessions().note_crowded(agent.holder.instance);
        }
    })?;
    Ok((welcome, (peer, place)))
}

async fn run<C>(begun: Box<Begun<C>>, from: SocketAddr, relay: &Relay)
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Begun { channel, rung, id, peer, place: _place, turn } = *begun;
    let micros = u64::try_from(turn.elapsed().as_micros()).unwrap_or(u64::MAX);
    let (max_streams, sessions, opened) = match &*peer {
        Peer::Client(client) => {
            info!(
                channel = %id, %from, principal = client.caller.principal, program = client.program, line = client.line, carrier = rung.name(), micros,
                "a client's session began"
            );
            let limit = relay.limits().max_streams_per_client;
            (limit, &relay.metrics().client_sessions, &relay.metrics().client_sessions_opened)
        }
        Peer::Agent(agent) => {
            info!(
                channel = %id, %from, cluster = %agent.cluster.id, name = agent.cluster.name,
                instance = %agent.holder.instance, program = agent.program, line = agent.line, beside = agent.beside.len(), carrier = rung.name(), micros,
                "an agent's session began"
            );
            let limit = relay.limits().max_streams_per_agent;
            (limit, &relay.metrics().agent_sessions, &relay.metrics().agent_sessions_opened)
        }
    };
    let _present = (Present::in_gauge(sessions), relay.metrics().carries(rung));
    opened.inc();
    let owner = match &*peer {
        Peer::Client(client) => Some(Owner {
            user: relay.users().of(&client.caller.principal),
            account: Account::new(relay.audit().clone(), client.channel(id, from)),
        }),
        Peer::Agent(_) => None,
    };
    let most = relay.limits().max_buffered_bytes_per_session;
    let config = LegConfig {
        side: Side::Acceptor,
        max_streams: max_streams as usize,
        ledger: match &owner {
            Some(owner) => relay.ledger().child_with(owner.user.ledger(), most),
            // What an agent is promised is promised for users' streams, one by one.
            None => relay.ledger().child(most),
        },
        jitter: id.0.to_le_bytes()[0],
    };
    let (asked, questions) = mpsc::channel(OPEN_QUESTIONS);
    let conn = RelayConn::new(
        Some(*peer),
        owner,
        Arrival { channel: id, from },
        config,
        Arc::clone(relay.switchboard()),
        relay.limits().open_timeout,
        asked,
    );
    let guard = relay.sessions().register(Arc::clone(&conn));
    if let Some(refused) = relay.draining() {
        // The drain began while nobody knew of this session.
        conn.go_away(refused.reason, refused.delay, "");
    }
    if let Some(agent) = conn.agent()
        && let Err(refused) = relay.authenticator().standing(agent)
    {
        // It was revoked while nobody knew of this session.
        warn!(channel = %id, instance = %agent.holder.instance, detail = refused.detail, "an agent's session was ended");
        conn.go_away(refused.reason, refused.delay, &refused.detail);
        conn.stop().cancel();
    }
    if let Some(client) = conn.client() {
        // The same, of its user's sessions.
        end_if_revoked(&conn, client, relay);
    }
    let stop = conn.stop().clone();
    let closed = tokio::select! {
        closed = drive(channel, &*conn, BytesMut::new(), stop) => closed,
        () = answer_questions(&conn, questions, relay) => return,
        () = expire(&conn, relay) => return,
    };
    let (reason, detail) = closed.reason();
    conn.end_account(match &closed {
        Closed::ByPeer => "the client closed it",
        Closed::Io(_) => "its connection was lost",
        Closed::Stopped | Closed::Violation(_) => reason.text(),
    });
    info!(channel = %id, reason = reason.text(), detail, "a session ended");
    drop(guard);
}

/// Ends a client's session whose user's sessions were revoked. Its streams have ended, or none was opened.
pub(crate) fn end_if_revoked(conn: &RelayConn, client: &ClientPeer, relay: &Relay) {
    let Err(refused) = relay.authenticator().client_standing(client) else { return };
    if conn.stop().is_cancelled() || conn.is_answering() {
        return;
    }
    info!(channel = %conn.channel(), principal = client.caller.principal, "a client's session was ended: it was revoked");
    conn.end_account(refused.reason.text());
    conn.go_away(refused.reason, refused.delay, &refused.detail);
    conn.stop().cancel();
}

/// Answers what a reader can't: an agent's questions for certificates, and people's; never returns.
async fn answer_questions(conn: &RelayConn, mut questions: mpsc::Receiver<Question>, relay: &Relay) {
    while let Some(question) = questions.recv().await {
        let (id, key) = match question {
            Question::Renewal { id, key } => (id, key),
            Question::Asked(asked) => {
                // Boxed: each session's task would be larger by it for as long as it lasts, and most never ask.
                Box::pin(questions::answer(conn, *asked, relay)).await;
                continue;
            }
        };
        let Some(agent) = conn.agent() else { continue };
        let answer = match relay.authenticator().renew(agent, &key).await {
            Ok(issued) => Control::Renewed { certificate: issued.der },
            Err(refused) => Control::Failed { reason: refused.reason, detail: refused.detail },
        };
        conn.control(answer.encode(id));
    }
    std::future::pending().await
}

/// A client's session takes no new streams once its token is expired; never returns.
async fn expire(conn: &RelayConn, relay: &Relay) {
    let Some(client) = conn.client() else { return std::future::pending().await };
    // As the verifier counts, which let it in: clocks may differ by so much.
    let left = (client.expires_at + SKEW).duration_since(relay.clock().now()).unwrap_or_default();
    sleep(left).await;
    conn.go_away(CloseReason::TokenExpired, Duration::ZERO, "");
    std::future::pending().await
}

//! Accepting streams that the relay opens: ticket, inner TLS, whose key it is; then [`crate::forward`].
//!
//! The loop waits on no peer: each stream is a task of its own from its first byte on, under one deadline until it is
//! known whose it is.

mod users;

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use towline_tunnel::{
    clock::Clock,
    doctor::at,
    fault::Fault,
    ids::KeyHash,
    inner::{InnerAcceptor, InnerStream},
    keys::VerifyingKey,
    mux::{Admit, CloseReason, Connection, EXPORTER_LABEL, MuxStream, OpenRequest, Owner, ResumeKey},
    observe::Present,
    ticket::{Ticket, TicketError},
};
use tracing::debug;

use self::users::{Held, Users};
use crate::{
    forward::{Caller, Ending, Forwarder},
    metrics::Metrics,
    roles::Offered,
    stream::ResettableStream,
};

/// From OPEN to a finished inner handshake; whoever is slower is reset (THREATS T33).
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// Takes streams in the name of one cluster.
#[derive(Debug)]
pub struct Acceptor {
    inner: InnerAcceptor,
    forwarder: Forwarder,
    metrics: Metrics,
    clock: Clock,
    users: Arc<Users>,
    /// Streams outlive their session: they belong to the agent.
    streams: TaskTracker,
    abort: CancellationToken,
}

impl Acceptor {
    /// What it accepts goes to the forwarder; no user holds more than so many streams.
    pub fn new(
        inner: InnerAcceptor,
        forwarder: Forwarder,
        metrics: Metrics,
        clock: Clock,
        max_streams_per_user: u32,
    ) -> Self {
        let (streams, abort) = (TaskTracker::new(), CancellationToken::new());
        Self { inner, forwarder, metrics, clock, users: Users::new(max_streams_per_user), streams, abort }
    }

    /// Who holds this owns the streams: dropping it cuts them.
    pub fn own_streams(&self) -> DropGuard {
        self.abort.clone().drop_guard()
    }

    /// Waits until no stream is left. For an agent that drains.
    pub async fn ended(&self) {
        self.streams.close();
        self.streams.wait().await;
    }

    /// Where accepted streams go.
    pub fn forwarder(&self) -> &Forwarder {
        &self.forwarder
    }

    /// Accepts streams until the connection is closed; or, once `ending` says to go, until all streams of the agent ended. Tickets must be
    /// signed with the key `tickets`. The streams go on without this: see [`Acceptor::own_streams`].
    pub async fn accept(self: Arc<Self>, connection: Connection, tickets: VerifyingKey, ending: Ending) {
        loop {
            let accepted = tokio::select! {
                // What the relay opened before it or we said to go is still served.
                biased;
                accepted = connection.accept() => accepted,
                () = ending.going.cancelled() => break,
            };
            // The mux bounds how many there are.
            let Ok((request, stream)) = accepted else { return };
            let (acceptor, ending) = (Arc::clone(&self), ending.clone());
            self.streams.spawn(async move {
                let abort = acceptor.abort.clone();
                abort.run_until_cancelled(acceptor.stream(request, stream, tickets, &ending)).await;
            });
        }
        // What was opened before the peer heard that we go is refused, not left to wait.
        let refusing = async {
            while let Ok((_, stream)) = connection.accept().await {
                stream.reset(CloseReason::Draining, "the agent takes no new streams");
            }
        };
        tokio::select! {
            () = self.ended() => {}
            () = refusing => {}
        }
    }

    async fn stream(&self, request: OpenRequest, stream: MuxStream, tickets: VerifyingKey, ending: &Ending) {
        let _present = Present::in_gauge(&self.metrics.streams);
        self.metrics.opens.inc();
        let now = self.clock.now();
        let ticket = request.ticket.as_deref().unwrap_or_default();
        let ticket = match Ticket::verify(ticket, &tickets, self.inner.cluster(), now) {
            Ok(ticket) if request.cluster == self.inner.cluster() => ticket,
            Ok(_) => return self.refuse_ticket(&request, &stream, TicketError::Cluster),
            Err(error) => return self.refuse_ticket(&request, &stream, error),
        };
        let Some(held) = self.users.hold(tickets.hash(), &ticket.principal) else {
            let detail = "the user has too many streams at the agent (--max-streams-per-user)";
            stream.reset(CloseReason::AgentLimitReached, detail);
            return self.refused(&request, Fault::AgentLimit, detail);
        };
        let (stream, reset) = ResettableStream::new(stream);
        reset.set(CloseReason::InnerTlsFailed, "the handshake failed");
        let mut handshake = std::pin::pin!(self.inner.accept(stream, now));
        let accepted = match timeout(HANDSHAKE_WITHIN, handshake.as_mut()).await {
            Ok(accepted) => accepted,
            Err(_elapsed) => {
                reset.set(CloseReason::Timeout, "the inner handshake took too long");
                return self.refused(&request, Fault::InnerTlsFailed, "the inner handshake took too long");
            }
        };
        let (inner, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(report) => return self.refused(&request, report.fault, &report.clone().detail),
        };
        if let Err(error) = ticket.check_peer(peer) {
            reset.set(CloseReason::TicketInvalid, error.to_string());
            return self.refused(&request, Fault::TicketMismatch, &error.to_string());
        }
        reset.clear();
        let held = Arc::new(held);
        let roles = self.forwarder.roles();
        let offered = roles.map(|roles| Arc::new(roles.take(&ticket, request.offer.as_ref(), now)));
        self.keep(&inner, tickets, peer, Arc::clone(&held), offered.clone());
        let caller = Caller {
            principal: ticket.principal,
            run_key: peer,
            channel: request.channel,
            stream: request.key,
            offered,
        };
        self.forwarder.serve(inner, &caller, &reset, ending).await;
    }

    /// The stream outlives its session: whoever proves to be its client, with a ticket for the same caller, takes it up.
    fn keep(
        &self,
        inner: &InnerStream<ResettableStream>,
        tickets: VerifyingKey,
        peer: KeyHash,
        held: Arc<Held>,
        offered: Option<Arc<Offered>>,
    ) {
        let Ok(exported) = inner.exporter(EXPORTER_LABEL) else { return };
        let (cluster, clock, user) = (self.inner.cluster(), self.clock.clone(), held.user());
        let roles = self.forwarder.roles().cloned().zip(offered);
        let admit: Admit = Box::new(move |request| {
            let ticket = request.ticket.as_deref().unwrap_or_default();
            let ticket =
                Ticket::verify(ticket, &tickets, cluster, clock.now()).map_err(|error| error.to_string())?;
            ticket.check_peer(peer).map_err(|error| error.to_string())?;
            // What is kept counts for as long as it is: a stream whose end its client never confirms, too.
            if *ticket.principal != *held.user() {
                return Err("the ticket is another caller's".into());
            }
            if let Some((roles, offered)) = &roles {
                roles.renew(offered, &ticket, request.offer.as_ref(), clock.now());
            }
            Ok(())
        });
        inner.carrier().stream().keep(cluster, ResumeKey::new(&exported), Some(Owner { user, admit }));
    }

    fn refuse_ticket(&self, request: &OpenRequest, stream: &MuxStream, error: TicketError) {
        let detail = match error {
            // Whoever sees both clocks can say which one is wrong.
            TicketError::Time => format!("{error}: it is {} at the agent", at(self.clock.now())),
            error => error.to_string(),
        };
        stream.reset(CloseReason::TicketInvalid, &detail);
        self.refused(request, Fault::TicketMismatch, &detail);
    }

    fn refused(&self, request: &OpenRequest, fault: Fault, detail: &str) {
        self.metrics.refused(fault);
        let channel = request.channel.map(tracing::field::display);
        debug!(channel, stream = %request.key, fault = fault.code(), detail, "a stream was refused");
    }
}

//! From the relay's name to its first messages: what client and agent have in common.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::StatusCode;
use tokio::{net::TcpStream, time::timeout};

use super::{
    Examination, Pipe, Step, Verdict,
    answer::{Tap, Tape},
    carriers::{Carried, Other},
    clock::at,
    elsewhere::Elsewhere,
    frames,
    outer::Tapped,
    reach::{Names, Way, connect},
};
use crate::{
    carrier::{
        dial::{Errand, RelayAddress},
        rung::Rung,
        websocket::{HandshakeError, WebSocketCarrier},
    },
    clock::Clock,
    egress::Egress,
    fault::{Fault, Report},
    ids::KeyHash,
    session::{Exporter, Seen},
};

/// An upgrade has this long.
const UPGRADE_WITHIN: Duration = Duration::from_secs(5);
/// Tickets and tokens bear a minute; a `Date` has whole seconds, and has travelled.
const CLOCK_BEARS: Duration = Duration::from_secs(60);
/// So far off, nothing that is signed with a time works any more.
const CLOCK_FAILS: Duration = Duration::from_secs(300);

/// The steps from a name to a relay that is known.
const STEPS: [Step; 9] = [
    Step::Dns,
    Step::Tcp,
    Step::Proxy,
    Step::Tls,
    Step::Upgrade,
    Step::Clock,
    Step::Frames,
    Step::Relay,
    Step::LargeFrames,
];

/// The way to one relay.
#[derive(Clone)]
pub struct Network {
    /// Where it is.
    pub relay: RelayAddress,
    /// The hash of its identity key.
    pub pin: KeyHash,
    /// Authorities of its outer TLS beside the system's (PEM).
    pub ca_file: Option<PathBuf>,
    /// Asks for names.
    pub names: Names,
    /// The proxy that leads there, where one does.
    pub way: Option<Arc<dyn Way>>,
    /// By which connections leave this network, and whom their outer TLS is trusted by.
    pub egress: Egress,
    /// Where a proxy may stand that nobody has told us of, if the straight way fails.
    pub elsewhere: Elsewhere,
    /// The time here.
    pub clock: Clock,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("relay", &self.relay).finish_non_exhaustive()
    }
}

/// The relay was reached, is the right one, and large messages cross.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Outer TLS ends at the relay, and not at a load balancer or proxy before it.
    pub ends_here: bool,
    /// The best carrier that gets through.
    pub rung: Rung,
}

/// How a further connection is made, like the first.
#[derive(Clone, Copy)]
pub(super) enum Again<'a> {
    At(SocketAddr),
    Through(&'a dyn Way),
}

impl Network {
    /// Straight to this relay, as carriers go, by the system's clock; no other way is looked for.
    pub fn straight(relay: RelayAddress, pin: KeyHash, ca_file: Option<PathBuf>) -> Self {
        Self { elsewhere: Elsewhere::nowhere(), ..Self::over(Egress::direct(), relay, pin, ca_file) }
    }

    /// As carriers go to this relay: through the proxy that is meant for it, or straight where there is none.
    pub fn over(egress: Egress, relay: RelayAddress, pin: KeyHash, ca_file: Option<PathBuf>) -> Self {
        let proxied = egress.proxy_for(&relay.destination()).is_some();
        let way = proxied.then(|| Arc::new(egress.clone()) as Arc<dyn Way>);
        let (names, elsewhere, clock) = (Names::of(&egress), Elsewhere::system(), Clock::system());
        Self { relay, pin, ca_file, names, way, egress, elsewhere, clock }
    }

    /// Looks at each step, until one fails; those behind it are skipped.
    pub async fn examine(&self, examination: &mut Examination<'_>) -> Option<Reached> {
        let mut done = 0;
        let reached = self.steps(examination, &mut done).await;
        if reached.is_none() {
            let failed = STEPS[done].title();
            examination.skip(&STEPS[done + 1..], &format!("not looked at: {failed} failed"));
        }
        reached
    }

    /// `done` is the step that is being looked at.
    async fn steps(&self, examination: &mut Examination<'_>, done: &mut usize) -> Option<Reached> {
        let (pipe, again) = match &self.way {
            None => {
                let found = async {
                    let port = self.relay.destination().port();
                    self.or_elsewhere(self.names.resolve(self.relay.host(), port).await).await
                };
                let addresses = examination.check(STEPS[*done], found).await?;
                *done = 1;
                let connected = async { self.or_elsewhere(connect(&self.relay, &addresses).await).await };
                let (address, stream) = examination.check(STEPS[*done], connected).await?;
                examination.skip(&[Step::Proxy], "none is set: connections go straight");
                (Box::new(stream) as Box<dyn Pipe>, Again::At(address))
            }
            Some(way) => {
                examination.skip(&[Step::Dns, Step::Tcp], "the proxy resolves and connects");
                *done = 2;
                let through = async {
                    Verdict::of(way.connect(&self.relay).await, |_| {
                        format!("through {}", way.name(&self.relay))
                    })
                };
                (examination.check(STEPS[*done], through).await?, Again::Through(&**way))
            }
        };
        *done = 3;
        let outer = examination.check(STEPS[*done], self.tls(pipe, again)).await?;
        let exporter = outer.exporter;
        *done = 4;
        let speaks_http1 = outer.speaks_http1;
        let (tap, tape) = Tap::new(outer.stream);
        let upgrade = async {
            let upgraded = if speaks_http1 { self.upgrade(tap, &tape).await } else { self.http2_only() };
            self.or_by_another(upgraded, again).await
        };
        let carried = examination.check(STEPS[*done], upgrade).await?;
        *done = 5;
        examination.say(STEPS[*done], self.clock_beside(tape.date()));
        *done = 6;
        let carried = match carried {
            Carried::By(other) => examination.say(STEPS[*done], other.crossed())?,
            Carried::ByWebSocket(carrier) => {
                let small = async {
                    let small = frames::small(carrier, exporter, self.pin).await;
                    self.or_by_another(small, again).await
                };
                examination.check(STEPS[*done], small).await?
            }
        };
        *done = 7;
        let (looked, other) = match carried {
            Carried::ByWebSocket(looked) => (looked, None),
            Carried::By(other) => (other.looked.clone(), Some(other)),
        };
        let rung = other.as_ref().map_or(Rung::WebSocket, |other| other.rung);
        let Seen { ends_here } = examination.say(STEPS[*done], self.known(looked, rung))?;
        *done = 8;
        let large = match other {
            Some(other) => examination.say(STEPS[*done], other.crossed::<()>())?,
            None => {
                let large = async { self.or_by_another(self.large(again).await, again).await };
                examination.check(STEPS[*done], large).await?
            }
        };
        let rung = match large {
            Carried::ByWebSocket(()) => Rung::WebSocket,
            Carried::By(other) => other.rung,
        };
        Some(Reached { ends_here, rung })
    }

    async fn upgrade(&self, tap: Tapped, tape: &Tape) -> Verdict<WebSocketCarrier<Tapped>> {
        let authority = self.relay.authority();
        let upgrade = WebSocketCarrier::client(tap, &authority, Errand::Begin);
        match timeout(UPGRADE_WITHIN, upgrade).await {
            Ok(Ok(carrier)) => Verdict::ok(carrier, "websocket, towline.v1"),
            Ok(Err(error)) => self.not_upgraded(error, tape),
            Err(_elapsed) => {
                let seen = format!("{}: the websocket upgrade is not answered", self.relay);
                Verdict::failed(
                    Report::new(Fault::UpgradeRefused, seen),
                    "TLS stands, and no answer came: what answers may hold requests back",
                )
            }
        }
    }

    fn http2_only<T>(&self) -> Verdict<T> {
        let seen = format!("{}: HTTP/1.1 was not agreed on (ALPN), and HTTP/2 was", self.relay);
        Verdict::failed(Report::new(Fault::UpgradeRefused, seen), "only HTTP/1.1 has an upgrade")
    }

    fn not_upgraded<T>(&self, error: HandshakeError, tape: &Tape) -> Verdict<T> {
        let by = tape.by().map_or_else(String::new, |by| format!(", by {by}"));
        let seen = format!("{}: {error}{by}", self.relay);
        match error {
            // What a relay says to a request without the headers of an upgrade.
            HandshakeError::Status(StatusCode::UPGRADE_REQUIRED) => Verdict::failed(
                Report::new(Fault::UpgradeStripped, seen),
                "the answer is the one of a relay that was asked for no upgrade; one was asked for here",
            ),
            HandshakeError::Busy(delay) => {
                Verdict::failed(Report::new(Fault::RelayLimit, seen).retry_after(delay), "")
            }
            HandshakeError::Io(error) => Verdict::failed(
                Report::caused_by(Fault::UpgradeRefused, self.relay.to_string(), error),
                "the connection was ended in place of an answer",
            ),
            HandshakeError::Status(_) | HandshakeError::Answer(_) => {
                Verdict::failed(Report::new(Fault::UpgradeRefused, seen), "")
            }
        }
    }

    /// This machine's clock beside the relay's, as its answer to the upgrade says it.
    fn clock_beside(&self, there: Option<SystemTime>) -> Verdict<()> {
        let Some(there) = there else { return Verdict::skipped("the answer to the upgrade has no Date") };
        let now = self.clock.now();
        let apart = now.duration_since(there).unwrap_or_else(|early| early.duration());
        let seen = format!("it is {} here and {} at the relay", at(now), at(there));
        let word = if now > there { "ahead" } else { "behind" };
        let why = format!("this clock is {} s {word}", apart.as_secs());
        match apart {
            apart if apart <= CLOCK_BEARS => Verdict::ok((), format!("{} s apart", apart.as_secs())),
            apart if apart <= CLOCK_FAILS => Verdict::warning((), Report::new(Fault::ClockWrong, seen), why),
            _ => Verdict::failed(Report::new(Fault::ClockWrong, seen), why),
        }
    }

    fn known(&self, looked: Result<Seen, Report>, rung: Rung) -> Verdict<Seen> {
        match looked {
            Ok(seen) => {
                let end = if seen.ends_here {
                    "outer TLS ends there"
                } else if rung == Rung::Pair {
                    "two connections can't tell where outer TLS ends: session TLS runs inside"
                } else {
                    "outer TLS ends before it, at a load balancer or a proxy that this machine trusts: session TLS keeps it out"
                };
                Verdict::ok(seen, format!("the identity key is the pinned one; {end}"))
            }
            Err(report) => Verdict::failed(report, ""),
        }
    }

    /// Large messages on a connection of their own: what is swallowed there must not spoil the other.
    async fn large(&self, again: Again<'_>) -> Verdict<()> {
        match self.again(again).await {
            Ok((carrier, exporter)) => frames::large(carrier, exporter, self.pin).await,
            Err(report) => {
                Verdict::failed(report, "the first connection was good, and the second one was not")
            }
        }
    }

    /// A further connection, like the first.
    pub(super) async fn pipe(&self, again: Again<'_>) -> Result<Box<dyn Pipe>, Report> {
        let late = |what: &str| Report::new(Fault::ConnectTimeout, format!("{}: {what}", self.relay));
        match again {
            Again::At(address) => match timeout(UPGRADE_WITHIN, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => Ok(Box::new(stream)),
                Ok(Err(error)) => Err(Report::caused_by(Fault::RelayUnreachable, address.to_string(), error)),
                Err(_elapsed) => Err(late("a further connection is not answered")),
            },
            Again::Through(way) => way.connect(&self.relay).await,
        }
    }

    async fn again(&self, again: Again<'_>) -> Result<(WebSocketCarrier<Tapped>, Option<Exporter>), Report> {
        let outer = self.tls(self.pipe(again).await?, again).await.into_result()?;
        let exporter = outer.exporter;
        let (tap, tape) = Tap::new(outer.stream);
        let carrier = self.upgrade(tap, &tape).await.into_result()?;
        Ok((carrier, exporter))
    }
}

impl Other {
    /// A step that was looked at on this carrier already.
    fn crossed<T>(self) -> Verdict<Carried<T>> {
        let seen = format!("both ways by {}, large messages too", self.rung);
        Verdict::ok(Carried::By(self), seen)
    }
}

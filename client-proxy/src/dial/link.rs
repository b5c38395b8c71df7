//! The session with the relay: dialled, kept, and dialled again; and lines for bulk beside it.

mod better;
mod lines;

use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::BytesMut;
use tokio::{
    sync::{Mutex, Notify, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use towline_tunnel::{
    backoff::{self, Backoff},
    carrier::{
        dial::{Dialler, Errand},
        ladder::{Climbed, Ladder, Memory},
        rung::Rung,
    },
    fault::{Fault, Report},
    ids::{ChannelId, InstanceId, KeyHash},
    keys::SigningKey,
    mux::{Closed, Connection, EndpointConfig, Keeper, Ledger, LineSettings, Side},
    session::Identify,
};

use super::cause::may_pass;
use crate::token::Tokens;

/// The first delay's ceiling, and the last one's, between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// A session that stood this long has earned a fresh start.
const STEADY: Duration = Duration::from_secs(10);
/// Requests do not make the dialler try more often than this.
const SPACING: Duration = Duration::from_millis(300);
/// While the relay is away for no longer than this, requests wait for it instead of failing: it may be restarting.
const HOLD: Duration = Duration::from_secs(10);
/// An attempt that took this long to fail, where packets are dropped rather than refused, speaks for a while for those
/// that follow: one kubectl makes several requests, and waits for each.
const SLOW: Duration = Duration::from_secs(1);
const SLOW_SPEAKS_FOR: Duration = Duration::from_secs(3);
/// No request waits longer than this for a session.
const PATIENCE: Duration = Duration::from_secs(13);
/// Sessions that take no new streams, kept until theirs end.
const MAX_OLD: usize = 4;
/// At shutdown, for GOAWAY to reach the relay.
const FAREWELL: Duration = Duration::from_secs(1);
/// Streams on one session: far more than one person's programs open at once.
const MAX_STREAMS: usize = 4096;
/// What this process promises to hold for its streams, in bytes.
const PROMISES: u64 = 256 << 20;

/// How the relay is reached and who asks.
#[derive(Debug)]
pub struct LinkConfig {
    /// Dials it.
    pub dialler: Dialler,
    /// The hash of its identity key.
    pub pin: KeyHash,
    /// Of this run.
    pub run_key: Arc<SigningKey>,
    /// Shown to it.
    pub tokens: Arc<Tokens>,
    /// How long a stream waits to go on when a connection on the way is lost.
    pub resume_timeout: Duration,
    /// How bulk is kept apart.
    pub lines: LineSettings,
    /// It is for one question: that its session is lost after that is no news.
    pub brief: bool,
    /// Which carriers got through.
    pub carriers: Memory,
}

/// A session on which streams can be opened.
#[derive(Clone, Debug)]
pub struct Session {
    /// The mux.
    pub connection: Connection,
    /// How every hop's log names the session.
    pub channel: ChannelId,
    /// How its bytes travel.
    pub carrier: Rung,
}

#[derive(Clone, Debug)]
enum State {
    Dialling,
    Up(Session),
    Down(Report),
}

#[derive(Clone, Debug)]
struct View {
    state: State,
    /// Attempts that have ended, either way.
    attempts: u64,
    /// When the last session was lost. Before the first one nothing is known to be coming back.
    lost: Option<Instant>,
    /// When the last attempt failed, if that took long and may pass by itself.
    slow: Option<(Instant, Report)>,
}

impl View {
    /// Whether nobody should wait for the relay any longer in the hope that it is just restarting.
    fn is_given_up(&self) -> bool {
        self.lost.is_none_or(|lost| lost.elapsed() >= HOLD)
    }
}

struct Shared {
    config: LinkConfig,
    view: watch::Sender<View>,
    wanted: Notify,
    stop: CancellationToken,
    ledger: Ledger,
    instance: InstanceId,
    keeper: Keeper,
}

/// The session with the relay, kept by a task that ends when this is dropped.
pub struct Link {
    shared: Arc<Shared>,
    /// Questions by CONTROL are asked one at a time; counts them.
    pub(super) questions: Mutex<u32>,
    keeping: Mutex<Vec<AbortOnDropHandle<()>>>,
    _resuming: AbortOnDropHandle<()>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("relay", self.shared.config.dialler.address()).finish_non_exhaustive()
    }
}

impl Link {
    /// Begins to dial.
    pub fn start(config: LinkConfig) -> Self {
        let view = View { state: State::Dialling, attempts: 0, lost: None, slow: None };
        let keeper = Keeper::with_lines(config.resume_timeout, MAX_STREAMS, config.lines);
        let shared = Arc::new(Shared {
            config,
            keeper,
            view: watch::Sender::new(view),
            wanted: Notify::new(),
            stop: CancellationToken::new(),
            ledger: Ledger::new(PROMISES),
            instance: InstanceId::random(),
        });
        let keeping = AbortOnDropHandle::new(tokio::spawn(keep(Arc::clone(&shared))));
        let resuming = AbortOnDropHandle::new(tokio::spawn(resume(Arc::clone(&shared))));
        let tending = AbortOnDropHandle::new(tokio::spawn(lines::tend(Arc::clone(&shared))));
        Self {
            shared,
            questions: Mutex::new(0),
            keeping: Mutex::new(vec![keeping, tending]),
            _resuming: resuming,
        }
    }

    /// Where the relay is.
    pub fn relay(&self) -> String {
        self.shared.config.dialler.address().to_string()
    }

    /// A session on which streams can be opened, as soon as there is one.
    ///
    /// # Errors
    /// The fault of the last attempt: at once where trying again can't help or the relay has been away for a
    /// while, and after a wait where it may just be restarting.
    pub async fn session(&self) -> Result<Session, Report> {
        self.shared.session().await
    }

    /// Says goodbye to the relay and ends the session.
    pub async fn close(&self) {
        self.shared.stop.cancel();
        self.shared.keeper.close();
        let deadline = Instant::now() + 2 * FAREWELL;
        for keeping in self.keeping.lock().await.drain(..) {
            // What is late is dropped, and with it the connections.
            let _late = timeout_at(deadline, keeping).await;
        }
    }
}

impl Shared {
    async fn session(&self) -> Result<Session, Report> {
        let begun = Instant::now();
        let deadline = begun + PATIENCE;
        let mut views = self.view.subscribe();
        let first = views.borrow_and_update().clone();
        if let Some((at, report)) = &first.slow
            && first.is_given_up()
            && at.elapsed() < SLOW_SPEAKS_FOR
        {
            self.wanted.notify_one();
            return Err(report.clone());
        }
        let seen = first.attempts;
        loop {
            let view = views.borrow_and_update().clone();
            let given_up = view.is_given_up();
            match view.state {
                State::Up(session) if session.connection.is_open() => return Ok(session),
                State::Up(_) | State::Dialling => {}
                State::Down(report) => {
                    let tried = view.attempts > seen;
                    if tried && (!may_pass(report.fault) || given_up) {
                        return Err(report);
                    }
                    self.wanted.notify_one();
                }
            }
            match timeout_at(deadline, views.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_stopped)) => return Err(Report::new(Fault::RelayUnreachable, "the proxy is ending")),
                Err(_elapsed) => return Err(self.overdue(&views.borrow().state)),
            }
        }
    }

    fn ladder(&self) -> Ladder {
        Ladder::new(self.config.dialler.clone(), self.config.carriers.clone())
    }

    /// A session stands: new streams are opened on it.
    fn tell_of(&self, session: &Session) {
        let relay = self.config.dialler.address();
        tracing::info!(%relay, channel = %session.channel, carrier = session.carrier.name(), "session established");
        self.view.send_modify(|view| {
            view.attempts += 1;
            (view.lost, view.slow) = (None, None);
            view.state = State::Up(session.clone());
        });
    }

    fn overdue(&self, state: &State) -> Report {
        match state {
            State::Down(report) => report.clone(),
            State::Up(_) | State::Dialling => {
                Report::new(Fault::ConnectTimeout, self.config.dialler.address().to_string())
            }
        }
    }
}

/// Takes streams up again that lost their connection.
async fn resume(shared: Arc<Shared>) {
    let session = || async { shared.session().await.ok().map(|session| session.connection) };
    match shared.keeper.run(session).await {}
}

async fn keep(shared: Arc<Shared>) {
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut was_up = false;
    let mut drivers: VecDeque<AbortOnDropHandle<Closed>> = VecDeque::new();
    'kept: while !shared.stop.is_cancelled() {
        shared.view.send_modify(|view| view.state = State::Dialling);
        let begun = Instant::now();
        let attempt = tokio::select! {
            attempt = establish(&shared, Purpose::Session) => attempt,
            () = shared.stop.cancelled() => break,
        };
        let (report, hint) = match attempt {
            Ok(mut stands) => {
                was_up = true;
                let lost = loop {
                    shared.tell_of(&stands.0);
                    tokio::select! {
                        lost = lost(&stands.0) => break lost,
                        better = better::found(&shared, stands.0.carrier) => {
                            let (session, driver) = std::mem::replace(&mut stands, better);
                            put_by(&mut drivers, better::retire(session, driver));
                        }
                        () = shared.stop.cancelled() => {
                            stands.0.connection.close();
                            put_by(&mut drivers, stands.1);
                            break 'kept;
                        }
                    }
                };
                put_by(&mut drivers, stands.1);
                if begun.elapsed() >= STEADY {
                    backoff.reset();
                }
                shared.view.send_modify(|view| view.lost = Some(Instant::now()));
                lost
            }
            Err(report) => {
                let slow = begun.elapsed() >= SLOW && may_pass(report.fault);
                shared.view.send_modify(|view| {
                    view.attempts += 1;
                    view.slow = slow.then(|| (Instant::now(), report.clone()));
                });
                let hint = report.delay();
                (report, hint)
            }
        };
        let delay = backoff.after_failure(hint, backoff::random());
        let retry_in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        if was_up && !shared.config.brief {
            tracing::warn!(%report, retry_in_ms, "no session with the relay");
        } else {
            // Whoever starts the program is told by that.
            tracing::debug!(%report, retry_in_ms, "no session with the relay yet");
        }
        shared.view.send_modify(|view| view.state = State::Down(report));
        wait(&shared, begun, delay, hint).await;
    }
    for driver in drivers {
        let _late = timeout(FAREWELL, driver).await;
    }
}

/// Keeps the driver of a session that takes no new streams until its streams have ended; of many, the newest.
fn put_by(drivers: &mut VecDeque<AbortOnDropHandle<Closed>>, driver: AbortOnDropHandle<Closed>) {
    drivers.retain(|driver| !driver.is_finished());
    drivers.push_back(driver);
    if drivers.len() > MAX_OLD {
        drivers.pop_front();
    }
}

/// Waits for the next attempt. Somebody who wants a session shortens the wait, but never what the relay asked for.
async fn wait(shared: &Shared, begun: Instant, delay: Duration, hint: Duration) {
    let now = Instant::now();
    let soonest = (begun + SPACING).max(now + hint);
    let wanted = async {
        shared.wanted.notified().await;
        tokio::time::sleep_until(soonest).await;
    };
    tokio::select! {
        () = sleep(delay) => {}
        () = wanted => {}
        () = shared.stop.cancelled() => {}
    }
}

/// Waits until a session ends or takes no new streams; says why, and how long the relay wants to be left alone.
async fn lost(session: &Session) -> (Report, Duration) {
    tokio::select! {
        error = session.connection.closed() => (error.into(), Duration::ZERO),
        said = session.connection.going_away() => match said {
            Ok(goaway) => (Report::new(goaway.reason.fault(), goaway.detail), goaway.delay),
            Err(error) => (error.into(), Duration::ZERO),
        },
    }
}

/// What a session is begun for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// To be the process's.
    Session,
    /// The same, on a better carrier than this one and on no other.
    Better(Rung),
    /// To carry bulk beside it.
    Line,
}

async fn establish(
    shared: &Shared,
    purpose: Purpose,
) -> Result<(Session, AbortOnDropHandle<Closed>), Report> {
    let config = &shared.config;
    // Before dialling: without a token there is nothing to say to the relay.
    let token = config.tokens.for_relay(SystemTime::now())?;
    let errand = Errand::of_parked(shared.keeper.parked());
    let line = purpose == Purpose::Line;
    let identify = Identify::Client { token: &token, run_key: &config.run_key, line };
    let ladder = shared.ladder();
    let climbed = match purpose {
        Purpose::Session | Purpose::Line => ladder.connect(errand, config.pin, identify).await,
        Purpose::Better(than) => ladder.better(than, errand, config.pin, identify).await,
    };
    let Climbed { session: begun, rung, .. } = climbed?;
    let endpoint = EndpointConfig {
        side: Side::Dialler,
        max_streams: MAX_STREAMS,
        ledger: shared.ledger.clone(),
        instance: shared.instance,
        jitter: backoff::random().to_be_bytes()[0],
    };
    let (connection, driver) =
        Connection::kept(begun.channel, BytesMut::new(), endpoint, shared.keeper.clone());
    let driver = AbortOnDropHandle::new(tokio::spawn(driver.run()));
    Ok((Session { connection, channel: begun.welcome.channel, carrier: rung }, driver))
}

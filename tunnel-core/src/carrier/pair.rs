//! A pair of HTTP/1.1 requests: one GET whose answer's body comes down for as long as the carrier lives, and POSTs up, one after the
//! other.
//!
//! For networks that pass on nothing but plain requests, and keep each until it is whole. The two halves are different
//! connections, so no TLS exporter is common to both ends: session TLS runs inside.

use std::{fmt, io, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    CHALLENGED, STREAMS_WAIT,
    dial::{DIAL_WITHIN, Dialler, Errand, HTTP1},
    http::{CONTENT_TYPE, HttpCarrier, MAX_HEAD, RequestError, Tasks, check_answer},
    pipe::{PipeReader, pipe},
};
use crate::fault::{Fault, Report};

/// Where both halves meet.
pub const PAIR_PATH: &str = "/v1/pair";
/// Header of both halves: which pair it is of, 32 hexadecimal digits in lower case.
pub const PAIR_ID: &str = "towline-pair";
/// Header of a POST: how many came before it, in decimal.
pub const SEQUENCE: &str = "towline-sequence";
/// Largest body of a POST, in bytes: what goes up in one round trip.
pub const MAX_POST: usize = 256 * 1024;

/// A POST that is not answered for so long is lost, and with it the carrier.
const POST_WITHIN: Duration = Duration::from_secs(10);

/// Names a pair; who knows it can end the pair, and nothing else. Made by the dialler.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PairId([u8; 16]);

impl fmt::Debug for PairId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairId(…)")
    }
}

impl PairId {
    /// One that nobody can guess.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source answers");
        Self(bytes)
    }

    /// What a request says, if it says so once and in the one spelling.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let text = one(headers, PAIR_ID)?;
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// The first bytes of the answer to the GET: it was read by a relay, and comes from nobody's cache.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    fn text(self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }
}

/// The number that a POST says it has.
pub fn sequence(headers: &HeaderMap) -> Option<u64> {
    let text = one(headers, SEQUENCE)?;
    // One spelling: no sign, no leading zeros.
    text.parse().ok().filter(|number: &u64| number.to_string() == text)
}

fn one<'a>(headers: &'a HeaderMap, name: &'static str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// Asks the relay for a pair. Takes as long as the peer does.
///
/// # Errors
/// If it can't be reached or is no relay.
pub(super) async fn client(
    dialler: &Dialler,
    errand: Errand,
    challenged: bool,
) -> Result<HttpCarrier, Report> {
    let tasks = Tasks::new();
    let guard = tasks.guard();
    let (id, authority) = (PairId::random(), dialler.address().authority());
    let mut down = Half::<http_body_util::Empty<Bytes>>::open(dialler, &tasks).await?;
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(PAIR_PATH)
        .header(header::HOST, &authority)
        .header(header::CACHE_CONTROL, "no-store")
        .header(PAIR_ID, id.text());
    if errand == Errand::GoOn {
        request = request.header(STREAMS_WAIT, "1");
    }
    if challenged {
        request = request.header(CHALLENGED, "1");
    }
    let request = request.body(http_body_util::Empty::new());
    let refused = |error: RequestError| dialler.request_failed("the GET of a pair", error);
    let answer = async {
        let answer = down.0.send_request(request.map_err(|_| RequestError::Answer)?).await?;
        check_answer(answer.status(), answer.headers())?;
        Ok(answer.into_body())
    };
    let incoming = answer.await.map_err(refused)?;
    let up = Half::open(dialler, &tasks).await?;
    let (writer, written) = pipe(MAX_POST);
    let broken = CancellationToken::new();
    let posting = Posting { dialler: dialler.clone(), tasks: tasks.clone(), up, id, authority, next: 0 };
    let lost = broken.clone();
    tasks.spawn(async move {
        if let Err(report) = posting.run(written).await {
            tracing::debug!(%report, "a pair of requests ended");
            lost.cancel();
        }
    });
    let mut carrier = HttpCarrier::of_request(incoming, writer).with_tasks(guard).keeping(down).until(broken);
    let mut said = [0; 16];
    tokio::io::AsyncReadExt::read_exact(&mut carrier, &mut said)
        .await
        .map_err(|error| Report::caused_by(Fault::CarrierLost, dialler.address().to_string(), error))?;
    if said != id.0 {
        return Err(refused(RequestError::Answer));
    }
    Ok(carrier)
}

/// One HTTP/1.1 connection to the relay.
struct Half<B>(http1::SendRequest<B>);

impl<B> Half<B>
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    async fn open(dialler: &Dialler, tasks: &Tasks) -> Result<Self, Report> {
        let (tls, _) = dialler.secured(HTTP1, Instant::now() + DIAL_WITHIN).await?;
        let (requests, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD as usize)
            .handshake(TokioIo::new(tls))
            .await
            .map_err(|error| dialler.request_failed("a connection of a pair", error.into()))?;
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP connection of a pair ended");
            }
        });
        Ok(Self(requests))
    }
}

/// Sends up what was written.
struct Posting {
    dialler: Dialler,
    tasks: Tasks,
    up: Half<Full<Bytes>>,
    id: PairId,
    authority: String,
    next: u64,
}

impl Posting {
    /// Until what is written ends. A POST that fails is never sent again: whether it arrived, nobody can say, and the streams know
    /// how to go on.
    async fn run(mut self, mut written: PipeReader) -> Result<(), Report> {
        loop {
            let next = written.next(MAX_POST).await.map_err(|error| self.lost(&error))?;
            let ends = next.is_none();
            // Without a byte it is the end.
            let posting = self.post(next.unwrap_or_default());
            match timeout(POST_WITHIN, posting).await {
                Ok(posted) => posted?,
                Err(_elapsed) => return Err(self.lost(&io::ErrorKind::TimedOut.into())),
            }
            if ends {
                return Ok(());
            }
        }
    }

    fn lost(&self, error: &io::Error) -> Report {
        Report::new(Fault::CarrierLost, format!("{}: {error}", self.dialler.address()))
    }

    async fn post(&mut self, bytes: Bytes) -> Result<(), Report> {
        // A server may end a connection between two requests.
        if self.up.0.ready().await.is_err() || self.up.0.is_closed() {
            self.up = Half::open(&self.dialler, &self.tasks).await?;
        }
        let answered = self.ask(bytes).await;
        self.next += 1;
        answered.map_err(|error| self.dialler.request_failed("a POST of a pair", error))
    }

    async fn ask(&mut self, bytes: Bytes) -> Result<(), RequestError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(PAIR_PATH)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, CONTENT_TYPE)
            .header(PAIR_ID, self.id.text())
            .header(SEQUENCE, self.next)
            .body(Full::new(bytes))
            .map_err(|_| RequestError::Answer)?;
        let answer = self.up.0.send_request(request).await?;
        let status = answer.status();
        discard(answer.into_body()).await?;
        if status == StatusCode::NO_CONTENT { Ok(()) } else { Err(RequestError::Status(status)) }
    }
}

/// A connection is used again once its answer was read.
async fn discard(body: Incoming) -> Result<(), RequestError> {
    const MOST: usize = 16 * 1024;
    let read = http_body_util::Limited::new(body, MOST).collect().await;
    read.map(|_| ()).map_err(|_| RequestError::Answer)
}

//! A long line on loopback: a TCP relay that delays, narrows and cuts.
//!
//! What it is: every connection through it shares one line, which has a rate in each direction, a delay, jitter that never
//! reorders, and a queue in front of it of bounded length: when that is full, the sender is not read. What it is not:
//! a lossy link. TCP's own recovery is the kernel's matter, on loopback with a round trip of microseconds on each side
//! of the line; so a window that is too small shows, and congestion control does not.

mod pacer;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use pacer::Pacer;

/// What is read at once, and delayed as one.
const CHUNK: usize = 16 * 1024;
/// Chunks on their way in one direction of one connection, at most.
const IN_FLIGHT: usize = 16 * 1024;

/// What a line is like, in each direction.
#[derive(Clone, Copy, Debug)]
pub struct Nature {
    /// From one end to the other: half a round trip.
    pub delay: Duration,
    /// Up to this much longer, by chance.
    pub jitter: Duration,
    /// Bits a second; as many as the machine can where there is none.
    pub rate: Option<f64>,
    /// How long a byte may wait until it is sent.
    pub queue: Duration,
}

impl Nature {
    /// A line with this round trip and rate (bits a second), a queue of 20 ms, and no jitter.
    pub fn new(round_trip: Duration, rate: Option<f64>) -> Self {
        Self { delay: round_trip / 2, jitter: Duration::ZERO, rate, queue: Duration::from_millis(20) }
    }
}

/// A line. Dropping it cuts it.
#[derive(Debug)]
pub struct Line {
    address: SocketAddr,
    shared: Arc<Shared>,
    _listening: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    to: SocketAddr,
    there: Mutex<Pacer>,
    back: Mutex<Pacer>,
    /// The connections' of now; those of later have another.
    cut: Mutex<CancellationToken>,
    open: AtomicUsize,
}

impl Line {
    /// A line to an address.
    ///
    /// # Errors
    /// If it can't listen.
    pub async fn to(to: SocketAddr, nature: Nature) -> io::Result<Self> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let now = Instant::now();
        let shared = Arc::new(Shared {
            to,
            there: Mutex::new(Pacer::new(nature, now)),
            back: Mutex::new(Pacer::new(nature, now)),
            cut: Mutex::default(),
            open: AtomicUsize::new(0),
        });
        let mut listening = JoinSet::new();
        listening.spawn(listen(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, _listening: listening })
    }

    /// Where its near end is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections on it now.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Cuts every connection on it, as a rebooting router does: both ends get a reset, and what was on its way is lost.
    pub fn cut(&self) {
        let mut cut = self.shared.cut.lock().unwrap_or_else(PoisonError::into_inner);
        cut.cancel();
        *cut = CancellationToken::new();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.cut();
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((near, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            shared.open.fetch_add(1, Ordering::Relaxed);
            // A connection that breaks is seen by both of its ends.
            let _ended = connection(near, &shared).await;
            shared.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn connection(mut near: TcpStream, shared: &Shared) -> io::Result<()> {
    let cut = shared.cut.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut far = TcpStream::connect(shared.to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    tokio::select! {
        carried = carry(&mut near, &mut far, &shared.there, &shared.back) => carried,
        () = cut.cancelled() => {
            for stream in [&near, &far] {
                // With no time to linger, closing sends a reset.
                SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
            }
            Ok(())
        }
    }
}

/// Carries both directions to their ends.
async fn carry<A, B>(near: A, far: B, there: &Mutex<Pacer>, back: &Mutex<Pacer>) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (near_reader, near_writer) = split(near);
    let (far_reader, far_writer) = split(far);
    tokio::try_join!(direction(near_reader, far_writer, there), direction(far_reader, near_writer, back))?;
    Ok(())
}

async fn direction<R, W>(mut reader: R, mut writer: W, pacer: &Mutex<Pacer>) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (sender, mut receiver) = mpsc::channel::<(Instant, Bytes)>(IN_FLIGHT);
    let send = async move {
        let mut block = BytesMut::new();
        loop {
            block.reserve(CHUNK);
            let n = (&mut reader).take(CHUNK as u64).read_buf(&mut block).await?;
            let sent = pacer.lock().unwrap_or_else(PoisonError::into_inner).send(n, Instant::now());
            if sender.send((sent.arrives, block.split().freeze())).await.is_err() || n == 0 {
                return Ok(());
            }
            // The queue is full: the next is read when there is room. A timer takes a millisecond, even to a time that
            // is past.
            if sent.room > Instant::now() {
                sleep_until(sent.room).await;
            }
        }
    };
    let receive = async move {
        while let Some((arrives, bytes)) = receiver.recv().await {
            if arrives > Instant::now() {
                sleep_until(arrives).await;
            }
            if bytes.is_empty() {
                return writer.shutdown().await;
            }
            writer.write_all(&bytes).await?;
        }
        Ok(())
    };
    tokio::try_join!(send, receive).map(|_| ())
}

#[cfg(test)]
mod tests;

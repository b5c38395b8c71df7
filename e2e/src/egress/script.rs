//! What no real server does: proxies that answer CONNECT and then do nothing, or show a page, and a way that cuts each connection.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};

/// How a proxy answers CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Not at all.
    Nothing,
    /// 200, and then nothing passes.
    OpenAndHang,
    /// A page in place of the way.
    LoginPage,
    /// The address of such a page.
    Redirect,
    /// It hangs up.
    HangUp,
}

impl Answer {
    fn text(self) -> &'static str {
        match self {
            Self::Nothing | Self::HangUp => "",
            Self::OpenAndHang => "HTTP/1.1 200 Connection established\r\n\r\n",
            Self::LoginPage => {
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 34\r\n\r\n<html>Welcome. Log in here.</html>"
            }
            Self::Redirect => {
                "HTTP/1.1 302 Found\r\nLocation: http://login.portal.test/?from=you\r\nContent-Length: 0\r\n\r\n"
            }
        }
    }
}

/// Accepts connections until it is dropped, and ends them with it.
pub(super) struct Served {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Served {
    /// Serves each connection so. Within a runtime.
    ///
    /// # Errors
    /// If the listener can't be used.
    pub(super) fn start<F>(
        listener: std::net::TcpListener,
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                // What becomes of it is for its peers to find out.
                connections.spawn(serve(client));
            }
        });
        Ok(Self { address, task })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A free port of this machine's.
///
/// # Errors
/// If there is none.
pub(super) fn free() -> io::Result<std::net::TcpListener> {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

/// A proxy that answers every request so.
///
/// # Errors
/// If there is no free port.
pub(super) fn proxy(answer: Answer) -> io::Result<Served> {
    Served::start(free()?, move |mut client| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && head.len() < 16 * 1024 {
            head.push(client.read_u8().await?);
        }
        client.write_all(answer.text().as_bytes()).await?;
        if answer == Answer::HangUp {
            return Ok(());
        }
        // It takes everything, until the other hangs up.
        tokio::io::copy(&mut client, &mut tokio::io::sink()).await.map(drop)
    })
}

/// What a way does to connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Harm {
    /// Each ends when it is so old.
    pub(super) life: Duration,
    /// Bytes a second in each direction, of each.
    pub(super) rate: u64,
}

/// Passes connections on to somebody.
pub(super) struct Forward(Served);

impl Forward {
    /// From a listener to an address. Within a runtime.
    ///
    /// # Errors
    /// If the listener can't be used.
    pub(super) fn start(from: std::net::TcpListener, to: SocketAddr, harm: Option<Harm>) -> io::Result<Self> {
        Served::start(from, move |client| pass(client, to, harm)).map(Self)
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.0.address()
    }
}

async fn pass(mut client: TcpStream, to: SocketAddr, harm: Option<Harm>) -> io::Result<()> {
    let mut server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let Some(Harm { life, rate }) = harm else {
        return tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop);
    };
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let both = async {
        tokio::try_join!(slowly(from_client, to_server, rate), slowly(from_server, to_client, rate))
    };
    // One that is too old ends without a word.
    timeout(life, both).await.map_or(Ok(()), |ended| ended.map(drop))
}

/// Copies no faster than that. What is small passes at once.
async fn slowly(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    rate: u64,
) -> io::Result<()> {
    let mut piece = vec![0; 16 * 1024];
    let mut free_at = Instant::now();
    loop {
        let read = from.read(&mut piece).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        sleep_until(free_at).await;
        free_at = free_at.max(Instant::now()) + Duration::from_secs_f64(read as f64 / rate as f64);
        to.write_all(&piece[..read]).await?;
    }
}

//! A forward proxy (RFC 9110, 9.3.6) that is the only way to one host: nobody else knows where its name leads.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use data_encoding::BASE64;

/// The host, which has no address in any DNS (RFC 6761).
pub const HOST: &str = "relay.towline.test";
/// Whom the proxy lets through, as `USER:PASSWORD`.
pub const CREDENTIALS: &str = "agent:hunter2";
/// A request's head has no more, and is there within this time.
const HEAD: u64 = 8 * 1024;
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// A proxy that runs. Dropping it ends it, and all that goes through it.
#[derive(Debug)]
pub struct OnlyWay {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Where the host really is.
    host: SocketAddr,
    ended: AtomicBool,
    /// First lines of requests, and how each was answered.
    asked: Mutex<Vec<(String, u16)>>,
    connections: Mutex<Vec<TcpStream>>,
}

impl OnlyWay {
    /// Starts on a free port.
    ///
    /// # Errors
    /// If there is none.
    pub fn to(host: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            host,
            ended: AtomicBool::new(false),
            asked: Mutex::default(),
            connections: Mutex::default(),
        });
        let accepting = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        Ok(Self { address, shared, accepting: Some(accepting) })
    }

    /// Its URL, without credentials.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// First lines of the requests so far, and how each was answered.
    pub fn asked(&self) -> Vec<(String, u16)> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for OnlyWay {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        for connection in self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _gone = connection.shutdown(Shutdown::Both);
        }
        // One more connection, so that it looks up from accepting.
        let _woken = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ended = accepting.join();
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        let mut serving = Vec::new();
        while let Ok((client, _)) = listener.accept() {
            if self.ended.load(Ordering::SeqCst) {
                break;
            }
            let shared = Arc::clone(self);
            serving.push(thread::spawn(move || {
                // A connection that breaks is its peers' to notice.
                let _ended = shared.serve(client);
            }));
        }
        for thread in serving {
            let _ended = thread.join();
        }
    }

    fn keep(&self, connection: &TcpStream) -> io::Result<()> {
        let clone = connection.try_clone()?;
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).push(clone);
        Ok(())
    }

    fn serve(&self, client: TcpStream) -> io::Result<()> {
        self.keep(&client)?;
        client.set_read_timeout(Some(HEAD_WITHIN))?;
        let mut reader = BufReader::new(client.try_clone()?);
        let mut head = Vec::new();
        let mut lines = (&mut reader).take(HEAD);
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            head.push(line);
        }
        let first = head.first().cloned().unwrap_or_default();
        let expected = format!("proxy-authorization: basic {}", BASE64.encode(CREDENTIALS.as_bytes()));
        let known = head.iter().any(|line| line.eq_ignore_ascii_case(&expected));
        let meant = format!("CONNECT {HOST}:{} HTTP/1.1", self.host.port());
        let (code, answer) = match (known, first == meant) {
            (false, _) => (407, "Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"e2e\""),
            (true, false) => (403, "Forbidden"),
            (true, true) => (200, "Connection established"),
        };
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push((first, code));
        let mut client = client;
        if code != 200 {
            write!(client, "HTTP/1.1 {code} {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
            // What is kept of it would hold it open.
            return client.shutdown(Shutdown::Both);
        }
        let relay = TcpStream::connect(self.host)?;
        self.keep(&relay)?;
        write!(client, "HTTP/1.1 {code} {answer}\r\n\r\n")?;
        client.set_read_timeout(None)?;
        let back = thread::spawn({
            let (mut from, mut to) = (relay.try_clone()?, client.try_clone()?);
            move || copy(&mut from, &mut to)
        });
        // What was read ahead is passed on first.
        copy(&mut reader, &mut relay.try_clone()?);
        let _ended = back.join();
        Ok(())
    }
}

/// One direction, with its end.
fn copy(from: &mut impl io::Read, to: &mut TcpStream) {
    let _broken = io::copy(from, to);
    let _ended = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(proxy: &OnlyWay, head: &str) -> String {
        let mut stream = TcpStream::connect(proxy.address).unwrap();
        stream.set_read_timeout(Some(HEAD_WITHIN)).unwrap();
        write!(stream, "{head}\r\n\r\nhello").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn it_leads_to_one_host_and_only_whom_it_knows() {
        let host = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = host.local_addr().unwrap();
        let echo = thread::spawn(move || {
            let (mut stream, _) = host.accept().unwrap();
            let mut to = stream.try_clone().unwrap();
            copy(&mut stream, &mut to);
        });
        let proxy = OnlyWay::to(address).unwrap();
        let known = format!("Proxy-Authorization: Basic {}", BASE64.encode(CREDENTIALS.as_bytes()));
        let meant = format!("CONNECT {HOST}:{} HTTP/1.1", address.port());
        assert!(ask(&proxy, &meant).starts_with("HTTP/1.1 407 "));
        assert!(ask(&proxy, &format!("CONNECT {address} HTTP/1.1\r\n{known}")).starts_with("HTTP/1.1 403 "));
        let through = ask(&proxy, &format!("{meant}\r\n{known}"));
        assert!(through.starts_with("HTTP/1.1 200 ") && through.ends_with("\r\n\r\nhello"), "{through}");
        echo.join().unwrap();
        let codes: Vec<u16> = proxy.asked().into_iter().map(|(_, code)| code).collect();
        assert_eq!(codes, [407, 403, 200]);
    }
}

use tokio::io::{DuplexStream, duplex};

use super::*;

type Joined = tokio::task::JoinHandle<Result<(), Broken>>;

/// The caller's end, kube-apiserver's end, and what runs between them.
fn joined(reset: &ResetReason) -> (DuplexStream, DuplexStream, Joined) {
    let (caller, inner) = duplex(64 * 1024);
    let (apiserver, upstream) = duplex(64 * 1024);
    let reset = reset.clone();
    let joined =
        tokio::spawn(
            async move { join(inner, upstream, &Counter::default(), &Counter::default(), &reset).await },
        );
    (caller, apiserver, joined)
}

async fn read_all(stream: &mut DuplexStream) -> Vec<u8> {
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    got
}

#[tokio::test]
async fn each_direction_ends_on_its_own() {
    for caller_first in [true, false] {
        let (caller, apiserver, joined) = joined(&ResetReason::default());
        let (mut first, mut second) = if caller_first { (caller, apiserver) } else { (apiserver, caller) };
        first.write_all(b"one").await.unwrap();
        first.shutdown().await.unwrap();
        assert_eq!(read_all(&mut second).await, b"one");
        let rest = async {
            second.write_all(&[7; 300_000]).await.unwrap();
            second.write_all(b"end").await.unwrap();
            second.shutdown().await.unwrap();
        };
        let (got, ()) = tokio::join!(read_all(&mut first), rest);
        assert!(got.ends_with(b"end") && got.len() == 300_003);
        joined.await.unwrap().unwrap();
    }
}

/// Reads give an error after some bytes, as TLS does without close_notify.
struct CutShort(&'static [u8]);

impl AsyncRead for CutShort {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.0.is_empty() {
            return std::task::Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        buf.put_slice(std::mem::take(&mut this.0));
        std::task::Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for CutShort {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
        _bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::task::Poll::Pending
    }
    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn t50_what_kube_apiserver_cuts_is_never_passed_on_as_an_end() {
    let (_caller, inner) = duplex(1024);
    let reset = ResetReason::default();
    let result = join(inner, CutShort(b"part"), &Counter::default(), &Counter::default(), &reset).await;
    assert!(matches!(result, Err(Broken::Upstream(_))), "{result:?}");
    assert!(format!("{reset:?}").contains("Truncated"), "{reset:?}");
}

#[tokio::test]
async fn what_kube_apiserver_said_before_it_took_no_more_is_still_read() {
    let (mut caller, mut apiserver, joined) = joined(&ResetReason::default());
    apiserver.write_all(b"goodbye").await.unwrap();
    drop(apiserver);
    let mut got = Vec::new();
    // It takes nothing any more; writing on must not lose what it said.
    for _ in 0..100 {
        if caller.write_all(&[1; 4096]).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    caller.shutdown().await.unwrap_or_default();
    caller.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"goodbye");
    joined.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_caller_that_leaves_ends_it() {
    let (caller, mut apiserver, joined) = joined(&ResetReason::default());
    drop(caller);
    assert_eq!(read_all(&mut apiserver).await, b"");
    drop(apiserver);
    let _ended = joined.await.unwrap();
}

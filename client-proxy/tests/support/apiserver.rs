//! An apiserver of which the path decides what it does.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};

/// The next part of a body.
pub enum Fed {
    Bytes(&'static str),
    Cut,
}

type Answer = UnsyncBoxBody<Bytes, io::Error>;

#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
}

#[derive(Clone, Default)]
pub struct Apiserver {
    pub seen: Arc<Mutex<Vec<Seen>>>,
    /// Bytes that upgraded connections received.
    pub received: Arc<AtomicUsize>,
    /// Upgraded connections that ended cleanly, both ways.
    pub ended: Arc<AtomicUsize>,
    /// Upgraded connections that were cut.
    pub broken: Arc<AtomicUsize>,
    /// Requests to /hang that were given up.
    pub given_up: Arc<AtomicUsize>,
    /// The agent serves whatever cluster it is asked for, with the wrong key.
    pub impostor: Arc<AtomicBool>,
    /// Discovery is answered with 503.
    pub refuses_discovery: Arc<AtomicBool>,
    /// By which a test says what a body is made of.
    pub feeds: Arc<Mutex<Vec<mpsc::Sender<Fed>>>>,
}

/// Counts when it is dropped before it is disarmed.
struct GivenUp(Arc<AtomicUsize>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Apiserver {
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The feed that was asked for last.
    pub fn last_feed(&self) -> mpsc::Sender<Fed> {
        self.feeds.lock().unwrap().pop().unwrap()
    }

    fn feed(&self) -> Feed {
        let (sender, receiver) = mpsc::channel(16);
        self.feeds.lock().unwrap().push(sender);
        Feed(receiver)
    }

    pub async fn answer(self, request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
        let path = request.uri().path_and_query().unwrap().as_str().to_owned();
        let (method, headers) = (request.method().clone(), request.headers().clone());
        self.seen.lock().unwrap().push(Seen { method, path, headers });
        let path = request.uri().path().to_owned();
        Ok(match path.as_str() {
            "/version" => whole(200, r#"{"major":"1","minor":"36"}"#),
            "/api" | "/apis" if self.refuses_discovery.load(Ordering::SeqCst) => whole(503, "away"),
            "/api" | "/apis" => whole(200, &format!("the APIs of {path}")),
            "/echo" => Response::new(request.into_body().map_err(io::Error::other).boxed_unsync()),
            "/feed" => Response::new(self.feed().boxed_unsync()),
            "/cut/length" => {
                let mut response = Response::new(self.feed().boxed_unsync());
                response.headers_mut().insert("content-length", 1000.into());
                response
            }
            "/cut/chunked" => Response::new(self.feed().boxed_unsync()),
            "/hang" => {
                let _given_up = GivenUp(Arc::clone(&self.given_up));
                std::future::pending().await
            }
            "/too-large" => whole(413, "too large"),
            // The agent's own, and not the apiserver's.
            "/.towline/authority" => whole(204, ""),
            "/elsewhere" => {
                let mut response = whole(307, "");
                response.headers_mut().insert("location", "https://elsewhere.example/".parse().unwrap());
                response
            }
            "/unauthorized" => {
                let report = towline_tunnel::fault::Report::new(
                    towline_tunnel::fault::Fault::ClusterTokenRefused,
                    "by the script",
                );
                whole(401, &report.status_json())
            }
            path if path.starts_with("/upgrade") => self.upgrade(path.to_owned(), request),
            "/refuse-upgrade" => whole(403, "no exec for you"),
            _ => whole(404, "not found"),
        })
    }

    /// `/upgrade/echo` sends back what comes and then `bye`; `/upgrade/push` ends its own direction first;
    /// `/upgrade/cut` breaks off.
    fn upgrade(self, path: String, mut request: Request<Incoming>) -> Response<Answer> {
        let protocol = request.headers()["upgrade"].clone();
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgraded.await.unwrap());
            if path == "/upgrade/cut" {
                io.write_all(b"half a sent").await.unwrap();
                io.flush().await.unwrap();
                io.read_u8().await.unwrap();
                return;
            }
            if path == "/upgrade/push" {
                io.write_all(b"all there is").await.unwrap();
                io.shutdown().await.unwrap();
            }
            let mut buffer = vec![0; 16 * 1024];
            loop {
                let Ok(n) = io.read(&mut buffer).await else {
                    self.broken.fetch_add(1, Ordering::SeqCst);
                    return;
                };
                self.received.fetch_add(n, Ordering::SeqCst);
                if n == 0 {
                    break;
                }
                if path == "/upgrade/echo" {
                    io.write_all(&buffer[..n]).await.unwrap();
                    io.flush().await.unwrap();
                }
            }
            if path == "/upgrade/echo" {
                io.write_all(b"bye").await.unwrap();
                io.shutdown().await.unwrap();
            }
            self.ended.fetch_add(1, Ordering::SeqCst);
        });
        let mut response = whole(101, "");
        *response.body_mut() = Full::default().map_err(|never| match never {}).boxed_unsync();
        response.headers_mut().insert("upgrade", protocol);
        response.headers_mut().insert("connection", "Upgrade".parse().unwrap());
        response.headers_mut().insert("x-stream-protocol-version", "v4.channel.k8s.io".parse().unwrap());
        response
    }
}

fn whole(status: u16, body: &str) -> Response<Answer> {
    let body = Full::new(Bytes::from(body.to_owned())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// Sends what the test says; ends where the test drops its end.
struct Feed(mpsc::Receiver<Fed>);

impl Body for Feed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(cx).map(|fed| {
            fed.map(|fed| match fed {
                Fed::Bytes(bytes) => Ok(Frame::data(Bytes::from_static(bytes.as_bytes()))),
                Fed::Cut => Err(io::Error::other("cut by the test")),
            })
        })
    }
}

//! Nothing secret is logged, whatever is logged.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::{
    io,
    sync::{Arc, Mutex},
};

use support::{Bench, Cap, fault, parts};
use towline_agent::forward::{Access, Mode};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn t29_at_trace_no_token_and_no_content_is_logged() {
    let (log, mut signatures) = (Log::default(), Vec::new());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("trace"))
        .with_ansi(false)
        .with_writer(log.clone())
        .init();
    const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\ncanary-answer";
    for mode in [Mode::Impersonate, Mode::PassThrough] {
        let bench = Bench::with(Cap::answering(ANSWER).await, Access { mode, ..Access::default() }).await;
        signatures.push(ask(&bench, mode).await);
    }
    let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(logged.contains("TRACE") && logged.contains("request refused"), "everything is logged");
    let canaries = ["agent-token", "canary-answer", "canary-cookie", "canary-query"];
    for canary in canaries.into_iter().chain(signatures.iter().map(String::as_str)) {
        let line = logged.lines().find(|line| line.contains(canary));
        assert_eq!(line, None, "{canary}");
    }
}

/// Asks in all kinds of ways; returns what is secret of the token.
async fn ask(bench: &Bench, mode: Mode) -> String {
    let token = bench.token();
    // A wish to be somebody else that nobody judges here, or that goes on.
    let wish = if mode == Mode::PassThrough { 200 } else { 503 };
    for (more, code) in [
        ("", 200),
        ("Cookie: canary-cookie\r\n", 200),
        ("Impersonate-User: a\r\n", wish),
        ("Host: b\r\n", 400),
    ] {
        let head = format!(
            "GET /api?x=canary-query HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n{more}\r\n"
        );
        assert_eq!(parts(&bench.ask(&head).await).0, code);
    }
    let broken =
        format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {token}x\r\n\r\n");
    assert_eq!(fault(&bench.ask(&broken).await).0, 401);
    token.rsplit('.').next().unwrap().to_owned()
}

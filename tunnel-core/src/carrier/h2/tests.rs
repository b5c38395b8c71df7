use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{HeaderValue, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http2 as server, service::service_fn};
use hyper_util::rt::TokioExecutor;
use tokio::{io::duplex, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::*;

/// What a peer makes of extended CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connects {
    NotOffered,
    Taken,
    Refused,
    Unanswered,
}

type Methods = Arc<Mutex<Vec<Method>>>;

async fn answer(
    method: Method,
    connects: Connects,
    greeting: &'static str,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::new(Bytes::new()));
    match (method, connects) {
        (Method::CONNECT, Connects::Taken) => {
            let ours = HeaderValue::from_static(SUBPROTOCOL);
            response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, ours);
        }
        (Method::CONNECT, Connects::Unanswered) => std::future::pending().await,
        (Method::CONNECT, _) => *response.status_mut() = StatusCode::NOT_FOUND,
        _ => {
            let kind = HeaderValue::from_static(CONTENT_TYPE);
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            *response.body_mut() = Full::new(Bytes::from_static(greeting.as_bytes()));
        }
    }
    Ok(response)
}

/// What a dialler asks such a peer for, and what comes of it.
async fn asked(connects: Connects, greeting: &'static str) -> (Result<Asked, RequestError>, Vec<Method>) {
    let (near, far) = duplex(64 * 1024);
    let methods = Methods::default();
    let seen = Arc::clone(&methods);
    let service = service_fn(move |request: Request<Incoming>| {
        seen.lock().unwrap().push(request.method().clone());
        answer(request.method().clone(), connects, greeting)
    });
    let mut builder = server::Builder::new(TokioExecutor::new());
    if connects != Connects::NotOffered {
        builder.enable_connect_protocol();
    }
    let serving = builder.serve_connection(TokioIo::new(far), service);
    let _serving = AbortOnDropHandle::new(tokio::spawn(async move {
        let _ended = serving.await;
    }));
    let asked = client(near, "relay.test", Errand::Begin, false).await;
    let methods = methods.lock().unwrap().clone();
    (asked, methods)
}

#[tokio::test(start_paused = true)]
async fn extended_connect_is_asked_for_where_it_is_offered_and_a_post_otherwise() {
    let (carrier, methods) = asked(Connects::NotOffered, SUBPROTOCOL).await;
    assert!(matches!(carrier, Ok(Asked::Post(_))) && methods == [Method::POST], "{methods:?}");
    let (carrier, methods) = asked(Connects::Taken, SUBPROTOCOL).await;
    assert!(matches!(carrier, Ok(Asked::Tunnel(_))) && methods == [Method::CONNECT], "{methods:?}");
}

#[tokio::test(start_paused = true)]
async fn what_offers_extended_connect_and_does_not_do_it_is_asked_for_a_post_soon() {
    for connects in [Connects::Refused, Connects::Unanswered] {
        let begun = Instant::now();
        let (carrier, methods) = asked(connects, SUBPROTOCOL).await;
        assert!(matches!(carrier, Ok(Asked::Post(_))), "{connects:?}");
        assert_eq!(methods, [Method::CONNECT, Method::POST]);
        assert!(begun.elapsed() < 2 * CONNECT_WITHIN, "{connects:?}: {:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_begin_as_a_relays_is_none() {
    for greeting in ["", "towline.", "<html>login"] {
        let (carrier, _) = asked(Connects::NotOffered, greeting).await;
        assert!(matches!(carrier, Err(RequestError::Answer)), "{greeting:?}");
    }
}

/// However it is cut, the first frame is known to be whole neither too early nor too late.
#[test]
fn the_first_frame_is_followed_in_pieces() {
    let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1, 0xff];
    for size in 1..=settings.len() {
        let mut first = First::Head(Vec::new());
        let mut came = 0;
        for piece in settings.chunks(size) {
            first.came(piece);
            came += piece.len();
            assert_eq!(matches!(first, First::Rest(0)), came >= 15, "{came} bytes in pieces of {size}");
        }
    }
}

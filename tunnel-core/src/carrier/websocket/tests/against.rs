//! Against tungstenite as the peer, in both roles.

use futures_util::{SinkExt as _, StreamExt as _};
use proptest::{prelude::*, proptest};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, protocol::Role as Theirs},
};

use super::*;

/// Ours, and tungstenite in the other role.
async fn pair(ours: Role, room: usize) -> (WebSocketCarrier<DuplexStream>, WebSocketStream<DuplexStream>) {
    let (a, b) = duplex(room);
    let theirs = match ours {
        Role::Client => Theirs::Server,
        Role::Server => Theirs::Client,
    };
    (WebSocketCarrier::new(a, ours, BytesMut::new()), WebSocketStream::from_raw_socket(b, theirs, None).await)
}

/// What tungstenite sends: messages, whole or in two frames, and pings between.
#[derive(Clone, Debug)]
enum Sends {
    Message(Vec<u8>),
    Halves(Vec<u8>, Vec<u8>),
    Ping(Vec<u8>),
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![0..3usize, 120..130usize, 65_530..65_540usize, 0..90_000usize].prop_flat_map(|length| {
        any::<u8>().prop_map(move |seed| {
            (0..length).map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed)).collect()
        })
    })
}

fn sends() -> impl Strategy<Value = Sends> {
    prop_oneof![
        payload().prop_map(Sends::Message),
        (payload(), payload()).prop_map(|(first, last)| Sends::Halves(first, last)),
        prop::collection::vec(any::<u8>(), 0..126).prop_map(Sends::Ping),
    ]
}

async fn send(theirs: &mut WebSocketStream<DuplexStream>, what: &Sends) {
    use tungstenite::protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    };
    let part = |payload: &[u8], opcode, fin| {
        tungstenite::Message::Frame(Frame::message(payload.to_vec(), OpCode::Data(opcode), fin))
    };
    match what {
        Sends::Message(payload) => theirs.feed(tungstenite::Message::binary(payload.clone())).await.unwrap(),
        Sends::Halves(first, last) => {
            theirs.feed(part(first, Data::Binary, false)).await.unwrap();
            theirs.feed(part(last, Data::Continue, true)).await.unwrap();
        }
        Sends::Ping(payload) => {
            theirs.feed(tungstenite::Message::Ping(payload.clone().into())).await.unwrap()
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

fn role(client: bool) -> Role {
    if client { Role::Client } else { Role::Server }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_tungstenite_sends_is_read(
        client: bool,
        room in 1..100_000usize,
        read in 1..100_000usize,
        all in prop::collection::vec(sends(), 0..6),
    ) {
        let expected: Vec<u8> = all.iter().flat_map(|sent| match sent {
            Sends::Message(payload) => payload.clone(),
            Sends::Halves(first, last) => [&first[..], last].concat(),
            Sends::Ping(_) => Vec::new(),
        }).collect();
        let got = runtime().block_on(async move {
            let (mut ours, mut theirs) = pair(role(client), room).await;
            let sending = async {
                for what in &all {
                    send(&mut theirs, what).await;
                }
                theirs.close(None).await.unwrap();
                // Answers are taken, so that ours is never held up for ever.
                while let Some(Ok(_)) = theirs.next().await {}
            };
            let reading = async move {
                let (mut got, mut buffer) = (Vec::new(), vec![0; read]);
                loop {
                    match ours.read(&mut buffer).await.unwrap() {
                        0 => break got,
                        count => got.extend_from_slice(&buffer[..count]),
                    }
                }
            };
            timeout(Duration::from_secs(60), async { tokio::join!(sending, reading).1 }).await.unwrap()
        });
        prop_assert!(got == expected);
    }

    #[test]
    fn what_is_written_tungstenite_reads(
        client: bool,
        room in 1..100_000usize,
        all in prop::collection::vec((payload(), any::<bool>()), 0..6),
    ) {
        let expected: Vec<u8> = all.iter().flat_map(|(payload, _)| payload.clone()).collect();
        let got = runtime().block_on(async move {
            let (mut ours, mut theirs) = pair(role(client), room).await;
            let writing = async move {
                for (payload, parts) in &all {
                    let mut rest = &payload[..];
                    while !rest.is_empty() {
                        let (first, last) = rest.split_at(rest.len() / 3);
                        let parts = if *parts { [IoSlice::new(first), IoSlice::new(last)] } else { [IoSlice::new(rest), IoSlice::new(&[])] };
                        let count = ours.write_vectored(&parts).await.unwrap();
                        assert!((1..=WRITE_MESSAGE).contains(&count));
                        rest = &rest[count..];
                    }
                    ours.flush().await.unwrap();
                }
                ours.shutdown().await.unwrap();
                assert_eq!(ours.read(&mut [0; 1]).await.unwrap(), 0, "the close is answered");
            };
            let reading = async {
                let mut got = Vec::new();
                while let Some(message) = theirs.next().await {
                    match message.unwrap() {
                        tungstenite::Message::Binary(payload) => got.extend_from_slice(&payload),
                        tungstenite::Message::Close(frame) => {
                            assert_eq!(frame.map(|frame| frame.code.into()), Some(1000u16));
                        }
                        other => panic!("{other:?}"),
                    }
                }
                got
            };
            timeout(Duration::from_secs(60), async { tokio::join!(writing, reading).1 }).await.unwrap()
        });
        prop_assert!(got == expected);
    }
}

#[tokio::test]
async fn tungstenite_accepts_our_upgrade_and_what_it_says_at_once_is_not_lost() {
    let (a, b) = duplex(64 * 1024);
    let (ours, theirs) = tokio::join!(WebSocketCarrier::client(a, "relay", Errand::Begin), async {
        #[allow(clippy::result_large_err, reason = "tungstenite's")]
        let protocol = |request: &tungstenite::handshake::server::Request,
                        mut response: tungstenite::handshake::server::Response| {
            assert_eq!(
                accept_key(request.headers()).unwrap(),
                response.headers()["sec-websocket-accept"].to_str().unwrap()
            );
            let protocol = http::HeaderValue::from_static("towline.v1");
            response.headers_mut().insert("sec-websocket-protocol", protocol);
            Ok(response)
        };
        let mut theirs = tokio_tungstenite::accept_hdr_async(b, protocol).await.unwrap();
        theirs.send(tungstenite::Message::binary(vec![1; 1000])).await.unwrap();
        theirs
    });
    let mut got = [0; 1000];
    ours.unwrap().read_exact(&mut got).await.unwrap();
    assert_eq!(got, [1; 1000]);
    drop(theirs);
}

/// The answer and the first frames, a byte of one or a record of all.
#[tokio::test]
async fn what_comes_with_the_answer_is_not_lost() {
    for cut in [usize::MAX, 1, 7] {
        let (a, mut b) = duplex(64 * 1024);
        let relay = async {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(b.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let mut headers = http::HeaderMap::new();
            for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
                headers.append(http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
            }
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n\
                 Sec-WebSocket-Protocol: towline.v1\r\nSec-WebSocket-Accept: {}\r\n\r\n",
                accept_key(&headers).unwrap()
            );
            let all = [answer.as_bytes(), b"\x82\x05hello\x82\x05world\x88\x00"].concat();
            for part in all.chunks(cut.min(all.len())) {
                b.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            b
        };
        let (ours, _raw) = tokio::join!(WebSocketCarrier::client(a, "relay", Errand::Begin), relay);
        let mut got = Vec::new();
        ours.unwrap().read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"helloworld");
    }
}

//! h2, with windows as large as ours grow: 8 MiB a stream, 64 MiB a connection.

use std::future::poll_fn;

use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server};
use http::{Request, Response};

use super::{Mux, Pipe, Stream, answer, spawn};

const WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

pub(crate) struct H2(client::SendRequest<Bytes>);

pub(crate) struct H2Stream {
    send: SendStream<Bytes>,
    receive: Receive,
}

enum Receive {
    Asked(Option<client::ResponseFuture>),
    Body(RecvStream),
}

pub(crate) async fn pair((a, b): Pipe) -> H2 {
    spawn(async move {
        let mut connection = server::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(1_000)
            .handshake::<_, Bytes>(b)
            .await
            .unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let send = respond.send_response(Response::new(()), false).unwrap();
            spawn(answer(H2Stream { send, receive: Receive::Body(request.into_body()) }));
        }
    });
    let (sender, connection) = client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(a)
        .await
        .unwrap();
    spawn(async { drop(connection.await) });
    H2(sender)
}

impl Mux for H2 {
    type Stream = H2Stream;

    async fn open(&self) -> H2Stream {
        let mut sender = self.0.clone().ready().await.unwrap();
        let request = Request::post("https://a/").body(()).unwrap();
        let (response, send) = sender.send_request(request, false).unwrap();
        H2Stream { send, receive: Receive::Asked(Some(response)) }
    }
}

impl Stream for H2Stream {
    async fn write(&mut self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            self.send.reserve_capacity(bytes.len());
            let room = poll_fn(|cx| self.send.poll_capacity(cx)).await.unwrap().unwrap();
            self.send.send_data(bytes.split_to(room.min(bytes.len())), false).unwrap();
        }
    }

    async fn finish(&mut self) {
        self.send.send_data(Bytes::new(), true).unwrap();
    }

    async fn read(&mut self) -> Option<(u8, usize)> {
        if let Receive::Asked(response) = &mut self.receive {
            let response = response.take()?.await.unwrap();
            self.receive = Receive::Body(response.into_body());
        }
        let Receive::Body(body) = &mut self.receive else { return None };
        loop {
            let chunk = body.data().await?.unwrap();
            body.flow_control().release_capacity(chunk.len()).unwrap();
            if !chunk.is_empty() {
                return Some((chunk[0], chunk.len()));
            }
        }
    }
}

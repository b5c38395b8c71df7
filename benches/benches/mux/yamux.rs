//! yamux, with its windows as they are by default (each grows by itself, up to 1 GiB together).

use std::{future::poll_fn, task::Poll};

use bytes::Bytes;
use futures_util::{AsyncReadExt, AsyncWriteExt};
use tokio::{
    io::DuplexStream,
    sync::{mpsc, oneshot},
};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode};

use super::{Mux, Pipe, Stream, answer, buffer, give_back, spawn};

type Wanted = oneshot::Sender<yamux::Stream>;

pub(crate) struct Yamux(mpsc::Sender<Wanted>);

pub(crate) struct YamuxStream(yamux::Stream);

async fn drive(mut connection: Connection<Compat<DuplexStream>>, mut opens: mpsc::Receiver<Wanted>) {
    let mut wanted: Option<Wanted> = None;
    loop {
        let event = poll_fn(|cx| {
            loop {
                if wanted.is_none()
                    && let Poll::Ready(Some(next)) = opens.poll_recv(cx)
                {
                    wanted = Some(next);
                }
                if wanted.is_some()
                    && let Poll::Ready(Ok(opened)) = connection.poll_new_outbound(cx)
                    && let Some(wanted) = wanted.take()
                {
                    drop(wanted.send(opened));
                    continue;
                }
                return connection.poll_next_inbound(cx);
            }
        });
        match event.await {
            Some(Ok(accepted)) => spawn(answer(YamuxStream(accepted))),
            _ => return,
        }
    }
}

pub(crate) async fn pair((a, b): Pipe) -> Yamux {
    let (sender, receiver) = mpsc::channel(64);
    spawn(drive(Connection::new(a.compat(), Config::default(), Mode::Client), receiver));
    let (_none, receiver) = mpsc::channel(1);
    spawn(drive(Connection::new(b.compat(), Config::default(), Mode::Server), receiver));
    Yamux(sender)
}

impl Mux for Yamux {
    type Stream = YamuxStream;

    async fn open(&self) -> YamuxStream {
        let (sender, receiver) = oneshot::channel();
        self.0.send(sender).await.unwrap();
        YamuxStream(receiver.await.unwrap())
    }
}

impl Stream for YamuxStream {
    async fn write(&mut self, bytes: Bytes) {
        self.0.write_all(&bytes).await.unwrap();
        self.0.flush().await.unwrap();
    }

    async fn finish(&mut self) {
        self.0.close().await.unwrap();
    }

    async fn read(&mut self) -> Option<(u8, usize)> {
        let mut buffer = buffer();
        let read = self.0.read(&mut buffer).await.unwrap();
        let first = buffer[0];
        give_back(buffer);
        (read > 0).then_some((first, read))
    }
}

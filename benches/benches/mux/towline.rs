//! Our own.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towline_tunnel::{
    ids::{ClusterId, InstanceId, StreamKey},
    mux::{Connection, EndpointConfig, Ledger, MuxStream, OpenRequest, Side},
};

use super::{Mux, Pipe, Stream, answer, buffer, give_back, spawn};

pub(crate) struct Towline(Connection);

pub(crate) struct TowlineStream(MuxStream);

pub(crate) async fn pair((a, b): Pipe) -> Towline {
    let config = |side| EndpointConfig {
        side,
        max_streams: 1_000,
        ledger: Ledger::new(256 << 20),
        instance: InstanceId::random(),
        jitter: 0,
    };
    let (left, driver) = Connection::new(a, BytesMut::new(), config(Side::Dialler));
    spawn(async { drop(driver.run().await) });
    let (right, driver) = Connection::new(b, BytesMut::new(), config(Side::Acceptor));
    spawn(async { drop(driver.run().await) });
    spawn(async move {
        while let Ok((_, accepted)) = right.accept().await {
            spawn(answer(TowlineStream(accepted)));
        }
    });
    Towline(left)
}

impl Mux for Towline {
    type Stream = TowlineStream;

    async fn open(&self) -> TowlineStream {
        let request = OpenRequest::new(StreamKey::random(), ClusterId::from_bytes([1; 32]));
        TowlineStream(self.0.open(request).unwrap())
    }
}

impl Stream for TowlineStream {
    async fn write(&mut self, bytes: Bytes) {
        self.0.write_all(&bytes).await.unwrap();
    }

    async fn finish(&mut self) {
        self.0.shutdown().await.unwrap();
    }

    async fn read(&mut self) -> Option<(u8, usize)> {
        let mut buffer = buffer();
        let read = self.0.read(&mut buffer).await.unwrap();
        let first = buffer[0];
        give_back(buffer);
        (read > 0).then_some((first, read))
    }
}

//! What is written in two small pieces: with Nagle's algorithm the second waits for the first one's acknowledgement,
//! which the other side's kernel puts off for 40 ms, because it expects to send something soon.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use towline_tunnel::{
    carrier::tune,
    mux::{Connection, Side},
};

use super::path::{endpoint, request};

const ROUNDS: usize = 60;
/// Linux puts acknowledgements off for 40 ms.
const PUT_OFF: Duration = Duration::from_millis(35);

#[tokio::test]
async fn keystrokes_in_two_pieces_do_not_wait_for_an_acknowledgement_that_is_put_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (dialled, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (dialled, (accepted, _)) = (dialled.unwrap(), accepted.unwrap());
    tune(&dialled).unwrap();
    tune(&accepted).unwrap();
    let (left, driver) = Connection::new(dialled, BytesMut::new(), endpoint(Side::Dialler));
    tokio::spawn(driver.run());
    let (right, driver) = Connection::new(accepted, BytesMut::new(), endpoint(Side::Acceptor));
    tokio::spawn(driver.run());
    let mut near = left.open(request()).unwrap();
    let (_, mut far) = right.accept().await.unwrap();
    let mut late = 0;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        near.write_all(b"a").await.unwrap();
        // It is there, and nothing is said to it: the acknowledgement is put off.
        assert_eq!(far.read_u8().await.unwrap(), b'a');
        near.write_all(b"b").await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'b');
        far.write_all(b"ab").await.unwrap();
        near.read_exact(&mut [0; 2]).await.unwrap();
        late += usize::from(begun.elapsed() >= PUT_OFF);
    }
    // A busy machine makes one late now and then; Nagle's algorithm makes all of them late.
    assert!(late < ROUNDS / 2, "{late} of {ROUNDS} keystrokes were held back");
}

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    time::Instant,
};

use super::*;
use crate::{
    ids::ChannelId,
    keys::SigningKey,
    session::{
        Exporter, Identify, RelayIdentity, accept, accept_watched, connect, connect_challenged,
        message::{Secret, Welcome},
    },
};

const SAME: Option<Exporter> = Some([9; 32]);

/// What is between: it sees each write of one side, and says what of it comes out on the other.
type Rule = fn(Vec<u8>) -> Option<Vec<u8>>;

fn all(bytes: Vec<u8>) -> Option<Vec<u8>> {
    Some(bytes)
}

fn nothing(_: Vec<u8>) -> Option<Vec<u8>> {
    None
}

fn small(bytes: Vec<u8>) -> Option<Vec<u8>> {
    (bytes.len() <= 1024).then_some(bytes)
}

/// As a proxy that reads texts does; what comes first, and has signatures, is spared.
fn seven_bits(bytes: Vec<u8>) -> Option<Vec<u8>> {
    Some(bytes.into_iter().enumerate().map(|(n, b)| if n > 1024 { b & 0x7f } else { b }).collect())
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, rule: Rule) {
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if let Some(bytes) = rule(bytes[..read].to_vec())
            && to.write_all(&bytes).await.is_err()
        {
            return;
        }
    }
    // What swallows does not hang up.
    std::future::pending::<()>().await;
}

/// Both sides of a beginning with this between them, and how long the dialler took.
async fn begin(up: Rule, down: Rule) -> (Result<(), Report>, Result<(), AcceptError>, Duration) {
    let key = Arc::new(SigningKey::generate());
    let identity = RelayIdentity::new(Arc::clone(&key)).unwrap();
    let (near, between) = duplex(64 * 1024);
    let (beyond, far) = duplex(64 * 1024);
    let (run_key, token) = (SigningKey::generate(), Secret::new("token"));
    let identify = Identify::Client { token: &token, run_key: &run_key, line: false };
    let begun = Instant::now();
    let dialled = async {
        let dialled = connect_challenged(near, SAME, key.public().hash(), identify).await;
        (dialled.map(|_| ()), begun.elapsed())
    };
    let accepting =
        accept_watched(far, SAME, &identity, true, |_| async { Ok((Welcome::new(ChannelId(7)), ())) });
    let (from_near, to_near) = tokio::io::split(between);
    let (from_far, to_far) = tokio::io::split(beyond);
    let carried = async { tokio::join!(pass(from_near, to_far, up), pass(from_far, to_near, down)) };
    let both = async { tokio::join!(dialled, async { accepting.await.map(|_| ()) }) };
    tokio::select! {
        ((dialled, took), accepted) = both => (dialled, accepted, took),
        _ = carried => unreachable!("it carries for ever"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_carries_everything_is_found_to() {
    let (dialled, accepted, took) = begin(all, all).await;
    assert!(dialled.is_ok() && accepted.is_ok(), "{dialled:?} {accepted:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_swallows_is_named_within_seconds() {
    let cases: [(Rule, Rule, Fault); 6] = [
        (nothing, all, Fault::CarrierSilentUp),
        (all, nothing, Fault::CarrierSilentDown),
        (small, all, Fault::CarrierLargeUp),
        (all, small, Fault::CarrierLargeDown),
        (seven_bits, all, Fault::CarrierDamaged),
        (all, seven_bits, Fault::CarrierDamaged),
    ];
    for (number, (up, down, fault)) in cases.into_iter().enumerate() {
        let (dialled, accepted, took) = begin(up, down).await;
        let report = dialled.unwrap_err();
        assert_eq!(report.fault, fault, "case {number}: {report}");
        assert!(took <= Duration::from_millis(3500), "case {number}: {took:?}");
        assert!(accepted.is_err(), "case {number}");
    }
}

/// Peers of before: each understands what the other says, and is told nothing that it does not know.
#[tokio::test(start_paused = true)]
async fn peers_that_know_no_challenge_begin_as_ever() {
    let key = Arc::new(SigningKey::generate());
    let identity = RelayIdentity::new(Arc::clone(&key)).unwrap();
    let (a, b): (DuplexStream, DuplexStream) = duplex(64 * 1024);
    let (run_key, token) = (SigningKey::generate(), Secret::new("token"));
    let identify = Identify::Client { token: &token, run_key: &run_key, line: false };
    let late = async {
        // Slower than what is waited for where somebody asked to be told.
        tokio::time::sleep(2 * COMES_WITHIN).await;
        connect(a, SAME, key.public().hash(), identify).await
    };
    let (dialled, accepted) =
        tokio::join!(late, accept(b, SAME, &identity, |_| async { Ok((Welcome::new(ChannelId(7)), ())) }));
    assert!(dialled.is_ok() && accepted.is_ok(), "{dialled:?}");

    // The fields are not critical: what does not know them passes over them.
    let asks = message::encode(&Message::Hello { versions: vec![1], nonce: [0; 32], challenge: true });
    assert_eq!(asks[asks.len() - 5..], [0, 3, 0, 1, 1]);
    let plain = message::encode(&Message::Hello { versions: vec![1], nonce: [0; 32], challenge: false });
    assert_eq!(plain[4..], asks[4..plain.len()]);
}

//! Diallers that break the protocol before the mux.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    time::timeout,
};
use towline_tunnel::{
    ids::{ChannelId, InstanceId},
    keys::SigningKey,
    proto::CloseReason,
    session::{
        AcceptError, Identify, RelayIdentity, Welcome, accept, connect,
        message::{MAX_CERTIFICATE, MAX_MESSAGE, MAX_TOKEN, Message, Secret, decode, encode},
    },
};

use super::SOON;

/// What the relay makes of these bytes, and what it says.
async fn dialled(bytes: &[u8]) -> (AcceptError, Vec<u8>) {
    let identity = RelayIdentity::new(Arc::new(SigningKey::generate())).unwrap();
    let (mut dialler, relay) = duplex(1 << 17);
    dialler.write_all(bytes).await.unwrap();
    let accepted =
        accept(relay, Some([9; 32]), &identity, |_| async { Ok((Welcome::new(ChannelId(1)), ())) });
    let error =
        timeout(SOON, accepted).await.expect("an answer comes soon").map(|_| ()).expect_err("it is refused");
    let mut said = Vec::new();
    dialler.read_to_end(&mut said).await.unwrap();
    (error, said)
}

fn hello(versions: &[u16]) -> Vec<u8> {
    encode(&Message::Hello { versions: versions.to_vec(), nonce: [1; 32], challenge: false })
}

#[tokio::test]
async fn a_version_from_the_future_is_refused_by_name() {
    let (error, said) = dialled(&hello(&[2, 3])).await;
    assert_eq!(error.reason(), CloseReason::VersionUnsupported);
    match decode(&said[4..]).unwrap() {
        Message::Refused(refused) => assert_eq!(refused.reason, CloseReason::VersionUnsupported),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn of_several_versions_the_one_that_both_speak_is_chosen() {
    let (error, said) =
        dialled(&[hello(&[9, 1]), encode(&Message::Welcome(Welcome::new(ChannelId(1))))].concat()).await;
    assert_eq!(error.reason(), CloseReason::FrameMalformed, "WELCOME is not the dialler's to say");
    let length = u32::from_be_bytes(said[..4].try_into().unwrap()) as usize;
    assert!(matches!(decode(&said[4..4 + length]), Ok(Message::RelayHello { version: 1, .. })));
}

#[tokio::test]
async fn garbage_after_the_upgrade_is_refused_at_once() {
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        &[0; 64],
        &[0xff; 64],
        &u32::try_from(MAX_MESSAGE + 1).unwrap().to_be_bytes(),
        &[0, 0, 0, 1, 99],
        &[0, 0, 0, 6, 1, 0x80, 1, 0, 0, 0],
    ] {
        let (error, said) = dialled(bytes).await;
        assert_eq!(error.reason(), CloseReason::FrameMalformed, "{bytes:?}: {error}");
        assert!(said.is_empty(), "nothing is signed for who does not speak the protocol");
    }
}

#[tokio::test]
async fn a_token_longer_than_the_wire_carries_is_an_error_and_not_a_panic() {
    let key = Arc::new(SigningKey::generate());
    let identity = RelayIdentity::new(Arc::clone(&key)).unwrap();
    let run_key = SigningKey::generate();
    for length in [20_000, 100_000] {
        let (dialler, relay) = duplex(1 << 17);
        let token = Secret::new(vec![b'x'; length]);
        let identify = Identify::Client { token: &token, run_key: &run_key, line: false };
        let talk = async {
            tokio::join!(
                connect(dialler, Some([9; 32]), key.public().hash(), identify),
                accept(relay, Some([9; 32]), &identity, |_| async { Ok((Welcome::new(ChannelId(1)), ())) }),
            )
        };
        let (dialled, accepted) = timeout(Duration::from_secs(20), talk).await.unwrap();
        let report = dialled.unwrap_err();
        assert_eq!(report.fault, towline_tunnel::fault::Fault::RelayTokenRefused, "{report}");
        assert!(accepted.is_err());
    }
}

#[test]
fn tokens_and_certificates_have_a_length_and_no_more_than_allowed() {
    let key = SigningKey::generate().public();
    let program = || "towline".to_owned();
    let client = |length| Message::AuthClient {
        token: Secret::new(vec![b'x'; length]),
        run_key: key,
        proof: [1; 64],
        program: program(),
        line: false,
    };
    let agent = |length| Message::AuthAgent {
        cluster: key,
        instance: InstanceId::random(),
        key,
        certificate: vec![7; length],
        proof: [1; 64],
        program: program(),
        line: false,
        beside: Vec::new(),
    };
    let reads = |message: Message| decode(&encode(&message)[4..]).is_ok();
    for length in [0, MAX_TOKEN + 1] {
        assert!(!reads(client(length)), "a token of {length} bytes");
    }
    for length in [0, MAX_CERTIFICATE + 1] {
        assert!(!reads(agent(length)), "a certificate of {length} bytes");
    }
    assert!(reads(client(1)) && reads(client(MAX_TOKEN)) && reads(agent(MAX_CERTIFICATE)));
}

//! The messages before the mux.

use std::time::Duration;

use towline_tunnel::{
    ids::{ChannelId, InstanceId},
    keys::{SIGNATURE_LEN, VerifyingKey},
    proto::{CloseReason, reason::MAX_DETAIL},
    session::message::{
        BindMode, CHALLENGE_BYTES, MAX_CERTIFICATE, MAX_MESSAGE, MAX_NAME, MAX_TOKEN, Message, Refused,
        Secret, Welcome, decode, encode,
    },
};

/// What is read is written and read the same; nothing longer than the longest message is read.
pub fn run(input: &[u8]) {
    if let Ok(message) = decode(input) {
        assert!(input.len() <= MAX_MESSAGE);
        bounded(&message);
        let written = encode(&message);
        let (length, body) = written.split_at(4);
        assert_eq!(length, (body.len() as u32).to_be_bytes());
        assert!(decode(body).as_ref() == Ok(&message), "{message:?}");
    }
}

/// No part is longer than the specification allows, and none that must say something is empty.
fn bounded(message: &Message) {
    let program = |text: &str| assert!(text.len() <= MAX_NAME);
    let certificate = |der: &[u8]| assert!((1..=MAX_CERTIFICATE).contains(&der.len()));
    match message {
        Message::Hello { versions, .. } => assert!((1..=16).contains(&versions.len())),
        Message::AuthClient { token, program: text, .. } => {
            assert!((1..=MAX_TOKEN).contains(&token.reveal().len()));
            program(text);
        }
        Message::AuthAgent { certificate: der, program: text, .. } => {
            certificate(der);
            program(text);
        }
        Message::Enrol { secret, program: text, .. } => {
            assert!((1..=64).contains(&secret.reveal().len()));
            program(text);
        }
        Message::Welcome(welcome) => {
            welcome.certificate.iter().for_each(|der| certificate(der));
            welcome.name.iter().for_each(|text| program(text));
        }
        Message::Refused(refused) => assert!(refused.detail.len() <= MAX_DETAIL),
        Message::Challenge { bytes, .. } => assert!(CHALLENGE_BYTES.contains(&bytes.len())),
        Message::RelayHello { .. } | Message::Bind(_) | Message::Challenged { .. } => {}
    }
}

/// The key of a SubjectPublicKeyInfo whose 32 bytes are these. No signature is checked by a decoder.
pub(crate) fn key(byte: u8) -> VerifyingKey {
    let mut spki = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    spki.extend_from_slice(&[byte; 32]);
    VerifyingKey::from_spki(&spki).expect("this is an Ed25519 key's form")
}

/// One message of each type.
pub fn seeds() -> Vec<Vec<u8>> {
    let program = || "towline/0.1.0".to_owned();
    let instance = InstanceId::from_bytes([6; 16]);
    let proof = [7; SIGNATURE_LEN];
    let mut welcome = Welcome::new(ChannelId(5));
    let bare = welcome.clone();
    welcome.certificate = Some(vec![1, 2, 3]);
    welcome.ticket_key = Some(key(3));
    welcome.name = Some("edge-7".into());
    let mut refused = Refused::new(CloseReason::Draining, "later");
    refused.delay = Duration::from_millis(1500);
    [
        Message::Hello { versions: vec![1, 2], nonce: [1; 32], challenge: false },
        Message::Hello { versions: vec![1], nonce: [1; 32], challenge: true },
        Message::RelayHello {
            version: 1,
            key: key(1),
            nonce: [2; 32],
            exporter: Some([3; 32]),
            signature: proof,
            challenge: true,
        },
        Message::RelayHello {
            version: 1,
            key: key(1),
            nonce: [2; 32],
            exporter: None,
            signature: proof,
            challenge: false,
        },
        Message::Challenge { heard: None, bytes: vec![0xa5; 4096] },
        Message::Challenge { heard: Some([4; 32]), bytes: vec![0; 2048] },
        Message::Challenged { heard: [5; 32] },
        Message::Bind(BindMode::Outer),
        Message::Bind(BindMode::SessionTls),
        Message::AuthClient {
            token: Secret::new(*b"a.b.c"),
            run_key: key(2),
            proof,
            program: program(),
            line: true,
        },
        Message::AuthAgent {
            cluster: key(4),
            instance,
            key: key(5),
            certificate: vec![9; 20],
            proof,
            program: program(),
            line: true,
            beside: Vec::new(),
        },
        Message::Enrol {
            secret: Secret::new([8; 32]),
            cluster: key(4),
            cluster_proof: proof,
            instance,
            key: key(5),
            proof,
            program: program(),
        },
        Message::Welcome(bare),
        Message::Welcome(welcome),
        Message::Refused(refused),
    ]
    .iter()
    .map(|message| encode(message)[4..].to_vec())
    .collect()
}

use std::sync::Arc;

use proptest::prelude::*;
use tokio::io::duplex;

use super::{message::*, *};
use crate::{
    fault::Fault,
    ids::{ChannelId, InstanceId},
    keys::SigningKey,
    proto::CloseReason,
};

fn identity() -> (Arc<SigningKey>, RelayIdentity) {
    let key = Arc::new(SigningKey::generate());
    (Arc::clone(&key), RelayIdentity::new(key).unwrap())
}

async fn welcome_all(credential: Credential) -> Result<(Welcome, Credential), Refused> {
    Ok((Welcome::new(ChannelId(7)), credential))
}

const SAME: Option<Exporter> = Some([9; 32]);

#[tokio::test]
async fn a_client_is_known_over_outer_tls_that_ends_at_the_relay() {
    let (key, identity) = identity();
    let (a, b) = duplex(1024);
    let run_key = SigningKey::generate();
    let token = Secret::new("token");
    let (dialled, accepted) = tokio::join!(
        connect(
            a,
            SAME,
            key.public().hash(),
            Identify::Client { token: &token, run_key: &run_key, line: false }
        ),
        accept(b, SAME, &identity, welcome_all),
    );
    assert!(matches!(dialled.unwrap().channel, Channel::Outer(_)));
    let (_, _, credential) = accepted.unwrap();
    assert!(matches!(credential, Credential::Client { token: t, run_key: k, .. }
        if t == token && k == run_key.public()));
}

#[tokio::test]
async fn where_outer_tls_ends_elsewhere_session_tls_runs_inside() {
    for outer in [(Some([1; 32]), Some([2; 32])), (None, Some([2; 32])), (Some([1; 32]), None), (None, None)]
    {
        let (key, identity) = identity();
        let (a, b) = duplex(1024);
        let (cluster, instance) = (SigningKey::generate(), SigningKey::generate());
        let secret = Secret::new([3; 32]);
        let identify = Identify::Enrol {
            secret: &secret,
            cluster: &cluster,
            instance: InstanceId::random(),
            key: &instance,
        };
        let (dialled, accepted) = tokio::join!(
            connect(a, outer.0, key.public().hash(), identify),
            accept(b, outer.1, &identity, welcome_all),
        );
        assert!(matches!(dialled.unwrap().channel, Channel::Tls(_)));
        assert!(matches!(accepted.unwrap().2, Credential::Enrol { cluster: c, .. } if c == cluster.public()));
    }
}

/// Whoever is in between and holds another key learns nothing: the client stops before anything of value.
#[tokio::test]
async fn t43_a_relay_with_another_key_is_told_nothing() {
    let (_, impostor) = identity();
    let (a, b) = duplex(64 * 1024);
    let (run_key, token) = (SigningKey::generate(), Secret::new("token"));
    let pin = SigningKey::generate().public().hash();
    let (dialled, accepted) = tokio::join!(
        connect(a, SAME, pin, Identify::Client { token: &token, run_key: &run_key, line: false }),
        accept(b, SAME, &impostor, welcome_all),
    );
    assert_eq!(dialled.unwrap_err().fault, Fault::RelayKeyMismatch);
    assert!(matches!(accepted, Err(AcceptError::Io(_))));
}

/// An interceptor ends outer TLS and passes messages on, as a TLS-inspecting proxy could. It sees ciphertext only,
/// and the relay's signature can't be made to fit the client's side.
#[tokio::test]
async fn t43_an_interceptor_sees_no_credential_and_can_inject_none() {
    let (key, identity) = identity();
    let (client_io, mut inside) = duplex(64 * 1024);
    let (mut outside, relay_io) = duplex(64 * 1024);
    let (run_key, token) = (SigningKey::generate(), Secret::new("canary-token"));
    let tap = async {
        let mut seen = Vec::new();
        let mut back = [0; 4096];
        let mut forth = [0; 4096];
        loop {
            tokio::select! {
                n = inside.read(&mut forth) => match n {
                    Ok(n) if n > 0 => { seen.extend_from_slice(&forth[..n]); outside.write_all(&forth[..n]).await.unwrap() }
                    _ => return seen,
                },
                n = outside.read(&mut back) => match n {
                    Ok(n) if n > 0 => { seen.extend_from_slice(&back[..n]); inside.write_all(&back[..n]).await.unwrap() }
                    _ => return seen,
                },
            }
        }
    };
    let ends = async {
        let (dialled, accepted) = tokio::join!(
            connect(
                client_io,
                Some([1; 32]),
                key.public().hash(),
                Identify::Client { token: &token, run_key: &run_key, line: false }
            ),
            accept(relay_io, Some([2; 32]), &identity, welcome_all),
        );
        assert!(matches!(dialled.unwrap().channel, Channel::Tls(_)));
        accepted.unwrap();
    };
    let (seen, ()) = tokio::join!(tap, ends);
    assert!(!seen.is_empty() && !seen.windows(12).any(|bytes| bytes == b"canary-token"));
}

/// The interceptor replaces the exporter in RELAY_HELLO by the client's own, to make the client believe that outer
/// TLS ends at the relay: the signature no longer holds.
#[tokio::test]
async fn t43_a_swapped_exporter_breaks_the_relays_signature() {
    let (key, identity) = identity();
    let (a, mut inside) = duplex(64 * 1024);
    let (mut outside, relay_io) = duplex(64 * 1024);
    let (run_key, token) = (SigningKey::generate(), Secret::new("token"));
    let swap = async {
        let (_, hello) = receive(&mut inside).await.unwrap();
        send(&mut outside, &hello).await.unwrap();
        let (relay_hello, _) = receive(&mut outside).await.unwrap();
        let Message::RelayHello { version, key, nonce, signature, .. } = relay_hello else { panic!() };
        let swapped =
            Message::RelayHello { version, key, nonce, exporter: Some([1; 32]), signature, challenge: false };
        send(&mut inside, &encode(&swapped)).await.unwrap();
        let more = receive(&mut inside).await;
        drop(outside);
        more
    };
    let (dialled, _accepted, more) = tokio::join!(
        connect(
            a,
            Some([1; 32]),
            key.public().hash(),
            Identify::Client { token: &token, run_key: &run_key, line: false }
        ),
        accept(relay_io, Some([2; 32]), &identity, welcome_all),
        swap,
    );
    assert_eq!(dialled.unwrap_err().fault, Fault::RelayKeyMismatch);
    assert!(more.is_err(), "the client says nothing more");
}

/// The interceptor passes the relay's own words on, and then ends session TLS itself, with a key of its own: nothing is said inside of it.
#[tokio::test]
async fn t43_session_tls_that_another_key_ends_is_told_nothing() {
    let (key, identity) = identity();
    let (a, mut inside) = duplex(64 * 1024);
    let (mut outside, relay_io) = duplex(64 * 1024);
    let (run_key, token) = (SigningKey::generate(), Secret::new("token"));
    let own = tokio_rustls::TlsAcceptor::from(tls::server_config(&SigningKey::generate()).unwrap());
    let intercept = async {
        let (_, hello) = receive(&mut inside).await.unwrap();
        send(&mut outside, &hello).await.unwrap();
        let (_, relay_hello) = receive(&mut outside).await.unwrap();
        send(&mut inside, &relay_hello).await.unwrap();
        let (bind, _) = receive(&mut inside).await.unwrap();
        assert!(matches!(bind, Message::Bind(BindMode::SessionTls)));
        drop(outside);
        match own.accept(inside).await {
            Ok(mut ended) => receive(&mut ended).await.ok(),
            Err(_) => None,
        }
    };
    let (dialled, _accepted, told) = tokio::join!(
        connect(
            a,
            Some([1; 32]),
            key.public().hash(),
            Identify::Client { token: &token, run_key: &run_key, line: false }
        ),
        accept(relay_io, Some([2; 32]), &identity, welcome_all),
        intercept,
    );
    assert!(told.is_none(), "it was told {told:?}");
    assert_eq!(dialled.unwrap_err().fault, Fault::RelayKeyMismatch);
}

/// AUTH recorded on one channel proves nothing on another.
#[tokio::test]
async fn t43_a_replayed_credential_is_refused() {
    let (_, identity) = identity();
    let run_key = SigningKey::generate();
    let stale = Message::AuthClient {
        token: Secret::new("token"),
        run_key: run_key.public(),
        proof: run_key.sign(crate::keys::Purpose::ClientProof, &[&[9; 32], &[0; 32]]),
        program: String::new(),
        line: false,
    };
    let (mut a, b) = duplex(64 * 1024);
    let replay = async {
        send(&mut a, &encode(&Message::Hello { versions: vec![1], nonce: [0; 32], challenge: false }))
            .await
            .unwrap();
        receive(&mut a).await.unwrap();
        send(&mut a, &encode(&Message::Bind(BindMode::Outer))).await.unwrap();
        send(&mut a, &encode(&stale)).await.unwrap();
        receive(&mut a).await.unwrap().0
    };
    let (answer, accepted) = tokio::join!(replay, accept(b, SAME, &identity, welcome_all));
    assert!(matches!(answer, Message::Refused(refused) if refused.reason == CloseReason::Unauthenticated));
    assert!(matches!(accepted, Err(AcceptError::Proof)));
}

#[tokio::test(start_paused = true)]
async fn t33_a_dialler_that_stalls_anywhere_is_let_go_within_ten_seconds() {
    let (_, identity) = identity();
    let hello = encode(&Message::Hello { versions: vec![1], nonce: [0; 32], challenge: false });
    let bind = encode(&Message::Bind(BindMode::SessionTls));
    for said in [&[][..], &hello[..7], &hello[..], &[&hello[..], &bind[..]].concat()] {
        let (mut a, b) = duplex(64 * 1024);
        a.write_all(said).await.unwrap();
        let begun = tokio::time::Instant::now();
        let accepted = accept(b, SAME, &identity, welcome_all).await;
        assert!(matches!(accepted, Err(AcceptError::Timeout)));
        assert!(begun.elapsed() <= HANDSHAKE_WITHIN + Duration::from_millis(1));
    }
}

#[tokio::test]
async fn a_dialler_from_the_future_is_told_the_relays_version() {
    let (_, identity) = identity();
    let (mut a, b) = duplex(64 * 1024);
    let future = async {
        send(&mut a, &encode(&Message::Hello { versions: vec![2, 3], nonce: [0; 32], challenge: false }))
            .await
            .unwrap();
        receive(&mut a).await.unwrap().0
    };
    let (answer, accepted) = tokio::join!(future, accept(b, SAME, &identity, welcome_all));
    assert!(matches!(answer, Message::Refused(refused) if refused.reason == CloseReason::VersionUnsupported));
    assert!(matches!(accepted, Err(AcceptError::Version)));
}

#[tokio::test]
async fn a_refusal_reaches_the_person_with_its_fault() {
    let (key, identity) = identity();
    let (a, b) = duplex(1024);
    let (run_key, token) = (SigningKey::generate(), Secret::new("token"));
    let (dialled, _) = tokio::join!(
        connect(
            a,
            SAME,
            key.public().hash(),
            Identify::Client { token: &token, run_key: &run_key, line: false }
        ),
        accept::<_, (), _, _>(b, SAME, &identity, |_| async {
            Err(Refused::new(CloseReason::TokenExpired, "it ended at noon"))
        }),
    );
    let report = dialled.unwrap_err();
    assert_eq!(report.fault, Fault::RelayTokenExpired);
    assert!(report.to_string().contains("noon"));
}

#[test]
fn a_line_says_so_and_no_other_session_says_anything_of_it() {
    let client = |line| Message::AuthClient {
        token: Secret::new("token"),
        run_key: SigningKey::generate().public(),
        proof: [0; 64],
        program: "towline".into(),
        line,
    };
    let (line, session) = (client(true), client(false));
    assert_eq!(decode(&encode(&line)[4..]).unwrap(), line);
    assert_eq!(decode(&encode(&session)[4..]).unwrap(), session);
    let mut other = encode(&line);
    *other.last_mut().unwrap() = 2;
    assert!(decode(&other[4..]).is_err());
    assert_eq!(encode(&line).len(), encode(&session).len() + 5);
}

#[test]
fn a_secret_does_not_print() {
    let message = Message::AuthClient {
        token: Secret::new("canary"),
        run_key: SigningKey::generate().public(),
        proof: [0; 64],
        program: String::new(),
        line: false,
    };
    assert!(!format!("{message:?}").contains("canary"));
}

proptest! {
    #[test]
    fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn changed_messages_give_an_answer(at in 4usize..150, bit in 0u8..8) {
        let mut bytes = encode(&Message::Hello { versions: vec![1, 2], nonce: [5; 32], challenge: false });
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let _ = decode(&bytes[4.min(bytes.len())..]);
    }
}

/// BIND has one field. A critical one with a number that other messages use is not of this version either.
#[test]
fn a_critical_field_that_a_message_does_not_have_is_refused() {
    let encoded = message::encode(&Message::Bind(BindMode::Outer));
    assert!(message::decode(&encoded[4..]).is_ok());
    let mut fields = crate::proto::fields::FieldWriter::new();
    fields.put(1 | crate::proto::fields::CRITICAL, &[0]).put(5 | crate::proto::fields::CRITICAL, &[0]);
    let mut changed = vec![encoded[4]];
    changed.extend_from_slice(&fields.finish());
    assert!(message::decode(&changed).is_err());
}

#[tokio::test]
async fn a_refusal_says_when_to_come_back() {
    let (key, identity) = identity();
    let (a, b) = duplex(1024);
    let (run_key, token) = (SigningKey::generate(), Secret::new("token"));
    let later = async |_| {
        let mut refused = Refused::new(CloseReason::LimitReached, "");
        refused.delay = std::time::Duration::from_secs(9);
        Err::<(Welcome, ()), _>(refused)
    };
    let (dialled, _) = tokio::join!(
        connect(
            a,
            SAME,
            key.public().hash(),
            Identify::Client { token: &token, run_key: &run_key, line: false }
        ),
        accept(b, SAME, &identity, later),
    );
    assert_eq!(dialled.unwrap_err().delay(), std::time::Duration::from_secs(9));
}

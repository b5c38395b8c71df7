//! Looking at a relay without saying who looks: what `doctor` does before anybody is logged in.
//!
//! No credential travels. The first two messages of a session show whether bytes cross in both directions, who the relay
//! is, and whether outer TLS ends there; session TLS to its key, which any dialler may ask for, shows the same of messages
//! that are larger than a KiB.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs::kx_group};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::{
    Exporter,
    connect::{check_relay_hello, lost, random, unread},
    message::{self, BindMode, Message, VERSION},
    receive, send, tls,
};
use crate::{
    fault::{Fault, Report},
    ids::KeyHash,
    proto::fields::{FieldWriter, Fields},
};

/// A field of HELLO that no version knows, and every one passes over (`docs/protocol.md`, "Fields").
const PADDING: u16 = 0x7f00;
/// A message of no length: no session goes on after it, so that a relay that reads it hangs up.
const NONSENSE: [u8; 4] = [0; 4];

/// What a relay's first message shows, once its signature holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The TLS connection that the dialler has is the one that the relay has: nobody ends TLS in between.
    pub ends_here: bool,
}

/// Sends HELLO, with so many bytes more, and reads the relay's answer. `outer` is the exporter of the outer TLS.
///
/// # Errors
/// If the connection breaks, or what answers is not the relay whose key has the hash `pin`, or of another version. There is
/// no deadline here.
pub async fn look<IO>(
    carrier: &mut IO,
    outer: Option<Exporter>,
    pin: KeyHash,
    padding: usize,
) -> Result<Seen, Report>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let hello = padded(
        &message::encode(&Message::Hello { versions: vec![VERSION], nonce: random(), challenge: false }),
        padding,
    );
    send(carrier, &hello).await.map_err(lost)?;
    let (answer, _) = receive(carrier).await.map_err(unread)?;
    let seen = check_relay_hello(answer, &hello, pin)?;
    Ok(Seen { ends_here: outer.is_some() && outer == seen })
}

/// Asks the relay that was [looked at](look) for session TLS, with a key exchange that makes the first message of each side
/// larger than a KiB (X25519MLKEM768).
///
/// # Errors
/// If the connection breaks, or it isn't the relay's key that answers. There is no deadline here.
pub async fn look_closer<IO>(mut carrier: IO, pin: KeyHash) -> Result<(), Report>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    send(&mut carrier, &message::encode(&Message::Bind(BindMode::SessionTls))).await.map_err(lost)?;
    let large = CryptoProvider { kx_groups: vec![kx_group::X25519MLKEM768], ..(*tls::provider()).clone() };
    let config = tls::client_config_with(pin, Arc::new(large))
        .map_err(|error| Report::caused_by(Fault::Internal, "session TLS can't be set up", error))?;
    TlsConnector::from(config).connect(tls::server_name(), carrier).await.map(drop).map_err(lost)
}

/// Sends what makes a relay hang up that reads it.
///
/// # Errors
/// If the connection is gone.
pub async fn provoke<IO: AsyncWrite + Unpin>(carrier: &mut IO) -> std::io::Result<()> {
    send(carrier, &NONSENSE).await
}

fn padded(hello: &[u8], padding: usize) -> Vec<u8> {
    if padding == 0 {
        return hello.to_vec();
    }
    let mut more = FieldWriter::new();
    more.put(PADDING, &vec![0; padding]);
    let body = [&hello[4..], &more.finish()].concat();
    debug_assert!(Fields::parse(&body[1..], &[1, 2]).is_ok(), "the tag is higher than those of HELLO");
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &body].concat()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, duplex};

    use super::*;
    use crate::{
        keys::SigningKey,
        session::{RelayIdentity, accept},
    };

    const SAME: Option<Exporter> = Some([9; 32]);

    fn relay() -> (KeyHash, RelayIdentity) {
        let key = Arc::new(SigningKey::generate());
        (key.public().hash(), RelayIdentity::new(key).unwrap())
    }

    #[tokio::test]
    async fn a_relay_is_known_and_no_credential_travels() {
        for (outer, padding) in [(SAME, 0), (SAME, 4096), (None, 4096), (Some([1; 32]), 0)] {
            let (pin, identity) = relay();
            let (mut ours, theirs) = duplex(64 * 1024);
            let look = async {
                let seen = look(&mut ours, outer, pin, padding).await.unwrap();
                assert_eq!(seen.ends_here, outer == SAME);
                look_closer(ours, pin).await.unwrap();
            };
            let ((), accepted) = tokio::join!(
                look,
                accept(theirs, SAME, &identity, async |credential| -> Result<(_, ()), _> {
                    panic!("{credential:?}")
                })
            );
            assert!(accepted.is_err());
        }
    }

    #[tokio::test]
    async fn another_key_is_told() {
        let (pin, _) = relay();
        let (_, other) = relay();
        let (mut ours, theirs) = duplex(64 * 1024);
        let look = async {
            let report = look(&mut ours, SAME, pin, 0).await.unwrap_err();
            drop(ours);
            report
        };
        let judge = async |_| -> Result<(_, ()), _> { unreachable!("nobody says who they are") };
        let (report, _ended) = tokio::join!(look, accept(theirs, SAME, &other, judge));
        assert_eq!(report.fault, Fault::RelayKeyMismatch);
    }

    #[tokio::test]
    async fn a_relay_that_reads_nonsense_hangs_up() {
        let (_, identity) = relay();
        let (mut ours, theirs) = duplex(64 * 1024);
        let provoked = async {
            provoke(&mut ours).await.unwrap();
            ours.read(&mut [0; 1]).await
        };
        let judge = async |_| -> Result<(_, ()), _> { unreachable!("nobody says who they are") };
        let (read, accepted) = tokio::join!(provoked, accept(theirs, SAME, &identity, judge));
        assert!(matches!(read, Ok(0)) && accepted.is_err());
    }
}

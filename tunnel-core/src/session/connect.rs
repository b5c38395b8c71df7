//! The dialler's side of a session's beginning.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{TlsConnector, TlsStream};

use super::{
    Channel, Exporter, HANDSHAKE_WITHIN, ReceiveError, Transcript, challenge, exporter,
    message::{self, BindMode, MAX_BESIDE, MAX_TOKEN, Message, MessageError, Secret, VERSION, Welcome},
    receive, send, tls,
};
use crate::{
    fault::{Fault, Report},
    ids::{ChannelId, InstanceId, KeyHash},
    keys::{Purpose, SigningKey, VerifyingKey},
    proto::CloseReason,
};

/// Who the dialler is.
#[derive(Clone, Copy, Debug)]
pub enum Identify<'a> {
    /// A client with a token for the relay's audience.
    Client {
        /// The token.
        token: &'a Secret,
        /// The key of this run.
        run_key: &'a SigningKey,
        /// Whether the session is a line for bulk, beside the process's own.
        line: bool,
    },
    /// An enrolled agent instance.
    Agent {
        /// The cluster's identity.
        cluster: VerifyingKey,
        /// This process.
        instance: InstanceId,
        /// The instance's key.
        key: &'a SigningKey,
        /// The certificate that the relay issued to it (DER).
        certificate: &'a [u8],
        /// Whether the session is a line for bulk, beside the process's own.
        line: bool,
        /// The process's other sessions with this relay, if it has some: this one is spare while one of them takes streams.
        /// At most [`MAX_BESIDE`].
        beside: &'a [ChannelId],
    },
    /// An agent that enrols.
    Enrol {
        /// From the one-time token.
        secret: &'a Secret,
        /// The cluster's identity.
        cluster: &'a SigningKey,
        /// This process.
        instance: InstanceId,
        /// The instance's key.
        key: &'a SigningKey,
    },
}

/// A session that began: the mux runs on `channel` from here on.
#[derive(Debug)]
pub struct Session<IO> {
    /// The carrier, or session TLS inside it.
    pub channel: Channel<IO>,
    /// What the relay granted.
    pub welcome: Welcome,
}

/// Begins a session with the relay whose identity key has the hash `pin`. `outer` is the exporter of the outer TLS.
///
/// Nothing of value is sent before the channel is bound to that key.
///
/// # Errors
/// If the relay is another one, refuses, breaks the protocol, or takes longer than [`HANDSHAKE_WITHIN`].
pub async fn connect<IO>(
    carrier: IO,
    outer: Option<Exporter>,
    pin: KeyHash,
    identify: Identify<'_>,
) -> Result<Session<IO>, Report>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    begin(carrier, outer, pin, identify, false).await
}

/// The same on a carrier of which nobody knows yet what it lets through: that is found out first, and named within seconds.
///
/// # Errors
/// As [`connect`], and what the carrier does not carry.
pub async fn connect_challenged<IO>(
    carrier: IO,
    outer: Option<Exporter>,
    pin: KeyHash,
    identify: Identify<'_>,
) -> Result<Session<IO>, Report>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    begin(carrier, outer, pin, identify, true).await
}

async fn begin<IO>(
    carrier: IO,
    outer: Option<Exporter>,
    pin: KeyHash,
    identify: Identify<'_>,
    challenged: bool,
) -> Result<Session<IO>, Report>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    match timeout(HANDSHAKE_WITHIN, handshake(carrier, outer, pin, identify, challenged)).await {
        Ok(result) => result,
        Err(_elapsed) => Err(Report::new(Fault::RelayTimeout, "the session's handshake took too long")),
    }
}

async fn handshake<IO>(
    mut carrier: IO,
    outer: Option<Exporter>,
    pin: KeyHash,
    identify: Identify<'_>,
    challenged: bool,
) -> Result<Session<IO>, Report>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    identify.check()?;
    let mut transcript = Transcript::new();
    let hello = Message::Hello { versions: vec![VERSION], nonce: random(), challenge: challenged };
    let hello = message::encode(&hello);
    transcript.add(&hello);
    send(&mut carrier, &hello).await.map_err(lost)?;

    let (relay_hello, encoded) = match challenged {
        true => challenge::answer(&mut carrier).await?,
        false => receive(&mut carrier).await.map_err(unread)?,
    };
    let follows = matches!(relay_hello, Message::RelayHello { challenge: true, .. });
    let seen = check_relay_hello(relay_hello, &hello, pin)?;
    transcript.add(&encoded);
    if challenged && follows {
        challenge::of_dialler(&mut carrier).await?;
    }

    let mode = if outer.is_some() && outer == seen { BindMode::Outer } else { BindMode::SessionTls };
    let bind = message::encode(&Message::Bind(mode));
    transcript.add(&bind);
    send(&mut carrier, &bind).await.map_err(lost)?;

    let (mut channel, binding) = bind_channel(carrier, mode, outer, pin).await?;
    let auth = identify.message(&binding, &transcript.hash());
    send(&mut channel, &message::encode(&auth)).await.map_err(lost)?;
    match receive(&mut channel).await.map_err(unread)?.0 {
        Message::Welcome(welcome) => Ok(Session { channel, welcome }),
        Message::Refused(refused) => Err(refused.into()),
        _ => Err(broken(MessageError::Unexpected)),
    }
}

/// The exporter that the relay sees, once its signature over all of this holds.
pub(super) fn check_relay_hello(
    message: Message,
    hello: &[u8],
    pin: KeyHash,
) -> Result<Option<Exporter>, Report> {
    let Message::RelayHello { version, key, nonce, exporter, signature, .. } = message else {
        return Err(match message {
            // Anybody in between could have said it: only that there is no common version is taken from here, and no
            // word of what came with it.
            Message::Refused(refused) if refused.reason == CloseReason::VersionUnsupported => {
                Report::new(Fault::VersionUnsupported, format!("this program speaks version {VERSION}"))
            }
            _ => broken(MessageError::Unexpected),
        });
    };
    if key.hash() != pin {
        return Err(Report::new(Fault::RelayKeyMismatch, format!("its key's hash is {}", key.hash())));
    }
    let signed = message::relay_hello_signed(version, &key, &nonce, exporter.as_ref());
    if !key.verify(Purpose::RelayHello, &[hello, &signed], &signature) {
        return Err(Report::new(Fault::RelayKeyMismatch, "its signature over this channel is wrong"));
    }
    if version != VERSION {
        return Err(Report::new(Fault::VersionUnsupported, format!("the relay chose version {version}")));
    }
    Ok(exporter)
}

async fn bind_channel<IO>(
    carrier: IO,
    mode: BindMode,
    outer: Option<Exporter>,
    pin: KeyHash,
) -> Result<(Channel<IO>, Exporter), Report>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    if let (BindMode::Outer, Some(exporter)) = (mode, outer) {
        return Ok((Channel::Outer(carrier), exporter));
    }
    let failed = |error: io::Error| Report::caused_by(Fault::RelayKeyMismatch, "session TLS failed", error);
    let config = tls::client_config(pin).map_err(|error| failed(io::Error::other(error)))?;
    let stream = TlsConnector::from(config).connect(tls::server_name(), carrier).await.map_err(failed)?;
    let binding = exporter(stream.get_ref().1)
        .ok_or_else(|| Report::new(Fault::Internal, "session TLS gives no exporter"))?;
    Ok((Channel::Tls(Box::new(TlsStream::Client(stream))), binding))
}

impl Identify<'_> {
    /// What a user's file holds may be too long to travel.
    fn check(&self) -> Result<(), Report> {
        match self {
            Self::Client { token, .. } if token.reveal().len() > MAX_TOKEN => {
                let length = token.reveal().len();
                let detail = format!("the token has {length} bytes; at most {MAX_TOKEN} can be sent");
                Err(Report::new(Fault::RelayTokenRefused, detail))
            }
            _ => Ok(()),
        }
    }

    fn message(&self, binding: &Exporter, transcript: &[u8; 32]) -> Message {
        let program = concat!("towline/", env!("CARGO_PKG_VERSION")).to_owned();
        match self {
            Self::Client { token, run_key, line } => Message::AuthClient {
                token: (*token).clone(),
                run_key: run_key.public(),
                proof: run_key.sign(Purpose::ClientProof, &[binding, transcript]),
                program,
                line: *line,
            },
            Self::Agent { cluster, instance, key, certificate, line, beside } => Message::AuthAgent {
                cluster: *cluster,
                instance: *instance,
                key: key.public(),
                certificate: certificate.to_vec(),
                proof: key
                    .sign(Purpose::AgentProof, &[binding, transcript, cluster.spki(), instance.as_bytes()]),
                program,
                line: *line,
                beside: beside.iter().rev().take(MAX_BESIDE).rev().copied().collect(),
            },
            Self::Enrol { secret, cluster, instance, key } => {
                let spki = key.spki();
                let parts: [&[u8]; 4] = [binding, transcript, &spki, instance.as_bytes()];
                Message::Enrol {
                    secret: (*secret).clone(),
                    cluster: cluster.public(),
                    cluster_proof: cluster.sign(Purpose::EnrolProof, &parts),
                    instance: *instance,
                    key: key.public(),
                    proof: key.sign(
                        Purpose::AgentProof,
                        &[binding, transcript, &cluster.spki(), instance.as_bytes()],
                    ),
                    program,
                }
            }
        }
    }
}

pub(super) fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source answers");
    bytes
}

pub(super) fn lost(error: io::Error) -> Report {
    Report::caused_by(Fault::CarrierLost, "during the session's handshake", error)
}

pub(super) fn broken(error: MessageError) -> Report {
    Report::caused_by(Fault::ProtocolViolation, "what answers does not speak towline's protocol", error)
}

pub(super) fn unread(error: ReceiveError) -> Report {
    match error {
        ReceiveError::Io(error) => lost(error),
        ReceiveError::Message(error) => broken(error),
    }
}

//! The relay's side of a session's beginning.

use std::{fmt, io, sync::Arc};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::{
    Channel, Exporter, HANDSHAKE_WITHIN, ReceiveError, Transcript, challenge, exporter,
    message::{self, BindMode, Message, MessageError, Refused, Secret, VERSION, Welcome},
    receive, send, tls,
};
use crate::{
    fault::{Fault, Report},
    ids::{ChannelId, InstanceId},
    keys::{Purpose, SigningKey, VerifyingKey},
    proto::CloseReason,
};

/// The relay's identity key, ready to begin sessions.
pub struct RelayIdentity {
    key: Arc<SigningKey>,
    tls: Arc<ServerConfig>,
}

impl fmt::Debug for RelayIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RelayIdentity({})", self.key.public().hash())
    }
}

impl RelayIdentity {
    /// Prepares session TLS for the key.
    ///
    /// # Errors
    /// Never for a sound key; certificates and TLS configuration are fallible.
    pub fn new(key: Arc<SigningKey>) -> Result<Self, Report> {
        let tls = tls::server_config(&key)
            .map_err(|error| Report::caused_by(Fault::Internal, "session TLS can't be set up", error))?;
        Ok(Self { key, tls })
    }

    /// The public half.
    pub fn public(&self) -> VerifyingKey {
        self.key.public()
    }
}

/// Who dialled; each key was proven on this channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A client. The token is not yet verified.
    Client {
        /// A bearer token.
        token: Secret,
        /// Proven.
        run_key: VerifyingKey,
        /// Program and version.
        program: String,
        /// A line of the process, beside its session.
        line: bool,
    },
    /// An agent instance. The certificate is not yet verified.
    Agent {
        /// Claimed; the certificate must be for it.
        cluster: VerifyingKey,
        /// Claimed; the certificate must be for it.
        instance: InstanceId,
        /// Proven; the certificate must be for it.
        key: VerifyingKey,
        /// DER.
        certificate: Vec<u8>,
        /// Program and version.
        program: String,
        /// A line of the process, beside its session.
        line: bool,
        /// Claimed: sessions of the same process that it stands beside.
        beside: Vec<ChannelId>,
    },
    /// An agent that enrols. The secret is not yet verified.
    Enrol {
        /// From the one-time token.
        secret: Secret,
        /// Proven.
        cluster: VerifyingKey,
        /// Claimed.
        instance: InstanceId,
        /// Proven.
        key: VerifyingKey,
        /// Program and version.
        program: String,
    },
}

/// Why no session began.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The dialler went away.
    #[error("the dialler went away: {0}")]
    Io(#[from] io::Error),
    /// The dialler breaks the protocol.
    #[error("the dialler breaks the protocol: {0}")]
    Message(#[from] MessageError),
    /// A proof is wrong.
    #[error("a proof of possession is wrong")]
    Proof,
    /// No common version.
    #[error("no common version")]
    Version,
    /// It took too long.
    #[error("the handshake took too long")]
    Timeout,
    /// The carrier does not carry what the dialler sends, or not as it was sent; it was told.
    #[error("{}", .0.text())]
    Carrier(CloseReason),
    /// Refused by whoever decides.
    #[error("refused: {}: {}", .0.reason.text(), .0.detail)]
    Refused(Refused),
}

impl AcceptError {
    /// The reason for metrics and REFUSED.
    pub fn reason(&self) -> CloseReason {
        match self {
            Self::Io(_) => CloseReason::Detached,
            Self::Message(_) => CloseReason::FrameMalformed,
            Self::Proof => CloseReason::Unauthenticated,
            Self::Version => CloseReason::VersionUnsupported,
            Self::Timeout => CloseReason::Timeout,
            Self::Carrier(reason) => *reason,
            Self::Refused(refused) => refused.reason,
        }
    }
}

impl From<ReceiveError> for AcceptError {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Io(error) => Self::Io(error),
            ReceiveError::Message(error) => Self::Message(error),
        }
    }
}

/// Begins a session on a carrier. `outer` is the exporter of the TLS that ends here, if it does.
///
/// `authenticate` judges the credential; what it returns beside WELCOME is handed on.
///
/// # Errors
/// If the dialler breaks the protocol, proves nothing, is refused, or takes longer than [`HANDSHAKE_WITHIN`].
pub async fn accept<IO, T, F, Fut>(
    carrier: IO,
    outer: Option<Exporter>,
    identity: &RelayIdentity,
    authenticate: F,
) -> Result<(Channel<IO>, Welcome, T), AcceptError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    F: FnOnce(Credential) -> Fut,
    Fut: Future<Output = Result<(Welcome, T), Refused>>,
{
    accept_watched(carrier, outer, identity, false, authenticate).await
}

/// The same; if `watched`, the dialler asked to be told soon where nothing comes of what it sends.
///
/// # Errors
/// As [`accept`].
pub async fn accept_watched<IO, T, F, Fut>(
    carrier: IO,
    outer: Option<Exporter>,
    identity: &RelayIdentity,
    watched: bool,
    authenticate: F,
) -> Result<(Channel<IO>, Welcome, T), AcceptError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    F: FnOnce(Credential) -> Fut,
    Fut: Future<Output = Result<(Welcome, T), Refused>>,
{
    timeout(HANDSHAKE_WITHIN, handshake(carrier, outer, identity, watched, authenticate))
        .await
        .unwrap_or(Err(AcceptError::Timeout))
}

async fn handshake<IO, T, F, Fut>(
    mut carrier: IO,
    outer: Option<Exporter>,
    identity: &RelayIdentity,
    watched: bool,
    authenticate: F,
) -> Result<(Channel<IO>, Welcome, T), AcceptError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    F: FnOnce(Credential) -> Fut,
    Fut: Future<Output = Result<(Welcome, T), Refused>>,
{
    let mut transcript = Transcript::new();
    let (hello, encoded) = match watched {
        true => challenge::first(&mut carrier).await?,
        false => receive(&mut carrier).await?,
    };
    let Message::Hello { versions, challenge, .. } = hello else {
        return Err(MessageError::Unexpected.into());
    };
    if !versions.contains(&VERSION) {
        let refused =
            Refused::new(CloseReason::VersionUnsupported, format!("this relay speaks version {VERSION}"));
        send(&mut carrier, &message::encode(&Message::Refused(refused))).await?;
        return Err(AcceptError::Version);
    }
    transcript.add(&encoded);

    let relay_hello = relay_hello(identity, &encoded, outer, challenge);
    transcript.add(&relay_hello);
    send(&mut carrier, &relay_hello).await?;
    if challenge {
        challenge::of_relay(&mut carrier).await?;
    }

    let (bind, encoded) = receive(&mut carrier).await?;
    let Message::Bind(mode) = bind else { return Err(MessageError::Unexpected.into()) };
    transcript.add(&encoded);
    let (mut channel, binding) = match (mode, outer) {
        (BindMode::Outer, Some(exporter)) => (Channel::Outer(carrier), exporter),
        (BindMode::Outer, None) => return Err(MessageError::Unexpected.into()),
        (BindMode::SessionTls, _) => {
            let stream = TlsAcceptor::from(Arc::clone(&identity.tls)).accept(carrier).await?;
            let binding = exporter(stream.get_ref().1).ok_or(AcceptError::Proof)?;
            (Channel::Tls(Box::new(TlsStream::Server(stream))), binding)
        }
    };

    let (auth, _) = receive(&mut channel).await?;
    let judged = match credential(auth, &binding, &transcript.hash()) {
        Ok(credential) => authenticate(credential).await.map_err(AcceptError::Refused),
        Err(error) => Err(error),
    };
    match judged {
        Ok((welcome, context)) => {
            send(&mut channel, &message::encode(&Message::Welcome(welcome.clone()))).await?;
            Ok((channel, welcome, context))
        }
        Err(error) => {
            let refused = match &error {
                AcceptError::Refused(refused) => refused.clone(),
                other => Refused::new(other.reason(), other.to_string()),
            };
            send(&mut channel, &message::encode(&Message::Refused(refused))).await?;
            Err(error)
        }
    }
}

fn relay_hello(identity: &RelayIdentity, hello: &[u8], outer: Option<Exporter>, challenge: bool) -> Vec<u8> {
    let mut nonce = [0; 32];
    aws_lc_rs::rand::fill(&mut nonce).expect("the system's random source answers");
    let key = identity.public();
    let signed = message::relay_hello_signed(VERSION, &key, &nonce, outer.as_ref());
    let signature = identity.key.sign(Purpose::RelayHello, &[hello, &signed]);
    message::encode(&Message::RelayHello {
        version: VERSION,
        key,
        nonce,
        exporter: outer,
        signature,
        challenge,
    })
}

/// The credential of an AUTH message, once its proofs hold on this channel.
fn credential(
    message: Message,
    binding: &Exporter,
    transcript: &[u8; 32],
) -> Result<Credential, AcceptError> {
    let proven = |holds: bool, credential| if holds { Ok(credential) } else { Err(AcceptError::Proof) };
    match message {
        Message::AuthClient { token, run_key, proof, program, line } => proven(
            run_key.verify(Purpose::ClientProof, &[binding, transcript], &proof),
            Credential::Client { token, run_key, program, line },
        ),
        Message::AuthAgent { cluster, instance, key, certificate, proof, program, line, beside } => proven(
            key.verify(
                Purpose::AgentProof,
                &[binding, transcript, cluster.spki(), instance.as_bytes()],
                &proof,
            ),
            Credential::Agent { cluster, instance, key, certificate, program, line, beside },
        ),
        Message::Enrol { secret, cluster, cluster_proof, instance, key, proof, program } => {
            let by_cluster = cluster.verify(
                Purpose::EnrolProof,
                &[binding, transcript, key.spki(), instance.as_bytes()],
                &cluster_proof,
            );
            let by_instance = key.verify(
                Purpose::AgentProof,
                &[binding, transcript, cluster.spki(), instance.as_bytes()],
                &proof,
            );
            proven(by_cluster && by_instance, Credential::Enrol { secret, cluster, instance, key, program })
        }
        _ => Err(MessageError::Unexpected.into()),
    }
}

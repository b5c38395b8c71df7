//! The messages before the mux: `length: u32` (of what follows), `type: u8`, tagged fields.

use std::{fmt, time::Duration};

use zeroize::Zeroizing;

use crate::{
    fault::Report,
    ids::{ChannelId, InstanceId},
    keys::{SIGNATURE_LEN, VerifyingKey},
    proto::{
        CloseReason,
        fields::{CRITICAL, FieldError, FieldWriter, Fields},
        reason::{MAX_DETAIL, bounded_detail},
    },
};

/// Longest message, type included.
pub const MAX_MESSAGE: usize = 48 * 1024;
/// Longest bearer token.
pub const MAX_TOKEN: usize = 16 * 1024;
/// Longest certificate.
pub const MAX_CERTIFICATE: usize = 8 * 1024;
/// Longest name of a cluster, principal or program.
pub const MAX_NAME: usize = 1024;

/// The version that this crate speaks.
pub const VERSION: u16 = 1;

/// A text or value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Keeps the bytes from being printed.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// The bytes themselves.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text.
    pub fn reveal_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// How the channel is bound to the relay's identity key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindMode {
    /// Outer TLS ends at the relay.
    Outer,
    /// Session TLS runs inside the carrier.
    SessionTls,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Dialler: which versions it speaks.
    Hello {
        /// Versions, best first; at most 16.
        versions: Vec<u16>,
        /// Random.
        nonce: [u8; 32],
        /// Whether it asks for a challenge: it does not know yet what this carrier lets through.
        challenge: bool,
    },
    /// Relay: its identity, bound to the channel that it sees.
    RelayHello {
        /// The version that both will speak.
        version: u16,
        /// The identity key.
        key: VerifyingKey,
        /// Random.
        nonce: [u8; 32],
        /// The exporter that the relay sees, if outer TLS 1.3 ends there.
        exporter: Option<[u8; 32]>,
        /// Over HELLO and everything above.
        signature: [u8; SIGNATURE_LEN],
        /// Whether a challenge follows. Not signed: whoever could strip it could cut the carrier as well.
        challenge: bool,
    },
    /// Relay, then dialler: bytes of any value, more than small messages have.
    Challenge {
        /// SHA-256 of those that the other side sent; none in the first.
        heard: Option<[u8; 32]>,
        /// Random.
        bytes: Vec<u8>,
    },
    /// Relay: what the dialler's bytes were.
    Challenged {
        /// Their SHA-256.
        heard: [u8; 32],
    },
    /// Dialler: how the channel is bound.
    Bind(BindMode),
    /// A client says who it is.
    AuthClient {
        /// The OIDC token for the relay's audience.
        token: Secret,
        /// The client's run key.
        run_key: VerifyingKey,
        /// By the run key.
        proof: [u8; SIGNATURE_LEN],
        /// Program and version, for logs.
        program: String,
        /// It is a line of the process, beside its session.
        line: bool,
    },
    /// An enrolled agent instance says who it is.
    AuthAgent {
        /// The cluster's identity key.
        cluster: VerifyingKey,
        /// This process.
        instance: InstanceId,
        /// The instance's key.
        key: VerifyingKey,
        /// The certificate that the relay issued to it.
        certificate: Vec<u8>,
        /// By the instance's key.
        proof: [u8; SIGNATURE_LEN],
        /// Program and version, for logs.
        program: String,
        /// It is a line of the process, beside its session.
        line: bool,
        /// The sessions of the same process that it stands beside: at most [`MAX_BESIDE`].
        beside: Vec<ChannelId>,
    },
    /// An agent enrols.
    Enrol {
        /// From the one-time token.
        secret: Secret,
        /// The cluster's identity key.
        cluster: VerifyingKey,
        /// By the cluster's identity key.
        cluster_proof: [u8; SIGNATURE_LEN],
        /// This process.
        instance: InstanceId,
        /// The instance's key.
        key: VerifyingKey,
        /// By the instance's key.
        proof: [u8; SIGNATURE_LEN],
        /// Program and version, for logs.
        program: String,
    },
    /// Relay: the session begins.
    Welcome(Welcome),
    /// Relay: it does not.
    Refused(Refused),
}

/// What the relay grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The session's name in every hop's logs.
    pub channel: ChannelId,
    /// A new certificate for the agent instance (DER).
    pub certificate: Option<Vec<u8>>,
    /// The relay's ticket-signing key, which the agent pins when it enrols.
    pub ticket_key: Option<VerifyingKey>,
    /// The name under which the cluster is enrolled, or the caller's principal as the relay sees it.
    pub name: Option<String>,
    /// Whether an agent may have a spare session: this relay opens no stream on it while the other takes some.
    pub spares: bool,
}

impl Welcome {
    /// A bare welcome.
    pub fn new(channel: ChannelId) -> Self {
        Self { channel, certificate: None, ticket_key: None, name: None, spares: false }
    }
}

/// Why the relay refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub reason: CloseReason,
    /// A few words more.
    pub detail: String,
    /// How long to wait before trying again.
    pub delay: Duration,
}

impl Refused {
    /// A refusal without a hint when to come back.
    pub fn new(reason: CloseReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), delay: Duration::ZERO }
    }
}

impl From<Refused> for Report {
    fn from(refused: Refused) -> Self {
        let detail =
            if refused.detail.is_empty() { refused.reason.text().to_owned() } else { refused.detail };
        Self::new(refused.reason.fault(), detail).retry_after(refused.delay)
    }
}

/// Bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Empty or too long.
    #[error("a message of {0} bytes")]
    Length(usize),
    /// Not a type of this version.
    #[error("message type {0} is not known")]
    Type(u8),
    /// A field is wrong.
    #[error("{0}")]
    Field(#[from] FieldError),
    /// A message of another type was due.
    #[error("this message is not due now")]
    Unexpected,
}

const HELLO: u8 = 1;
const RELAY_HELLO: u8 = 2;
const BIND: u8 = 3;
const AUTH_CLIENT: u8 = 4;
const AUTH_AGENT: u8 = 5;
const ENROL: u8 = 6;
const WELCOME: u8 = 7;
const REFUSED: u8 = 8;
const CHALLENGE: u8 = 9;
const CHALLENGED: u8 = 10;

/// How many bytes a challenge has: no fewer, so that it is larger than what small messages are let through for.
pub const CHALLENGE_BYTES: std::ops::RangeInclusive<usize> = 2048..=16 * 1024;

/// What the field says that asks for a challenge, or announces it.
const WITH_CHALLENGE: &[u8] = &[1];
/// What the field says that a session of the same process holds beside it: absent in every other.
const IS_LINE: &[u8] = &[1];
/// What the field says of a relay that knows spare sessions.
const WITH_SPARES: &[u8] = &[1];
/// Sessions that one may stand beside: as many as a relay lets one process have.
pub const MAX_BESIDE: usize = 8;

/// The fields of RELAY_HELLO that its signature is over, as they stand on the wire.
pub fn relay_hello_signed(
    version: u16,
    key: &VerifyingKey,
    nonce: &[u8; 32],
    exporter: Option<&[u8; 32]>,
) -> Vec<u8> {
    relay_hello_fields(version, key, nonce, exporter).finish()
}

fn relay_hello_fields(
    version: u16,
    key: &VerifyingKey,
    nonce: &[u8; 32],
    exporter: Option<&[u8; 32]>,
) -> FieldWriter {
    let mut fields = FieldWriter::new();
    fields.put(1 | CRITICAL, &version.to_be_bytes()).put(2 | CRITICAL, key.spki()).put(3 | CRITICAL, nonce);
    fields.put_some(4 | CRITICAL, exporter.map(|exporter| &exporter[..]));
    fields
}

/// The bytes of a message, length first.
pub fn encode(message: &Message) -> Vec<u8> {
    let mut fields = FieldWriter::new();
    let kind = match message {
        Message::Hello { versions, nonce, challenge } => {
            let versions: Vec<u8> = versions.iter().flat_map(|version| version.to_be_bytes()).collect();
            fields.put(1 | CRITICAL, &versions).put(2 | CRITICAL, nonce);
            fields.put_some(3, challenge.then_some(WITH_CHALLENGE));
            HELLO
        }
        Message::RelayHello { version, key, nonce, exporter, signature, challenge } => {
            fields = relay_hello_fields(*version, key, nonce, exporter.as_ref());
            fields.put(5 | CRITICAL, signature);
            fields.put_some(6, challenge.then_some(WITH_CHALLENGE));
            RELAY_HELLO
        }
        Message::Challenge { heard, bytes } => {
            fields.put_some(1, heard.as_ref().map(|heard| &heard[..])).put(2 | CRITICAL, bytes);
            CHALLENGE
        }
        Message::Challenged { heard } => {
            fields.put(1 | CRITICAL, heard);
            CHALLENGED
        }
        Message::Bind(mode) => {
            fields.put(1 | CRITICAL, &[u8::from(*mode == BindMode::SessionTls)]);
            BIND
        }
        Message::AuthClient { token, run_key, proof, program, line } => {
            fields.put(1, token.reveal()).put(2, run_key.spki()).put(3, proof).put(4, program.as_bytes());
            fields.put_some(5, line.then_some(IS_LINE));
            AUTH_CLIENT
        }
        Message::AuthAgent { cluster, instance, key, certificate, proof, program, line, beside } => {
            fields.put(1, cluster.spki()).put(2, instance.as_bytes()).put(3, key.spki());
            fields.put(4, certificate).put(5, proof).put(6, program.as_bytes());
            fields.put_some(7, line.then_some(IS_LINE));
            let beside: Vec<u8> = beside.iter().flat_map(|channel| channel.0.to_be_bytes()).collect();
            fields.put_some(8, (!beside.is_empty()).then_some(&beside[..]));
            AUTH_AGENT
        }
        Message::Enrol { secret, cluster, cluster_proof, instance, key, proof, program } => {
            fields.put(1, secret.reveal()).put(2, cluster.spki()).put(3, cluster_proof);
            fields.put(4, instance.as_bytes()).put(5, key.spki()).put(6, proof).put(7, program.as_bytes());
            ENROL
        }
        Message::Welcome(welcome) => {
            fields.put_u64(1, welcome.channel.0);
            fields.put_some(2, welcome.certificate.as_deref());
            fields.put_some(3, welcome.ticket_key.as_ref().map(|key| &key.spki()[..]));
            fields.put_some(4, welcome.name.as_ref().map(String::as_bytes));
            fields.put_some(5, welcome.spares.then_some(WITH_SPARES));
            WELCOME
        }
        Message::Refused(refused) => {
            let delay = u64::try_from(refused.delay.as_millis()).unwrap_or(u64::MAX);
            fields.put(1, &refused.reason.code().to_be_bytes());
            fields.put(2, bounded_detail(&refused.detail).as_bytes()).put_u64(3, delay);
            REFUSED
        }
    };
    let body = fields.finish();
    let mut bytes = Vec::with_capacity(5 + body.len());
    bytes.extend_from_slice(&(body.len() as u32 + 1).to_be_bytes());
    bytes.push(kind);
    bytes.extend_from_slice(&body);
    bytes
}

/// Reads a message: what follows its length.
///
/// # Errors
/// If the bytes are not a message of this version.
pub fn decode(bytes: &[u8]) -> Result<Message, MessageError> {
    let (&kind, body) = bytes.split_first().ok_or(MessageError::Length(0))?;
    if bytes.len() > MAX_MESSAGE {
        return Err(MessageError::Length(bytes.len()));
    }
    // A critical field that this type does not have is not of this version, whatever it is called elsewhere.
    let known: &[u16] = match kind {
        BIND | CHALLENGED => &[1],
        CHALLENGE => &[1, 2],
        HELLO | REFUSED => &[1, 2, 3],
        WELCOME | AUTH_CLIENT => &[1, 2, 3, 4, 5],
        RELAY_HELLO => &[1, 2, 3, 4, 5, 6],
        ENROL => &[1, 2, 3, 4, 5, 6, 7],
        AUTH_AGENT => &[1, 2, 3, 4, 5, 6, 7, 8],
        other => return Err(MessageError::Type(other)),
    };
    let fields = Fields::parse(body, known)?;
    let key = |tag| -> Result<VerifyingKey, FieldError> {
        VerifyingKey::from_spki(fields.need(tag)?).map_err(|_| FieldError::Value(tag))
    };
    let bounded = |tag, max| -> Result<Vec<u8>, FieldError> {
        let value = fields.need(tag)?;
        if value.is_empty() || value.len() > max { Err(FieldError::Value(tag)) } else { Ok(value.to_vec()) }
    };
    let is_set = |tag| match fields.maybe(tag) {
        None => Ok(false),
        Some([1]) => Ok(true),
        Some(_) => Err(FieldError::Value(tag)),
    };
    let text = |tag, max| fields.need_text(tag, max).map(str::to_owned);
    Ok(match kind {
        HELLO => {
            let versions = fields.need(1)?;
            if versions.is_empty() || versions.len() % 2 != 0 || versions.len() > 32 {
                return Err(FieldError::Value(1).into());
            }
            let versions =
                versions.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
            Message::Hello { versions, nonce: fields.need_array(2)?, challenge: is_set(3)? }
        }
        RELAY_HELLO => Message::RelayHello {
            version: u16::from_be_bytes(fields.need_array(1)?),
            key: key(2)?,
            nonce: fields.need_array(3)?,
            exporter: fields.maybe(4).map(|_| fields.need_array(4)).transpose()?,
            signature: fields.need_array(5)?,
            challenge: is_set(6)?,
        },
        CHALLENGE => Message::Challenge {
            heard: fields.maybe(1).map(|_| fields.need_array(1)).transpose()?,
            bytes: match fields.need(2)? {
                bytes if CHALLENGE_BYTES.contains(&bytes.len()) => bytes.to_vec(),
                _ => return Err(FieldError::Value(2).into()),
            },
        },
        CHALLENGED => Message::Challenged { heard: fields.need_array(1)? },
        BIND => Message::Bind(match fields.need(1)? {
            [0] => BindMode::Outer,
            [1] => BindMode::SessionTls,
            _ => return Err(FieldError::Value(1).into()),
        }),
        AUTH_CLIENT => Message::AuthClient {
            token: Secret::new(bounded(1, MAX_TOKEN)?),
            run_key: key(2)?,
            proof: fields.need_array(3)?,
            program: text(4, MAX_NAME)?,
            line: is_set(5)?,
        },
        AUTH_AGENT => Message::AuthAgent {
            cluster: key(1)?,
            instance: InstanceId::from_bytes(fields.need_array(2)?),
            key: key(3)?,
            certificate: bounded(4, MAX_CERTIFICATE)?,
            proof: fields.need_array(5)?,
            program: text(6, MAX_NAME)?,
            line: is_set(7)?,
            beside: channels(fields.maybe(8), 8)?,
        },
        ENROL => Message::Enrol {
            secret: Secret::new(bounded(1, 64)?),
            cluster: key(2)?,
            cluster_proof: fields.need_array(3)?,
            instance: InstanceId::from_bytes(fields.need_array(4)?),
            key: key(5)?,
            proof: fields.need_array(6)?,
            program: text(7, MAX_NAME)?,
        },
        WELCOME => Message::Welcome(Welcome {
            channel: ChannelId(fields.need_u64(1)?),
            certificate: fields.maybe(2).map(|_| bounded(2, MAX_CERTIFICATE)).transpose()?,
            ticket_key: fields.maybe(3).map(|_| key(3)).transpose()?,
            name: fields.maybe(4).map(|_| text(4, MAX_NAME)).transpose()?,
            spares: is_set(5)?,
        }),
        REFUSED => Message::Refused(Refused {
            reason: CloseReason::from_code(u16::from_be_bytes(fields.need_array(1)?)),
            detail: text(2, MAX_DETAIL)?,
            delay: Duration::from_millis(fields.need_u64(3)?),
        }),
        other => return Err(MessageError::Type(other)),
    })
}

/// Eight bytes each; none where the field is missing.
fn channels(value: Option<&[u8]>, tag: u16) -> Result<Vec<ChannelId>, FieldError> {
    let Some(bytes) = value else { return Ok(Vec::new()) };
    let (channels, rest) = bytes.as_chunks::<8>();
    if channels.is_empty() || channels.len() > MAX_BESIDE || !rest.is_empty() {
        return Err(FieldError::Value(tag));
    }
    Ok(channels.iter().map(|channel| ChannelId(u64::from_be_bytes(*channel))).collect())
}

//! What CONTROL frames carry: questions to the relay beside the streams, and its answers.
//!
//! `kind: u8`, `id: u32` (the answer repeats the question's), tagged fields. Questions that a person asks by a command are
//! [`Control::Ask`], whatever they are about: see [`super::question`].

use std::time::Duration;

use bytes::Bytes;

use super::{
    message::{MAX_CERTIFICATE, MAX_NAME, MessageError},
    question::{MAX_BODY, MAX_CURSOR, Topic},
};
use crate::{
    ids::{ChannelId, ClusterId},
    keys::VerifyingKey,
    proto::{
        CloseReason,
        fields::{FieldError, FieldWriter, Fields},
        link::LONGEST_SILENCE,
        reason::{MAX_DETAIL, bounded_detail},
    },
};

/// A question or an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Client: which cluster has this name?
    Resolve {
        /// The name.
        name: String,
    },
    /// Relay: this one.
    Resolved {
        /// Its id. A claim of the relay's: the id is the pin, the name is not.
        cluster: ClusterId,
        /// Its name.
        name: String,
        /// Whether an agent is connected now.
        online: bool,
    },
    /// Agent: a new certificate for this key, please.
    Renew {
        /// The instance's key.
        key: VerifyingKey,
    },
    /// Relay: here it is.
    Renewed {
        /// DER.
        certificate: Vec<u8>,
    },
    /// Agent: the session of this channel, which began after this one, is mine as well. Not answered.
    Beside {
        /// Its channel.
        channel: ChannelId,
    },
    /// Agent: the session of this channel, which was mine, is lost at my end. Not answered.
    Gone {
        /// Its channel.
        channel: ChannelId,
    },
    /// Agent or client: while no stream is open here I keep silent for so long, and then ask for a sign of life myself. Not answered.
    KeepSilent {
        /// At most [`LONGEST_SILENCE`].
        silence: Duration,
    },
    /// Relay: no.
    Failed {
        /// Why.
        reason: CloseReason,
        /// A few words more.
        detail: String,
    },
    /// Client: a person's question.
    Ask {
        /// What it is about.
        topic: Topic,
        /// Where the answer before ended; empty where there was none. At most [`MAX_CURSOR`] bytes.
        cursor: Bytes,
        /// The topic's own, JSON; at most [`MAX_BODY`] bytes.
        body: Bytes,
    },
    /// Relay: an answer, or the next part of one.
    Answer {
        /// Where the next part begins; empty where this was the last. At most [`MAX_CURSOR`] bytes.
        cursor: Bytes,
        /// The topic's own, JSON; at most [`MAX_BODY`] bytes.
        body: Bytes,
    },
}

const RESOLVE: u8 = 1;
const RESOLVED: u8 = 2;
const RENEW: u8 = 3;
const RENEWED: u8 = 4;
const FAILED: u8 = 5;
const ASK: u8 = 6;
const ANSWER: u8 = 7;
const BESIDE: u8 = 8;
const GONE: u8 = 9;
const KEEP_SILENT: u8 = 10;

impl Control {
    /// The payload of a CONTROL frame.
    pub fn encode(&self, id: u32) -> Bytes {
        let mut fields = FieldWriter::new();
        let kind = match self {
            Self::Resolve { name } => {
                fields.put(1, name.as_bytes());
                RESOLVE
            }
            Self::Resolved { cluster, name, online } => {
                fields.put(1, cluster.as_bytes()).put(2, name.as_bytes()).put(3, &[u8::from(*online)]);
                RESOLVED
            }
            Self::Renew { key } => {
                fields.put(1, key.spki());
                RENEW
            }
            Self::Renewed { certificate } => {
                fields.put(1, certificate);
                RENEWED
            }
            Self::Beside { channel } => {
                fields.put_u64(1, channel.0);
                BESIDE
            }
            Self::Gone { channel } => {
                fields.put_u64(1, channel.0);
                GONE
            }
            Self::KeepSilent { silence } => {
                fields.put_u64(1, u64::try_from(silence.as_millis()).unwrap_or(u64::MAX));
                KEEP_SILENT
            }
            Self::Failed { reason, detail } => {
                fields.put(1, &reason.code().to_be_bytes()).put(2, bounded_detail(detail).as_bytes());
                FAILED
            }
            Self::Ask { topic, cursor, body } => {
                fields.put(1, &topic.0.to_be_bytes()).put(2, cursor).put(3, body);
                ASK
            }
            Self::Answer { cursor, body } => {
                fields.put(2, cursor).put(3, body);
                ANSWER
            }
        };
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&id.to_be_bytes());
        bytes.extend_from_slice(&fields.finish());
        bytes.into()
    }

    /// Reads the payload of a CONTROL frame.
    ///
    /// # Errors
    /// If it is none of this version's. A question that can't be read is answered with FAILED, an answer ignored.
    pub fn decode(bytes: &[u8]) -> Result<(u32, Self), MessageError> {
        let (head, body) = bytes.split_first_chunk::<5>().ok_or(MessageError::Length(bytes.len()))?;
        let id = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let known: &[u16] = match head[0] {
            RESOLVE | RENEW | RENEWED | BESIDE | GONE | KEEP_SILENT => &[1],
            FAILED => &[1, 2],
            RESOLVED | ASK => &[1, 2, 3],
            ANSWER => &[2, 3],
            other => return Err(MessageError::Type(other)),
        };
        let fields = Fields::parse(body, known)?;
        let control = match head[0] {
            RESOLVE => Self::Resolve { name: fields.need_text(1, MAX_NAME)?.to_owned() },
            RESOLVED => Self::Resolved {
                cluster: ClusterId::from_bytes(fields.need_array(1)?),
                name: fields.need_text(2, MAX_NAME)?.to_owned(),
                online: fields.need(3)? == [1],
            },
            RENEW => Self::Renew {
                key: VerifyingKey::from_spki(fields.need(1)?).map_err(|_| FieldError::Value(1))?,
            },
            RENEWED => {
                let certificate = fields.need(1)?;
                if certificate.is_empty() || certificate.len() > MAX_CERTIFICATE {
                    return Err(FieldError::Value(1).into());
                }
                Self::Renewed { certificate: certificate.to_vec() }
            }
            BESIDE => Self::Beside { channel: ChannelId(fields.need_u64(1)?) },
            GONE => Self::Gone { channel: ChannelId(fields.need_u64(1)?) },
            KEEP_SILENT => match Duration::from_millis(fields.need_u64(1)?) {
                silence if silence <= LONGEST_SILENCE => Self::KeepSilent { silence },
                _ => return Err(FieldError::Value(1).into()),
            },
            FAILED => Self::Failed {
                reason: CloseReason::from_code(u16::from_be_bytes(fields.need_array(1)?)),
                detail: fields.need_text(2, MAX_DETAIL)?.to_owned(),
            },
            ASK => Self::Ask {
                topic: Topic(u16::from_be_bytes(fields.need_array(1)?)),
                cursor: bounded(&fields, 2, MAX_CURSOR)?,
                body: bounded(&fields, 3, MAX_BODY)?,
            },
            ANSWER => Self::Answer {
                cursor: bounded(&fields, 2, MAX_CURSOR)?,
                body: bounded(&fields, 3, MAX_BODY)?,
            },
            other => return Err(MessageError::Type(other)),
        };
        Ok((id, control))
    }
}

fn bounded(fields: &Fields<'_>, tag: u16, most: usize) -> Result<Bytes, FieldError> {
    let value = fields.need(tag)?;
    if value.len() > most {
        return Err(FieldError::Value(tag));
    }
    Ok(Bytes::copy_from_slice(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SigningKey;

    #[test]
    fn questions_and_answers_read_back() {
        for control in [
            Control::Resolve { name: "edge-7".into() },
            Control::Resolved { cluster: ClusterId::of_spki(b"k"), name: "edge-7".into(), online: true },
            Control::Renew { key: SigningKey::generate().public() },
            Control::Renewed { certificate: vec![1, 2, 3] },
            Control::Beside { channel: ChannelId(0x0102_0304_0506_0708) },
            Control::Gone { channel: ChannelId(u64::MAX) },
            Control::KeepSilent { silence: Duration::from_millis(37_500) },
            Control::KeepSilent { silence: LONGEST_SILENCE },
            Control::Failed { reason: CloseReason::ClusterUnknown, detail: "no".into() },
            Control::Ask { topic: Topic::AUDIT, cursor: Bytes::new(), body: Bytes::from_static(b"{}") },
            Control::Answer { cursor: Bytes::from_static(b"7"), body: Bytes::from_static(b"[]") },
        ] {
            assert_eq!(Control::decode(&control.encode(7)), Ok((7, control)));
        }
        let long =
            Control::Ask { topic: Topic(1), cursor: Bytes::new(), body: vec![b' '; MAX_BODY + 1].into() };
        assert_eq!(Control::decode(&long.encode(1)), Err(FieldError::Value(3).into()));
        let longest = Control::Answer { cursor: vec![1; MAX_CURSOR].into(), body: vec![1; MAX_BODY].into() };
        assert!(longest.encode(1).len() <= crate::proto::frame::MAX_PAYLOAD, "it fits into one frame");
        let too_long = Control::KeepSilent { silence: LONGEST_SILENCE + Duration::from_millis(1) };
        assert_eq!(Control::decode(&too_long.encode(1)), Err(FieldError::Value(1).into()));
        assert_eq!(Control::decode(b"abc"), Err(MessageError::Length(3)));
        assert_eq!(Control::decode(&[99, 0, 0, 0, 1]), Err(MessageError::Type(99)));
    }
}

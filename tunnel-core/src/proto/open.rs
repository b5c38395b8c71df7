//! What OPEN and OPENED carry (`docs/protocol.md`, "OPEN").

use bytes::Bytes;

use super::fields::{CRITICAL, FieldError, FieldWriter, Fields};
use crate::{
    ids::{ChannelId, ClusterId, InstanceId, StreamKey},
    role::MAX_OFFER,
};

pub(super) const KEY: u16 = 1 | CRITICAL;
pub(super) const CLUSTER: u16 = 2 | CRITICAL;
pub(super) const LIMIT: u16 = 3;
const SHARE: u16 = 4;
const CHANNEL: u16 = 5;
const TICKET: u16 = 6;
// Behind RESUME's own.
pub(super) const OFFER: u16 = 13;
const INSTANCE: u16 = 1;

/// Longest ticket that OPEN carries, in bytes.
pub const MAX_TICKET: usize = 2048;

/// Who wants which stream. The client writes the first three; the relay adds the rest on the agent's leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRequest {
    /// The stream's name for as long as it lives.
    pub key: StreamKey,
    /// The cluster it leads to.
    pub cluster: ClusterId,
    /// Offset up to which the other side may send at once; never below the floor of 16 KiB.
    pub limit: u64,
    /// Stands for one user without naming them, so that every hop can be fair. Zero where unknown.
    pub share: u64,
    /// The client's session, as every hop logs it.
    pub channel: Option<ChannelId>,
    /// The relay's signed ticket (`ticket`), on the agent's leg.
    pub ticket: Option<Bytes>,
    /// Signed documents that concern the caller's roles (`role`), on the agent's leg.
    pub offer: Option<Bytes>,
}

impl OpenRequest {
    /// A client's request.
    pub fn new(key: StreamKey, cluster: ClusterId) -> Self {
        Self { key, cluster, limit: 0, share: 0, channel: None, ticket: None, offer: None }
    }

    /// The payload of OPEN.
    pub fn encode(&self) -> Bytes {
        let mut fields = FieldWriter::new();
        self.put(&mut fields);
        fields.put_some(OFFER, self.offer.as_deref());
        fields.finish().into()
    }

    /// Appends its fields, to which RESUME adds its own, and then the offer.
    pub(super) fn put(&self, fields: &mut FieldWriter) {
        fields.put(KEY, self.key.as_bytes());
        fields.put(CLUSTER, self.cluster.as_bytes());
        fields.put_u64(LIMIT, self.limit);
        fields.put_u64(SHARE, self.share);
        if let Some(channel) = self.channel {
            fields.put_u64(CHANNEL, channel.0);
        }
        fields.put_some(TICKET, self.ticket.as_deref());
    }

    /// Reads the payload of OPEN.
    ///
    /// # Errors
    /// If a field is missing, of the wrong size, or critical and unknown.
    pub fn decode(payload: &Bytes) -> Result<Self, FieldError> {
        Self::read(&Fields::parse(payload, &[1, 2, 3, 4, 5, 6, 13])?, payload)
    }

    /// Reads its fields, which are `payload`'s.
    pub(super) fn read(fields: &Fields<'_>, payload: &Bytes) -> Result<Self, FieldError> {
        let ticket = fields.maybe(TICKET);
        if ticket.is_some_and(|ticket| ticket.len() > MAX_TICKET) {
            return Err(FieldError::Value(TICKET));
        }
        let offer = fields.maybe(OFFER);
        if offer.is_some_and(|offer| offer.len() > MAX_OFFER) {
            return Err(FieldError::Value(OFFER));
        }
        let optional = |tag| fields.maybe(tag).map(|_| fields.need_u64(tag)).transpose();
        Ok(Self {
            key: StreamKey::from_bytes(fields.need_array(KEY & !CRITICAL)?),
            cluster: ClusterId::from_bytes(fields.need_array(CLUSTER & !CRITICAL)?),
            limit: optional(LIMIT)?.unwrap_or(0),
            share: optional(SHARE)?.unwrap_or(0),
            channel: optional(CHANNEL)?.map(ChannelId),
            ticket: ticket.map(|ticket| payload.slice_ref(ticket)),
            offer: offer.map(|offer| payload.slice_ref(offer)),
        })
    }
}

/// The far endpoint's answer to OPEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The agent process that holds the stream.
    pub instance: InstanceId,
    /// Offset up to which the opener may send.
    pub limit: u64,
}

impl Opened {
    /// The payload of OPENED.
    pub fn encode(&self) -> Bytes {
        let mut fields = FieldWriter::new();
        fields.put(INSTANCE, self.instance.as_bytes());
        fields.put_u64(LIMIT, self.limit);
        fields.finish().into()
    }

    /// Reads the payload of OPENED.
    ///
    /// # Errors
    /// If a field is missing, of the wrong size, or critical and unknown.
    pub fn decode(payload: &[u8]) -> Result<Self, FieldError> {
        let fields = Fields::parse(payload, &[1, 3])?;
        Ok(Self {
            instance: InstanceId::from_bytes(fields.need_array(INSTANCE)?),
            limit: fields.need_u64(LIMIT)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_read_back() {
        let mut request = OpenRequest::new(StreamKey::random(), ClusterId::of_spki(b"k"));
        request.limit = 1 << 20;
        assert_eq!(OpenRequest::decode(&request.encode()), Ok(request.clone()));
        request.share = 7;
        request.channel = Some(ChannelId(9));
        request.ticket = Some(Bytes::from_static(b"ticket"));
        request.offer = Some(Bytes::from_static(b"offer"));
        assert_eq!(OpenRequest::decode(&request.encode()), Ok(request));
        let opened = Opened { instance: InstanceId::random(), limit: 16384 };
        assert_eq!(Opened::decode(&opened.encode()), Ok(opened));
    }

    #[test]
    fn a_request_without_key_or_cluster_is_refused() {
        assert_eq!(OpenRequest::decode(&Bytes::new()), Err(FieldError::Missing(1)));
        let mut fields = FieldWriter::new();
        fields.put(KEY, &[0; 15]);
        assert_eq!(OpenRequest::decode(&fields.finish().into()), Err(FieldError::Value(1)));
    }

    #[test]
    fn an_offer_that_is_too_long_is_refused() {
        let mut request = OpenRequest::new(StreamKey::random(), ClusterId::of_spki(b"k"));
        request.offer = Some(vec![0; MAX_OFFER].into());
        assert!(OpenRequest::decode(&request.encode()).is_ok());
        request.offer = Some(vec![0; MAX_OFFER + 1].into());
        assert_eq!(OpenRequest::decode(&request.encode()), Err(FieldError::Value(OFFER)));
    }
}

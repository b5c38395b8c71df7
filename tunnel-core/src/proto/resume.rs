//! What RESUME and RESUMED carry, and the proof that they come from the stream's own ends (`docs/protocol.md`, "Resume").
//!
//! The proof's key is exported from the stream's inner TLS session (RFC 8446, section 7.5), so the relay never has it: it can neither make a
//! RESUME nor use one twice, because the epoch that the proof covers must rise.

use std::fmt;

use aws_lc_rs::hmac;
use bytes::Bytes;

use super::{
    CloseReason,
    fields::{CRITICAL, FieldError, FieldWriter, Fields},
    open::{CLUSTER, KEY, LIMIT, OFFER, OpenRequest},
};
use crate::ids::{ChannelId, ClusterId, InstanceId, StreamKey};

/// Label of the inner TLS session's exporter that gives the key.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-towline-resume";
/// Length of the key and of a proof, in bytes.
pub const PROOF: usize = 32;

// After OPEN's own.
const INSTANCE: u16 = 7 | CRITICAL;
const EPOCH: u16 = 8 | CRITICAL;
const RECEIVED: u16 = 9 | CRITICAL;
const PROVEN: u16 = 11 | CRITICAL;
const ENDED: u16 = 12 | CRITICAL;

/// No stream is so long. A relay that can't check the proof counts on from what it is told.
pub const MAX_OFFSET: u64 = 1 << 62;

const DIRECTION_RESUME: u8 = 0;
const DIRECTION_RESUMED: u8 = 1;

/// How much of one direction its receiver has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Contiguous bytes since the stream's begin.
    pub bytes: u64,
    /// The direction's end is there, too.
    pub fin: bool,
}

impl Arrived {
    /// The same in one number, as CREDIT has it.
    pub fn with_fin(self) -> u64 {
        self.bytes + u64::from(self.fin)
    }

    fn put(self, covered: &mut FieldWriter) {
        covered.put_u64(RECEIVED, self.bytes);
    }

    fn read(fields: &Fields<'_>) -> Result<Self, FieldError> {
        let [fin @ (0 | 1)] = fields.need_array(ENDED & !CRITICAL)? else {
            return Err(FieldError::Value(ENDED & !CRITICAL));
        };
        let bytes = fields.need_u64(RECEIVED & !CRITICAL)?;
        if bytes > MAX_OFFSET {
            return Err(FieldError::Value(RECEIVED & !CRITICAL));
        }
        Ok(Self { bytes, fin: fin == 1 })
    }
}

/// The key of one stream's proofs. Never prints.
#[derive(Clone)]
pub struct ResumeKey(hmac::Key);

impl fmt::Debug for ResumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResumeKey(…)")
    }
}

impl ResumeKey {
    /// From the exporter with [`EXPORTER_LABEL`].
    pub fn new(exported: &[u8; PROOF]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, exported))
    }

    fn prove(&self, direction: u8, covered: &[&[u8]]) -> [u8; PROOF] {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&[direction]);
        covered.iter().for_each(|part| context.update(part));
        let mut proof = [0; PROOF];
        proof.copy_from_slice(context.sign().as_ref());
        proof
    }

    fn check(&self, direction: u8, covered: &[&[u8]], proof: &[u8; PROOF]) -> bool {
        let mut message = vec![direction];
        covered.iter().for_each(|part| message.extend_from_slice(part));
        hmac::verify(&self.0, &message, proof).is_ok()
    }
}

/// Takes a stream up on another connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeRequest {
    /// The stream's name.
    pub key: StreamKey,
    /// The cluster it leads to.
    pub cluster: ClusterId,
    /// Offset up to which the other side may send; it may be lower than before.
    pub limit: u64,
    /// As in OPEN: the relay's.
    pub share: u64,
    /// As in OPEN: the relay's.
    pub channel: Option<ChannelId>,
    /// As in OPEN: the relay's.
    pub ticket: Option<Bytes>,
    /// As in OPEN: the relay's.
    pub offer: Option<Bytes>,
    /// The agent process that holds the stream, from OPENED.
    pub instance: InstanceId,
    /// Above each one that was used for this stream before; OPEN is 0.
    pub epoch: u64,
    /// What the client has of the agent's bytes.
    pub arrived: Arrived,
    /// See the module's text.
    pub proof: [u8; PROOF],
}

impl ResumeRequest {
    fn covered(&self) -> Vec<u8> {
        let mut fields = FieldWriter::new();
        fields.put(KEY, self.key.as_bytes());
        fields.put(CLUSTER, self.cluster.as_bytes());
        fields.put(INSTANCE, self.instance.as_bytes());
        fields.put_u64(EPOCH, self.epoch);
        self.arrived.put(&mut fields);
        fields.put(ENDED, &[u8::from(self.arrived.fin)]);
        fields.finish()
    }

    /// The payload of RESUME.
    pub fn encode(&self) -> Bytes {
        let mut fields = FieldWriter::new();
        let Self { key, cluster, limit, share, channel, .. } = *self;
        let (ticket, offer) = (self.ticket.clone(), self.offer.clone());
        OpenRequest { key, cluster, limit, share, channel, ticket, offer }.put(&mut fields);
        fields.put(INSTANCE, self.instance.as_bytes());
        fields.put_u64(EPOCH, self.epoch);
        self.arrived.put(&mut fields);
        fields.put(PROVEN, &self.proof);
        fields.put(ENDED, &[u8::from(self.arrived.fin)]);
        fields.put_some(OFFER, self.offer.as_deref());
        fields.finish().into()
    }

    /// Reads the payload of RESUME.
    ///
    /// # Errors
    /// If a field is missing, of the wrong size, or critical and unknown.
    pub fn decode(payload: &Bytes) -> Result<Self, FieldError> {
        let fields = Fields::parse(payload, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, OFFER])?;
        let OpenRequest { key, cluster, limit, share, channel, ticket, offer } =
            OpenRequest::read(&fields, payload)?;
        Ok(Self {
            key,
            cluster,
            limit,
            share,
            channel,
            ticket,
            offer,
            instance: InstanceId::from_bytes(fields.need_array(INSTANCE & !CRITICAL)?),
            epoch: fields.need_u64(EPOCH & !CRITICAL)?,
            arrived: Arrived::read(&fields)?,
            proof: fields.need_array(PROVEN & !CRITICAL)?,
        })
    }
}

/// The agent's answer to RESUME.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// Offset up to which the client may send.
    pub limit: u64,
    /// RESUME's.
    pub epoch: u64,
    /// What the agent has of the client's bytes.
    pub arrived: Arrived,
    /// See the module's text.
    pub proof: [u8; PROOF],
}

impl Resumed {
    fn covered(epoch: u64, arrived: Arrived) -> Vec<u8> {
        let mut fields = FieldWriter::new();
        fields.put_u64(EPOCH, epoch);
        arrived.put(&mut fields);
        fields.put(ENDED, &[u8::from(arrived.fin)]);
        fields.finish()
    }

    /// The payload of RESUMED.
    pub fn encode(&self) -> Bytes {
        let mut fields = FieldWriter::new();
        fields.put_u64(LIMIT, self.limit);
        fields.put_u64(EPOCH, self.epoch);
        self.arrived.put(&mut fields);
        fields.put(PROVEN, &self.proof);
        fields.put(ENDED, &[u8::from(self.arrived.fin)]);
        fields.finish().into()
    }

    /// Reads the payload of RESUMED.
    ///
    /// # Errors
    /// If a field is missing, of the wrong size, or critical and unknown.
    pub fn decode(payload: &[u8]) -> Result<Self, FieldError> {
        let fields = Fields::parse(payload, &[3, 8, 9, 11, 12])?;
        Ok(Self {
            limit: fields.need_u64(LIMIT)?,
            epoch: fields.need_u64(EPOCH & !CRITICAL)?,
            arrived: Arrived::read(&fields)?,
            proof: fields.need_array(PROVEN & !CRITICAL)?,
        })
    }
}

/// What an end keeps of a stream so that it can be taken up again: names, the proofs' key, and how often it was.
#[derive(Clone, Debug)]
pub struct Claim {
    key: StreamKey,
    cluster: ClusterId,
    instance: InstanceId,
    proofs: ResumeKey,
    epoch: u64,
    /// At the client: the RESUME that is not answered yet, as the proof covers it.
    asked: Option<Vec<u8>>,
}

impl Claim {
    /// A stream whose inner handshake is finished and that was never resumed.
    pub fn new(key: StreamKey, cluster: ClusterId, instance: InstanceId, proofs: ResumeKey) -> Self {
        Self { key, cluster, instance, proofs, epoch: 0, asked: None }
    }

    /// The stream's name.
    pub fn key(&self) -> StreamKey {
        self.key
    }

    /// At the client: the next RESUME, with an epoch of its own.
    pub fn ask(&mut self, arrived: Arrived, limit: u64) -> ResumeRequest {
        self.epoch += 1;
        let mut request = ResumeRequest {
            key: self.key,
            cluster: self.cluster,
            limit,
            share: 0,
            channel: None,
            ticket: None,
            offer: None,
            instance: self.instance,
            epoch: self.epoch,
            arrived,
            proof: [0; PROOF],
        };
        let covered = request.covered();
        request.proof = self.proofs.prove(DIRECTION_RESUME, &[&covered]);
        self.asked = Some(covered);
        request
    }

    /// At the agent: whether a RESUME is this stream's client's, and newer than all before; then it counts as used.
    ///
    /// # Errors
    /// `Lost` where it names another process, `TicketInvalid` where the proof or the epoch doesn't fit.
    pub fn accept(&mut self, request: &ResumeRequest) -> Result<(), CloseReason> {
        if request.key != self.key || request.cluster != self.cluster || request.instance != self.instance {
            return Err(CloseReason::Lost);
        }
        if !self.proofs.check(DIRECTION_RESUME, &[&request.covered()], &request.proof)
            || request.epoch <= self.epoch
        {
            return Err(CloseReason::TicketInvalid);
        }
        self.epoch = request.epoch;
        Ok(())
    }

    /// At the agent: the answer to a RESUME that was accepted.
    pub fn answer(&self, request: &ResumeRequest, arrived: Arrived, limit: u64) -> Resumed {
        let own = Resumed::covered(request.epoch, arrived);
        let proof = self.proofs.prove(DIRECTION_RESUMED, &[&request.covered(), &own]);
        Resumed { limit, epoch: request.epoch, arrived, proof }
    }

    /// At the client: whether an answer is the agent's to the last RESUME.
    pub fn is_answer(&mut self, resumed: &Resumed) -> bool {
        let Some(asked) = self.asked.take() else { return false };
        let own = Resumed::covered(resumed.epoch, resumed.arrived);
        resumed.epoch == self.epoch && self.proofs.check(DIRECTION_RESUMED, &[&asked, &own], &resumed.proof)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> (Claim, Claim) {
        let (key, instance) = (StreamKey::random(), InstanceId::random());
        let claim = Claim::new(key, ClusterId::of_spki(b"k"), instance, ResumeKey::new(&[7; 32]));
        (claim.clone(), claim)
    }

    const SOME: Arrived = Arrived { bytes: 5, fin: false };

    #[test]
    fn requests_and_answers_read_back() {
        let (mut client, agent) = claims();
        let mut request = client.ask(SOME, 100);
        assert_eq!(ResumeRequest::decode(&request.encode()), Ok(request.clone()));
        request.channel = Some(ChannelId(9));
        request.ticket = Some(Bytes::from_static(b"ticket"));
        assert_eq!(ResumeRequest::decode(&request.encode()), Ok(request.clone()));
        let resumed = agent.answer(&request, Arrived { bytes: 9, fin: true }, 200);
        assert_eq!(Resumed::decode(&resumed.encode()), Ok(resumed));
    }

    #[test]
    fn an_offset_that_would_overflow_is_refused_in_both() {
        for bytes in [MAX_OFFSET + 1, u64::MAX - 262_144, u64::MAX] {
            let (mut client, agent) = claims();
            let request = client.ask(Arrived { bytes, fin: false }, u64::MAX);
            assert_eq!(ResumeRequest::decode(&request.encode()), Err(FieldError::Value(9)));
            let answer = agent.answer(&request, Arrived { bytes, fin: true }, u64::MAX);
            assert_eq!(Resumed::decode(&answer.encode()), Err(FieldError::Value(9)));
        }
    }

    #[test]
    fn the_relay_may_lower_the_limit_and_add_what_is_its_own() {
        let (mut client, mut agent) = claims();
        let mut request = client.ask(SOME, 100);
        (request.limit, request.share, request.channel) = (50, 3, Some(ChannelId(1)));
        assert_eq!(agent.accept(&request), Ok(()));
        let mut resumed = agent.answer(&request, SOME, 100);
        resumed.limit = 10;
        assert!(client.is_answer(&resumed));
        assert!(!client.is_answer(&resumed), "an answer counts once");
    }

    #[test]
    fn t50_a_captured_resume_is_worthless() {
        let (mut client, mut agent) = claims();
        let first = client.ask(SOME, 100);
        assert_eq!(agent.accept(&first), Ok(()));
        assert_eq!(agent.accept(&first), Err(CloseReason::TicketInvalid), "used");
        let mut newer = first.clone();
        newer.epoch = 9;
        assert_eq!(agent.accept(&newer), Err(CloseReason::TicketInvalid), "another epoch");
        let mut further = client.ask(SOME, 100);
        further.arrived.bytes += 1;
        assert_eq!(agent.accept(&further), Err(CloseReason::TicketInvalid), "another offset");
        let mut elsewhere = client.ask(SOME, 100);
        elsewhere.instance = InstanceId::random();
        assert_eq!(agent.accept(&elsewhere), Err(CloseReason::Lost), "another process");
        let old = agent.answer(&first, SOME, 100);
        assert!(!client.is_answer(&old), "an answer to an earlier one");
    }

    #[test]
    fn t50_an_answer_that_the_relay_made_or_changed_is_none() {
        let (mut client, mut agent) = claims();
        let request = client.ask(SOME, 100);
        agent.accept(&request).unwrap();
        let mut resumed = agent.answer(&request, SOME, 100);
        resumed.arrived.bytes += 1;
        assert!(!client.is_answer(&resumed));
    }
}

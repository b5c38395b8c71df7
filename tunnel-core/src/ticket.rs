//! The relay's permission to open streams to one cluster, for one caller.
//!
//! Every OPEN on an agent's leg carries one. It says nothing inside the cluster: the agent requires that ticket,
//! cluster token and inner TLS peer are one user's, so that a token taken from one cluster is worth nothing on
//! another (THREATS T45), and a relay's ticket alone is worth nothing at all.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::{
    ids::{ClusterId, KeyHash},
    keys::{Purpose, SIGNATURE_LEN, SigningKey, VerifyingKey},
    proto::fields::{CRITICAL, FieldError, FieldWriter, Fields},
};

/// The longest life of a ticket.
pub const MAX_LIFE: Duration = Duration::from_secs(300);
/// How far the agent's clock may be behind the relay's.
pub const SKEW: Duration = Duration::from_secs(60);
/// Longest principal, in bytes.
pub const MAX_PRINCIPAL: usize = 1024;

const CLUSTER: u16 = 1 | CRITICAL;
const PRINCIPAL: u16 = 2 | CRITICAL;
const RUN_KEY: u16 = 3 | CRITICAL;
const ID: u16 = 4;
const ISSUED: u16 = 5;
const EXPIRES: u16 = 6;
const OFFER: u16 = 7;

/// What a ticket says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The cluster it opens.
    pub cluster: ClusterId,
    /// The caller: issuer and stable claim, as the relay verified them.
    pub principal: String,
    /// The caller's run key, which must be the inner TLS peer's.
    pub run_key: KeyHash,
    /// Random; names the ticket in logs.
    pub id: [u8; 16],
    /// When it was issued.
    pub issued: SystemTime,
    /// When it ends; at most [`MAX_LIFE`] later.
    pub expires: SystemTime,
    /// Hash of the documents that go with it ([`hash_offer`](crate::role::hash_offer)), which are as fresh as `issued` says.
    pub offer: Option<[u8; 32]>,
}

/// Why a ticket is worth nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It can't be read.
    #[error("the ticket is malformed: {0}")]
    Malformed(#[from] FieldError),
    /// It is not signed by the pinned relay.
    #[error("the ticket is not signed by this agent's relay")]
    Signature,
    /// It is for another cluster.
    #[error("the ticket is for another cluster")]
    Cluster,
    /// It is for another client's key.
    #[error("the ticket is for another client's key")]
    RunKey,
    /// Its time is over, not yet come, or longer than allowed.
    #[error("the ticket is expired or not yet valid")]
    Time,
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn time(seconds: u64) -> Result<SystemTime, TicketError> {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or(TicketError::Time)
}

impl Ticket {
    /// A ticket that is valid from `now` for `life`.
    pub fn new(
        cluster: ClusterId,
        principal: String,
        run_key: KeyHash,
        now: SystemTime,
        life: Duration,
    ) -> Self {
        let id = *crate::ids::StreamKey::random().as_bytes();
        Self { cluster, principal, run_key, id, issued: now, expires: now + life.min(MAX_LIFE), offer: None }
    }

    /// The bytes that OPEN carries: a signature, then the fields that it is over.
    pub fn sign(&self, key: &SigningKey) -> Bytes {
        let mut fields = FieldWriter::new();
        fields.put(CLUSTER, self.cluster.as_bytes());
        fields.put(PRINCIPAL, self.principal.as_bytes());
        fields.put(RUN_KEY, self.run_key.as_bytes());
        fields.put(ID, &self.id);
        fields.put_u64(ISSUED, seconds(self.issued));
        fields.put_u64(EXPIRES, seconds(self.expires));
        fields.put_some(OFFER, self.offer.as_ref().map(|hash| &hash[..]));
        let fields = fields.finish();
        let mut bytes = key.sign(Purpose::Ticket, &[&fields]).to_vec();
        bytes.extend_from_slice(&fields);
        bytes.into()
    }

    /// Reads a ticket and checks all that can be known before the inner TLS peer is: signature, cluster, time.
    ///
    /// # Errors
    /// If any of them is wrong.
    pub fn verify(
        bytes: &[u8],
        relay: &VerifyingKey,
        own: ClusterId,
        now: SystemTime,
    ) -> Result<Self, TicketError> {
        let (signature, signed) =
            bytes.split_at_checked(SIGNATURE_LEN).ok_or(TicketError::Malformed(FieldError::Short))?;
        if !relay.verify(Purpose::Ticket, &[signed], signature) {
            return Err(TicketError::Signature);
        }
        let fields = Fields::parse(signed, &[1, 2, 3, 4, 5, 6, 7])?;
        let ticket = Self {
            cluster: ClusterId::from_bytes(fields.need_array(1)?),
            principal: fields.need_text(2, MAX_PRINCIPAL)?.to_owned(),
            run_key: KeyHash::from_bytes(fields.need_array(3)?),
            id: fields.need_array(ID)?,
            issued: time(fields.need_u64(ISSUED)?)?,
            expires: time(fields.need_u64(EXPIRES)?)?,
            offer: fields.maybe(OFFER).map(|_| fields.need_array(OFFER)).transpose()?,
        };
        if ticket.cluster != own {
            return Err(TicketError::Cluster);
        }
        let life = ticket.expires.duration_since(ticket.issued).map_err(|_| TicketError::Time)?;
        if life > MAX_LIFE || now + SKEW < ticket.issued || now >= ticket.expires + SKEW {
            return Err(TicketError::Time);
        }
        Ok(ticket)
    }

    /// Whether the inner TLS peer is the one that the ticket is for.
    ///
    /// # Errors
    /// If it isn't.
    pub fn check_peer(&self, peer: KeyHash) -> Result<(), TicketError> {
        if self.run_key == peer { Ok(()) } else { Err(TicketError::RunKey) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterId {
        ClusterId::of_spki(b"a cluster")
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn ticket() -> Ticket {
        Ticket::new(cluster(), "https://idp#alice".into(), KeyHash::of_spki(b"run"), now(), MAX_LIFE)
    }

    #[test]
    fn a_ticket_reads_back() {
        let key = SigningKey::generate();
        for ticket in [ticket(), Ticket { offer: Some([7; 32]), ..ticket() }] {
            assert_eq!(Ticket::verify(&ticket.sign(&key), &key.public(), cluster(), now()), Ok(ticket));
        }
    }

    #[test]
    fn t45_a_ticket_is_worth_nothing_to_another_cluster_or_client() {
        let key = SigningKey::generate();
        let bytes = ticket().sign(&key);
        let other = ClusterId::of_spki(b"another cluster");
        assert_eq!(Ticket::verify(&bytes, &key.public(), other, now()), Err(TicketError::Cluster));
        let ticket = Ticket::verify(&bytes, &key.public(), cluster(), now()).unwrap();
        assert_eq!(ticket.check_peer(KeyHash::of_spki(b"mallory")), Err(TicketError::RunKey));
        assert_eq!(ticket.check_peer(KeyHash::of_spki(b"run")), Ok(()));
    }

    #[test]
    fn forged_changed_cut_and_late_tickets_are_refused() {
        let key = SigningKey::generate();
        let bytes = ticket().sign(&key);
        let verify = |bytes: &[u8], at| Ticket::verify(bytes, &key.public(), cluster(), at);
        assert_eq!(verify(&ticket().sign(&SigningKey::generate()), now()), Err(TicketError::Signature));
        let mut changed = bytes.to_vec();
        changed[SIGNATURE_LEN + 40] ^= 1;
        assert_eq!(verify(&changed, now()), Err(TicketError::Signature));
        assert!(verify(&bytes[..30], now()).is_err());
        assert_eq!(verify(&bytes, now() + MAX_LIFE + SKEW), Err(TicketError::Time));
        assert!(verify(&bytes, now() + MAX_LIFE).is_ok(), "the agent's clock may be ahead");
        assert_eq!(verify(&bytes, now() - SKEW - Duration::from_secs(1)), Err(TicketError::Time));
        let mut long = ticket();
        long.expires = long.issued + MAX_LIFE + Duration::from_secs(1);
        assert_eq!(verify(&long.sign(&key), now()), Err(TicketError::Time));
    }
}

//! The documents that go with OPEN, and their hash, which the ticket has: so that they are as fresh as it is.

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;

use super::MAX_DOCUMENT;
use crate::proto::fields::FieldError;

/// Documents that go with one OPEN, at most.
pub const MAX_OFFERED: usize = 16;
/// All of them together, with their lengths, in bytes.
pub const MAX_OFFER: usize = 8192;

/// The tag of OPEN's field, for errors.
const OFFER: u16 = 13;

/// Writes documents one after the other, each behind its length (16 bit), as many as fit; nothing where there are none.
pub fn write_offer<'a>(documents: impl IntoIterator<Item = &'a Bytes>) -> Option<Bytes> {
    let mut offer = Vec::new();
    for document in documents.into_iter().take(MAX_OFFERED) {
        let Ok(length) = u16::try_from(document.len()) else { continue };
        if offer.len() + 2 + document.len() > MAX_OFFER {
            break;
        }
        offer.extend_from_slice(&length.to_be_bytes());
        offer.extend_from_slice(document);
    }
    (!offer.is_empty()).then(|| offer.into())
}

/// Reads what [`write_offer`] wrote.
///
/// # Errors
/// If it is too long, has too many documents, or one of them is cut short or too long.
pub fn read_offer(offer: &Bytes) -> Result<Vec<Bytes>, FieldError> {
    let wrong = FieldError::Value(OFFER);
    if offer.len() > MAX_OFFER {
        return Err(wrong);
    }
    let (mut documents, mut rest) = (Vec::new(), &offer[..]);
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length));
        let (document, behind) = behind.split_at_checked(length).ok_or(FieldError::Short)?;
        if documents.len() == MAX_OFFERED || length == 0 || length > MAX_DOCUMENT {
            return Err(wrong);
        }
        documents.push(offer.slice_ref(document));
        rest = behind;
    }
    if rest.is_empty() { Ok(documents) } else { Err(FieldError::Short) }
}

/// SHA-256 of an offer: what the ticket says of it.
pub fn hash_offer(offer: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, offer).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_reads_back_and_is_bounded_in_number_and_bytes() {
        let documents = [Bytes::from_static(b"one"), Bytes::from_static(b"two")];
        let offer = write_offer(&documents).unwrap();
        assert_eq!(offer, &b"\0\x03one\0\x03two"[..]);
        assert_eq!(read_offer(&offer).unwrap(), documents);
        assert_eq!(write_offer([]), None);
        let many = vec![Bytes::from_static(b"x"); MAX_OFFERED + 1];
        assert_eq!(read_offer(&write_offer(&many).unwrap()).unwrap().len(), MAX_OFFERED);
        let long = vec![Bytes::from(vec![7; MAX_DOCUMENT]); MAX_OFFERED];
        let offer = write_offer(&long).unwrap();
        assert!(offer.len() <= MAX_OFFER && read_offer(&offer).unwrap().len() >= 5);
    }

    #[test]
    fn cut_empty_and_overlong_offers_are_refused() {
        for bad in [&b"\0"[..], b"\0\x02a", b"\0\0", b"\0\x01a\0"] {
            assert!(read_offer(&Bytes::copy_from_slice(bad)).is_err(), "{bad:?}");
        }
        let too_many = Bytes::from(b"\0\x01a".repeat(MAX_OFFERED + 1));
        assert!(read_offer(&too_many).is_err());
        assert!(read_offer(&Bytes::from(vec![1; MAX_OFFER + 1])).is_err());
    }
}

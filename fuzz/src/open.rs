//! What OPEN and OPENED carry, and the tagged fields under all messages.

use bytes::Bytes;
use towline_tunnel::{
    ids::{ChannelId, ClusterId, InstanceId, StreamKey},
    proto::{
        OpenRequest, Opened,
        fields::{CRITICAL, Fields},
        open::MAX_TICKET,
    },
};

/// What is read is written and read the same.
pub fn run(input: &[u8]) {
    let payload = Bytes::copy_from_slice(input);
    if let Ok(request) = OpenRequest::decode(&payload) {
        assert!(request.ticket.as_ref().is_none_or(|ticket| ticket.len() <= MAX_TICKET));
        assert_eq!(OpenRequest::decode(&request.encode()), Ok(request));
    }
    if let Ok(opened) = Opened::decode(input) {
        assert_eq!(Opened::decode(&opened.encode()), Ok(opened));
    }
    if let Ok(fields) = Fields::parse(input, &[1, 2, 3]) {
        for tag in [1, 2, 3] {
            assert_eq!(fields.maybe(tag), fields.maybe(tag | CRITICAL));
        }
        // One message has one spelling: read once more, tags rise strictly and nothing is left over.
        let (mut rest, mut last) = (input, None);
        while let Some((&[t1, t0, l1, l0], value)) = rest.split_first_chunk() {
            let tag = u16::from_be_bytes([t1, t0]) & !CRITICAL;
            assert!(last.is_none_or(|last| last < tag), "fields are repeated or out of order");
            last = Some(tag);
            rest = &value[usize::from(u16::from_be_bytes([l1, l0]))..];
        }
        assert!(rest.is_empty());
    }
}

/// A request in each of its sizes, and an answer.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut request = OpenRequest::new(StreamKey::from_bytes([1; 16]), ClusterId::from_bytes([2; 32]));
    let small = request.encode();
    request.limit = u64::MAX;
    request.share = 9;
    request.channel = Some(ChannelId(3));
    request.ticket = Some(Bytes::from_static(b"ticket"));
    let opened = Opened { instance: InstanceId::from_bytes([4; 16]), limit: 1 << 18 };
    vec![small.to_vec(), request.encode().to_vec(), opened.encode().to_vec()]
}

//! What OPEN, OPENED, RESUME and RESUMED carry, and the tagged fields under all messages.

use bytes::Bytes;
use towline_tunnel::{
    ids::{ChannelId, ClusterId, InstanceId, StreamKey},
    proto::{
        OpenRequest, Opened, ResumeRequest, Resumed,
        fields::{CRITICAL, Fields},
        open::MAX_TICKET,
        resume::{Arrived, Claim, ResumeKey},
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
    let proofs = ResumeKey::new(&[5; 32]);
    if let Ok(request) = ResumeRequest::decode(&payload) {
        assert!(request.ticket.as_ref().is_none_or(|ticket| ticket.len() <= MAX_TICKET));
        assert_eq!(ResumeRequest::decode(&request.encode()).as_ref(), Ok(&request));
        // Whoever has another key proves nothing.
        let mut claim = Claim::new(request.key, request.cluster, request.instance, ResumeKey::new(&[6; 32]));
        assert!(claim.accept(&request).is_err());
    }
    if let Ok(resumed) = Resumed::decode(input) {
        assert_eq!(Resumed::decode(&resumed.encode()), Ok(resumed));
        let (key, cluster) = (StreamKey::from_bytes([1; 16]), ClusterId::from_bytes([2; 32]));
        let mut claim = Claim::new(key, cluster, InstanceId::from_bytes([4; 16]), proofs);
        claim.ask(Arrived { bytes: 7, fin: false }, 9);
        assert!(!claim.is_answer(&resumed), "nothing but the agent's own answer counts");
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
    let mut claim = Claim::new(request.key, request.cluster, opened.instance, ResumeKey::new(&[5; 32]));
    let resume = claim.ask(Arrived { bytes: 7, fin: true }, 9);
    let resumed = Claim::new(request.key, request.cluster, opened.instance, ResumeKey::new(&[7; 32])).answer(
        &resume,
        Arrived { bytes: 1, fin: false },
        9,
    );
    vec![
        resume.encode().to_vec(),
        resumed.encode().to_vec(),
        small.to_vec(),
        request.encode().to_vec(),
        opened.encode().to_vec(),
    ]
}

//! Role documents: whatever is offered or brought, the decoder gives an answer, what it reads has one spelling, and nothing counts that the
//! organisation has not signed.

use std::time::Duration;

use bytes::Bytes;
use towline_tunnel::{
    keys::{Purpose, SIGNATURE_LEN},
    role::{
        Document, DocumentId, MAX_DOCUMENT, MAX_OFFERED, Person, RoleName, Scope, SignedDocument, Statement,
        Subject, evaluate, read_offer, write_offer,
    },
};

use super::{cluster, now, signer};

/// The first byte says whether the rest is a document, the organisation's own, or an offer.
pub fn run(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    match first % 3 {
        0 => {
            if let Ok(read) = SignedDocument::read(Bytes::copy_from_slice(rest)) {
                assert!(!read.is_signed_by(&signer().public()), "a signature was forged");
            }
        }
        1 => own(rest),
        _ => {
            let offer = Bytes::copy_from_slice(rest);
            if let Ok(documents) = read_offer(&offer) {
                assert!(documents.len() <= MAX_OFFERED);
                assert_eq!(write_offer(&documents).unwrap_or_default(), offer, "an offer has one spelling");
            }
        }
    }
}

fn own(fields: &[u8]) {
    let signature = signer().sign(Purpose::RoleDocument, &[fields]);
    let Ok(read) = SignedDocument::read([&signature[..], fields].concat().into()) else { return };
    assert!(read.bytes().len() <= MAX_DOCUMENT && read.is_signed_by(&signer().public()));
    assert_eq!(read.document().clone().sign(signer()), read, "a document has one spelling");
    let groups = ["dev".to_owned()];
    let person = Person { principal: "https://idp#alice", groups: &groups };
    let evaluation = evaluate([read.document()], person, cluster(), now());
    if let Some(given) = evaluation.given {
        assert_eq!(given.by, read.document().id);
        assert!(given.until.is_none_or(|until| now() < until));
    }
}

/// One of each kind; signed, and not; and an offer.
pub fn seeds() -> Vec<Vec<u8>> {
    let subjects = [Subject::Principal("https://idp#alice".into()), Subject::Group("dev".into())];
    let scopes = [Scope::Organisation, Scope::Cluster(cluster())];
    let mut statements: Vec<Statement> = subjects
        .into_iter()
        .zip(scopes)
        .map(|(subject, scope)| Statement::Assignment { subject, role: RoleName::Writer, scope })
        .collect();
    if let Ok(group) = "eu/retail".parse() {
        statements.push(Statement::Placement { cluster: cluster(), group });
    }
    statements.push(Statement::Removal { of: DocumentId::from_bytes([3; 16]) });
    let signed: Vec<Bytes> = statements
        .into_iter()
        .map(|statement| {
            let mut document = Document::new(statement, now(), Some(Duration::from_secs(3600)));
            document.id = DocumentId::from_bytes([5; 16]);
            document.sign(signer()).bytes().clone()
        })
        .collect();
    let with = |first: u8, bytes: &[u8]| [&[first], bytes].concat();
    let mut seeds: Vec<_> = signed.iter().map(|bytes| with(1, &bytes[SIGNATURE_LEN..])).collect();
    seeds.push(with(0, &[&[0; SIGNATURE_LEN], &signed[0][SIGNATURE_LEN..]].concat()));
    seeds.extend(write_offer(&signed).map(|offer| with(2, &offer)));
    seeds
}

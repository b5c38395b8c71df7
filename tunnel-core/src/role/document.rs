//! One signed statement of the organisation's, and its bytes (`docs/protocol-session.md`, "Role documents").
//!
//! A document has one spelling: what can be read and would be written otherwise is refused, so that its id, its hash and what was signed
//! can't disagree.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use data_encoding::HEXLOWER;

use super::{GroupPath, RoleName, Scope};
use crate::{
    ids::{ClusterId, ParseIdError, StreamKey},
    keys::{Purpose, SIGNATURE_LEN, SigningKey, VerifyingKey},
    proto::fields::{CRITICAL, FieldError, FieldWriter, Fields},
};

/// Longest document, signature included, in bytes.
pub const MAX_DOCUMENT: usize = 1536;
/// Longest subject, in bytes.
pub const MAX_SUBJECT: usize = 1024;

const KIND: u16 = 1 | CRITICAL;
const ID: u16 = 2 | CRITICAL;
const ISSUED: u16 = 3 | CRITICAL;
const NOT_BEFORE: u16 = 4 | CRITICAL;
const EXPIRES: u16 = 5 | CRITICAL;
const SUBJECT: u16 = 6 | CRITICAL;
const ROLE: u16 = 7 | CRITICAL;
const SCOPE: u16 = 8 | CRITICAL;
const CLUSTER: u16 = 9 | CRITICAL;
const GROUP: u16 = 10 | CRITICAL;
const REMOVES: u16 = 11 | CRITICAL;
const TAGS: [u16; 11] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];

const ASSIGNMENT: u8 = 1;
const PLACEMENT: u8 = 2;
const REMOVAL: u8 = 3;

const PRINCIPAL: u8 = 1;
const GROUP_OF_PEOPLE: u8 = 2;

/// Names a document for good. Random.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DocumentId([u8; 16]);

impl DocumentId {
    /// A new one.
    pub fn random() -> Self {
        Self(*StreamKey::random().as_bytes())
    }

    /// From the 16 bytes that travel on the wire.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes that travel on the wire.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DocumentId({self})")
    }
}

impl FromStr for DocumentId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = || ParseIdError::new("a document's id", "32 hexadecimal digits");
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| error())?;
        bytes.try_into().map(Self).map_err(|_| error())
    }
}

/// Who has a role.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// One user: issuer, `#` and stable claim.
    Principal(String),
    /// All in a group, as the agent's verifier names it.
    Group(String),
}

impl Subject {
    fn parts(&self) -> (u8, &str) {
        match self {
            Self::Principal(name) => (PRINCIPAL, name),
            Self::Group(name) => (GROUP_OF_PEOPLE, name),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let (kind, name) = self.parts();
        [&[kind], name.as_bytes()].concat()
    }

    fn read(value: &[u8]) -> Result<Self, FieldError> {
        let wrong = FieldError::Value(SUBJECT & !CRITICAL);
        let (kind, name) = value.split_first().ok_or(wrong)?;
        let name = std::str::from_utf8(name).map_err(|_| wrong)?;
        if !is_name(name) {
            return Err(wrong);
        }
        match *kind {
            PRINCIPAL => Ok(Self::Principal(name.to_owned())),
            GROUP_OF_PEOPLE => Ok(Self::Group(name.to_owned())),
            _ => Err(wrong),
        }
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_SUBJECT && !name.contains(char::is_control)
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Principal(name) => write!(f, "principal {name}"),
            Self::Group(name) => write!(f, "group {name}"),
        }
    }
}

/// What a document says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// This subject has this role there.
    Assignment {
        /// Who.
        subject: Subject,
        /// What.
        role: RoleName,
        /// Where.
        scope: Scope,
    },
    /// This cluster is in this group. Of several the one that was issued last counts: a cluster is in one group.
    Placement {
        /// Which cluster.
        cluster: ClusterId,
        /// Where in the tree.
        group: GroupPath,
    },
    /// Another document holds no longer: a relay no longer keeps it, nor takes it again.
    Removal {
        /// Which.
        of: DocumentId,
    },
}

/// One statement, when it was made, and for which time. Times are whole seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its name.
    pub id: DocumentId,
    /// What it says.
    pub statement: Statement,
    /// When it was made.
    pub issued: SystemTime,
    /// It counts from then on.
    pub not_before: SystemTime,
    /// And no longer than until then.
    pub expires: Option<SystemTime>,
}

/// Why bytes are no document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// It is longer than any.
    #[error("the document is longer than {MAX_DOCUMENT} bytes")]
    Long,
    /// It can't be read.
    #[error("the document is malformed: {0}")]
    Malformed(#[from] FieldError),
    /// It could be written in another way.
    #[error("the document is not in its one spelling")]
    Spelling,
    /// The signature is not that key's.
    #[error("the document is not signed by the organisation's key")]
    Signature,
}

/// A document and the bytes that were signed; whether by whom it should be is asked for apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedDocument {
    document: Document,
    bytes: Bytes,
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A time that has whole seconds, as documents do.
fn whole(time: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds(time))
}

fn time(fields: &Fields<'_>, tag: u16) -> Result<SystemTime, FieldError> {
    let tag = tag & !CRITICAL;
    let seconds = fields.need_u64(tag)?;
    // What is later than any calendar can't be told to people.
    let sound = seconds <= 253_402_300_799;
    if sound { Ok(UNIX_EPOCH + Duration::from_secs(seconds)) } else { Err(FieldError::Value(tag)) }
}

impl Document {
    /// A statement that is made now, counts at once, and for `life`, if that is bounded.
    pub fn new(statement: Statement, now: SystemTime, life: Option<Duration>) -> Self {
        let now = whole(now);
        Self {
            id: DocumentId::random(),
            statement,
            issued: now,
            not_before: now,
            expires: life.and_then(|life| now.checked_add(life)).map(whole),
        }
    }

    /// The bytes that a signature is over, context included: what a command that signs is given.
    pub fn to_sign(&self) -> Vec<u8> {
        Purpose::RoleDocument.message(&[&self.fields()])
    }

    /// Signs it.
    pub fn sign(self, key: &SigningKey) -> SignedDocument {
        let fields = self.fields();
        let signature = key.sign(Purpose::RoleDocument, &[&fields]);
        SignedDocument { document: self, bytes: [&signature[..], &fields].concat().into() }
    }

    /// The document with a signature that was made elsewhere.
    ///
    /// # Errors
    /// If the signature is not this key's, or the document is too long.
    pub fn signed(self, signature: &[u8], key: &VerifyingKey) -> Result<SignedDocument, DocumentError> {
        let signed = SignedDocument::read([signature, &self.fields()].concat().into())?;
        if signed.is_signed_by(key) { Ok(signed) } else { Err(DocumentError::Signature) }
    }

    fn fields(&self) -> Vec<u8> {
        let kind = match self.statement {
            Statement::Assignment { .. } => ASSIGNMENT,
            Statement::Placement { .. } => PLACEMENT,
            Statement::Removal { .. } => REMOVAL,
        };
        let mut fields = FieldWriter::new();
        fields.put(KIND, &[kind]).put(ID, self.id.as_bytes());
        fields.put_u64(ISSUED, seconds(self.issued)).put_u64(NOT_BEFORE, seconds(self.not_before));
        if let Some(expires) = self.expires {
            fields.put_u64(EXPIRES, seconds(expires));
        }
        match &self.statement {
            Statement::Assignment { subject, role, scope } => fields
                .put(SUBJECT, &subject.encode())
                .put(ROLE, &[role.code()])
                .put(SCOPE, scope.to_string().as_bytes()),
            Statement::Placement { cluster, group } => {
                fields.put(CLUSTER, cluster.as_bytes()).put(GROUP, group.as_str().as_bytes())
            }
            Statement::Removal { of } => fields.put(REMOVES, of.as_bytes()),
        };
        fields.finish()
    }

    fn read(bytes: &[u8]) -> Result<Self, FieldError> {
        let fields = Fields::parse(bytes, &TAGS)?;
        let text = |tag: u16, max| fields.need_text(tag & !CRITICAL, max);
        let [kind] = fields.need_array(KIND & !CRITICAL)?;
        let statement = match kind {
            ASSIGNMENT => {
                let [role] = fields.need_array(ROLE & !CRITICAL)?;
                Statement::Assignment {
                    subject: Subject::read(fields.need(SUBJECT & !CRITICAL)?)?,
                    role: RoleName::from_code(role).ok_or(FieldError::Value(ROLE & !CRITICAL))?,
                    scope: text(SCOPE, MAX_DOCUMENT)?
                        .parse()
                        .map_err(|_| FieldError::Value(SCOPE & !CRITICAL))?,
                }
            }
            PLACEMENT => Statement::Placement {
                cluster: ClusterId::from_bytes(fields.need_array(CLUSTER & !CRITICAL)?),
                group: text(GROUP, MAX_DOCUMENT)?
                    .parse()
                    .map_err(|_| FieldError::Value(GROUP & !CRITICAL))?,
            },
            REMOVAL => {
                Statement::Removal { of: DocumentId::from_bytes(fields.need_array(REMOVES & !CRITICAL)?) }
            }
            _ => return Err(FieldError::Value(KIND & !CRITICAL)),
        };
        Ok(Self {
            id: DocumentId::from_bytes(fields.need_array(ID & !CRITICAL)?),
            statement,
            issued: time(&fields, ISSUED)?,
            not_before: time(&fields, NOT_BEFORE)?,
            expires: fields.maybe(EXPIRES).map(|_| time(&fields, EXPIRES)).transpose()?,
        })
    }
}

impl SignedDocument {
    /// Reads a document. Its signature is not judged.
    ///
    /// # Errors
    /// If it is none, or not in its one spelling.
    pub fn read(bytes: Bytes) -> Result<Self, DocumentError> {
        if bytes.len() > MAX_DOCUMENT {
            return Err(DocumentError::Long);
        }
        let (_, fields) = bytes.split_at_checked(SIGNATURE_LEN).ok_or(FieldError::Short)?;
        let document = Document::read(fields)?;
        if document.fields() != fields {
            return Err(DocumentError::Spelling);
        }
        Ok(Self { document, bytes })
    }

    /// What it says.
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// Signature and fields, as they travel.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whether this key has signed it.
    #[must_use]
    pub fn is_signed_by(&self, key: &VerifyingKey) -> bool {
        let (signature, fields) = self.bytes.split_at(SIGNATURE_LEN);
        key.verify(Purpose::RoleDocument, &[fields], signature)
    }

    /// Which of these keys has signed it, if any.
    pub fn signer<'k>(&self, keys: &'k [VerifyingKey]) -> Option<&'k VerifyingKey> {
        keys.iter().find(|key| self.is_signed_by(key))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn documents() -> Vec<Document> {
        let cluster = ClusterId::of_spki(b"c");
        let assignment = |subject, scope| Statement::Assignment { subject, role: RoleName::Writer, scope };
        let statements = [
            assignment(Subject::Principal("https://idp#alice".into()), Scope::Organisation),
            assignment(Subject::Group("platform".into()), Scope::Group("eu/retail".parse().unwrap())),
            assignment(Subject::Group("é".repeat(MAX_SUBJECT / 2)), Scope::Cluster(cluster)),
            Statement::Placement { cluster, group: "eu".parse().unwrap() },
            Statement::Removal { of: DocumentId::random() },
        ];
        let life = [None, Some(Duration::from_secs(3600))];
        let of = |(n, statement)| Document::new(statement, at(1_800_000_000), life[n % 2]);
        statements.into_iter().enumerate().map(of).collect()
    }

    #[test]
    fn a_document_reads_back_and_is_its_signers_alone() {
        let (key, other) = (SigningKey::generate(), SigningKey::generate());
        for document in documents() {
            let signed = document.clone().sign(&key);
            let read = SignedDocument::read(signed.bytes().clone()).unwrap();
            assert_eq!((read.document(), &read), (&document, &signed));
            assert!(read.is_signed_by(&key.public()) && !read.is_signed_by(&other.public()));
            assert_eq!(read.signer(&[other.public(), key.public()]), Some(&key.public()));
        }
    }

    #[test]
    fn t51_a_changed_document_is_nobodys() {
        let key = SigningKey::generate();
        for document in documents() {
            let signed = document.sign(&key);
            for at in 0..signed.bytes().len() {
                let mut changed = signed.bytes().to_vec();
                changed[at] ^= 1;
                if let Ok(changed) = SignedDocument::read(changed.into()) {
                    assert!(!changed.is_signed_by(&key.public()), "byte {at}");
                }
            }
        }
    }

    #[test]
    fn what_a_command_signs_is_what_the_key_signs_and_means_nothing_elsewhere() {
        let key = SigningKey::generate();
        let document = documents().remove(0);
        assert!(document.to_sign().starts_with(b"towline v1 role document\0"));
        let signed = document.clone().sign(&key);
        let signature = &signed.bytes()[..SIGNATURE_LEN];
        assert_eq!(document.clone().signed(signature, &key.public()).as_ref(), Ok(&signed));
        let ticket = key.sign(Purpose::Ticket, &[&document.fields()]);
        assert_eq!(document.clone().signed(&ticket, &key.public()).unwrap_err(), DocumentError::Signature);
        let other = SigningKey::generate().public();
        assert_eq!(document.signed(signature, &other).unwrap_err(), DocumentError::Signature);
    }

    #[test]
    fn other_spellings_long_ones_and_fields_of_another_kind_are_refused() {
        let key = SigningKey::generate();
        let read = |fields: Vec<u8>| {
            let signature = key.sign(Purpose::RoleDocument, &[&fields]);
            SignedDocument::read([&signature[..], &fields].concat().into())
        };
        let placement = documents().remove(3).fields();
        assert!(read(placement.clone()).is_ok());
        let mut more = FieldWriter::new();
        more.put(REMOVES, &[0; 16]);
        assert_eq!(read([placement.clone(), more.finish()].concat()), Err(DocumentError::Spelling));
        let mut uncritical = placement.clone();
        uncritical[0] &= 0x7f;
        assert_eq!(read(uncritical), Err(DocumentError::Spelling));
        let mut unknown = FieldWriter::new();
        unknown.put(99, b"");
        assert_eq!(read([placement, unknown.finish()].concat()), Err(DocumentError::Spelling));
        assert_eq!(SignedDocument::read(vec![0; MAX_DOCUMENT + 1].into()), Err(DocumentError::Long));
        assert!(SignedDocument::read(vec![0; SIGNATURE_LEN - 1].into()).is_err());
    }

    #[test]
    fn subjects_that_print_as_something_else_are_refused() {
        let key = SigningKey::generate();
        for name in ["", "a\nb", "a\0", &"x".repeat(MAX_SUBJECT + 1)] {
            let subject = Subject::Group(name.to_owned());
            let statement =
                Statement::Assignment { subject, role: RoleName::Viewer, scope: Scope::Organisation };
            let signed = Document::new(statement, at(1), None).sign(&key);
            assert!(SignedDocument::read(signed.bytes().clone()).is_err(), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer_and_what_is_read_is_written_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(read) = SignedDocument::read(bytes.clone().into()) {
                prop_assert_eq!(&read.document().fields()[..], &bytes[SIGNATURE_LEN..]);
            }
        }
    }
}

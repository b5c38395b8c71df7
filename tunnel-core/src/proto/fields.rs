//! Tagged fields: how messages that will grow are written (`docs/protocol.md`, "Fields").
//!
//! A field is `tag: u16, length: u16, value`, big-endian. Tags rise strictly, so no field stands twice and one
//! message has one spelling. A reader passes over tags that it doesn't know, unless [`CRITICAL`] is set in them:
//! then the message is refused.

/// Set in the tag of a field that a reader must understand.
pub const CRITICAL: u16 = 0x8000;

/// Why a sequence of fields can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The bytes end inside a field.
    #[error("a field is cut short")]
    Short,
    /// Tags don't rise strictly (the critical bit not counted).
    #[error("fields are out of order or repeated")]
    Order,
    /// A field that the reader must understand, and doesn't.
    #[error("critical field {0:#06x} is not known")]
    UnknownCritical(u16),
    /// A known field has a value of another size or form.
    #[error("field {0:#06x} has a wrong value")]
    Value(u16),
    /// A field that must be there is missing.
    #[error("field {0:#06x} is missing")]
    Missing(u16),
}

/// Writes fields in rising order of their tags.
#[derive(Debug, Default)]
pub struct FieldWriter {
    bytes: Vec<u8>,
    last: Option<u16>,
}

impl FieldWriter {
    /// Nothing written yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one field.
    ///
    /// # Panics
    /// If tags don't rise or the value is longer than 65,535 bytes: both are the caller's constants.
    pub fn put(&mut self, tag: u16, value: &[u8]) -> &mut Self {
        assert!(self.last.is_none_or(|last| last < tag & !CRITICAL), "tags rise");
        let length = u16::try_from(value.len()).expect("callers bound what they write to 64 KiB");
        self.last = Some(tag & !CRITICAL);
        self.bytes.extend_from_slice(&tag.to_be_bytes());
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(value);
        self
    }

    /// Appends one field if there is a value.
    pub fn put_some(&mut self, tag: u16, value: Option<&[u8]>) -> &mut Self {
        if let Some(value) = value {
            self.put(tag, value);
        }
        self
    }

    /// Appends a big-endian 64-bit number.
    pub fn put_u64(&mut self, tag: u16, value: u64) -> &mut Self {
        self.put(tag, &value.to_be_bytes())
    }

    /// The bytes written.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// The fields of one message, found by tag.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    found: Vec<(u16, &'a [u8])>,
}

impl<'a> Fields<'a> {
    /// Reads all fields; `known` lists the tags (without [`CRITICAL`]) that this reader understands.
    ///
    /// # Errors
    /// If a field is cut short, out of order or repeated, or critical and not in `known`.
    pub fn parse(mut bytes: &'a [u8], known: &[u16]) -> Result<Self, FieldError> {
        let mut found = Vec::with_capacity(known.len());
        let mut last = None;
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_first_chunk::<4>().ok_or(FieldError::Short)?;
            let written = u16::from_be_bytes([head[0], head[1]]);
            let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
            let (value, rest) = rest.split_at_checked(length).ok_or(FieldError::Short)?;
            let tag = written & !CRITICAL;
            if last.is_some_and(|last| last >= tag) {
                return Err(FieldError::Order);
            }
            last = Some(tag);
            if known.contains(&tag) {
                found.push((tag, value));
            } else if written & CRITICAL != 0 {
                return Err(FieldError::UnknownCritical(written));
            }
            bytes = rest;
        }
        Ok(Self { found })
    }

    /// The value of a field that may be missing.
    pub fn maybe(&self, tag: u16) -> Option<&'a [u8]> {
        let tag = tag & !CRITICAL;
        self.found.iter().find(|(found, _)| *found == tag).map(|(_, value)| *value)
    }

    /// The value of a field that must be there.
    ///
    /// # Errors
    /// If it isn't.
    pub fn need(&self, tag: u16) -> Result<&'a [u8], FieldError> {
        self.maybe(tag).ok_or(FieldError::Missing(tag))
    }

    /// A field that must be there and have exactly `N` bytes.
    ///
    /// # Errors
    /// If it is missing or of another size.
    pub fn need_array<const N: usize>(&self, tag: u16) -> Result<[u8; N], FieldError> {
        self.need(tag)?.try_into().map_err(|_| FieldError::Value(tag))
    }

    /// A big-endian 64-bit number that must be there.
    ///
    /// # Errors
    /// If it is missing or of another size.
    pub fn need_u64(&self, tag: u16) -> Result<u64, FieldError> {
        self.need_array(tag).map(u64::from_be_bytes)
    }

    /// A UTF-8 text that must be there, of at most `max` bytes.
    ///
    /// # Errors
    /// If it is missing, too long or not UTF-8.
    pub fn need_text(&self, tag: u16, max: usize) -> Result<&'a str, FieldError> {
        let value = self.need(tag)?;
        if value.len() > max {
            return Err(FieldError::Value(tag));
        }
        std::str::from_utf8(value).map_err(|_| FieldError::Value(tag))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_on_the_wire() {
        let mut writer = FieldWriter::new();
        writer.put(1, b"ab").put(2 | CRITICAL, b"").put_u64(3, 7);
        assert_eq!(
            writer.finish(),
            [0, 1, 0, 2, b'a', b'b', 0x80, 2, 0, 0, 0, 3, 0, 8, 0, 0, 0, 0, 0, 0, 0, 7]
        );
    }

    #[test]
    fn unknown_fields_are_passed_over_unless_critical() {
        let mut writer = FieldWriter::new();
        writer.put(1, b"a").put(9, b"future");
        let bytes = writer.finish();
        assert_eq!(Fields::parse(&bytes, &[1]).unwrap().need(1), Ok(&b"a"[..]));
        let mut writer = FieldWriter::new();
        writer.put(9 | CRITICAL, b"future");
        assert_eq!(
            Fields::parse(&writer.finish(), &[1]).unwrap_err(),
            FieldError::UnknownCritical(9 | CRITICAL)
        );
    }

    #[test]
    fn repeated_reordered_and_cut_fields_are_refused() {
        assert_eq!(Fields::parse(&[0, 1, 0, 0, 0, 1, 0, 0], &[1]).unwrap_err(), FieldError::Order);
        assert_eq!(Fields::parse(&[0, 2, 0, 0, 0, 1, 0, 0], &[1, 2]).unwrap_err(), FieldError::Order);
        assert_eq!(Fields::parse(&[0x80, 1, 0, 0, 0, 1, 0, 0], &[1]).unwrap_err(), FieldError::Order);
        assert_eq!(Fields::parse(&[0, 1, 0], &[1]).unwrap_err(), FieldError::Short);
        assert_eq!(Fields::parse(&[0, 1, 0, 9, 1], &[1]).unwrap_err(), FieldError::Short);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(values in proptest::collection::btree_map(0u16..0x7fff, proptest::collection::vec(any::<u8>(), 0..64), 0..20)) {
            let mut writer = FieldWriter::new();
            for (tag, value) in &values {
                writer.put(*tag, value);
            }
            let bytes = writer.finish();
            let known: Vec<u16> = values.keys().copied().collect();
            let fields = Fields::parse(&bytes, &known).unwrap();
            for (tag, value) in &values {
                prop_assert_eq!(fields.need(*tag), Ok(&value[..]));
            }
        }

        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Fields::parse(&bytes, &[1, 2, 3]);
        }
    }
}

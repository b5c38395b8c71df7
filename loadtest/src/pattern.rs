//! Bytes whose place in a transfer can be told: what is lost, repeated or put elsewhere shows.

/// The length after which the pattern repeats: a prime, so that no number of whole frames or blocks looks like nothing.
const PERIOD: usize = 65_521;
/// Longest piece that [`Pattern::at`] gives.
pub const PIECE: usize = 64 * 1024;

/// The pattern; the same in every process.
#[derive(Debug)]
pub struct Pattern(Vec<u8>);

impl Default for Pattern {
    fn default() -> Self {
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        let mut bytes: Vec<u8> = (0..PERIOD)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3]
            })
            .collect();
        for place in 0..PIECE {
            bytes.push(bytes[place]);
        }
        Self(bytes)
    }
}

impl Pattern {
    /// The bytes from `offset` on, [`PIECE`] of them.
    pub fn at(&self, offset: u64) -> &[u8] {
        let place = usize::try_from(offset % PERIOD as u64).unwrap_or_default();
        &self.0[place..place + PIECE]
    }

    /// The offset of the first byte that is not the pattern's, of bytes that stand at `offset`.
    pub fn first_wrong(&self, mut offset: u64, mut bytes: &[u8]) -> Option<u64> {
        while !bytes.is_empty() {
            let length = bytes.len().min(PIECE);
            let expected = &self.at(offset)[..length];
            if bytes[..length] != *expected {
                let within = bytes.iter().zip(expected).position(|(is, should)| is != should);
                return Some(offset + within.unwrap_or_default() as u64);
            }
            offset += length as u64;
            bytes = &bytes[length..];
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_repeated_or_changed_shows_at_its_place() {
        let pattern = Pattern::default();
        let mut whole = Vec::new();
        while whole.len() < 300_000 {
            whole.extend_from_slice(pattern.at(whole.len() as u64));
        }
        assert_eq!(pattern.first_wrong(0, &whole), None);
        assert_eq!(pattern.first_wrong(1000, &whole[1000..]), None);
        let mut lost = whole.clone();
        lost.drain(100_000..100_000 + 16_320);
        assert!(pattern.first_wrong(0, &lost).is_some_and(|at| (100_000..100_020).contains(&at)));
        let mut repeated = whole.clone();
        repeated.splice(200_000..200_000, whole[200_000 - 16_320..200_000].iter().copied());
        assert!(pattern.first_wrong(0, &repeated).is_some_and(|at| (200_000..200_020).contains(&at)));
        whole[299_999] ^= 1;
        assert_eq!(pattern.first_wrong(0, &whole), Some(299_999));
    }
}

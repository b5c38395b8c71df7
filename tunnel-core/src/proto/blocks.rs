//! Bytes in order, kept in few blocks whatever pieces they come in.
//!
//! A piece of a few bytes must cost little more than those bytes: neither a list entry and an allocation of its own,
//! nor the whole read block that it came in. A peer decides how its bytes are cut, so this is a bound on memory.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Pieces below this are copied together. A read block has 64 KiB, so what is held is at most eight times what was
/// promised; bulk comes in frames of 16 KiB and is not copied.
const COPY_BELOW: usize = 8 * 1024;
/// A block of copied pieces is closed before it grows beyond this.
const BLOCK: usize = 16 * 1024;

/// A queue of bytes.
#[derive(Clone, Debug, Default)]
pub struct Blocks {
    closed: VecDeque<Bytes>,
    /// The newest short pieces, after all that is closed.
    open: BytesMut,
}

impl Blocks {
    /// Appends bytes.
    pub fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        if bytes.len() >= COPY_BELOW {
            self.close();
            self.closed.push_back(bytes);
            return;
        }
        if self.open.len() + bytes.len() > BLOCK {
            self.close();
        }
        self.open.extend_from_slice(&bytes);
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.closed.push_back(std::mem::take(&mut self.open).freeze());
        }
    }

    /// Takes the next bytes, at most `max` and at most a block; nothing where there are none.
    pub fn pop(&mut self, max: usize) -> Option<Bytes> {
        if self.closed.is_empty() {
            self.close();
        }
        let front = self.closed.front_mut()?;
        if front.len() <= max { self.closed.pop_front() } else { Some(front.split_to(max)) }
    }

    /// Puts all of `earlier` before what is here.
    pub fn prepend(&mut self, mut earlier: Self) {
        earlier.close();
        earlier.closed.append(&mut self.closed);
        self.closed = earlier.closed;
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.closed.is_empty() && self.open.is_empty()
    }

    /// Throws all away.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_pieces_share_a_block_and_long_ones_are_not_copied() {
        let mut blocks = Blocks::default();
        for _ in 0..BLOCK {
            blocks.push(Bytes::from_static(b"x"));
        }
        let long = Bytes::from(vec![1; COPY_BELOW]);
        blocks.push(long.clone());
        assert_eq!(blocks.closed.len(), 2);
        assert_eq!(blocks.pop(usize::MAX).unwrap().len(), BLOCK);
        assert_eq!(blocks.pop(usize::MAX).unwrap().as_ptr(), long.as_ptr());
        assert!(blocks.is_empty() && blocks.pop(1).is_none());
    }

    #[test]
    fn what_is_put_before_comes_first() {
        let (mut earlier, mut blocks) = (Blocks::default(), Blocks::default());
        earlier.push(Bytes::from_static(b"ab"));
        blocks.push(Bytes::from_static(b"c"));
        blocks.prepend(earlier);
        blocks.push(Bytes::from_static(b"d"));
        let mut all = Vec::new();
        while let Some(piece) = blocks.pop(9) {
            all.extend_from_slice(&piece);
        }
        assert_eq!(all, b"abcd");
    }

    proptest! {
        #[test]
        fn what_is_pushed_comes_out_in_order(steps in proptest::collection::vec((0..20_000usize, 1..20_000usize), 1..40)) {
            let (mut blocks, mut pushed, mut popped) = (Blocks::default(), Vec::new(), Vec::new());
            for (length, max) in steps {
                let piece: Vec<u8> = (pushed.len()..pushed.len() + length).map(|at| (at / 3) as u8).collect();
                pushed.extend_from_slice(&piece);
                blocks.push(piece.into());
                if let Some(piece) = blocks.pop(max) {
                    prop_assert!(!piece.is_empty() && piece.len() <= max);
                    popped.extend_from_slice(&piece);
                }
            }
            while let Some(piece) = blocks.pop(usize::MAX) {
                popped.extend_from_slice(&piece);
            }
            prop_assert!(popped == pushed && blocks.is_empty());
        }
    }
}

//! Tables that give back what their busiest moment took: a connection lives for weeks, and that moment is over.

use std::{collections::HashMap, hash::Hash};

/// Tables up to this many places are left alone.
const SMALL: usize = 32;

/// After a removal: a table that is mostly empty gives places back. It keeps as many free ones as it has taken, so that
/// this costs each removal a constant time on average.
pub(super) fn give_back<K: Eq + Hash, V>(table: &mut HashMap<K, V>) {
    if table.capacity() > SMALL && table.len() < table.capacity() / 8 {
        table.shrink_to((2 * table.len()).max(SMALL / 2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_never_much_larger_than_what_is_in_it() {
        let mut table: HashMap<u32, u32> = (0..10_000).map(|n| (n, n)).collect();
        for n in 0..10_000 {
            table.remove(&n);
            give_back(&mut table);
            assert!(
                table.capacity() <= (16 * table.len()).max(2 * SMALL),
                "{} for {}",
                table.capacity(),
                table.len()
            );
        }
    }
}

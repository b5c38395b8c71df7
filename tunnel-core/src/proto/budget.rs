//! What the streams of one user on one connection are promised together, and how large their windows are.

use std::collections::HashMap;

use super::{ledger::Ledger, tables::give_back, tuning::Tuning};

/// Bytes beyond the floor of each stream that one user's streams on one connection are promised at most: four of the largest windows.
pub const USER_BUDGET: u64 = 32 * 1024 * 1024;
/// The user of a connection that has only one.
pub(super) const NO_SHARE: u64 = 0;
/// Budgets that nobody uses are looked for each time that this many more are there.
const SWEEP_EVERY: usize = 64;

/// The budgets of one connection, by the opaque id of a user.
#[derive(Debug)]
pub(super) struct Budgets {
    process: Ledger,
    users: HashMap<u64, Account>,
    sweep_at: usize,
}

/// One of them.
#[derive(Debug)]
struct Account {
    ledger: Ledger,
    tuning: Tuning,
}

impl Budgets {
    /// All of them within what the process promises.
    pub(super) fn new(process: Ledger) -> Self {
        Self { process, users: HashMap::new(), sweep_at: SWEEP_EVERY }
    }

    /// The ledger for a stream of this user.
    pub(super) fn of(&mut self, user: u64) -> Ledger {
        self.within(user, None)
    }

    /// The same, where what it promises counts in the user's `own` ledger, too, if there is one.
    pub(super) fn within(&mut self, user: u64, own: Option<&Ledger>) -> Ledger {
        self.account(user, own).ledger.clone()
    }

    /// How large the windows of this user's streams are.
    pub(super) fn tuning(&mut self, user: u64) -> &mut Tuning {
        &mut self.account(user, None).tuning
    }

    fn account(&mut self, user: u64, own: Option<&Ledger>) -> &mut Account {
        if self.users.len() >= self.sweep_at {
            self.users.retain(|_, account| account.ledger.is_used());
            give_back(&mut self.users);
            self.sweep_at = self.users.len() + SWEEP_EVERY;
        }
        let ledger = || match own {
            Some(own) => self.process.child_with(own, USER_BUDGET),
            None if user == NO_SHARE => self.process.child(USER_BUDGET),
            None => self.process.child_of_user(USER_BUDGET),
        };
        self.users.entry(user).or_insert_with(|| Account { ledger: ledger(), tuning: Tuning::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::window::MAX_WINDOW;

    #[test]
    fn one_user_does_not_take_what_another_needs() {
        let process = Ledger::new(1 << 30);
        let mut budgets = Budgets::new(process.clone());
        let (alice, bob) = (budgets.of(1), budgets.of(2));
        assert!(alice.reserve(4 * MAX_WINDOW, true));
        assert!(!budgets.of(1).reserve(1, true));
        assert!(bob.reserve(4 * MAX_WINDOW, true));
        assert_eq!(process.promised(), 2 * USER_BUDGET);
    }

    #[test]
    fn a_user_with_a_ledger_is_kept_within_it_on_all_connections() {
        let (process, own) = (Ledger::new(1 << 30), Ledger::new(USER_BUDGET + MAX_WINDOW));
        let mut connections = [Budgets::new(process.clone()), Budgets::new(process.clone())];
        assert!(connections[0].within(1, Some(&own)).reserve(USER_BUDGET, true));
        assert!(!connections[1].within(1, Some(&own)).reserve(USER_BUDGET, true));
        assert!(connections[1].within(1, Some(&own)).reserve(MAX_WINDOW, true));
        assert!(connections[1].of(2).reserve(USER_BUDGET, true));
        assert_eq!(process.promised(), 2 * USER_BUDGET + MAX_WINDOW);
    }

    #[test]
    fn users_that_are_gone_are_forgotten_and_those_with_promises_are_not() {
        let mut budgets = Budgets::new(Ledger::new(1 << 30));
        let held = budgets.of(0);
        assert!(held.reserve(5, true));
        for user in 1..1000 {
            drop(budgets.of(user));
        }
        assert!(budgets.users.len() <= 2 * SWEEP_EVERY, "{}", budgets.users.len());
        assert_eq!(budgets.of(0).promised(), 5);
    }
}

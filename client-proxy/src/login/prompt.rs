//! What a person is told while they log in.

use crate::token::Purpose;

/// What is to be done now. None of it is a secret from the person; a code is one from everybody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Go to this page; the rest happens there.
    Visit {
        /// The provider's page.
        url: String,
    },
    /// Go to this page, on any device, and enter this code.
    Code {
        /// What it is for.
        purpose: Purpose,
        /// Which one this is, from 1.
        number: usize,
        /// How many there will be.
        of: usize,
        /// The page.
        url: String,
        /// The code.
        code: String,
        /// A page that knows the code already, where there is one.
        complete: Option<String>,
    },
}

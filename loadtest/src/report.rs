//! The page and the table.

use clap::Args;

use crate::terms::Terms;

/// What to make.
#[derive(Args, Clone, Debug)]
pub struct Arguments {}

/// Makes them.
///
/// # Errors
/// If a file can't be read or written.
pub fn run(_arguments: Arguments, _terms: &Terms) -> anyhow::Result<()> {
    anyhow::bail!("not made yet")
}

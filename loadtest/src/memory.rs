//! What idle agents and streams cost.

use clap::Args;

use crate::{terms::Terms, told::Told};

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Arguments {}

/// Measures it.
///
/// # Errors
/// If something can't be set up, or fails.
#[expect(clippy::unused_async, reason = "the others wait")]
pub async fn run(_arguments: Arguments, _terms: &Terms, _told: &mut Told) -> anyhow::Result<()> {
    anyhow::bail!("not measured yet")
}

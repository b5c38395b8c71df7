//! What towline costs, measured beside the direct way in one run: ratios, because machines differ and are shared.

pub mod baseline;
pub mod fleet;
pub mod stats;
pub mod target;

//! What towline costs, measured beside the direct way and beside its peers in one run: ratios, because machines differ
//! and are shared.
//!
//! A command (`goodput`, `latency`, …) sets a stage, measures, and tells [`figure::Figure`]s. What it measures goes over
//! a [`path::Path`] between ends that are the same for all.

pub mod baseline;
pub mod certificates;
pub mod cli;
pub mod compare;
pub mod cut;
pub mod direct;
pub mod fairness;
pub mod far;
pub mod figure;
pub mod fleet;
pub mod goodput;
pub mod hold;
pub mod keystroke;
pub mod latency;
pub mod line;
pub mod memory;
pub mod near;
pub mod openloop;
pub mod opens;
pub mod path;
pub mod pattern;
pub mod peers;
pub mod procfs;
pub mod report;
pub mod rig;
pub mod stats;
pub mod storm;
pub mod target;
pub mod terms;
pub mod told;
pub mod transfer;

//! Development tasks, as a library: the e2e tests make their cluster with it.
#![allow(clippy::print_stdout)]

pub mod chart;
pub mod checks;
pub mod cluster;
pub mod docs;
pub mod doctor;
pub mod idp;
pub mod interrupt;
pub mod journey;
pub mod needs;
pub mod peers;
pub mod programs;
pub mod soak;
pub mod threats;

use std::path::PathBuf;

/// The repository's folder.
pub fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .canonicalize()
        .unwrap_or_else(|_| PathBuf::from("."))
}

/// Where slow builds are kept: `$TOWLINE_CACHE`, or `~/.cache/towline`.
pub fn cache() -> PathBuf {
    if let Some(cache) = std::env::var_os("TOWLINE_CACHE") {
        return cache.into();
    }
    let home = std::env::var_os("HOME").unwrap_or_else(|| "/root".into());
    PathBuf::from(home).join(".cache/towline")
}

/// The cache's folder, made where it is missing.
///
/// # Errors
/// If it can't be made.
pub fn cache_folder() -> anyhow::Result<PathBuf> {
    let cache = cache();
    std::fs::create_dir_all(&cache)?;
    Ok(cache)
}

//! Whose a cluster is: of the process that made it and is to stop it; or, once `cargo xtask cluster up` has ended, of nobody.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;

use super::process::{Recorded, recorded};

const OWNER: &str = "owner.json";
/// A folder without an owner and without processes is being made, by whoever is about to write there, or was left behind.
const YOUNG: Duration = Duration::from_secs(600);

/// What is in a cluster's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// There is none.
    Free,
    /// A process makes or uses it, and will stop it.
    Owned(i32),
    /// It runs, until somebody stops it.
    Runs,
    /// Whoever made it was killed, or everything in it was.
    Left,
}

/// Makes the folder, in the name of this process.
///
/// # Errors
/// If somebody else just did.
pub(super) fn claim(folder: &Path) -> anyhow::Result<()> {
    if let Some(all) = folder.parent() {
        fs::create_dir_all(all).with_context(|| format!("{} can't be made", all.display()))?;
    }
    fs::create_dir(folder).with_context(|| format!("{} can't be made", folder.display()))?;
    fs::write(folder.join(OWNER), serde_json::to_string(&Recorded::this())?)?;
    Ok(())
}

/// From now on it is nobody's: it goes on when this process ends.
///
/// # Errors
/// If that can't be written down.
pub(super) fn release(folder: &Path) -> anyhow::Result<()> {
    fs::remove_file(folder.join(OWNER)).with_context(|| format!("{} can't be released", folder.display()))
}

/// Looks at a folder.
///
/// # Errors
/// If it can't be read.
pub(super) fn state(folder: &Path) -> anyhow::Result<State> {
    if !folder.exists() {
        return Ok(State::Free);
    }
    let owner = fs::read_to_string(folder.join(OWNER)).ok();
    Ok(match owner.map(|text| serde_json::from_str::<Recorded>(&text)) {
        Some(Ok(owner)) if owner.is_alive() => State::Owned(owner.pid),
        Some(_) => State::Left,
        None if recorded(folder)?.iter().any(Recorded::is_alive) => State::Runs,
        None => State::Left,
    })
}

/// Folders that were left behind, and not a moment ago.
pub(super) fn left(all: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(all).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let is_left = |folder: &PathBuf| {
        matches!(state(folder), Ok(State::Left)) && (folder.join(OWNER).exists() || !is_young(folder))
    };
    folders.filter(is_left).collect()
}

fn is_young(folder: &Path) -> bool {
    let changed = fs::metadata(folder).and_then(|metadata| metadata.modified());
    // A clock that was set back makes it younger than young.
    changed.is_ok_and(|changed| changed.elapsed().map_or(true, |age| age < YOUNG))
}

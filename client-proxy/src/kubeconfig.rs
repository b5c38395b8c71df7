//! Contexts in a person's kubeconfig: added without touching anything else, and taken away again.
//!
//! Which file is read and written follows kubectl (`clientcmd.PathOptions`), and so does the lock: `<file>.lock`,
//! created exclusively. A file is replaced as a whole or not at all, with mode 0600, where a symbolic link leads
//! (THREATS T28). Entries of ours carry an extension named `towline`, so that those a killed process left behind
//! are known again and nobody else's are ever taken for ours.

mod check;
mod document;
mod entry;
mod file;
mod location;
mod lock;
mod merge;

use document::Document;
pub use entry::Entry;
use entry::mapping;
pub use location::Location;
pub use merge::{Merged, Wanted};

/// A kubeconfig of its own with these contexts; the first is the current one.
pub fn standalone(entries: &[Entry]) -> String {
    let mut document = Document::default();
    for entry in entries {
        document.put(entry, None);
    }
    document.set_current_context(entries.first().map(|entry| entry.name.as_str()));
    document.to_text()
}

#[cfg(test)]
mod tests;

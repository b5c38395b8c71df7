//! Putting contexts in, and taking them out again.

use std::path::{Path, PathBuf};

use towline_tunnel::{
    fault::{Fault, Report},
    ids::ClusterId,
};

use super::{Entry, Location, document::Document, file, lock::Lock};

/// What is added to a name of the program's own choice that is taken.
const SUFFIX: &str = "-towline";

/// A name that a context is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The name.
    pub name: String,
    /// Chosen by the person: refused where it is taken, instead of being changed.
    pub chosen: bool,
}

impl Location {
    /// Reads every file and says which names the contexts will have. Writes nothing.
    ///
    /// # Errors
    /// If a file is not a kubeconfig, or a name is taken by an entry that is not ours.
    pub fn names(&self, wanted: &[Wanted]) -> Result<Vec<String>, Report> {
        let target = self.target();
        let mut others = Vec::new();
        let mut own = Document::default();
        for path in self.files() {
            let document = file::read(path).and_then(|text| parse(path, text.as_deref()))?;
            if path == target { own = document } else { others.push(document) }
        }
        let taken = |name: &str, names: &[String]| {
            own.has_foreign(name)
                || others.iter().any(|other| other.has(name))
                || names.iter().any(|other| other == name)
        };
        let mut names: Vec<String> = Vec::new();
        for Wanted { name, chosen } in wanted {
            let suffixed = format!("{name}{SUFFIX}");
            let free = if !taken(name, &names) {
                name.clone()
            } else if !chosen && !taken(&suffixed, &names) {
                suffixed
            } else {
                return Err(Report::new(Fault::ContextTaken, format!("{name} in {}", target.display())));
            };
            names.push(free);
        }
        Ok(names)
    }

    /// Puts contexts in, the first as the current one.
    ///
    /// # Errors
    /// If the file can't be locked, read or written, or a name was taken meanwhile; then nothing has changed.
    pub fn merge(&self, entries: &[Entry]) -> Result<Merged, Report> {
        let given = self.target().to_path_buf();
        file::make_folder(&given)?;
        let path = file::resolve(&given)?;
        let _lock = Lock::take(&given, &path)?;
        let before = file::read(&path)?;
        let mut document = parse(&path, before.as_deref())?;
        for entry in entries {
            if document.has_foreign(&entry.name) {
                return Err(Report::new(
                    Fault::ContextTaken,
                    format!("{} in {}", entry.name, path.display()),
                ));
            }
        }
        let previous = return_to(&document, entries);
        for (entry, first) in entries.iter().zip([true].into_iter().chain(std::iter::repeat(false))) {
            document.put(entry, previous.as_deref().filter(|_| first));
        }
        if let Some(first) = entries.first() {
            document.set_current_context(Some(&first.name));
        }
        let after = document.to_text();
        file::replace(&path, &after)?;
        let ours = entries.iter().map(|entry| (entry.name.clone(), entry.cluster)).collect();
        Ok(Merged { location: self.clone(), given, path, ours, before, after, restored: false })
    }
}

/// The context to come back to. Where a killed process left contexts of ours behind, the one that it remembers.
fn return_to(document: &Document, entries: &[Entry]) -> Option<String> {
    let mut name = document.current_context()?;
    // Each step leads to another of our entries, of which no more than these can be in the chain.
    for _ in 0..=entries.len() {
        if !entries.iter().any(|entry| entry.name == name) {
            return Some(name.to_owned());
        }
        name = document.previous_of(name)?;
    }
    None
}

fn parse(path: &Path, text: Option<&str>) -> Result<Document, Report> {
    text.map_or_else(|| Ok(Document::default()), |text| Document::parse(path, text))
}

/// Contexts that stand in a kubeconfig until this is restored or dropped.
pub struct Merged {
    location: Location,
    given: PathBuf,
    path: PathBuf,
    ours: Vec<(String, ClusterId)>,
    before: Option<String>,
    after: String,
    restored: bool,
}

impl std::fmt::Debug for Merged {
    /// The texts hold other clusters' secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Merged").field("path", &self.path).field("ours", &self.ours).finish_non_exhaustive()
    }
}

impl Merged {
    /// The file that was written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes our contexts away again. Where nobody else has written meanwhile, the file is byte for byte what it
    /// was; otherwise only our entries go, and the current context comes back unless somebody chose another one.
    ///
    /// # Errors
    /// If the file can't be locked, read or written.
    pub fn restore(mut self) -> Result<(), Report> {
        self.restore_once()
    }

    fn restore_once(&mut self) -> Result<(), Report> {
        if std::mem::replace(&mut self.restored, true) {
            return Ok(());
        }
        let _lock = Lock::take(&self.given, &self.path)?;
        let Some(now) = file::read(&self.path)? else { return Ok(()) };
        if now == self.after {
            return match &self.before {
                Some(before) => file::replace(&self.path, before),
                None => file::remove(&self.path),
            };
        }
        let read = Document::parse(&self.path, &now)?;
        let mut document = read.clone();
        let current = document.current_context().map(str::to_owned);
        let mut back = current.clone();
        for (name, cluster) in &self.ours {
            if back.as_ref() == Some(name) {
                back = document.previous_of(name).map(str::to_owned);
            }
            document.remove(name, *cluster);
        }
        if back != current {
            let known = back.filter(|name| document.has_context(name) || self.known_elsewhere(name));
            document.set_current_context(known.as_deref());
        }
        if document == read { Ok(()) } else { file::replace(&self.path, &document.to_text()) }
    }

    fn known_elsewhere(&self, name: &str) -> bool {
        self.location.files().iter().any(|path| {
            let read = file::read(path).and_then(|text| parse(path, text.as_deref()));
            read.is_ok_and(|document| document.has_context(name))
        })
    }
}

impl Drop for Merged {
    fn drop(&mut self) {
        if let Err(report) = self.restore_once() {
            tracing::warn!(%report, "the kubeconfig keeps contexts that lead nowhere now");
        }
    }
}

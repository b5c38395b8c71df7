//! Contexts in a person's kubeconfig: added without touching anything else, and taken away again.
//!
//! Which file is read and written follows kubectl (`clientcmd.PathOptions`), and so does the lock: `<file>.lock`,
//! created exclusively. A file is replaced as a whole or not at all, with mode 0600, where a symbolic link leads
//! (THREATS T28). Entries of ours carry an extension named `towline`, so that those a killed process left behind
//! are known again and nobody else's are ever taken for ours.

mod check;
mod document;
mod file;
mod location;
mod lock;
mod merge;

use data_encoding::BASE64;
use serde_norway::{Mapping, Value};
use towline_tunnel::{ids::ClusterId, session::message::Secret};

use document::Document;
pub use location::Location;
pub use merge::{Merged, Wanted};

/// One context: how a Kubernetes client reaches one cluster through the local endpoint.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The context's name, which is the cluster's and user's entries' name too.
    pub name: String,
    /// Where it leads.
    pub cluster: ClusterId,
    /// `https://127.0.0.1:PORT/clusters/ID`.
    pub server: String,
    /// The local authority's certificate (PEM).
    pub authority: String,
    /// The context's client certificate (PEM).
    pub certificate: String,
    /// Its key (PEM).
    pub key: Secret,
}

/// A kubeconfig of its own with these contexts; the first is the current one.
pub fn standalone(entries: &[Entry]) -> String {
    let mut document = Document::default();
    for entry in entries {
        document.put(entry, None);
    }
    document.set_current_context(entries.first().map(|entry| entry.name.as_str()));
    document.to_text()
}

impl Entry {
    fn cluster_body(&self) -> Mapping {
        mapping([
            ("server", Value::from(self.server.as_str())),
            ("certificate-authority-data", Value::from(BASE64.encode(self.authority.as_bytes()))),
        ])
    }

    fn user_body(&self) -> Mapping {
        mapping([
            ("client-certificate-data", Value::from(BASE64.encode(self.certificate.as_bytes()))),
            ("client-key-data", Value::from(BASE64.encode(self.key.reveal()))),
        ])
    }

    fn context_body(&self) -> Mapping {
        mapping([("cluster", Value::from(self.name.as_str())), ("user", Value::from(self.name.as_str()))])
    }
}

fn mapping<const N: usize>(fields: [(&str, Value); N]) -> Mapping {
    fields.into_iter().map(|(key, value)| (Value::from(key), value)).collect()
}

#[cfg(test)]
mod tests;

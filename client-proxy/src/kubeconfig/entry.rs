//! One context as it stands in a kubeconfig.

use data_encoding::BASE64;
use serde_norway::{Mapping, Value};
use towline_tunnel::{ids::ClusterId, session::message::Secret};

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

impl Entry {
    pub(super) fn cluster_body(&self) -> Mapping {
        mapping([
            ("server", Value::from(self.server.as_str())),
            ("certificate-authority-data", Value::from(BASE64.encode(self.authority.as_bytes()))),
        ])
    }

    pub(super) fn user_body(&self) -> Mapping {
        mapping([
            ("client-certificate-data", Value::from(BASE64.encode(self.certificate.as_bytes()))),
            ("client-key-data", Value::from(BASE64.encode(self.key.reveal()))),
        ])
    }

    pub(super) fn context_body(&self) -> Mapping {
        mapping([("cluster", Value::from(self.name.as_str())), ("user", Value::from(self.name.as_str()))])
    }
}

pub(super) fn mapping<const N: usize>(fields: [(&str, Value); N]) -> Mapping {
    fields.into_iter().map(|(key, value)| (Value::from(key), value)).collect()
}

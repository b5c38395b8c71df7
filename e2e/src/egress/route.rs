//! What lies between both ends and the relay, and what they must be told to take it.

use std::{any::Any, path::PathBuf, process::Command};

use crate::{case::in_namespace, only_way, stage::Stage};

/// Variables that would lead elsewhere.
const VARIABLES: [&str; 8] = [
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "https_proxy",
    "http_proxy",
    "all_proxy",
    "no_proxy",
];

/// A way that is laid. Dropping it takes it away.
pub(super) struct Route {
    /// Where the relay is, for those who take it.
    pub(super) relay: String,
    /// The authority of the certificate there, if it is not the relay's own.
    pub(super) ca: Option<PathBuf>,
    /// Flags of agent and client.
    pub(super) flags: Vec<String>,
    /// The network namespace that both are in, if not in this one.
    pub(super) namespace: Option<String>,
    held: Vec<Box<dyn Any>>,
}

impl Route {
    /// Straight to an address.
    pub(super) fn to(relay: String) -> Self {
        Self { relay, ca: None, flags: Vec::new(), namespace: None, held: Vec::new() }
    }

    /// Straight to the relay.
    pub(super) fn direct(stage: &Stage) -> Self {
        Self::to(format!("https://{}", stage.relay_address))
    }

    /// Through a proxy, to a name of the relay's that nobody here can resolve.
    pub(super) fn through(stage: &Stage, proxy: &str) -> Self {
        let port = stage.relay_address.rsplit(':').next().unwrap_or_default();
        Self::to(format!("https://{}:{port}", only_way::HOST)).flag("--proxy-https", proxy)
    }

    /// With a flag for both ends.
    pub(super) fn flag(mut self, flag: &str, value: impl Into<String>) -> Self {
        self.flags.extend([flag.to_owned(), value.into()]);
        self
    }

    /// With an authority for the certificate at its end.
    pub(super) fn certified_by(self, ca: PathBuf) -> Self {
        Self { ca: Some(ca), ..self }
    }

    /// From inside a network namespace.
    pub(super) fn inside(self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self }
    }

    /// With something that it needs.
    pub(super) fn holding(mut self, what: impl Any) -> Self {
        self.held.push(Box::new(what));
        self
    }

    /// A program that takes this way.
    pub(super) fn command(&self, program: &std::path::Path) -> Command {
        let mut command = in_namespace(self.namespace.as_deref(), program);
        for name in VARIABLES {
            command.env_remove(name);
        }
        command
    }
}

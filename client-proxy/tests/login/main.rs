//! Logging in: against an issuer that a test scripts, and against a certified provider.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test that fails here says where")]

mod commands;
mod faults;
mod person;
mod provider;
mod scripted;
mod sessions;

use std::{sync::Mutex, time::Duration};

use tokio::time::timeout;
use towline::login::{LoginTable, Prompt, Settings, Store};

/// Nothing in these tests takes longer unless it hangs.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), future).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// A state folder, and the profile's `[login]`.
pub(crate) struct Home(pub(crate) tempfile::TempDir);

impl Home {
    pub(crate) fn new(ca_pem: &str) -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        std::fs::write(home.0.path().join("ca.pem"), ca_pem).unwrap();
        home
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(&self.0.path().join("state")).unwrap()
    }

    /// `[login]` with this issuer, two public clients and `more`.
    pub(crate) fn table(&self, issuer: &str, more: &str) -> String {
        let ca = self.0.path().join("ca.pem");
        format!("issuer = '{issuer}'\nca-file = '{}'\nkeep = 'file'\n{more}\n", ca.display())
    }

    pub(crate) fn settings(&self, issuer: &str, more: &str) -> Settings {
        toml::from_str::<LoginTable>(&self.table(issuer, more)).unwrap().settings("p", false).unwrap()
    }
}

/// The clients that most tests use.
pub(crate) const CLIENTS: &str = "relay.client-id = 'towline-relay'\ncluster.client-id = 'towline-cluster'";

/// What people were told, for whoever plays the person.
pub(crate) struct Told(Mutex<Option<tokio::sync::mpsc::Sender<Prompt>>>);

impl Told {
    pub(crate) fn new() -> (Self, tokio::sync::mpsc::Receiver<Prompt>) {
        let (tell, told) = tokio::sync::mpsc::channel(8);
        (Self(Mutex::new(Some(tell))), told)
    }

    pub(crate) fn say(&self, prompt: &Prompt) {
        let tell = self.0.lock().unwrap();
        tell.as_ref().unwrap().try_send(prompt.clone()).unwrap();
    }
}

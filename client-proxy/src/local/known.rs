//! Which cluster a name was taken for when a person last confirmed it (trust on first use, THREATS T44).

use std::collections::BTreeMap;

use towline_tunnel::{
    fault::{Fault, Report},
    ids::{ClusterId, KeyHash},
};

use super::StateFolder;

const FILE: &str = "known-clusters.json";

/// Names by relay: a name means something only at the relay that gave it.
type Known = BTreeMap<String, BTreeMap<String, String>>;

impl StateFolder {
    /// The cluster that a person confirmed for this name at this relay.
    ///
    /// # Errors
    /// If what was noted can't be read.
    pub fn known(&self, relay: KeyHash, name: &str) -> Result<Option<ClusterId>, Report> {
        let known = self.all_known()?;
        let id = known.get(&relay.to_string()).and_then(|names| names.get(name));
        id.map(|id| id.parse().map_err(|_| self.damaged())).transpose()
    }

    /// Notes what a person confirmed.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn remember(&self, relay: KeyHash, name: &str, cluster: ClusterId) -> Result<(), Report> {
        let _lock = self.lock()?;
        let mut known = self.all_known()?;
        known.entry(relay.to_string()).or_default().insert(name.to_owned(), cluster.to_string());
        let text = serde_json::to_vec_pretty(&known)
            .map_err(|error| Report::caused_by(Fault::Internal, "names can't be noted", error))?;
        self.write(FILE, &text)
    }

    fn all_known(&self) -> Result<Known, Report> {
        match self.read(FILE)? {
            Some(text) => serde_json::from_slice(text.reveal()).map_err(|_| self.damaged()),
            None => Ok(Known::new()),
        }
    }

    /// Never guessed at: a name that is asked for again might get another answer.
    fn damaged(&self) -> Report {
        let why = "is damaged; remove it to confirm names anew";
        Report::new(Fault::FileUnreadable, format!("{} {why}", self.path().join(FILE).display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_remembered_for_the_relay_that_gave_it() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(&folder.path().join("s")).unwrap();
        let (relay, other) = (KeyHash::of_spki(b"relay"), KeyHash::of_spki(b"other"));
        let cluster = ClusterId::of_spki(b"cluster");
        assert_eq!(state.known(relay, "edge-7").unwrap(), None);
        state.remember(relay, "edge-7", cluster).unwrap();
        state.remember(other, "edge-8", cluster).unwrap();
        assert_eq!(state.known(relay, "edge-7").unwrap(), Some(cluster));
        assert_eq!(state.known(other, "edge-7").unwrap(), None);
        std::fs::write(folder.path().join("s/known-clusters.json"), "{").unwrap();
        let report = state.known(relay, "edge-7").unwrap_err();
        assert!(report.to_string().contains("known-clusters.json"), "{report}");
    }
}

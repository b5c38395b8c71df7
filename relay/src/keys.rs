//! The relay's own keys, each in a file of its own in the data directory.

use std::{path::Path, sync::Arc};

use towline_tunnel::{
    fault::Report,
    ids::KeyHash,
    keys::{SigningKey, VerifyingKey},
};

const IDENTITY: &str = "identity-key.pem";
const TICKETS: &str = "ticket-key.pem";
const AUTHORITY: &str = "authority-key.pem";

/// Three keys, so that each can be replaced without the others.
#[derive(Clone, Debug)]
pub struct RelayKeys {
    /// Who the relay is: its hash stands in every enrolment token and client profile.
    pub identity: Arc<SigningKey>,
    /// Signs tickets; agents pin it when they enrol.
    pub tickets: Arc<SigningKey>,
    /// Signs the certificates of agent instances, which nobody but this relay judges.
    pub authority: Arc<SigningKey>,
}

impl RelayKeys {
    /// Reads the keys, and makes those that are not there.
    ///
    /// # Errors
    /// If one can't be read or written, or can be read by others.
    pub fn load_or_create(data_dir: &Path) -> Result<Self, Report> {
        let key = |file| SigningKey::load_or_create(&data_dir.join(file)).map(Arc::new);
        Ok(Self { identity: key(IDENTITY)?, tickets: key(TICKETS)?, authority: key(AUTHORITY)? })
    }

    /// Whether a relay has its identity in this folder.
    pub fn exist(data_dir: &Path) -> bool {
        data_dir.join(IDENTITY).exists()
    }

    /// What clients and agents pin.
    pub fn identity_hash(&self) -> KeyHash {
        self.identity.public().hash()
    }

    /// What agents pin to judge tickets.
    pub fn ticket_key(&self) -> VerifyingKey {
        self.tickets.public()
    }
}

//! The relay itself, for commands that ask it something and leave: a session as a proxy's, and questions on it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::Instant;
use towline_tunnel::{
    clock::Clock,
    fault::{Fault, Report},
    keys::SigningKey,
    session::question::{MAX_BODY, Topic},
};

use crate::{
    app::{Config, link},
    dial::Link,
    token::Tokens,
};

/// An answer in parts takes no longer in all, whatever the relay says.
const ALL_PARTS_WITHIN: Duration = Duration::from_secs(60);

/// A session with the relay, for a few questions.
pub struct Relay {
    link: Link,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Relay")
    }
}

impl Relay {
    /// Dials the relay of this configuration with its tokens. What the configuration says of clusters is not looked at.
    ///
    /// # Errors
    /// If there is no token for the relay, or it can't be reached or does not let the caller in.
    pub async fn connect(config: &Config) -> Result<Self, Report> {
        let (relay, cluster) = (config.relay_token.clone(), config.cluster_token.clone());
        let tokens = Tokens::start(relay, cluster, config.shared_audience, &Clock::system()).await?;
        tokens.for_relay(SystemTime::now())?;
        let link = link(config, Arc::new(SigningKey::generate()), Arc::new(tokens), true)?;
        link.session().await?;
        Ok(Self { link })
    }

    /// Asks what is answered in one part.
    ///
    /// # Errors
    /// If the caller may not ask this, the relay does not answer in time, or its answer can't be read.
    pub async fn ask<A: DeserializeOwned>(
        &self,
        topic: Topic,
        question: &impl Serialize,
    ) -> Result<A, Report> {
        let part = self.link.ask(topic, Bytes::new(), body(question)?).await?;
        read(&part.body)
    }

    /// Asks for a list, in as many parts as it has; no more than about `most` items of it.
    ///
    /// # Errors
    /// As [`Relay::ask`].
    pub async fn list<A: DeserializeOwned>(
        &self,
        topic: Topic,
        question: &impl Serialize,
        most: usize,
    ) -> Result<Vec<A>, Report> {
        let body = body(question)?;
        let deadline = Instant::now() + ALL_PARTS_WITHIN;
        let (mut items, mut cursor) = (Vec::new(), Bytes::new());
        loop {
            let part = self.link.ask(topic, cursor.clone(), body.clone()).await?;
            items.append(&mut read::<Vec<A>>(&part.body)?);
            if part.cursor.is_empty() || items.len() >= most {
                items.truncate(most);
                return Ok(items);
            }
            if part.cursor == cursor || Instant::now() >= deadline {
                return Err(Report::new(Fault::RelayTimeout, "its answer has no end"));
            }
            cursor = part.cursor;
        }
    }

    /// Says goodbye.
    pub async fn close(self) {
        self.link.close().await;
    }
}

fn body(question: &impl Serialize) -> Result<Bytes, Report> {
    let body = serde_json::to_vec(question)
        .map_err(|error| Report::caused_by(Fault::Internal, "a question can't be written down", error))?;
    if body.len() > MAX_BODY {
        return Err(Report::new(Fault::ConfigInvalid, "what is asked for is too long"));
    }
    Ok(body.into())
}

fn read<A: DeserializeOwned>(body: &[u8]) -> Result<A, Report> {
    serde_json::from_slice(body).map_err(|error| {
        Report::caused_by(
            Fault::ProtocolViolation,
            format!("the relay's answer can't be read: {error}"),
            error,
        )
    })
}

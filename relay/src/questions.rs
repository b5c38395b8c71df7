//! What people ask the relay by a command: taken from CONTROL, decided from the caller that the session's token names, answered in parts.
//!
//! To add a question: a [`Topic`], its body in `towline_tunnel::session::question`, a module here, and a row in
//! `docs/protocol-session.md`.

mod audit;
mod clusters;
mod revoke;
mod roles;

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use towline_tunnel::{
    ids::ChannelId,
    keys::VerifyingKey,
    proto::CloseReason,
    role::question::{LIST, PUT},
    session::{
        control::Control,
        question::{MAX_BODY, Topic},
    },
};
use tracing::{debug, warn};

use crate::{
    accept::end_if_revoked,
    access::AccessControl,
    app::Relay,
    authenticate::ClientPeer,
    forward::RelayConn,
    registry::{Registry, RegistryError},
};

/// Questions that may wait on one session, an agent's or a client's.
pub const OPEN_QUESTIONS: usize = 4;
/// Questions that search the registry's file at once, whoever asks.
pub const SEARCHES: usize = 2;
/// Questions that everybody may ask and that change the registry, at once: all of it is read again after each change, and enrolments,
/// certificates and operators are not to wait for more than one.
pub const CHANGES: usize = 1;
/// No question takes longer. The registry's own waits are shorter.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A question that needs more than memory: answered by the session's task, not by its reader.
#[derive(Debug)]
pub enum Question {
    /// An agent's: a certificate for this key.
    Renewal {
        /// The question's id.
        id: u32,
        /// The key.
        key: VerifyingKey,
    },
    /// A person's. Boxed: each session has room for a few, and most never ask.
    Asked(Box<Asked>),
}

/// A person's question.
#[derive(Debug)]
pub struct Asked {
    /// The question's id.
    pub id: u32,
    /// What it is about.
    pub topic: Topic,
    /// Where the part before ended.
    pub cursor: Bytes,
    /// The topic's own.
    pub body: Bytes,
}

/// Who asks, and what answers are made from.
pub(crate) struct Asker<'a> {
    pub(crate) relay: &'a Relay,
    pub(crate) client: &'a ClientPeer,
    pub(crate) conn: &'a RelayConn,
    pub(crate) channel: ChannelId,
    pub(crate) now: SystemTime,
}

impl Asker<'_> {
    pub(crate) fn registry(&self) -> &Registry {
        self.relay.registry()
    }

    pub(crate) fn source(&self) -> Option<SocketAddr> {
        Some(self.conn.from())
    }

    pub(crate) fn access(&self) -> AccessControl {
        AccessControl::new(self.relay.registry().clone())
    }
}

/// Why a question is not answered, and a few words for the person.
pub(crate) type Declined = (CloseReason, String);

/// One part of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) cursor: Bytes,
    pub(crate) body: Bytes,
}

/// Answers, within a deadline.
pub(crate) async fn answer(conn: &RelayConn, asked: Asked, relay: &Relay) {
    let Some(client) = conn.client() else { return };
    let now = relay.clock().now();
    let asker = Asker { relay, client, conn, channel: conn.channel(), now };
    conn.set_answering(true);
    let answer = answered(&asker, &asked).await;
    if !conn.control(answer.encode(asked.id)) {
        debug!(channel = %conn.channel(), "an answer was dropped: too many wait");
    }
    conn.set_answering(false);
    end_if_revoked(conn, client, relay);
}

async fn answered(asker: &Asker<'_>, asked: &Asked) -> Control {
    let answered = match timeout(ANSWER_WITHIN, decide(asker, asked)).await {
        Ok(answered) => answered,
        Err(_elapsed) => Err((CloseReason::Timeout, "the relay's registry is slow".to_owned())),
    };
    match answered {
        Ok(Part { cursor, body }) => Control::Answer { cursor, body },
        Err((reason, detail)) => {
            debug!(channel = %asker.channel, topic = asked.topic.0, reason = reason.text(), detail, "a question was not answered");
            Control::Failed { reason, detail }
        }
    }
}

async fn decide(asker: &Asker<'_>, asked: &Asked) -> Result<Part, Declined> {
    match asked.topic {
        Topic::CLUSTERS => clusters::answer(asker, &asked.cursor),
        Topic::AUDIT => {
            let question = read(&asked.body)?;
            // Looking through all records takes a while, and enrolments and certificates wait for the same file.
            let _turn = asker.relay.question_turn().await;
            audit::answer(asker, question, &asked.cursor).await
        }
        Topic::REVOKE => revoke::answer(asker, read(&asked.body)?).await,
        Topic(PUT) => roles::put(asker, read(&asked.body)?).await,
        Topic(LIST) => roles::list(asker, read(&asked.body)?, &asked.cursor),
        Topic(other) => Err((CloseReason::FrameUnknown, format!("this relay knows no question {other}"))),
    }
}

/// A question's body.
pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Declined> {
    serde_json::from_slice(body).map_err(|error| invalid(format!("the question can't be read: {error}")))
}

/// A value in the question can't be used.
pub(crate) fn invalid(why: impl Into<String>) -> Declined {
    (CloseReason::QuestionInvalid, why.into())
}

/// The registry could not be asked. What exactly is wrong is the operator's to know.
pub(crate) fn unavailable(error: &RegistryError) -> Declined {
    warn!(%error, "a question was not answered");
    (CloseReason::RegistryUnavailable, String::new())
}

/// An answer in one part.
pub(crate) fn whole(value: &impl serde::Serialize) -> Result<Part, Declined> {
    let body = serde_json::to_vec(value).map_err(|error| (CloseReason::InternalError, error.to_string()))?;
    Ok(Part { body: body.into(), ..Part::default() })
}

/// As many of the items as fit into one part, as a list. Each comes with the cursor behind it; `more` says whether there are others
/// behind the last.
pub(crate) fn part(items: impl IntoIterator<Item = (String, String)>, more: bool) -> Part {
    let mut body = BytesMut::from(&b"["[..]);
    let mut cursor = String::new();
    for (behind, item) in items {
        if body.len() + item.len() + 2 > MAX_BODY {
            if body.len() > 1 {
                return Part { cursor: cursor.into(), body: closed(body) };
            }
            // No part has room for it: passed over, or nothing behind it would ever be seen.
            warn!(bytes = item.len(), "an item of an answer is too long to be told");
            cursor = behind;
            continue;
        }
        if body.len() > 1 {
            body.extend_from_slice(b",");
        }
        body.extend_from_slice(item.as_bytes());
        cursor = behind;
    }
    let cursor = if more { cursor } else { String::new() };
    Part { cursor: cursor.into(), body: closed(body) }
}

fn closed(mut body: BytesMut) -> Bytes {
    body.extend_from_slice(b"]");
    body.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(range: std::ops::Range<u32>, length: usize) -> Vec<(String, String)> {
        range.map(|n| (n.to_string(), format!("\"{}\"", "x".repeat(length)))).collect()
    }

    fn count(part: &Part) -> usize {
        serde_json::from_slice::<Vec<String>>(&part.body).unwrap().len()
    }

    #[test]
    fn an_answer_that_does_not_fit_comes_in_parts() {
        let first = part(items(0..100, 1000), false);
        assert!(first.body.len() <= MAX_BODY && count(&first) > 10, "{}", count(&first));
        let last: u32 = std::str::from_utf8(&first.cursor).unwrap().parse().unwrap();
        assert_eq!(last as usize + 1, count(&first), "the cursor is that of the last that is in it");
        let short = part(items(0..3, 10), false);
        assert_eq!((count(&short), short.cursor.len()), (3, 0));
        let page = part(items(0..3, 10), true);
        assert_eq!((count(&page), &page.cursor[..]), (3, &b"2"[..]));
        assert_eq!(part(Vec::new(), false).body, "[]");
    }

    #[test]
    fn what_fits_into_no_part_holds_up_nothing_behind_it() {
        let mut all = items(0..1, MAX_BODY);
        all.extend(items(1..3, 10));
        let told = part(all, false);
        assert_eq!((count(&told), told.cursor.len()), (2, 0));
        let alone = part(items(5..6, MAX_BODY), true);
        assert_eq!((count(&alone), &alone.cursor[..]), (0, &b"5"[..]));
    }
}

//! Who opened which cluster, and who was refused: what the relay can know, and nothing more.
//!
//! A channel is one session of a client. Its [`Account`] gathers what it opens, cluster by cluster, without a lock or a wait of its own; the
//! [`Auditor`]'s task writes that to the registry's file while the session runs, and once more, with a line to the audit log, when it has
//! ended. Where the task can't keep up, the record goes to the relay's log instead: none is lost in silence.

mod account;
mod auditor;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use towline_tunnel::{
    ids::{ChannelId, ClusterId},
    proto::CloseReason,
};

pub use account::Account;
pub use auditor::{Audit, Auditor};

/// What a channel has of sessions that go on is written this often.
pub const NOTED_EVERY: Duration = Duration::from_secs(30);

/// What audit records are kept for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Records of channels that ended earlier are removed.
    pub age: Duration,
    /// Further ones are removed, the oldest first.
    pub records: u64,
}

/// Whose channel it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Channel {
    /// The session, as every hop logs it.
    pub id: ChannelId,
    /// As the relay's verifier calls them.
    pub user: String,
    /// Issuer, `#` and stable claim.
    pub principal: String,
    /// Where the connection came from.
    pub source: SocketAddr,
    /// Program and version, as the client says.
    pub program: String,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Streams were opened.
    Allowed,
    /// None was.
    Refused(CloseReason),
    /// Somebody's sessions were revoked.
    Revoked,
    /// An agent instance's identity has two live holders.
    Duplicate,
}

impl Verdict {
    /// `allowed`, or the reason.
    pub fn text(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused(reason) => reason.text(),
            Self::Revoked => "revoked",
            Self::Duplicate => "duplicate holder",
        }
    }
}

/// What one channel has had of one cluster so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whose.
    pub channel: Arc<Channel>,
    /// Which; none where one channel asked for more clusters than are told apart.
    pub cluster: Option<ClusterId>,
    /// Its name then; empty where there is no such cluster.
    pub cluster_name: String,
    /// What was decided.
    pub verdict: Verdict,
    /// By which role, or why not.
    pub why: String,
    /// The first stream.
    pub began_at: SystemTime,
    /// When the numbers were true.
    pub noted_at: SystemTime,
    /// When the channel ended, and how.
    pub ended: Option<(SystemTime, String)>,
    /// What it carried.
    pub tally: Tally,
}

impl Record {
    /// Something that happened, and no channel's streams.
    pub fn event(
        channel: Channel,
        cluster: Option<(ClusterId, String)>,
        verdict: Verdict,
        why: String,
        at: SystemTime,
    ) -> Self {
        let (cluster, cluster_name) = cluster.map_or((None, String::new()), |(id, name)| (Some(id), name));
        Self {
            channel: Arc::new(channel),
            cluster,
            cluster_name,
            verdict,
            why,
            began_at: at,
            noted_at: at,
            ended: Some((at, String::new())),
            tally: Tally::default(),
        }
    }
}

/// Numbers of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// Streams that were opened, or refused.
    pub streams: u64,
    /// Streams that were taken up again after a connection was lost.
    pub resumed: u64,
    /// Bytes of streams towards the agent: ciphertext.
    pub bytes_to_agent: u64,
    /// Bytes of streams towards the client.
    pub bytes_to_client: u64,
}

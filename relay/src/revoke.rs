//! What a revocation finds and leaves in the audit; who makes one is `questions::revoke` or the command line.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use towline_tunnel::ids::{ChannelId, ClusterId};

use crate::{
    audit::{Channel, Record, Verdict},
    forward::RelayConn,
    registry::{Cluster, Revocation, SubjectKind},
    values::moment,
};

/// A user is locked out for no longer than this. Whoever is to stay away for good has no role.
pub const LONGEST_LOCK: Duration = Duration::from_secs(30 * 24 * 3600);
/// And locks oneself out for no longer than this.
pub const LONGEST_OWN_LOCK: Duration = Duration::from_secs(24 * 3600);

/// What there is of a user at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Sessions, lines not counted.
    pub sessions: u32,
    /// Streams, to the cluster if one is meant.
    pub streams: u32,
    /// When the newest of their tokens was issued, as it says.
    pub newest_token: Option<SystemTime>,
}

/// The sessions and streams of a user, towards one cluster or all.
pub fn found(
    sessions: &[Arc<RelayConn>],
    kind: SubjectKind,
    subject: &str,
    cluster: Option<ClusterId>,
) -> Found {
    let mut found = Found::default();
    for conn in sessions {
        let Some(client) = conn.client() else { continue };
        let name = match kind {
            SubjectKind::User => &client.caller.username,
            SubjectKind::Principal => &client.caller.principal,
            SubjectKind::Group => continue,
        };
        if name != subject {
            continue;
        }
        found.sessions += u32::from(!conn.is_line());
        found.streams = found.streams.saturating_add(conn.streams_to(cluster));
        found.newest_token = found.newest_token.max(client.issued_at);
    }
    found
}

/// How the audit tells of it: about whom it is, by whom, and which tokens are refused.
pub fn record(
    revocation: &Revocation,
    cluster: Option<&Cluster>,
    source: Option<SocketAddr>,
    program: &str,
) -> Record {
    let (user, principal) = match revocation.kind {
        SubjectKind::User | SubjectKind::Group => (revocation.subject.clone(), String::new()),
        SubjectKind::Principal => (String::new(), revocation.subject.clone()),
    };
    let channel = Channel {
        id: ChannelId::random(),
        user,
        principal,
        source: source.unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into()),
        program: program.to_owned(),
    };
    let why =
        format!("by {}; tokens issued until {}", revocation.revoked_by, moment(revocation.issued_until));
    let cluster = cluster.map(|cluster| (cluster.id, cluster.name.clone()));
    Record::event(channel, cluster, Verdict::Revoked, why, revocation.revoked_at)
}

//! Two live holders of one agent instance's identity (THREATS T52): somebody has a copy of a key that never leaves its process.
//!
//! A process says of each of its sessions, over its others, that it is its own ([`RelayConn::is_kin`]); whoever has copied its key can't have
//! that said on a session that is not theirs. So two of one instance, both of which answer and which do not know each other, are two processes. Which of them is the right one the relay can't know: it serves both as before, says what
//! it sees, and leaves it to an operator to revoke the identity. The cluster's own agent then comes back under another one.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use towline_tunnel::ids::{ChannelId, InstanceId};
use tracing::{error, info, warn};

use crate::{
    app::Relay,
    audit::{Channel, Record, Verdict},
    forward::RelayConn,
    places::MAX_SESSIONS_PER_INSTANCE,
};

/// How often sessions are looked at. An identity's second holder is told of within this, [`HANDED_OVER`] and a PING's time.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);
/// What was on its way on a session that its agent has given up has come by then: longer than a dead peer is waited for.
pub const HANDED_OVER: Duration = Duration::from_secs(12);
/// While it goes on, it is said in the log this often.
const TOLD_EVERY: Duration = Duration::from_secs(600);

/// Two sessions of one instance whose holders both live.
#[derive(Clone, Debug)]
pub struct Duplicate {
    /// Whose identity it is.
    pub instance: InstanceId,
    /// The session that was there first.
    pub earlier: Arc<RelayConn>,
    /// The one that came while that one lived.
    pub later: Arc<RelayConn>,
}

/// Looks for them, and raises the alarm; never returns.
pub async fn watch(relay: Arc<Relay>) {
    let mut alarm = Alarm::default();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        alarm.look(&relay, HANDED_OVER).await;
    }
}

/// What was told already.
#[derive(Debug, Default)]
pub struct Alarm {
    told: HashMap<InstanceId, Instant>,
}

impl Alarm {
    /// Looks once, and tells of what is new: in the log, the metrics, the audit and the registry. Returns what it found.
    pub async fn look(&mut self, relay: &Relay, handed_over: Duration) -> Vec<Duplicate> {
        let sessions = relay.sessions();
        let found = find(&sessions.all(), &sessions.suspects(), &sessions.crowded(), handed_over);
        relay.metrics().duplicate_holders.set(i64::try_from(found.len()).unwrap_or(i64::MAX));
        let now = tokio::time::Instant::now().into_std();
        let there: HashSet<InstanceId> = found.iter().map(|duplicate| duplicate.instance).collect();
        self.told.retain(|instance, _| {
            let stays = there.contains(instance);
            if !stays {
                info!(%instance, "an agent instance's identity has one live holder again");
            }
            stays
        });
        for duplicate in &found {
            let before = self.told.get(&duplicate.instance).copied();
            if before.is_none_or(|at| now.duration_since(at) >= TOLD_EVERY) {
                self.told.insert(duplicate.instance, now);
                tell(duplicate);
            }
            if before.is_none() {
                relay.metrics().duplicate_alarms.inc();
                relay.audit().tell(record(duplicate, relay));
            }
        }
        if !there.is_empty() {
            let there: Vec<_> = there.into_iter().collect();
            if let Err(error) = relay.registry().note_duplicates(&there, relay.clock().now()).await {
                warn!(%error, "duplicate holders were not noted");
            }
        }
        found
    }
}

/// One pair for each instance whose identity has two live holders: the earlier session was heard of `handed_over` after the later one began.
/// A later one may have `ended`, where it had said something: a process tells of each session on which it does. And an instance that has all
/// sessions that it may have, and was refused one more (`crowded`), is not one process: none needs half of them.
///
/// Sessions that do not know each other are asked for a sign of life. An idle one may keep silent for minutes otherwise; and one that
/// is dead would be taken for the carrying one as long.
pub fn find(
    open: &[Arc<RelayConn>],
    ended: &[Arc<RelayConn>],
    crowded: &HashSet<InstanceId>,
    handed_over: Duration,
) -> Vec<Duplicate> {
    let mut by_instance: HashMap<InstanceId, Vec<(&Arc<RelayConn>, bool)>> = HashMap::new();
    let all = open.iter().map(|conn| (conn, true)).chain(ended.iter().map(|conn| (conn, false)));
    for (conn, is_open) in all {
        // A line is beside another.
        if let Some(agent) = conn.agent()
            && !conn.is_line()
        {
            by_instance.entry(agent.holder.instance).or_default().push((conn, is_open));
        }
    }
    let mut found = Vec::new();
    for (instance, mut of) in by_instance {
        of.sort_by_key(|(conn, _)| conn.since());
        let pairs = of.iter().enumerate().rev().flat_map(|(at, (later, _))| {
            let before = of[..at].iter().rev().filter(|(_, is_open)| *is_open);
            before.map(move |(earlier, _)| (*earlier, *later))
        });
        // One that goes has a successor. That a later one goes is the word of whoever holds it, and no reason to pass over it.
        let strangers = pairs.filter(|(earlier, later)| earlier.takes_streams() && !earlier.is_kin(later));
        let strangers: Vec<_> = strangers.collect();
        let outlived = strangers
            .iter()
            .find(|(earlier, later)| earlier.signs_of_life().1 >= later.since() + handed_over);
        for (earlier, _) in &strangers {
            earlier.check();
        }
        let standing = || of.iter().filter(|(_, is_open)| *is_open).map(|(conn, _)| *conn);
        let is_full = crowded.contains(&instance)
            && standing().count() >= usize::try_from(MAX_SESSIONS_PER_INSTANCE).unwrap_or(usize::MAX);
        let pair =
            outlived.copied().or_else(|| standing().next().zip(standing().next_back()).filter(|_| is_full));
        if let Some((earlier, later)) = pair {
            let (earlier, later) = (Arc::clone(earlier), Arc::clone(later));
            found.push(Duplicate { instance, earlier, later });
        }
    }
    found
}

fn tell(Duplicate { instance, earlier, later }: &Duplicate) {
    let cluster = earlier.agent().map(|agent| agent.cluster.name.clone()).unwrap_or_default();
    error!(
        %instance, cluster, earlier = %earlier.from(), earlier_channel = %earlier.channel(), later = %later.from(), later_channel = %later.channel(),
        "an agent instance's identity has two live holders: somebody has a copy of its key. Neither is cut off; `towline-relay \
         revoke-instance {instance}` ends both, and the cluster's own agent comes back by itself under another identity"
    );
}

fn record(Duplicate { instance, earlier, later }: &Duplicate, relay: &Relay) -> Record {
    let agent = later.agent();
    let channel = Channel {
        id: ChannelId::random(),
        user: format!("instance {instance}"),
        principal: String::new(),
        source: later.from(),
        program: agent.map(|agent| agent.program.clone()).unwrap_or_default(),
    };
    let why = format!(
        "another live holder of its identity is at {} (channels {} and {})",
        earlier.from(),
        earlier.channel(),
        later.channel()
    );
    let cluster = agent.map(|agent| (agent.cluster.id, agent.cluster.name.clone()));
    Record::event(channel, cluster, Verdict::Duplicate, why, relay.clock().now())
}

//! What one channel does, gathered under its session's own lock.

use std::sync::Arc;

use towline_tunnel::{
    ids::ClusterId,
    proto::{CloseReason, reason::bounded_detail},
};

use super::{Audit, Channel, Record, Tally, Verdict};

/// Records of one channel that are told apart.
const MAX_RECORDS: usize = 256;

/// The account of one channel.
#[derive(Debug)]
pub struct Account {
    audit: Audit,
    channel: Arc<Channel>,
    records: Vec<Kept>,
    ended: bool,
}

#[derive(Debug)]
struct Kept {
    record: Record,
    changed: bool,
}

impl Account {
    /// Nothing yet.
    pub fn new(audit: Audit, channel: Channel) -> Self {
        Self { audit, channel: Arc::new(channel), records: Vec::new(), ended: false }
    }

    /// A stream was allowed. `more` is asked for the cluster's name and the role only the first time.
    pub fn allowed(&mut self, cluster: ClusterId, resumed: bool, more: impl FnOnce() -> (String, String)) {
        self.count(cluster, Verdict::Allowed, more, |tally| {
            if resumed {
                tally.resumed += 1;
            } else {
                tally.streams += 1;
            }
        });
    }

    /// A stream was refused.
    pub fn refused(
        &mut self,
        cluster: ClusterId,
        reason: CloseReason,
        more: impl FnOnce() -> (String, String),
    ) {
        self.count(cluster, Verdict::Refused(reason), more, |tally| tally.streams += 1);
    }

    /// A stream carried bytes.
    pub fn carried(&mut self, cluster: ClusterId, to_agent: u64, to_client: u64) {
        // It was allowed before it carried anything; where that was one too many, it stands with the rest.
        let place =
            self.place(Some(cluster), Verdict::Allowed).or_else(|| self.place(None, Verdict::Allowed));
        if let Some(kept) = place.and_then(|place| self.records.get_mut(place)) {
            kept.record.tally.bytes_to_agent += to_agent;
            kept.record.tally.bytes_to_client += to_client;
            kept.changed = true;
        }
    }

    fn place(&self, cluster: Option<ClusterId>, verdict: Verdict) -> Option<usize> {
        let is_it = |kept: &Kept| kept.record.cluster == cluster && kept.record.verdict == verdict;
        self.records.iter().position(is_it)
    }

    fn count(
        &mut self,
        cluster: ClusterId,
        verdict: Verdict,
        more: impl FnOnce() -> (String, String),
        count: impl FnOnce(&mut Tally),
    ) {
        // Nobody's names of nothing are told apart: anybody can make up as many as they like.
        let is_known = verdict != Verdict::Refused(CloseReason::ClusterUnknown);
        let mut cluster = is_known.then_some(cluster);
        let mut place = self.place(cluster, verdict);
        if place.is_none() && self.records.len() >= MAX_RECORDS {
            cluster = None;
            place = self.place(cluster, verdict);
        }
        match place.and_then(|place| self.records.get_mut(place)) {
            Some(kept) => {
                count(&mut kept.record.tally);
                kept.changed = true;
            }
            None => {
                let (cluster_name, why) = match cluster {
                    Some(_) => more(),
                    None if !is_known => (String::new(), "there are no such clusters".to_owned()),
                    None => (String::new(), "further clusters".to_owned()),
                };
                let why = bounded_detail(&why).to_owned();
                let now = self.audit.now();
                let mut tally = Tally::default();
                count(&mut tally);
                let record = Record {
                    channel: Arc::clone(&self.channel),
                    cluster,
                    cluster_name,
                    verdict,
                    why,
                    began_at: now,
                    noted_at: now,
                    ended: None,
                    tally,
                };
                // At once: whoever looks sees who is there now.
                self.audit.send(record.clone());
                self.records.push(Kept { record, changed: false });
            }
        }
    }

    /// Hands on what changed since the last time.
    pub fn note(&mut self) {
        let now = self.audit.now();
        for kept in self.records.iter_mut().filter(|kept| kept.changed) {
            kept.changed = false;
            kept.record.noted_at = now;
            self.audit.send(kept.record.clone());
        }
    }

    /// The channel has ended. What is told first holds.
    pub fn end(&mut self, how: &str) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let now = self.audit.now();
        for Kept { record, .. } in self.records.drain(..) {
            self.audit.send(Record { noted_at: now, ended: Some((now, how.to_owned())), ..record });
        }
    }
}

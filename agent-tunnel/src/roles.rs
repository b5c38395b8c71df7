//! Roles that an organisation gives by signed documents, which the relay carries (`towline_tunnel::role`).
//!
//! Off unless the cluster sets a ceiling. The agent takes nobody's word: a document counts if the organisation's key has signed it, it is
//! for the very principal that the agent verified (or a group that it verified), for a scope that this cluster is in, in its time, and
//! came with a ticket that is fresh. Everything else is passed over. What is left becomes one group more, which nobody else can name and
//! which RBAC of the cluster knows ([`manifest`]).

pub mod manifest;
mod warning;

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use data_encoding::BASE32_NOPAD;
use tokio_util::sync::CancellationToken;
use towline_identity::Identity;
use towline_tunnel::{
    ids::ClusterId,
    keys::{Purpose, SigningKey, VerifyingKey},
    role::{
        Document, DocumentId, Finding, Given, Person, RoleName, SignedDocument, Statement, evaluate,
        hash_offer, read_offer,
    },
    ticket::Ticket,
};
use tracing::{debug, warn};

pub(crate) use warning::warning;

/// How old a relay's stamp may be by the agent's clock, and how long what it vouched for is used for new requests.
pub const FRESH_FOR: Duration = Duration::from_secs(60);
/// Of the suffix, in characters: 80 bits.
const SUFFIX: usize = 16;

/// What a cluster says about roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleSettings {
    /// No role counts for more than this one.
    pub ceiling: RoleName,
    /// The organisation's: any of them may have signed.
    pub keys: Vec<VerifyingKey>,
    /// See [`FRESH_FOR`].
    pub fresh_for: Duration,
}

/// Judges documents for one cluster.
#[derive(Debug)]
pub struct Roles {
    settings: RoleSettings,
    cluster: ClusterId,
    groups: Groups,
    /// The newest placement of this cluster that was seen: a relay can't move it back by an older one.
    newest: Mutex<Option<(SystemTime, DocumentId)>>,
}

/// The documents that count, of those that came with one stream.
#[derive(Debug, Default)]
pub struct Offered {
    documents: Vec<Document>,
    since: Mutex<Since>,
    gone: CancellationToken,
}

/// What became of a stream's documents since they came.
#[derive(Debug, Default)]
struct Since {
    /// What something hangs on.
    used: HashSet<DocumentId>,
    /// What the relay no longer vouched for when the stream was resumed: nothing new comes of it.
    withdrawn: HashSet<DocumentId>,
}

/// A role as it counts here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// What counts: at most the ceiling.
    pub role: RoleName,
    /// The group that it becomes.
    pub group: String,
    /// What the document says, and which, where, and until when.
    pub given: Given,
}

/// The groups that roles become. Their names are this cluster's own: no token and no other cluster has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    suffix: String,
}

impl Groups {
    /// Of the cluster with this identity key. The suffix comes from the key alone: every replica has the same, and it lasts as long.
    pub fn of(identity: &SigningKey) -> Self {
        // Ed25519 gives one signature for one message (RFC 8032), which only the key's holder can make.
        let signature = identity.sign(Purpose::RoleSuffix, &[]);
        let mut suffix = BASE32_NOPAD.encode(digest(&SHA256, &signature).as_ref()).to_ascii_lowercase();
        suffix.truncate(SUFFIX);
        Self { suffix }
    }

    /// The group of a role; nothing for one that grants nothing inside.
    pub fn group(&self, role: RoleName) -> Option<String> {
        role.cluster_role().map(|_| format!("towline:role:{role}:{}", self.suffix))
    }

    /// The groups of all roles up to this one.
    pub fn up_to(&self, ceiling: RoleName) -> Vec<String> {
        RoleName::ALL
            .into_iter()
            .filter(|role| *role <= ceiling)
            .filter_map(|role| self.group(role))
            .collect()
    }
}

impl Roles {
    /// For the cluster with this identity.
    pub fn new(settings: RoleSettings, identity: &SigningKey) -> Self {
        let groups = Groups::of(identity);
        Self { settings, cluster: identity.public().cluster_id(), groups, newest: Mutex::default() }
    }

    /// The ceiling.
    pub fn ceiling(&self) -> RoleName {
        self.settings.ceiling
    }

    /// The groups that it may put users into.
    pub fn possible_groups(&self) -> Vec<String> {
        self.groups.up_to(self.settings.ceiling)
    }

    pub(crate) fn fresh_for(&self) -> Duration {
        self.settings.fresh_for
    }

    /// The cluster.
    pub(crate) fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// What of an offer counts. The rest is passed over, and told to the log.
    pub fn take(&self, ticket: &Ticket, offer: Option<&Bytes>, now: SystemTime) -> Offered {
        let Some(offer) = offer else { return Offered::default() };
        let ignored =
            |why: &str| debug!(principal = ticket.principal, why, "the relay's role documents were ignored");
        if ticket.offer != Some(hash_offer(offer)) {
            ignored("the ticket does not vouch for them");
            return Offered::default();
        }
        if now.duration_since(ticket.issued).is_ok_and(|age| age > self.settings.fresh_for) {
            ignored("the ticket's stamp is old: the relay held it back, or a clock is wrong");
            return Offered::default();
        }
        let offered = match read_offer(offer) {
            Ok(offered) => offered,
            Err(error) => {
                ignored(&error.to_string());
                return Offered::default();
            }
        };
        let mut documents: Vec<Document> =
            offered.into_iter().filter_map(|bytes| self.judge(bytes)).collect();
        self.drop_older_placements(&mut documents, now);
        Offered { documents, ..Offered::default() }
    }

    /// One document, if the organisation has signed it.
    fn judge(&self, bytes: Bytes) -> Option<Document> {
        match SignedDocument::read(bytes) {
            Ok(signed) if signed.signer(&self.settings.keys).is_some() => Some(signed.document().clone()),
            Ok(signed) => {
                let (id, statement) = (signed.document().id, &signed.document().statement);
                warn!(%id, ?statement, "a role document that the organisation's key has not signed was ignored");
                None
            }
            Err(error) => {
                warn!(%error, "a role document was ignored");
                None
            }
        }
    }

    fn drop_older_placements(&self, documents: &mut Vec<Document>, now: SystemTime) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let place = |document: &Document| match &document.statement {
            Statement::Placement { cluster, .. } if *cluster == self.cluster => {
                Some((document.issued, document.id))
            }
            _ => None,
        };
        // One whose time is yet to come moves nothing yet.
        let due = documents.iter().filter(|document| document.standing(now) != Finding::NotYet);
        *newest = due.filter_map(place).chain(*newest).max();
        let newest = *newest;
        documents.retain(|document| {
            let older = place(document).is_some_and(|place| newest.is_some_and(|newest| place < newest));
            if older {
                warn!(id = %document.id, "a placement that was replaced was ignored: the relay offered an old one");
            }
            !older
        });
    }

    /// The role of a verified user by what was offered; nothing where none is left that grants anything.
    pub fn role_of(&self, offered: &Offered, identity: &Identity, now: SystemTime) -> Option<Granted> {
        // Held until what is used is noted: a resuming must see it.
        let mut since = offered.since.lock().unwrap_or_else(PoisonError::into_inner);
        let stands = |document: &&Document| !since.withdrawn.contains(&document.id);
        let documents: Vec<Document> = offered.documents.iter().filter(stands).cloned().collect();
        if documents.is_empty() || offered.gone.is_cancelled() {
            return None;
        }
        let principal = identity.principal.to_string();
        let person = Person { principal: &principal, groups: &identity.groups };
        let evaluation = evaluate(&documents, person, self.cluster, now);
        for (id, finding) in evaluation.findings.iter().filter(|(_, finding)| *finding != Finding::Gives) {
            debug!(%id, ?finding, principal, "a role document gives nothing here");
        }
        let given = evaluation.given?;
        let role = given.role.min(self.settings.ceiling);
        let group = self.groups.group(role)?;
        since.used.insert(given.by);
        since.used.extend(given.placed_by);
        Some(Granted { role, group, given })
    }

    /// Takes up a stream's role with what was offered on its resuming: it ends where the relay no longer vouches for what it hangs on.
    pub(crate) fn renew(&self, held: &Offered, ticket: &Ticket, offer: Option<&Bytes>, now: SystemTime) {
        let again = self.take(ticket, offer, now);
        let still: HashSet<DocumentId> = again.documents.iter().map(|document| document.id).collect();
        let mut since = held.since.lock().unwrap_or_else(PoisonError::into_inner);
        let all = held.documents.iter().map(|document| document.id);
        since.withdrawn.extend(all.filter(|id| !still.contains(id)));
        if !since.used.is_subset(&still) {
            held.gone.cancel();
        }
    }
}

impl Offered {
    /// Cancelled when what hangs on its documents must end.
    pub(crate) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }
}

impl Granted {
    /// As the audit tells it.
    pub(crate) fn told(&self) -> crate::audit::Role {
        crate::audit::Role {
            role: self.role.name(),
            scope: self.given.scope.to_string(),
            document: self.given.by.to_string(),
            lowered_from: (self.role < self.given.role).then(|| self.given.role.name()),
        }
    }
}

#[cfg(test)]
mod tests;

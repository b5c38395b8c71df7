//! Which of the organisation's documents go with a stream, and what they say about who may open it.

use std::{cmp::Reverse, sync::Arc, time::SystemTime};

use bytes::Bytes;
use towline_tunnel::{
    ids::ClusterId,
    role::{
        Document, DocumentId, Finding, Given, MAX_OFFERED, Person, SignedDocument, Statement, evaluate,
        write_offer,
    },
};

use crate::{
    access::{Caller, MAX_GROUPS},
    registry::Documents,
};

/// What goes with one stream to the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// OPEN's field; nothing where no document concerns the caller there.
    pub bytes: Option<Bytes>,
    /// Which documents: the stream ends where one of them does.
    pub documents: Option<Arc<[DocumentId]>>,
}

/// What documents say about a caller on a cluster: the strongest role, which lets them in at least.
pub fn given(documents: &Documents, caller: &Caller, cluster: ClusterId, now: SystemTime) -> Option<Given> {
    let groups = known_groups(caller);
    let found = documents.concerning(&caller.principal, groups, cluster);
    let person = Person { principal: &caller.principal, groups };
    evaluate(found.map(|signed| signed.document()), person, cluster, now).given
}

/// What of the documents concerns a caller there now: the strongest roles first, where not all fit.
pub fn offer(documents: &Documents, caller: &Caller, cluster: ClusterId, now: SystemTime) -> Offer {
    let groups = known_groups(caller);
    let found = documents.concerning(&caller.principal, groups, cluster);
    let person = Person { principal: &caller.principal, groups };
    let evaluation = evaluate(found.clone().map(|signed| signed.document()), person, cluster, now);
    if evaluation.given.is_none() {
        return Offer::default();
    }
    let gives = |document: &Document| {
        evaluation.findings.iter().any(|(id, finding)| *id == document.id && *finding == Finding::Gives)
    };
    let placed_by = evaluation.placed.as_ref().map(|(_, by, _)| *by);
    let mut chosen: Vec<&Arc<SignedDocument>> =
        found.filter(|signed| gives(signed.document()) || Some(signed.document().id) == placed_by).collect();
    chosen.sort_by_key(|signed| Reverse(strength(signed.document())));
    // A subject of the greatest length leaves room for five: what is strongest is among them.
    let mut bytes = None;
    while !chosen.is_empty() {
        chosen.truncate(MAX_OFFERED);
        bytes = write_offer(chosen.iter().map(|signed| signed.bytes()));
        let fits = bytes.as_ref().and_then(|bytes| towline_tunnel::role::read_offer(bytes).ok());
        let fits = fits.map_or(0, |documents| documents.len());
        if fits == chosen.len() {
            break;
        }
        chosen.truncate(fits);
    }
    let documents = chosen.iter().map(|signed| signed.document().id).collect();
    Offer { documents: bytes.is_some().then_some(documents), bytes }
}

/// Whether all that went with a stream is still kept, and in its time.
pub fn stands(documents: &Documents, offered: &[DocumentId], now: SystemTime) -> bool {
    offered
        .iter()
        .all(|id| documents.get(id).is_some_and(|signed| signed.document().standing(now) == Finding::Gives))
}

/// A placement before all: without it no group's role counts. Then what is strongest, and what lasts longest.
fn strength(document: &Document) -> (bool, u8, bool, Option<SystemTime>) {
    let role = match &document.statement {
        Statement::Assignment { role, .. } => *role as u8,
        _ => return (true, 0, false, None),
    };
    (false, role, document.expires.is_none(), document.expires)
}

fn known_groups(caller: &Caller) -> &[String] {
    &caller.groups[..caller.groups.len().min(MAX_GROUPS)]
}

#[cfg(test)]
mod tests;

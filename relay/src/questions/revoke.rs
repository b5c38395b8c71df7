//! End somebody's sessions. Everybody may end their own; operators, others'.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use towline_tunnel::{
    proto::CloseReason,
    session::question::{RevokeAnswer, RevokeQuestion, Whom},
};
use tracing::warn;

use super::{Asker, Declined, Part, invalid, unavailable, whole};
use crate::{
    access::Decision,
    registry::{Cluster, Duty, Revocation, SubjectKind},
    revoke::{self, LONGEST_LOCK, LONGEST_OWN_LOCK},
    values::moment,
};

/// Longest principal or username that is taken.
const LONGEST_NAME: usize = 1024;
/// One's own sessions are revoked again, in the same way, no sooner: each time the relay reads its registry again.
const OWN_EVERY: Duration = Duration::from_secs(10);

pub(super) async fn answer(asker: &Asker<'_>, question: RevokeQuestion) -> Result<Part, Declined> {
    let caller = &asker.client.caller;
    let cluster = question.cluster.as_deref().map(|name| cluster(asker, name)).transpose()?;
    let (kind, subject, is_own) = match question.whom {
        Whom::Me => (SubjectKind::Principal, caller.principal.clone(), true),
        Whom::Principal(principal) => {
            let is_own = principal == caller.principal;
            (SubjectKind::Principal, principal, is_own)
        }
        // A username is what its owner may have chosen: it is not taken for one's own.
        Whom::User(user) => (SubjectKind::User, user, false),
    };
    if subject.is_empty() || subject.len() > LONGEST_NAME || subject.contains(char::is_control) {
        return Err(invalid("whose sessions: not a principal or username"));
    }
    let lock = Duration::from_secs(question.for_seconds.unwrap_or(0));
    if lock > LONGEST_LOCK {
        return Err(invalid("--for is at most 30d"));
    }
    let id = cluster.as_ref().map(|cluster| cluster.id);
    let reach = asker.access().reach(caller, Duty::Operator, asker.now);
    if !reach.covers(id) && !is_own {
        let name = cluster.as_ref().map(|cluster| cluster.name.as_str());
        return Err((
            CloseReason::QuestionForbidden,
            asker.access().duty_remedy(caller, Duty::Operator, name),
        ));
    }
    // Whoever found a token of theirs must not lock them out for long: only the relay's own machine can undo it.
    if !reach.covers(id) && lock > LONGEST_OWN_LOCK {
        return Err(invalid("--for of one's own sessions is at most 1d"));
    }
    let _turn = match reach.covers(id) {
        // Nobody stands in an operator's way.
        true => None,
        false => {
            let turn = asker.relay.change_turn().await;
            own_may(asker, &subject, cluster.as_deref())?;
            turn
        }
    };
    let found = revoke::found(&asker.relay.sessions().all(), kind, &subject, id);
    let revocation = Revocation {
        kind,
        subject,
        cluster: id,
        issued_until: issued_until(asker.now + lock, found.newest_token, asker.now),
        revoked_at: asker.now,
        revoked_by: caller.principal.clone(),
    };
    let written = asker.registry().revoke(&revocation).await.map_err(|error| unavailable(&error))?;
    if !written {
        return Err((CloseReason::LimitReached, "too many revocations are remembered".to_owned()));
    }
    warn!(
        channel = %asker.channel, by = caller.principal, whom = %revocation.kind, subject = revocation.subject,
        cluster = cluster.as_ref().map(|cluster| cluster.name.as_str()), sessions = found.sessions, streams = found.streams,
        "sessions were revoked"
    );
    let source = asker.source();
    asker.relay.audit().tell(revoke::record(&revocation, cluster.as_deref(), source, &asker.client.program));
    let answer = RevokeAnswer {
        whom: format!("{} {}", revocation.kind, revocation.subject),
        cluster: cluster.map(|cluster| cluster.name.clone()),
        issued_until: moment(revocation.issued_until),
        sessions: found.sessions,
        streams: found.streams,
    };
    whole(&answer)
}

/// Whether one may revoke one's own now: towards clusters that one may open, and not all the time.
fn own_may(asker: &Asker<'_>, principal: &str, cluster: Option<&Cluster>) -> Result<(), Declined> {
    let (access, caller) = (asker.access(), &asker.client.caller);
    if let Some(cluster) = cluster
        && let Decision::Deny(reason) = access.decide(caller, cluster.id, asker.now)
    {
        return Err((reason, access.remedy(caller, cluster.id)));
    }
    let known = asker.registry().snapshot();
    let last = known.revocations().last(SubjectKind::Principal, principal, cluster.map(|of| of.id));
    // Of two that waited for their turn the later one may have been asked earlier.
    let apart = last.map(|last| asker.now.duration_since(last).unwrap_or_else(|ahead| ahead.duration()));
    if apart.is_some_and(|apart| apart < OWN_EVERY) {
        return Err((CloseReason::LimitReached, "the same was revoked less than 10 s ago".to_owned()));
    }
    Ok(())
}

/// The issuer's clock may be ahead of the relay's: tokens that are in use now were issued before now, whatever they say.
fn issued_until(wanted: SystemTime, newest: Option<SystemTime>, now: SystemTime) -> SystemTime {
    let newest = newest.map(|newest| newest.min(now + towline_tunnel::ticket::SKEW));
    newest.map_or(wanted, |newest| newest.max(wanted))
}

fn cluster(asker: &Asker<'_>, name: &str) -> Result<Arc<Cluster>, Declined> {
    let found = asker.registry().snapshot().find(name).cloned();
    found.ok_or_else(|| (CloseReason::ClusterUnknown, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_are_in_use_are_refused_whatever_the_issuers_clock_says() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(issued_until(at(1000), None, at(1000)), at(1000));
        assert_eq!(issued_until(at(1000), Some(at(900)), at(1000)), at(1000));
        assert_eq!(issued_until(at(1000), Some(at(1020)), at(1000)), at(1020));
        assert_eq!(
            issued_until(at(1000), Some(at(9_000_000)), at(1000)),
            at(1060),
            "within what clocks differ by"
        );
        assert_eq!(issued_until(at(4600), Some(at(1020)), at(1000)), at(4600), "locked out for an hour");
    }
}

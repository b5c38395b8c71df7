//! The audit line of one request, which is written whatever becomes of it.

use std::time::{Duration, SystemTime};

use http::Request;
use tokio::time::Instant;
use tracing::info;

use super::{Caller, Forwarder};
use crate::{
    audit::{self, Named, Target},
    impersonate::AuditId,
};

/// Written once it is told how the request was answered; or else when nobody waits for that any more: kube-apiserver's audit log may
/// well have what came of it.
pub(super) struct Record<'a> {
    forwarder: &'a Forwarder,
    caller: &'a Caller,
    came: SystemTime,
    begun: Instant,
    /// Where lines are kept.
    target: Option<Target>,
    is_told: bool,
    pub(super) audit_id: AuditId,
    pub(super) named: Named,
    pub(super) method: String,
    pub(super) path: String,
}

impl<'a> Record<'a> {
    pub(super) fn begin<B>(forwarder: &'a Forwarder, caller: &'a Caller, request: &Request<B>) -> Self {
        let kept = forwarder.audit.is_kept();
        Self {
            forwarder,
            caller,
            came: forwarder.clock.now(),
            begun: Instant::now(),
            target: kept.then(|| Target::of(request.method(), request.uri())),
            is_told: false,
            audit_id: AuditId::random(),
            named: Named::default(),
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
        }
    }

    /// Since the request came.
    pub(super) fn after(&self) -> Duration {
        self.begun.elapsed()
    }

    /// How it was answered.
    pub(super) fn answered(&mut self, code: u16, fault: Option<&str>) {
        self.is_told = true;
        let Some(target) = &self.target else { return };
        let outcome = audit::Outcome { code, fault, after: self.after() };
        let audit_id = self.audit_id.to_string();
        let line = audit::line(self.came, &audit_id, self.caller, &self.named, target, &outcome);
        self.forwarder.audit.record(&line);
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        if self.is_told {
            return;
        }
        self.answered(audit::NO_ANSWER, None);
        let millis = u64::try_from(self.after().as_millis()).unwrap_or(u64::MAX);
        let channel = self.caller.channel.map(tracing::field::display);
        info!(
            channel, stream = %self.caller.stream, audit_id = %self.audit_id, millis, method = self.method, path = self.path,
            "the caller left before there was an answer"
        );
    }
}

//! The agent's answer about itself, for callers whom it knows.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{Either, Full};
use towline_tunnel::fault::{Fault, Report};

use super::{AnswerBody, Exchange, Forwarder, body::Sent};
use crate::{audit::Named, impersonate::AuditId, preflight::SelfLook};

impl Forwarder {
    /// Answers what it finds where it is.
    #[must_use]
    pub fn with_self_look(self, look: SelfLook) -> Self {
        Self { look: Some(look), ..self }
    }
}

impl Exchange<'_> {
    /// What the agent finds where it is; kube-apiserver never sees the question.
    pub(super) async fn look(
        &self,
        request: &Request<Sent>,
        audit_id: AuditId,
        named: &mut Named,
    ) -> Result<Response<AnswerBody>, Report> {
        let forwarder = self.forwarder;
        let mut unused = HeaderMap::new();
        let admitted = forwarder.admit(request.headers(), self.caller, &mut unused, audit_id, named).await?;
        if admitted.unjudged.is_some() {
            // Anybody can write such a token; only kube-apiserver could say whose it is.
            return Err(Report::new(Fault::AccountTokenRefused, "the agent looks at itself for people only"));
        }
        let look = forwarder.look.as_ref();
        let look =
            look.ok_or_else(|| Report::new(Fault::RequestHeadRefused, "this agent does not look at itself"))?;
        let found = look.look(&forwarder.apiserver, &forwarder.verifier).await;
        let mut response = Response::new(Either::Left(Full::from(Bytes::from(found))));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }
}

//! What the organisation signed about roles: taken from whoever brings it, for the signature alone gives it worth; shown to whom it names,
//! and to auditors.

use data_encoding::BASE64;
use towline_tunnel::{
    proto::CloseReason,
    role::{
        DocumentId, MAX_DOCUMENT, SignedDocument, Statement,
        question::{ListQuestion, PutAnswer, PutQuestion},
    },
};
use tracing::info;

use super::{Asker, Declined, Part, invalid, part, unavailable, whole};
use crate::{
    access::MAX_GROUPS,
    registry::{Duty, Stored},
};

/// Takes a document.
pub(super) async fn put(asker: &Asker<'_>, question: PutQuestion) -> Result<Part, Declined> {
    let refused = |why: &str| (CloseReason::DocumentRefused, why.to_owned());
    if question.document.len() > 2 * MAX_DOCUMENT {
        return Err(refused("it is too long"));
    }
    let bytes = BASE64.decode(question.document.as_bytes()).map_err(|_| refused("it is not base64"))?;
    let signed = SignedDocument::read(bytes.into()).map_err(|error| refused(&error.to_string()))?;
    let known = asker.registry().snapshot();
    let keys = known.documents().keys();
    if keys.is_empty() {
        return Err((CloseReason::OrganisationKeyMissing, String::new()));
    }
    let signer =
        signed.signer(keys).ok_or_else(|| refused("no organisation key that is trusted has signed it"))?;
    let by = &asker.client.caller.principal;
    // Whoever has a copy can bring it all day: that is told from memory.
    let kept = known.documents().get(&signed.document().id);
    if kept.is_some_and(|kept| kept.bytes() == signed.bytes()) {
        return whole(&PutAnswer::Known);
    }
    let _turn = asker.relay.change_turn().await;
    let stored = asker.registry().store_document(&signed, signer, by, asker.now).await;
    let stored = stored.map_err(|error| unavailable(&error))?;
    info!(channel = %asker.channel, by, document = %signed.document().id, ?stored, "a role document was brought");
    let answer = match stored {
        Stored::New => PutAnswer::Stored,
        Stored::Known => PutAnswer::Known,
        Stored::Removed => PutAnswer::Removed,
        Stored::NothingToRemove => PutAnswer::NothingToRemove,
        Stored::Refused(why) => return Err(refused(why)),
    };
    whole(&answer)
}

/// Lists documents, by their ids; the cursor is the last that was told.
pub(super) fn list(asker: &Asker<'_>, question: ListQuestion, cursor: &[u8]) -> Result<Part, Declined> {
    let caller = &asker.client.caller;
    let after = match std::str::from_utf8(cursor) {
        Ok("") => None,
        Ok(text) => {
            Some(text.parse::<DocumentId>().map_err(|_| invalid("the cursor is none of this question's"))?)
        }
        Err(_) => return Err(invalid("the cursor is none of this question's")),
    };
    if !question.own && !asker.access().reach(caller, Duty::Auditor, asker.now).whole {
        return Err((
            CloseReason::QuestionForbidden,
            asker.access().duty_remedy(caller, Duty::Auditor, None),
        ));
    }
    let known = asker.registry().snapshot();
    let access = asker.access();
    // Where clusters stand in the organisation is told to who may open them.
    let may_see = |signed: &&std::sync::Arc<SignedDocument>| match signed.document().statement {
        Statement::Placement { cluster, .. } => access.decide(caller, cluster, asker.now).is_allowed(),
        _ => true,
    };
    let groups = &caller.groups[..caller.groups.len().min(MAX_GROUPS)];
    let documents = known.documents();
    let told =
        |signed: &&std::sync::Arc<SignedDocument>| after.is_none_or(|after| signed.document().id > after);
    let item = |signed: &std::sync::Arc<SignedDocument>| {
        let text = serde_json::to_string(&BASE64.encode(signed.bytes())).unwrap_or_default();
        (signed.document().id.to_string(), text)
    };
    Ok(if question.own {
        part(documents.naming(&caller.principal, groups).filter(told).filter(may_see).map(item), false)
    } else {
        part(documents.all().iter().filter(told).map(item), false)
    })
}

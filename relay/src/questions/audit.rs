//! Who opened what? Everybody may see their own; auditors, more.

use std::time::{Duration, SystemTime};

use towline_tunnel::session::question::AuditQuestion;

use super::{Asker, Declined, Part, invalid, part, unavailable};
use crate::registry::{AuditFilter, AuditRow, Duty, Own};

/// Records that are read for one part.
const READ: u32 = 200;
/// A text of a record that nothing bounds elsewhere is cut here, so that each record fits into a part.
const LONGEST: usize = 512;

pub(super) async fn answer(
    asker: &Asker<'_>,
    question: AuditQuestion,
    cursor: &[u8],
) -> Result<Part, Declined> {
    let reach = asker.access().reach(&asker.client.caller, Duty::Auditor, asker.now);
    let own = (!reach.whole).then(|| Own {
        principal: asker.client.caller.principal.clone(),
        clusters: reach.clusters.into_iter().collect(),
    });
    let filter = AuditFilter {
        user: question.user,
        cluster: question.cluster,
        since: question
            .since
            .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since))),
        refused: question.refused,
        own,
        before: before(cursor)?,
        limit: READ,
    };
    let rows = asker.registry().audit_backwards(&filter).await.map_err(|error| unavailable(&error))?;
    let more = rows.len() >= READ as usize;
    let items = rows.into_iter().filter_map(|(row, (began_at, id))| {
        Some((format!("{began_at}.{id}"), serde_json::to_string(&cut(row)).ok()?))
    });
    Ok(part(items, more))
}

fn before(cursor: &[u8]) -> Result<Option<(i64, i64)>, Declined> {
    if cursor.is_empty() {
        return Ok(None);
    }
    let read = || {
        let (began_at, id) = std::str::from_utf8(cursor).ok()?.split_once('.')?;
        Some((began_at.parse().ok()?, id.parse().ok()?))
    };
    read().map(Some).ok_or_else(|| invalid("the cursor is none of this question's"))
}

fn cut(mut row: AuditRow) -> AuditRow {
    for text in [&mut row.user, &mut row.program, &mut row.why, &mut row.ending] {
        if let Some((end, _)) = text.char_indices().nth(LONGEST) {
            text.truncate(end);
            text.push('…');
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_one_of_ours_or_refused() {
        assert_eq!(before(b""), Ok(None));
        assert_eq!(before(b"1800000000.7"), Ok(Some((1_800_000_000, 7))));
        for bad in [&b"x"[..], b"1.", b".1", b"1.2.3", b"\xff"] {
            assert!(before(bad).is_err(), "{bad:?}");
        }
    }
}

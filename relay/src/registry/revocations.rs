//! Whose tokens are refused that were issued until when: an operator has ended their sessions, or they have.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};
use towline_tunnel::ids::ClusterId;

use super::{Registry, RegistryError, SubjectKind, seconds, time};
use crate::access::Caller;

/// A revocation is remembered for so long after the last `iat` that it refuses. No token should live as long: Entra's longest live 28 h.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(30 * 24 * 3600);
/// Revocations that are remembered at once. Everybody may make one: for themselves.
const MOST: i64 = 20_000;
/// Of one subject, each for another cluster: who revokes their own must leave room for others'.
const MOST_OF_ONE: i64 = 64;

/// One revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// `User` or `Principal`.
    pub kind: SubjectKind,
    /// A username or a principal.
    pub subject: String,
    /// Towards this cluster only; none for the whole relay.
    pub cluster: Option<ClusterId>,
    /// Tokens whose `iat` is this or earlier are refused. It may be in the future.
    pub issued_until: SystemTime,
    /// When.
    pub revoked_at: SystemTime,
    /// By whom, for people.
    pub revoked_by: String,
}

/// All revocations, in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations(HashMap<(SubjectKind, String), Vec<Held>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    cluster: Option<ClusterId>,
    issued_until: SystemTime,
    revoked_at: SystemTime,
}

impl Revocations {
    /// Whether a token of this caller, issued then, is refused at `now`: at the relay, and if `cluster` is given, towards that too. One that
    /// does not say when it was issued is refused while there is any revocation of its user.
    pub fn refuse(
        &self,
        caller: &Caller,
        issued_at: Option<SystemTime>,
        cluster: Option<ClusterId>,
        now: SystemTime,
    ) -> bool {
        // On the path of each stream, and mostly there are none.
        if self.0.is_empty() {
            return false;
        }
        let names = [(SubjectKind::Principal, &caller.principal), (SubjectKind::User, &caller.username)];
        let until =
            names.into_iter().filter_map(|(kind, subject)| self.of(kind, subject, cluster, now)).max();
        until.is_some_and(|until| issued_at.is_none_or(|issued| seconds(issued) <= seconds(until)))
    }

    /// Until which `iat` this subject's tokens are refused at `now`: for the whole relay, and if `cluster` is given, towards that too.
    pub fn of(
        &self,
        kind: SubjectKind,
        subject: &str,
        cluster: Option<ClusterId>,
        now: SystemTime,
    ) -> Option<SystemTime> {
        let held = self.0.get(&(kind, subject.to_owned()))?;
        let concerns = |held: &&Held| held.cluster.is_none() || held.cluster == cluster;
        let lasts = |until: &SystemTime| now < *until + REMEMBERED_FOR;
        held.iter().filter(concerns).map(|held| held.issued_until).filter(lasts).max()
    }

    /// When this subject was revoked last towards exactly this cluster, or for the whole relay if none is given.
    pub fn last(&self, kind: SubjectKind, subject: &str, cluster: Option<ClusterId>) -> Option<SystemTime> {
        let held = self.0.get(&(kind, subject.to_owned()))?;
        held.iter().find(|held| held.cluster == cluster).map(|held| held.revoked_at)
    }

    pub(super) async fn load(on: &mut SqliteConnection) -> Result<Self, sqlx::Error> {
        let rows = sqlx::query(
            "SELECT subject_kind, subject, cluster, issued_until, revoked_at, revoked_by FROM revocations",
        )
        .fetch_all(on)
        .await?;
        let mut all = Self::default();
        for row in &rows {
            if let Some(Revocation { kind, subject, cluster, issued_until, revoked_at, .. }) = read(row)? {
                all.0.entry((kind, subject)).or_default().push(Held { cluster, issued_until, revoked_at });
            }
        }
        Ok(all)
    }
}

impl Registry {
    /// Writes a revocation; of one that is there already, the later time holds. None is written where too many are remembered: says whether it
    /// was.
    ///
    /// # Errors
    /// If the file can't be written, or the cluster was removed meanwhile.
    pub async fn revoke(&self, revocation: &Revocation) -> Result<bool, RegistryError> {
        let mut tx = self.writing().await?;
        let over = revocation.revoked_at.checked_sub(REMEMBERED_FOR).unwrap_or(SystemTime::UNIX_EPOCH);
        sqlx::query("DELETE FROM revocations WHERE issued_until < ?")
            .bind(seconds(over))
            .execute(&mut *tx)
            .await
            .map_err(|error| self.error(error))?;
        let done = sqlx::query(
            "INSERT INTO revocations (subject_kind, subject, cluster, issued_until, revoked_at, revoked_by)
             SELECT ?1, ?2, ?3, ?4, ?5, ?6
             WHERE (SELECT count(*) FROM revocations) < ?7
                 AND (SELECT count(*) FROM revocations WHERE subject_kind = ?1 AND subject = ?2) < ?8 OR EXISTS
                 (SELECT 1 FROM revocations WHERE subject_kind = ?1 AND subject = ?2 AND cluster IS ?3)
             ON CONFLICT (subject_kind, subject, coalesce(cluster, '')) DO UPDATE SET
                 issued_until = max(issued_until, excluded.issued_until), revoked_at = excluded.revoked_at,
                 revoked_by = excluded.revoked_by",
        )
        .bind(revocation.kind.name())
        .bind(&revocation.subject)
        .bind(revocation.cluster.map(|id| id.to_string()))
        .bind(seconds(revocation.issued_until))
        .bind(seconds(revocation.revoked_at))
        .bind(&revocation.revoked_by)
        .bind(MOST)
        .bind(MOST_OF_ONE)
        .execute(&mut *tx)
        .await
        .map_err(|error| self.error(error))?;
        self.commit(tx).await?;
        Ok(done.rows_affected() > 0)
    }

    /// Takes a revocation back, so that tokens of before are accepted again. Says whether it was there.
    ///
    /// # Errors
    /// If the file can't be written.
    pub async fn forgive(
        &self,
        kind: SubjectKind,
        subject: &str,
        cluster: Option<ClusterId>,
    ) -> Result<bool, RegistryError> {
        let mut tx = self.writing().await?;
        let done =
            sqlx::query("DELETE FROM revocations WHERE subject_kind = ? AND subject = ? AND cluster IS ?")
                .bind(kind.name())
                .bind(subject)
                .bind(cluster.map(|id| id.to_string()))
                .execute(&mut *tx)
                .await
                .map_err(|error| self.error(error))?;
        self.commit(tx).await?;
        Ok(done.rows_affected() > 0)
    }

    /// All that are remembered, the newest first.
    ///
    /// # Errors
    /// If the file can't be read.
    pub async fn revocations(&self) -> Result<Vec<Revocation>, RegistryError> {
        let rows = sqlx::query(
            "SELECT subject_kind, subject, cluster, issued_until, revoked_at, revoked_by FROM revocations
             ORDER BY revoked_at DESC, id DESC",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        let read = rows.iter().filter_map(|row| read(row).transpose());
        read.collect::<Result<_, _>>().map_err(|error| self.error(error))
    }
}

fn read(row: &SqliteRow) -> Result<Option<Revocation>, sqlx::Error> {
    let cluster = row.try_get::<Option<String>, _>("cluster")?.map(|id| id.parse()).transpose();
    let (Ok(kind), Ok(cluster)) = (row.try_get::<String, _>("subject_kind")?.parse(), cluster) else {
        return Ok(None);
    };
    Ok(Some(Revocation {
        kind,
        subject: row.try_get("subject")?,
        cluster,
        issued_until: time(row.try_get("issued_until")?),
        revoked_at: time(row.try_get("revoked_at")?),
        revoked_by: row.try_get("revoked_by")?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn caller(username: &str, principal: &str) -> Caller {
        Caller { username: username.into(), principal: principal.into(), groups: Vec::new() }
    }

    fn revocations(held: &[(SubjectKind, &str, Option<ClusterId>, u64)]) -> Revocations {
        let mut all = Revocations::default();
        for (kind, subject, cluster, until) in held {
            let held = Held { cluster: *cluster, issued_until: at(*until), revoked_at: at(*until) };
            all.0.entry((*kind, (*subject).to_owned())).or_default().push(held);
        }
        all
    }

    #[test]
    fn a_token_from_before_is_refused_and_one_from_after_is_not() {
        let all = revocations(&[(SubjectKind::Principal, "https://idp#1", None, 1000)]);
        let alice = caller("alice", "https://idp#1");
        let refused = |issued| all.refuse(&alice, issued, None, at(2000));
        assert!(refused(Some(at(999))) && refused(Some(at(1000))));
        assert!(!refused(Some(at(1001))));
        assert!(refused(None), "nobody knows that it is from after");
        assert!(!all.refuse(&caller("https://idp#1", "https://idp#2"), Some(at(1)), None, at(2000)));
    }

    #[test]
    fn towards_one_cluster_and_under_either_name() {
        let (a, b) = (ClusterId::of_spki(b"a"), ClusterId::of_spki(b"b"));
        let all = revocations(&[(SubjectKind::User, "alice", Some(a), 1000)]);
        let alice = caller("alice", "https://idp#1");
        let refused = |cluster| all.refuse(&alice, Some(at(5)), cluster, at(2000));
        assert!(refused(Some(a)) && !refused(Some(b)) && !refused(None));
        let both = revocations(&[
            (SubjectKind::User, "alice", None, 10),
            (SubjectKind::Principal, "https://idp#1", None, 20),
        ]);
        assert!(both.refuse(&alice, Some(at(15)), Some(b), at(2000)), "the later of the two holds");
    }

    #[test]
    fn a_revocation_is_forgotten_once_no_token_can_live_that_it_refuses() {
        let all = revocations(&[(SubjectKind::User, "alice", None, 1000)]);
        let alice = caller("alice", "p");
        assert!(all.refuse(&alice, None, None, at(999) + REMEMBERED_FOR));
        assert!(!all.refuse(&alice, None, None, at(1000) + REMEMBERED_FOR));
    }
}

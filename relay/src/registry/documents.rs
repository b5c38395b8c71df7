//! Role documents: what organisations signed, and whose signature counts.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use sqlx::{Row as _, SqliteConnection};
use towline_tunnel::{
    ids::ClusterId,
    keys::VerifyingKey,
    role::{
        Document, DocumentId, Finding, MAX_KEYS, SKEW, SignedDocument, Statement, Subject, parse_key,
        print_key,
    },
};
use tracing::error;

use super::{Registry, RegistryError, seconds};

/// Documents that are kept at once. Each caller's are found by their names, so that what limits this is memory: about 10 MiB.
pub const MAX_DOCUMENTS: i64 = 10_000;
/// What was removed is remembered, so much of it.
const MAX_REMOVED: i64 = 100_000;
/// An ended document is shown for so long.
const KEPT_AFTER_END: Duration = Duration::from_secs(7 * 24 * 3600);

/// What became of a document that was brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It is kept from now on.
    New,
    /// It was kept before.
    Known,
    /// It removed the document that it names.
    Removed,
    /// It names a document that is not kept; if it comes, it will not be taken.
    NothingToRemove,
    /// It is not kept, for this reason.
    Refused(&'static str),
}

/// All documents that count at this relay, as they were last read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Documents {
    keys: Vec<VerifyingKey>,
    all: Vec<Arc<SignedDocument>>,
    ids: HashMap<DocumentId, usize>,
    principals: HashMap<String, Vec<usize>>,
    groups: HashMap<String, Vec<usize>>,
    placements: HashMap<ClusterId, Vec<usize>>,
}

impl Documents {
    /// The organisation keys that are trusted.
    pub fn keys(&self) -> &[VerifyingKey] {
        &self.keys
    }

    /// All documents, in the order of their ids.
    pub fn all(&self) -> &[Arc<SignedDocument>] {
        &self.all
    }

    /// The document with this id, if it is kept.
    pub fn get(&self, id: &DocumentId) -> Option<&Arc<SignedDocument>> {
        self.ids.get(id).map(|at| &self.all[*at])
    }

    /// Those that can say something about somebody with these names on this cluster.
    pub fn concerning<'a>(
        &'a self,
        principal: &str,
        groups: &[String],
        cluster: ClusterId,
    ) -> impl Iterator<Item = &'a Arc<SignedDocument>> + Clone + use<'a> {
        let mut found = self.principals.get(principal).cloned().unwrap_or_default();
        if !self.groups.is_empty() {
            found.extend(groups.iter().filter_map(|group| self.groups.get(group)).flatten());
        }
        if !found.is_empty() {
            found.extend(self.placements.get(&cluster).into_iter().flatten());
        }
        found.into_iter().map(move |at| &self.all[at])
    }

    /// Those that name this person as a subject, and all placements, without which they can't be judged.
    pub fn naming<'a>(
        &'a self,
        principal: &'a str,
        groups: &'a [String],
    ) -> impl Iterator<Item = &'a Arc<SignedDocument>> {
        self.all.iter().filter(move |signed| match &signed.document().statement {
            Statement::Assignment { subject: Subject::Principal(name), .. } => name == principal,
            Statement::Assignment { subject: Subject::Group(name), .. } => groups.contains(name),
            Statement::Placement { .. } => true,
            Statement::Removal { .. } => false,
        })
    }

    pub(super) async fn load(on: &mut SqliteConnection) -> Result<Self, sqlx::Error> {
        let mut documents = Self::default();
        for row in sqlx::query("SELECT key FROM organisation_keys ORDER BY trusted_at, key")
            .fetch_all(&mut *on)
            .await?
        {
            documents.keys.extend(parse_key(row.try_get("key")?).ok());
        }
        let trusted: HashSet<String> = documents.keys.iter().map(print_key).collect();
        let rows =
            sqlx::query("SELECT id, document, signer FROM role_documents ORDER BY id").fetch_all(on).await?;
        for row in rows {
            // Judged when it was brought, and again by every agent: here it is enough to know whose it was found to be.
            if trusted.contains(row.try_get::<&str, _>("signer")?) {
                documents.add(row.try_get("id")?, row.try_get("document")?);
            }
        }
        Ok(documents)
    }

    fn add(&mut self, id: &str, bytes: Vec<u8>) {
        let signed = match SignedDocument::read(bytes.into()) {
            Ok(signed) => Arc::new(signed),
            Err(error) => {
                return error!(document = id, %error, "a registry row holds no role document: ignored");
            }
        };
        let at = self.all.len();
        match &signed.document().statement {
            Statement::Assignment { subject: Subject::Principal(name), .. } => {
                self.principals.entry(name.clone()).or_default().push(at);
            }
            Statement::Assignment { subject: Subject::Group(name), .. } => {
                self.groups.entry(name.clone()).or_default().push(at);
            }
            Statement::Placement { cluster, .. } => self.placements.entry(*cluster).or_default().push(at),
            Statement::Removal { .. } => return,
        }
        self.ids.insert(signed.document().id, at);
        self.all.push(signed);
    }
}

impl Registry {
    /// Takes documents that this key has signed from now on. Says whether it is new.
    ///
    /// # Errors
    /// If the file can't be written. `Ok(None)`: there are as many keys as there may be.
    pub async fn trust_key(
        &self,
        key: &VerifyingKey,
        now: SystemTime,
    ) -> Result<Option<bool>, RegistryError> {
        let mut tx = self.writing().await?;
        let at = |error| self.error(error);
        let count = count(&mut tx, "SELECT count(*) FROM organisation_keys").await.map_err(at)?;
        let known = sqlx::query("SELECT 1 FROM organisation_keys WHERE key = ?").bind(print_key(key));
        if known.fetch_optional(&mut *tx).await.map_err(at)?.is_some() {
            return Ok(Some(false));
        }
        if usize::try_from(count).is_ok_and(|count| count >= MAX_KEYS) {
            return Ok(None);
        }
        let insert = sqlx::query("INSERT INTO organisation_keys (key, trusted_at) VALUES (?, ?)");
        insert.bind(print_key(key)).bind(seconds(now)).execute(&mut *tx).await.map_err(at)?;
        self.commit(tx).await?;
        Ok(Some(true))
    }

    /// Neither takes nor offers what this key has signed any more. Says whether it was trusted. Documents stay, and count again if it is.
    ///
    /// # Errors
    /// If the file can't be written.
    pub async fn distrust_key(&self, key: &VerifyingKey) -> Result<bool, RegistryError> {
        let mut tx = self.writing().await?;
        let delete = sqlx::query("DELETE FROM organisation_keys WHERE key = ?").bind(print_key(key));
        let gone = delete.execute(&mut *tx).await.map_err(|error| self.error(error))?.rows_affected() > 0;
        self.commit(tx).await?;
        Ok(gone)
    }

    /// Takes a document that `signer` was found to have signed, brought by `by`: keeps it, or removes the one that it names.
    ///
    /// # Errors
    /// If the file can't be written.
    pub async fn store_document(
        &self,
        signed: &SignedDocument,
        signer: &VerifyingKey,
        by: &str,
        now: SystemTime,
    ) -> Result<Stored, RegistryError> {
        let document = signed.document();
        match &document.statement {
            Statement::Removal { of } => {
                return Ok(match self.withdraw_document(*of, by, now).await? {
                    true => Stored::Removed,
                    false => Stored::NothingToRemove,
                });
            }
            _ if document.standing(now) == Finding::Ended => return Ok(Stored::Refused("its time is over")),
            Statement::Placement { .. } if now + SKEW < document.not_before => {
                return Ok(Stored::Refused("a cluster can't be placed ahead of time"));
            }
            Statement::Assignment { .. } | Statement::Placement { .. } => {}
        }
        let mut tx = self.writing().await?;
        let stored = keep(&mut tx, signed, signer, by, now).await.map_err(|error| self.error(error))?;
        // What made room for one that is not kept is taken back.
        if stored == Stored::New {
            self.commit(tx).await?;
        }
        Ok(stored)
    }

    /// Keeps a document no longer, nor ever again. Says whether it was there.
    ///
    /// # Errors
    /// If the file can't be written.
    pub async fn withdraw_document(
        &self,
        id: DocumentId,
        by: &str,
        now: SystemTime,
    ) -> Result<bool, RegistryError> {
        let mut tx = self.writing().await?;
        let at = |error| self.error(error);
        let delete = sqlx::query("DELETE FROM role_documents WHERE id = ?").bind(id.to_string());
        let gone = delete.execute(&mut *tx).await.map_err(at)?.rows_affected() > 0;
        if gone || count(&mut tx, "SELECT count(*) FROM removed_documents").await.map_err(at)? < MAX_REMOVED {
            sqlx::query(
                "INSERT OR IGNORE INTO removed_documents (id, removed_at, removed_by) VALUES (?, ?, ?)",
            )
            .bind(id.to_string())
            .bind(seconds(now))
            .bind(by)
            .execute(&mut *tx)
            .await
            .map_err(at)?;
        }
        self.commit(tx).await?;
        Ok(gone)
    }
}

async fn count(on: &mut SqliteConnection, sql: &'static str) -> Result<i64, sqlx::Error> {
    sqlx::query(sql).fetch_one(on).await?.try_get(0)
}

async fn keep(
    on: &mut SqliteConnection,
    signed: &SignedDocument,
    signer: &VerifyingKey,
    by: &str,
    now: SystemTime,
) -> Result<Stored, sqlx::Error> {
    let document = signed.document();
    let id = document.id.to_string();
    let has = |sql: &'static str| sqlx::query(sql).bind(id.clone());
    if has("SELECT 1 FROM removed_documents WHERE id = ?").fetch_optional(&mut *on).await?.is_some() {
        return Ok(Stored::Refused("it was removed before"));
    }
    if let Some(row) =
        has("SELECT document FROM role_documents WHERE id = ?").fetch_optional(&mut *on).await?
    {
        let same = row.try_get::<&[u8], _>("document")? == &signed.bytes()[..];
        return Ok(if same { Stored::Known } else { Stored::Refused("another document has its id") });
    }
    let cluster = match &document.statement {
        Statement::Placement { cluster, .. } => cluster.to_string(),
        _ => String::new(),
    };
    if !cluster.is_empty() && replaces_no_newer(on, document, &cluster, by, now).await? {
        return Ok(Stored::Refused("the cluster was placed anew since"));
    }
    let long_ended = now.checked_sub(KEPT_AFTER_END).map_or(0, seconds);
    // The newest placement of a cluster stays though it ended: an older one, which has no end, must not come back for it.
    sqlx::query("DELETE FROM role_documents WHERE expires_at < ? AND cluster = ''")
        .bind(long_ended)
        .execute(&mut *on)
        .await?;
    if count(on, "SELECT count(*) FROM role_documents").await? >= MAX_DOCUMENTS {
        return Ok(Stored::Refused("the relay keeps as many documents as it may"));
    }
    sqlx::query(
        "INSERT INTO role_documents (id, document, signer, cluster, issued_at, expires_at, stored_at, stored_by)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&id)
    .bind(signed.bytes().to_vec())
    .bind(print_key(signer))
    .bind(&cluster)
    .bind(seconds(document.issued))
    .bind(document.expires.map(seconds))
    .bind(seconds(now))
    .bind(by)
    .execute(on)
    .await?;
    Ok(Stored::New)
}

/// A cluster is in one group. Says whether a placement that is kept is as new; older ones go.
async fn replaces_no_newer(
    on: &mut SqliteConnection,
    document: &Document,
    cluster: &str,
    by: &str,
    now: SystemTime,
) -> Result<bool, sqlx::Error> {
    let issued = seconds(document.issued);
    let newer = sqlx::query("SELECT 1 FROM role_documents WHERE cluster = ? AND issued_at >= ?");
    if newer.bind(cluster).bind(issued).fetch_optional(&mut *on).await?.is_some() {
        return Ok(true);
    }
    // Whoever kept the bytes of one that was replaced could bring it again once its successor is removed.
    let removed = "INSERT OR IGNORE INTO removed_documents (id, removed_at, removed_by)
                   SELECT id, ?, ? FROM role_documents WHERE cluster = ?";
    sqlx::query(removed).bind(seconds(now)).bind(by).bind(cluster).execute(&mut *on).await?;
    sqlx::query("DELETE FROM role_documents WHERE cluster = ?").bind(cluster).execute(on).await?;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use towline_tunnel::{keys::SigningKey, role::RoleName};

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    struct World {
        _folder: tempfile::TempDir,
        registry: Registry,
        organisation: SigningKey,
        cluster: ClusterId,
    }

    impl World {
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let registry = Registry::open(folder.path()).await.unwrap();
            let organisation = SigningKey::generate();
            assert_eq!(registry.trust_key(&organisation.public(), at(0)).await.unwrap(), Some(true));
            Self { _folder: folder, registry, organisation, cluster: ClusterId::of_spki(b"edge") }
        }

        fn signed(&self, statement: Statement, issued: u64, life: Option<u64>) -> SignedDocument {
            Document::new(statement, at(issued), life.map(Duration::from_secs)).sign(&self.organisation)
        }

        fn placement(&self, group: &str, issued: u64) -> SignedDocument {
            let statement = Statement::Placement { cluster: self.cluster, group: group.parse().unwrap() };
            self.signed(statement, issued, None)
        }

        async fn store(&self, signed: &SignedDocument, now: u64) -> Stored {
            let signer = self.organisation.public();
            self.registry.store_document(signed, &signer, "https://idp#admin", at(now)).await.unwrap()
        }

        fn concerning(&self, groups: &[&str]) -> Vec<DocumentId> {
            let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
            let known = self.registry.snapshot();
            let found = known.documents().concerning("https://idp#alice", &groups, self.cluster);
            found.map(|signed| signed.document().id).collect()
        }
    }

    fn assignment(subject: Subject) -> Statement {
        Statement::Assignment { subject, role: RoleName::Writer, scope: "group:eu".parse().unwrap() }
    }

    fn alice() -> Statement {
        assignment(Subject::Principal("https://idp#alice".into()))
    }

    #[tokio::test]
    async fn documents_are_kept_and_found_by_whom_and_where_they_concern() {
        let world = World::new().await;
        let (hers, devs, placed) = (
            world.signed(alice(), 0, None),
            world.signed(assignment(Subject::Group("dev".into())), 0, None),
            world.placement("eu", 0),
        );
        assert_eq!(world.store(&placed, 0).await, Stored::New);
        assert_eq!(world.concerning(&["dev"]), [], "a placement alone says nothing");
        for document in [&hers, &devs] {
            assert_eq!(world.store(document, 0).await, Stored::New);
            assert_eq!(world.store(document, 0).await, Stored::Known);
        }
        let ids = [hers.document().id, devs.document().id, placed.document().id];
        assert_eq!(world.concerning(&["dev"]), ids);
        assert_eq!(world.concerning(&["ops"]), [ids[0], ids[2]]);
        assert_eq!(world.registry.snapshot().documents().naming("https://idp#bob", &[]).count(), 1);
    }

    #[tokio::test]
    async fn what_is_removed_does_not_come_back() {
        let world = World::new().await;
        let document = world.signed(alice(), 0, None);
        let removal = world.signed(Statement::Removal { of: document.document().id }, 1, None);
        world.store(&document, 0).await;
        assert_eq!(world.store(&removal, 1).await, Stored::Removed);
        assert_eq!(world.concerning(&[]), []);
        assert_eq!(world.store(&removal, 2).await, Stored::NothingToRemove);
        assert!(matches!(world.store(&document, 3).await, Stored::Refused(_)));
    }

    #[tokio::test]
    async fn a_cluster_is_in_one_group_and_an_older_placement_is_not_taken() {
        let world = World::new().await;
        world.store(&world.signed(alice(), 0, None), 0).await;
        let (old, new) = (world.placement("eu", 0), world.placement("us", 1));
        world.store(&old, 0).await;
        assert_eq!(world.store(&new, 1).await, Stored::New);
        assert_eq!(world.concerning(&[])[1..], [new.document().id]);
        assert!(matches!(world.store(&old, 2).await, Stored::Refused(_)));
        assert!(matches!(world.store(&world.placement("eu", 500), 2).await, Stored::Refused(_)));
        // Nor where the one that replaced it is gone.
        let removal = world.signed(Statement::Removal { of: new.document().id }, 3, None);
        assert_eq!(world.store(&removal, 3).await, Stored::Removed);
        assert!(matches!(world.store(&old, 4).await, Stored::Refused(_)));
        assert_eq!(world.concerning(&[]).len(), 1);
    }

    #[tokio::test]
    async fn a_placement_that_ended_long_ago_still_keeps_an_older_one_away() {
        let world = World::new().await;
        let old = world.placement("eu", 0);
        let statement = Statement::Placement { cluster: world.cluster, group: "us".parse().unwrap() };
        assert_eq!(world.store(&world.signed(statement, 1, Some(2)), 1).await, Stored::New);
        let late = 2 + 2 * KEPT_AFTER_END.as_secs();
        world.store(&world.signed(alice(), late, None), late).await;
        assert!(matches!(world.store(&old, late).await, Stored::Refused(_)));
    }

    /// Whoever has a copy of a document can bring it all day.
    #[tokio::test]
    async fn what_changes_nothing_does_not_have_all_of_the_registry_read_again() {
        let world = World::new().await;
        let (first, second) = (world.placement("eu", 1), world.placement("us", 2));
        let removal = |of| world.signed(Statement::Removal { of }, 3, None);
        let gone = removal(first.document().id);
        assert_eq!(world.store(&second, 2).await, Stored::New);
        assert_eq!(world.store(&gone, 3).await, Stored::NothingToRemove);
        // From now on nothing can be read as a whole.
        sqlx::query("DROP TABLE duties").execute(&world.registry.pool).await.unwrap();
        assert_eq!(world.store(&second, 4).await, Stored::Known);
        assert!(matches!(world.store(&first, 4).await, Stored::Refused(_)));
        assert_eq!(world.store(&gone, 4).await, Stored::NothingToRemove);
        let key = world.organisation.public();
        let new = world.signed(alice(), 4, None);
        assert!(world.registry.store_document(&new, &key, "", at(4)).await.is_err(), "it can be noticed");
    }

    #[tokio::test]
    async fn a_key_that_is_trusted_no_longer_takes_its_documents_with_it() {
        let world = World::new().await;
        world.store(&world.signed(alice(), 0, None), 0).await;
        let key = world.organisation.public();
        assert!(world.registry.distrust_key(&key).await.unwrap());
        assert_eq!(world.concerning(&[]), []);
        assert_eq!(world.registry.trust_key(&key, at(1)).await.unwrap(), Some(true));
        assert_eq!(world.concerning(&[]).len(), 1);
        assert_eq!(world.registry.trust_key(&key, at(1)).await.unwrap(), Some(false));
        for _ in 1..MAX_KEYS {
            world.registry.trust_key(&SigningKey::generate().public(), at(1)).await.unwrap();
        }
        let more = SigningKey::generate().public();
        assert_eq!(world.registry.trust_key(&more, at(1)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn ended_documents_are_not_taken_and_leave_after_a_while() {
        let world = World::new().await;
        let short = world.signed(alice(), 0, Some(10));
        assert_eq!(world.store(&short, 0).await, Stored::New);
        assert!(matches!(world.store(&world.signed(alice(), 0, Some(10)), 10).await, Stored::Refused(_)));
        world.store(&world.placement("eu", 9 * 24 * 3600), 9 * 24 * 3600).await;
        assert_eq!(world.registry.snapshot().documents().get(&short.document().id), None);
    }
}

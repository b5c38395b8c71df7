//! What decisions are made from: the registry as it was last read, in memory.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use sqlx::{Row as _, SqlitePool, sqlite::SqliteRow};
use towline_tunnel::{
    ids::{ClusterId, InstanceId},
    keys::VerifyingKey,
};
use tracing::error;

use super::{Documents, Duties, Revocations, Role, SubjectKind, time};

/// A connected cluster, as enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Hash of `key`.
    pub id: ClusterId,
    /// Unique at this relay; a convenience, never a proof.
    pub name: String,
    /// Its identity key.
    pub key: VerifyingKey,
    /// When it was enrolled, last.
    pub enrolled_at: SystemTime,
    /// Whether it may connect and be opened.
    pub enabled: bool,
}

/// Who may open one cluster, and until when (`None`: without end).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    users: HashMap<String, Option<SystemTime>>,
    principals: HashMap<String, Option<SystemTime>>,
    groups: HashMap<String, Option<SystemTime>>,
}

impl Grants {
    fn of(&self, kind: SubjectKind) -> &HashMap<String, Option<SystemTime>> {
        match kind {
            SubjectKind::User => &self.users,
            SubjectKind::Principal => &self.principals,
            SubjectKind::Group => &self.groups,
        }
    }

    /// The end of this subject's grant: `None` where there is none, `Some(None)` where it has no end.
    pub fn end(&self, kind: SubjectKind, subject: &str) -> Option<Option<SystemTime>> {
        self.of(kind).get(subject).copied()
    }

    fn add(&mut self, kind: SubjectKind, subject: String, end: Option<SystemTime>) {
        let held = match kind {
            SubjectKind::User => &mut self.users,
            SubjectKind::Principal => &mut self.principals,
            SubjectKind::Group => &mut self.groups,
        };
        held.insert(subject, end);
    }
}

/// The registry as it was last read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub(super) revision: i64,
    clusters: HashMap<ClusterId, Arc<Cluster>>,
    names: HashMap<String, ClusterId>,
    grants: HashMap<ClusterId, Grants>,
    revoked: HashSet<InstanceId>,
    duties: Duties,
    revocations: Revocations,
    documents: Documents,
}

impl Snapshot {
    /// The cluster with this id.
    pub fn cluster(&self, id: ClusterId) -> Option<&Arc<Cluster>> {
        self.clusters.get(&id)
    }

    /// The cluster with this name.
    pub fn cluster_named(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.names.get(name).and_then(|id| self.clusters.get(id))
    }

    /// The cluster with this name or, where no cluster has it, this id.
    pub fn find(&self, name_or_id: &str) -> Option<&Arc<Cluster>> {
        self.cluster_named(name_or_id)
            .or_else(|| name_or_id.parse().ok().and_then(|id| self.clusters.get(&id)))
    }

    /// All clusters, in no order.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.values()
    }

    /// Who may open this cluster.
    pub fn grants(&self, cluster: ClusterId) -> Option<&Grants> {
        self.grants.get(&cluster)
    }

    /// Whether this agent instance's certificates were revoked.
    pub fn is_revoked(&self, instance: InstanceId) -> bool {
        self.revoked.contains(&instance)
    }

    /// Who may look into the relay, or act on it.
    pub fn duties(&self) -> &Duties {
        &self.duties
    }

    /// Whose tokens are refused.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// What the organisation signed about roles.
    pub fn documents(&self) -> &Documents {
        &self.documents
    }

    pub(super) async fn load(pool: &SqlitePool) -> Result<Self, sqlx::Error> {
        // One read transaction: all tables as of one moment.
        let mut tx = pool.begin().await?;
        let revision =
            sqlx::query("SELECT value FROM revision").fetch_one(&mut *tx).await?.try_get("value")?;
        let clusters = sqlx::query("SELECT id, name, key, enrolled_at, enabled FROM clusters")
            .fetch_all(&mut *tx)
            .await?;
        let roles =
            sqlx::query("SELECT subject_kind, subject, role, cluster, expires_at FROM role_assignments")
                .fetch_all(&mut *tx)
                .await?;
        let revoked =
            sqlx::query("SELECT id FROM instances WHERE revoked_at IS NOT NULL").fetch_all(&mut *tx).await?;
        let duties = Duties::load(&mut tx).await?;
        let revocations = Revocations::load(&mut tx).await?;
        let documents = Documents::load(&mut tx).await?;
        tx.rollback().await?;

        let mut snapshot = Self { revision, duties, revocations, documents, ..Self::default() };
        for row in clusters {
            if let Some(cluster) = cluster(&row)? {
                snapshot.names.insert(cluster.name.clone(), cluster.id);
                snapshot.clusters.insert(cluster.id, Arc::new(cluster));
            }
        }
        for row in roles {
            snapshot.add_role(&row)?;
        }
        for row in revoked {
            snapshot.revoked.extend(row.try_get::<String, _>("id")?.parse::<InstanceId>().ok());
        }
        Ok(snapshot)
    }

    fn add_role(&mut self, row: &SqliteRow) -> Result<(), sqlx::Error> {
        // A role of a newer version grants nothing here: passed over, not guessed at.
        let role = row.try_get::<String, _>("role")?.parse::<Role>();
        let kind = row.try_get::<String, _>("subject_kind")?.parse::<SubjectKind>();
        let cluster = row.try_get::<String, _>("cluster")?.parse::<ClusterId>();
        if let (Ok(Role::ClusterUser), Ok(kind), Ok(cluster)) = (role, kind, cluster) {
            let end = row.try_get::<Option<i64>, _>("expires_at")?.map(time);
            self.grants.entry(cluster).or_default().add(kind, row.try_get("subject")?, end);
        }
        Ok(())
    }
}

/// A cluster whose id is not its key's hash is not a cluster: whoever wrote that row can't make it one (THREATS T44).
fn cluster(row: &SqliteRow) -> Result<Option<Cluster>, sqlx::Error> {
    let (id, name): (String, String) = (row.try_get("id")?, row.try_get("name")?);
    match VerifyingKey::from_spki(row.try_get("key")?) {
        Ok(key) if key.cluster_id().to_string() == id => Ok(Some(Cluster {
            id: key.cluster_id(),
            name,
            key,
            enrolled_at: time(row.try_get("enrolled_at")?),
            enabled: row.try_get("enabled")?,
        })),
        _ => {
            error!(cluster = id, name, "a registry row's id is not the hash of its key: ignored");
            Ok(None)
        }
    }
}

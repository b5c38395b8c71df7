//! Which clusters may I open?

use towline_tunnel::session::question::ClusterItem;

use super::{Asker, Declined, Part, part};
use crate::{access::Decision, values::moment};

/// By name, those behind the cursor, which is the last name that was told.
pub(super) fn answer(asker: &Asker<'_>, cursor: &[u8]) -> Result<Part, Declined> {
    let known = asker.registry().snapshot();
    let access = asker.access();
    let mut clusters: Vec<_> =
        known.clusters().filter(|cluster| cursor.is_empty() || cluster.name.as_bytes() > cursor).collect();
    clusters.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
    let items = clusters.into_iter().filter_map(|cluster| {
        let Decision::Allow { cluster, until } = access.decide(&asker.client.caller, cluster.id, asker.now)
        else {
            return None;
        };
        if access.is_revoked(asker.client, Some(cluster.id), asker.now) {
            return None;
        }
        let since = asker.relay.sessions().online_since(cluster.id);
        let item = ClusterItem {
            name: cluster.name.clone(),
            id: cluster.id.to_string(),
            online: since.is_some(),
            online_since: since.map(moment),
            until: until.map(moment),
        };
        Some((cluster.name.clone(), serde_json::to_string(&item).ok()?))
    });
    Ok(part(items, false))
}

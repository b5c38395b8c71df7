//! What is connected: `towline-relay clusters`, `instances`, `revoke-instance`, `remove-cluster`.

use std::{sync::Arc, time::SystemTime};

use clap::Args;
use serde_json::json;
use towline_tunnel::{
    fault::{Fault, Report},
    ids::InstanceId,
};

use super::{Format, Place, print, print_json, table};
use crate::{
    registry::{Cluster, Instance, Registry},
    values::moment,
};

/// Somebody has a copy of an instance's key (THREATS T52).
const DUPLICATE: &str = "DUPLICATE HOLDER";

#[derive(Args, Debug)]
pub(super) struct Clusters {
    #[command(flatten)]
    place: Place,
    /// How
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Args, Debug)]
pub(super) struct Instances {
    #[command(flatten)]
    place: Place,
    /// How
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Args, Debug)]
pub(super) struct RevokeInstance {
    /// Id of the instance, as `instances` lists it
    id: InstanceId,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Debug)]
pub(super) struct RemoveCluster {
    /// Name or id of the cluster
    name: String,
    #[command(flatten)]
    place: Place,
}

/// The cluster with this name or id.
pub(super) fn find(registry: &Registry, name_or_id: &str) -> Result<Arc<Cluster>, Report> {
    let known = registry.snapshot();
    known.find(name_or_id).cloned().ok_or_else(|| {
        Report::new(Fault::ClusterUnknown, format!("no cluster has the name or id {name_or_id:?}"))
    })
}

impl Clusters {
    pub(super) async fn run(self, now: SystemTime) -> Result<(), Report> {
        let registry = self.place.registry().await?;
        let served = self.place.is_served();
        let known = registry.snapshot();
        let instances = registry.instances().await?;
        let mut clusters: Vec<_> = known.clusters().collect();
        clusters.sort_by(|a, b| a.name.cmp(&b.name));
        let of = |cluster: &Cluster| {
            instances.iter().filter(|instance| instance.cluster == cluster.id).collect::<Vec<&Instance>>()
        };
        let online = |cluster: &Cluster| {
            of(cluster).iter().filter(|instance| served && instance.is_online(now)).count()
        };
        let duplicates = |cluster: &Cluster| {
            of(cluster).iter().filter(|instance| served && instance.is_duplicate(now)).count()
        };
        let seen = |cluster: &Cluster| of(cluster).iter().filter_map(|instance| instance.last_seen).max();
        match self.output {
            Format::Table => {
                let rows: Vec<_> = clusters
                    .iter()
                    .map(|cluster| {
                        [
                            cluster.name.clone(),
                            match online(cluster) {
                                0 => "no".to_owned(),
                                n if duplicates(cluster) > 0 => format!("yes ({n}), {DUPLICATE}"),
                                n => format!("yes ({n})"),
                            },
                            seen(cluster).map_or_else(|| "never".to_owned(), moment),
                            moment(cluster.enrolled_at),
                            cluster.id.to_string(),
                        ]
                    })
                    .collect();
                print(&table(["NAME", "ONLINE", "LAST SEEN", "ENROLLED", "ID"], &rows))
            }
            Format::Json => {
                let items: Vec<_> = clusters
                    .iter()
                    .map(|cluster| {
                        json!({
                            "name": cluster.name, "id": cluster.id.to_string(), "online": online(cluster) > 0,
                            "instancesOnline": online(cluster), "duplicateHolders": duplicates(cluster), "lastSeen": seen(cluster).map(moment),
                            "enrolledAt": moment(cluster.enrolled_at), "enabled": cluster.enabled,
                        })
                    })
                    .collect();
                print_json(&items)
            }
        }
    }
}

impl Instances {
    pub(super) async fn run(self, now: SystemTime) -> Result<(), Report> {
        let registry = self.place.registry().await?;
        let served = self.place.is_served();
        let known = registry.snapshot();
        let instances = registry.instances().await?;
        let name = |instance: &Instance| {
            known.cluster(instance.cluster).map_or_else(|| instance.cluster.to_string(), |c| c.name.clone())
        };
        let state = |instance: &Instance| match instance {
            instance if instance.revoked_at.is_some() => "revoked",
            instance if served && instance.is_duplicate(now) => DUPLICATE,
            instance if served && instance.is_online(now) => "online",
            _ => "away",
        };
        match self.output {
            Format::Table => {
                let rows: Vec<_> = instances
                    .iter()
                    .map(|instance| {
                        [
                            name(instance),
                            instance.id.to_string(),
                            state(instance).to_owned(),
                            instance.last_seen.map_or_else(|| "never".to_owned(), moment),
                            moment(instance.not_after),
                            instance.program.clone(),
                        ]
                    })
                    .collect();
                let headings = ["CLUSTER", "INSTANCE", "STATE", "LAST SEEN", "CERTIFICATE ENDS", "PROGRAM"];
                print(&table(headings, &rows))
            }
            Format::Json => {
                let items: Vec<_> = instances
                    .iter()
                    .map(|instance| {
                        json!({
                            "cluster": name(instance), "clusterId": instance.cluster.to_string(),
                            "id": instance.id.to_string(), "state": state(instance),
                            "lastSeen": instance.last_seen.map(moment),
                            "certificateEnds": moment(instance.not_after), "serial": instance.serial,
                            "program": instance.program, "duplicateAt": instance.duplicate_at.map(moment),
                        })
                    })
                    .collect();
                print_json(&items)
            }
        }
    }
}

impl RevokeInstance {
    pub(super) async fn run(self, now: SystemTime) -> Result<(), Report> {
        let registry = self.place.registry().await?;
        if registry.revoke_instance(self.id, now).await? {
            print(&format!("{} (revoked)", self.id))
        } else {
            Err(Report::new(Fault::ConfigInvalid, format!("no agent instance has the id {}", self.id)))
        }
    }
}

impl RemoveCluster {
    pub(super) async fn run(self) -> Result<(), Report> {
        let registry = self.place.registry().await?;
        let cluster = find(&registry, &self.name)?;
        registry.remove_cluster(cluster.id).await?;
        print(&format!("{} {} (removed)", cluster.name, cluster.id))
    }
}

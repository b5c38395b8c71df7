//! What the cluster must be told so that roles count: bindings of their groups, as YAML for `kubectl apply`.

use std::fmt::Write as _;

use towline_tunnel::role::RoleName;

use super::Groups;

/// The bindings of all roles up to the ceiling; and, where there is an account that impersonates, the right to put users into these
/// groups for clusters before Kubernetes 1.36 (`NAMESPACE/NAME`).
pub fn manifest(groups: &Groups, ceiling: RoleName, impersonator: Option<&str>) -> String {
    let mut yaml = String::from(
        "# Roles that the organisation signs, as groups of this cluster. Made by `towline-agent roles manifest`.\n\
         # The names end with this installation's own suffix: a new identity of the cluster needs a new manifest.\n",
    );
    for role in RoleName::ALL.into_iter().filter(|role| *role <= ceiling) {
        let (Some(group), Some(cluster_role)) = (groups.group(role), role.cluster_role()) else { continue };
        let _ = write!(
            yaml,
            "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata:\n  name: towline-role-{role}\n\
             roleRef:\n  apiGroup: rbac.authorization.k8s.io\n  kind: ClusterRole\n  name: {cluster_role}\n\
             subjects:\n- apiGroup: rbac.authorization.k8s.io\n  kind: Group\n  name: \"{group}\"\n"
        );
    }
    let Some((namespace, account)) = impersonator.and_then(|account| account.split_once('/')) else {
        return yaml;
    };
    let names: Vec<String> = groups.up_to(ceiling).iter().map(|group| format!("\"{group}\"")).collect();
    let _ = write!(
        yaml,
        "---\n# Needed before Kubernetes 1.36 only, where groups are given to the impersonating account by name.\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata:\n  name: towline-impersonator-roles\n\
         rules:\n- apiGroups: [\"\"]\n  resources: [groups]\n  resourceNames: [{}]\n  verbs: [impersonate]\n\
         ---\napiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata:\n  name: towline-impersonator-roles\n\
         roleRef:\n  apiGroup: rbac.authorization.k8s.io\n  kind: ClusterRole\n  name: towline-impersonator-roles\n\
         subjects:\n- kind: ServiceAccount\n  name: {account}\n  namespace: {namespace}\n",
        names.join(", ")
    );
    yaml
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_json::Value;
    use towline_tunnel::keys::SigningKey;

    use super::*;

    fn objects(yaml: &str) -> Vec<Value> {
        serde_norway::Deserializer::from_str(yaml).map(|object| Value::deserialize(object).unwrap()).collect()
    }

    #[test]
    fn each_role_up_to_the_ceiling_is_bound_to_its_group_and_no_other() {
        let groups = Groups::of(&SigningKey::generate());
        let made = objects(&manifest(&groups, RoleName::Writer, Some("towline/deputy")));
        let bound: Vec<_> = made
            .iter()
            .filter(|object| object["subjects"][0]["kind"] == "Group")
            .map(|object| {
                (object["roleRef"]["name"].as_str().unwrap(), object["subjects"][0]["name"].as_str().unwrap())
            })
            .collect();
        let group = |role| groups.group(role).unwrap();
        let (viewer, writer) = (group(RoleName::Viewer), group(RoleName::Writer));
        assert_eq!(bound, [("view", viewer.as_str()), ("edit", writer.as_str())]);
        let rule = made.iter().find(|object| object["kind"] == "ClusterRole").unwrap();
        assert_eq!(rule["rules"][0]["resourceNames"], serde_json::json!([viewer, writer]));
        assert_eq!(made.last().unwrap()["subjects"][0]["name"], "deputy");
        assert_eq!(objects(&manifest(&groups, RoleName::ClusterAdmin, None)).len(), 4);
    }
}

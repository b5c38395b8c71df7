//! The file that says which tokens of Entra are taken (`--entra-config`).

use std::path::PathBuf;

use serde::Deserialize;

use super::{Apps, Cloud, EntraRules, Naming, PopRules, credential::Credential, is_guid};
use crate::{
    Algorithm, ConfigError, IssuerConfig,
    config::{Rules, is_issuer_url},
    fetch::Roots,
};

/// Audiences that are Microsoft's own: whoever has such a token got it for something else.
const FOREIGN_AUDIENCES: &[&str] = &[
    // Azure Arc's server application, for which proofs of possession are made.
    "6256c85f-0aad-4d50-b960-e6e9b21efe35",
    // AKS.
    "6dae42f8-4368-4678-94ff-3960e28e3630",
    // Microsoft Graph.
    "00000003-0000-0000-c000-000000000000",
    "https://graph.microsoft.com",
    "https://graph.microsoft.us",
    "https://microsoftgraph.chinacloudapi.cn",
    // Azure Resource Manager.
    "797f4846-ba00-4fd7-ba43-dac1f8f63013",
    "https://management.azure.com",
    "https://management.core.windows.net",
    "https://management.usgovcloudapi.net",
    "https://management.chinacloudapi.cn",
    // Azure AD Graph.
    "00000002-0000-0000-c000-000000000000",
    "https://graph.windows.net",
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    cloud: CloudChoice,
    tenants: Vec<String>,
    audiences: Vec<String>,
    #[serde(default)]
    username: NamingChoice,
    #[serde(default = "default_prefix")]
    username_prefix: String,
    #[serde(default = "default_prefix")]
    groups_prefix: String,
    #[serde(default = "yes")]
    groups: bool,
    #[serde(default)]
    group_names: bool,
    #[serde(default)]
    scopes: Vec<String>,
    #[serde(default)]
    apps: AppsFile,
    graph: Option<GraphFile>,
    #[serde(default)]
    check_accounts: bool,
    pop: Option<PopFile>,
    ca_file: Option<PathBuf>,
}

fn default_prefix() -> String {
    "entra:".into()
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum CloudChoice {
    Known(KnownCloud),
    Own(OwnCloud),
}

impl Default for CloudChoice {
    fn default() -> Self {
        Self::Known(KnownCloud::Public)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KnownCloud {
    Public,
    UsGov,
    China,
}

/// Origins of a cloud that has no name here.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnCloud {
    login: String,
    sts: String,
    graph: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum NamingChoice {
    #[default]
    Oid,
    Upn,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AppsFile {
    #[serde(default)]
    ids: Vec<String>,
    #[serde(default)]
    roles: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct GraphFile {
    client_id: Option<String>,
    client_secret_file: Option<PathBuf>,
    certificate_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    federated_token_file: Option<PathBuf>,
    #[serde(default)]
    managed_identity: bool,
    /// Only where the machine's metadata service is not at its usual address.
    managed_identity_endpoint: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PopFile {
    hosts: Vec<String>,
    #[serde(default)]
    required: bool,
}

impl CloudChoice {
    fn hosts(self, faults: &mut Vec<String>) -> Cloud {
        let cloud = |login: &str, sts: &str, graph: &str| Cloud {
            login: format!("https://{login}"),
            sts: format!("https://{sts}"),
            graph: format!("https://{graph}"),
        };
        match self {
            Self::Known(KnownCloud::Public) => {
                cloud("login.microsoftonline.com", "sts.windows.net", "graph.microsoft.com")
            }
            Self::Known(KnownCloud::UsGov) => {
                cloud("login.microsoftonline.us", "sts.windows.net", "graph.microsoft.us")
            }
            Self::Known(KnownCloud::China) => cloud(
                "login.partner.microsoftonline.cn",
                "sts.chinacloudapi.cn",
                "microsoftgraph.chinacloudapi.cn",
            ),
            Self::Own(own) => {
                for url in [&own.login, &own.sts, &own.graph] {
                    let authority = url.strip_prefix("https://").unwrap_or_default();
                    if !is_issuer_url(url) || authority.contains('/') {
                        faults.push(format!("cloud: {url:?} is not https://HOST"));
                    }
                }
                Cloud { login: own.login, sts: own.sts, graph: own.graph }
            }
        }
    }
}

impl GraphFile {
    fn credential(self, faults: &mut Vec<String>) -> Option<Credential> {
        let ways = [
            self.client_secret_file.is_some(),
            self.certificate_file.is_some(),
            self.federated_token_file.is_some(),
            self.managed_identity,
        ];
        if ways.iter().filter(|way| **way).count() != 1 {
            faults.push(
                "graph: one of clientSecretFile, certificateFile, federatedTokenFile and managedIdentity is needed"
                    .into(),
            );
            return None;
        }
        if self.client_id.as_deref().is_some_and(|id| !is_guid(id)) {
            faults.push("graph.clientId is no GUID in lower case".into());
        }
        if self.certificate_file.is_some() != self.key_file.is_some() {
            faults.push("graph: certificateFile and keyFile go together".into());
        }
        if self.managed_identity {
            let endpoint = self.managed_identity_endpoint;
            return Some(Credential::ManagedIdentity {
                client: self.client_id,
                authority: endpoint.unwrap_or_else(|| "169.254.169.254".into()),
            });
        }
        let Some(client) = self.client_id else {
            faults.push("graph.clientId is needed".into());
            return None;
        };
        match (self.client_secret_file, self.certificate_file.zip(self.key_file), self.federated_token_file) {
            (Some(file), _, _) => Some(Credential::Secret { client, file }),
            (_, Some((certificate, key)), _) => Some(Credential::Certificate { client, certificate, key }),
            (_, _, Some(file)) => Some(Credential::Federated { client, file }),
            _ => None,
        }
    }
}

/// Entra, as a file says.
///
/// # Errors
/// All that is wrong with it.
pub(crate) fn parse(text: &str) -> Result<IssuerConfig, ConfigError> {
    let file: File = serde_norway::from_str(text).map_err(|error| ConfigError::one(error.to_string()))?;
    let mut faults = Vec::new();
    if file.api_version != "towline.dev/v1" || file.kind != "EntraConfiguration" {
        faults.push("apiVersion and kind are not towline.dev/v1 EntraConfiguration".into());
    }
    let cloud = file.cloud.hosts(&mut faults);
    if file.tenants.is_empty() || !file.tenants.iter().all(|tenant| is_guid(tenant)) {
        faults.push("tenants: a list of GUIDs in lower case, and not empty".into());
    }
    if file.audiences.is_empty() || file.audiences.iter().any(|audience| audience.trim().is_empty()) {
        faults.push("audiences: the ids (or URIs) of your own application, and not empty".into());
    }
    for audience in &file.audiences {
        let bare = audience.trim_end_matches('/').to_ascii_lowercase();
        if FOREIGN_AUDIENCES.contains(&bare.as_str()) {
            faults.push(format!(
                "audiences: {audience:?} is Microsoft's own, register an application for towline"
            ));
        }
    }
    let naming = match file.username {
        NamingChoice::Oid => Naming::Object,
        NamingChoice::Upn => Naming::Principal,
    };
    if naming == Naming::Principal && file.tenants.len() != 1 {
        faults.push("username: upn is a name within one tenant; with several, use oid".into());
    }
    if !file.apps.ids.iter().all(|id| is_guid(id)) || file.apps.roles.iter().any(String::is_empty) {
        faults.push("apps: ids are GUIDs in lower case, roles are not empty".into());
    }
    if let Some(pop) = &file.pop
        && (pop.hosts.is_empty() || pop.hosts.iter().any(String::is_empty))
    {
        faults.push("pop.hosts: a list of hosts, and not empty".into());
    }
    if file.group_names && !(file.groups && file.graph.is_some() && file.tenants.len() == 1) {
        faults.push("groupNames needs groups, graph, and one tenant: names of several would be one".into());
    }
    if file.check_accounts && file.graph.is_none() {
        faults.push(
            "checkAccounts needs graph: it is Microsoft Graph that says whether an account is enabled".into(),
        );
    }
    let graph = file.graph.and_then(|graph| graph.credential(&mut faults));
    let roots = match file.ca_file.as_deref().map(Roots::read).transpose() {
        Ok(roots) => roots.unwrap_or_default(),
        Err(error) => {
            faults.push(format!("caFile: {error}"));
            Roots::System
        }
    };
    let rules = EntraRules {
        cloud,
        tenants: file.tenants,
        audiences: file.audiences,
        naming,
        username_prefix: file.username_prefix,
        groups_prefix: file.groups.then_some(file.groups_prefix),
        group_names: file.group_names,
        scopes: file.scopes,
        apps: Apps { ids: file.apps.ids, roles: file.apps.roles },
        graph,
        check_accounts: file.check_accounts,
        pop: file.pop.map(|pop| PopRules { hosts: pop.hosts, required: pop.required }),
    };
    if !faults.is_empty() {
        return Err(ConfigError(faults));
    }
    Ok(IssuerConfig {
        rules: Rules::Entra(Box::new(rules)),
        algorithms: vec![Algorithm::RS256],
        roots,
        introspection: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: towline.dev/v1\nkind: EntraConfiguration\n";
    const TENANT: &str = "72f988bf-86f1-41af-91ab-2d7cd011db47";

    fn faults(body: &str) -> Vec<String> {
        parse(&format!("{HEAD}{body}")).err().map(|error| error.0).unwrap_or_default()
    }

    #[test]
    fn a_file_of_three_lines_is_enough() {
        assert_eq!(
            faults(&format!("tenants: [{TENANT}]\naudiences: ['api://towline']\n")),
            Vec::<String>::new()
        );
    }

    #[test]
    fn it_is_called_by_its_login_and_says_for_whom_its_tokens_are() {
        let config =
            parse(&format!("{HEAD}tenants: [{TENANT}]\naudiences: ['api://towline', other]\n")).unwrap();
        assert_eq!(config.issuer(), "https://login.microsoftonline.com");
        assert_eq!(config.audiences(), ["api://towline", "other"]);
    }

    #[test]
    fn microsofts_own_audiences_are_not_taken() {
        for audience in FOREIGN_AUDIENCES.iter().copied().chain(["https://management.azure.com/"]) {
            let faults = faults(&format!("tenants: [{TENANT}]\naudiences: ['{audience}']\n"));
            assert_eq!(faults.len(), 1, "{audience}");
        }
    }

    #[test]
    fn names_of_groups_need_graph_and_one_tenant() {
        let graph = "graph: {managedIdentity: true}";
        for lines in [
            format!("tenants: [{TENANT}]\ngroupNames: true\n"),
            format!("tenants: [{TENANT}]\ngroupNames: true\ngroups: false\n{graph}\n"),
            format!("tenants: [{TENANT}, 22222222-2222-4222-8222-222222222222]\ngroupNames: true\n{graph}\n"),
        ] {
            let faults = faults(&format!("audiences: [a]\n{lines}"));
            assert!(faults.len() == 1 && faults[0].starts_with("groupNames needs"), "{lines}: {faults:?}");
        }
    }

    #[test]
    fn accounts_can_not_be_checked_without_graph() {
        let lines = format!("tenants: [{TENANT}]\naudiences: [a]\ncheckAccounts: true\n");
        assert!(faults(&lines)[0].starts_with("checkAccounts needs graph"));
        assert_eq!(faults(&format!("{lines}graph: {{managedIdentity: true}}\n")), Vec::<String>::new());
    }

    #[test]
    fn all_faults_are_told_together() {
        let faults = faults(
            "cloud: {login: 'http://a', sts: 'https://b/c', graph: 'https://d'}\ntenants: ['{tenantid}', x]\naudiences: []\nusername: upn\napps: {ids: [me]}\ngraph: {clientId: x}\npop: {hosts: []}\ncaFile: /nowhere\n",
        );
        assert_eq!(faults.len(), 9, "{faults:#?}");
    }

    /// Each by itself: none hides behind another.
    #[test]
    fn each_fault_is_told_alone() {
        let id = "88888888-8888-4888-8888-888888888888";
        for (lines, expected) in [
            ("cloud: {login: 'https://me@a', sts: 'https://b', graph: 'https://c'}".to_owned(), "cloud:"),
            ("cloud: {login: 'https://a', sts: 'https://b/', graph: 'https://c'}".to_owned(), "cloud:"),
            ("tenants: []".to_owned(), "tenants:"),
            (format!("tenants: [{TENANT}, x]"), "tenants:"),
            ("audiences: []".to_owned(), "audiences:"),
            ("audiences: [a, ' ']".to_owned(), "audiences:"),
            (format!("username: upn\ntenants: [{TENANT}, {id}]"), "username:"),
            ("apps: {ids: [me]}".to_owned(), "apps:"),
            ("apps: {roles: ['']}".to_owned(), "apps:"),
            ("pop: {hosts: []}".to_owned(), "pop.hosts:"),
            ("pop: {hosts: [a, '']}".to_owned(), "pop.hosts:"),
            (format!("graph: {{clientId: {id}}}"), "graph: one of"),
            (
                format!("graph: {{clientId: {id}, managedIdentity: true, clientSecretFile: f}}"),
                "graph: one of",
            ),
            ("graph: {clientId: me, managedIdentity: true}".to_owned(), "graph.clientId is no GUID"),
            ("graph: {clientSecretFile: f}".to_owned(), "graph.clientId is needed"),
            (format!("graph: {{clientId: {id}, certificateFile: f}}"), "graph: certificateFile and keyFile"),
            (
                format!("graph: {{clientId: {id}, clientSecretFile: f, keyFile: f}}"),
                "graph: certificateFile and keyFile",
            ),
        ] {
            let rest =
                [("tenants:", format!("tenants: [{TENANT}]")), ("audiences:", "audiences: [a]".into())];
            let rest = rest.into_iter().filter(|(name, _)| !lines.contains(name)).map(|(_, line)| line);
            let body: String = rest.chain([lines.clone()]).map(|line| line + "\n").collect();
            let faults = faults(&body);
            assert!(faults.len() == 1 && faults[0].starts_with(expected), "{lines}: {faults:?}");
        }
        let body = format!("tenants: [{TENANT}]\naudiences: [a]\n");
        for head in [HEAD.replace("/v1", "/v2"), HEAD.replace("Entra", "Authentication")] {
            let faults = parse(&format!("{head}{body}")).unwrap_err().0;
            assert!(faults.len() == 1 && faults[0].starts_with("apiVersion and kind"), "{head}: {faults:?}");
        }
    }

    #[test]
    fn a_misspelt_field_is_no_missing_rule() {
        assert!(
            faults(&format!("tenants: [{TENANT}]\naudiences: [a]\nscope: [x]\n"))[0]
                .contains("unknown field")
        );
    }
}

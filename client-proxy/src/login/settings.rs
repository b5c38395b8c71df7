//! `[login]` of a profile: as written, and as usable. None of it is a secret: those are in files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use towline_identity::Roots;
use towline_tunnel::{
    egress::Egress,
    fault::{Fault, Report},
};

use super::store::Keep;
use crate::token::Purpose;

/// What a GitHub Actions job asks with: who has both has tokens for any audience.
pub(super) const GITHUB_VARIABLES: [&str; 2] =
    ["ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"];

/// How tokens are had.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Flow {
    /// Authorisation code with PKCE (RFC 7636), answered on loopback (RFC 8252).
    #[default]
    Browser,
    /// Device authorisation grant (RFC 8628).
    Device,
    /// Client credentials grant (RFC 6749, section 4.4), proven by a secret, a certificate or a federated token.
    ClientCredentials,
    /// ID tokens of a GitHub Actions job.
    Github,
    /// ID tokens of a GitLab job.
    Gitlab,
    /// Whoever is logged in to the Azure CLI.
    Az,
    /// A `client.authentication.k8s.io/v1` plugin.
    Exec,
}

/// Which of the tokens that a provider gives is used.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// The ID token, whose audience is the client: as kube-apiserver and kubectl's OIDC plugins do it.
    Id,
    /// The access token, whose audience a scope, a resource or an `audience` says.
    Access,
}

/// A plugin, as in a kubeconfig.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct ExecTable {
    pub(super) command: String,
    #[serde(default)]
    pub(super) args: Vec<String>,
    #[serde(default)]
    pub(super) env: BTreeMap<String, String>,
}

/// What one audience's token is asked for with, as written.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct AudienceTable {
    client_id: Option<String>,
    client_secret_file: Option<PathBuf>,
    scopes: Vec<String>,
    resource: Option<String>,
    audience: Option<String>,
    token_env: Option<String>,
    exec: Option<ExecTable>,
}

/// `[login]` as it stands in a profile.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct LoginTable {
    flow: Flow,
    issuer: Option<String>,
    ca_file: Option<PathBuf>,
    client_id: Option<String>,
    client_secret_file: Option<PathBuf>,
    client_certificate_file: Option<PathBuf>,
    client_key_file: Option<PathBuf>,
    federated_token_file: Option<PathBuf>,
    token: Option<Kind>,
    scopes: Option<Vec<String>>,
    prompt: Option<String>,
    redirect_host: Option<String>,
    redirect_port: u16,
    tenant: Option<String>,
    keep: Keep,
    relay: AudienceTable,
    cluster: AudienceTable,
}

/// How a client proves to the provider that it is itself. Files are read at each use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// Not at all: a public client.
    None,
    /// A client secret.
    Secret(PathBuf),
    /// An assertion (RFC 7523) by a certificate's key.
    Certificate { certificate: PathBuf, key: PathBuf },
    /// A token of another issuer that the provider trusts, as assertion: workload identity federation.
    Federated(PathBuf),
}

/// What one token is asked for with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registration {
    pub(super) purpose: Purpose,
    pub(super) client: String,
    pub(super) proof: Proof,
    pub(super) kind: Kind,
    /// All scopes of a login.
    pub(super) scopes: Vec<String>,
    /// Those of them that say which audience.
    pub(super) own_scopes: Vec<String>,
    /// `resource` (RFC 8707) and `audience`, where they are needed.
    pub(super) target: Vec<(&'static str, String)>,
    pub(super) token_env: Option<String>,
    pub(super) exec: Option<ExecTable>,
}

/// A profile's `[login]`, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The profile's name: what is kept is kept under it.
    pub name: String,
    /// How tokens are had.
    pub flow: Flow,
    /// Whether relay and cluster may have one audience.
    pub shared_audience: bool,
    /// The way to the provider; straight, unless whoever reads the settings knows another.
    pub egress: Egress,
    pub(super) issuer: String,
    pub(super) roots: Roots,
    pub(super) prompt: Option<String>,
    pub(super) redirect_host: String,
    pub(super) redirect_port: u16,
    pub(super) tenant: Option<String>,
    pub(super) keep: Keep,
    relay: Registration,
    cluster: Registration,
}

impl LoginTable {
    /// Everything that names a file, for whoever knows where relative paths start.
    pub(crate) fn files(&mut self) -> impl Iterator<Item = &mut Option<PathBuf>> {
        [
            &mut self.ca_file,
            &mut self.client_secret_file,
            &mut self.client_certificate_file,
            &mut self.client_key_file,
            &mut self.federated_token_file,
            &mut self.relay.client_secret_file,
            &mut self.cluster.client_secret_file,
        ]
        .into_iter()
    }

    /// The provider, where one is named.
    pub(crate) fn issuer(&self) -> Option<&str> {
        self.issuer.as_deref()
    }

    /// Plugins, for the same: as in a kubeconfig, one with a slash is a file, and a bare name is looked for in PATH.
    pub(crate) fn plugins(&mut self) -> impl Iterator<Item = &mut String> {
        let tables = [&mut self.relay.exec, &mut self.cluster.exec];
        tables.into_iter().flatten().map(|exec| &mut exec.command).filter(|command| command.contains('/'))
    }

    /// Variables that hold tokens, or what tokens are asked for with: no child is to inherit them.
    pub(crate) fn token_variables(&self) -> Vec<String> {
        let mut named: Vec<String> =
            [&self.relay.token_env, &self.cluster.token_env].into_iter().flatten().cloned().collect();
        if self.flow == Flow::Github {
            named.extend(GITHUB_VARIABLES.map(str::to_owned));
        }
        named
    }

    /// Checks it; the profile's name is `name`.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn settings(&self, name: &str, shared_audience: bool) -> Result<Settings, Report> {
        let mut faults = Vec::new();
        let talks = matches!(self.flow, Flow::Browser | Flow::Device | Flow::ClientCredentials);
        let issuer = self.issuer.clone().unwrap_or_default();
        if talks && !is_issuer(&issuer) {
            faults.push("login.issuer must be an https URL without query or fragment".to_owned());
        }
        let roots = match self.ca_file.as_deref().map(Roots::read).transpose() {
            Ok(roots) => roots.unwrap_or_default(),
            Err(error) => {
                faults.push(format!("login.ca-file: {error}"));
                Roots::System
            }
        };
        let redirect_host = self.redirect_host.clone().unwrap_or_else(|| "127.0.0.1".to_owned());
        if !["127.0.0.1", "localhost"].contains(&redirect_host.as_str()) {
            faults.push("login.redirect-host is 127.0.0.1 or localhost".to_owned());
        }
        let relay = self.registration(Purpose::Relay, &self.relay, &mut faults);
        let cluster = self.registration(Purpose::Cluster, &self.cluster, &mut faults);
        if talks && !shared_audience && !apart(&relay, &cluster) {
            faults.push(
                "login.relay and login.cluster ask for one and the same audience: give each a client-id, scopes, resource or audience \
                 of its own; where there is but one, --allow-shared-audience (in the profile, before [login]: allow-shared-audience = \
                 true) lets the relay be you on every cluster that takes the token"
                    .to_owned(),
            );
        }
        if !faults.is_empty() {
            return Err(Report::new(Fault::ConfigInvalid, faults.join("; ")));
        }
        Ok(Settings {
            name: name.to_owned(),
            flow: self.flow,
            shared_audience,
            egress: Egress::direct(),
            issuer,
            roots,
            prompt: self.prompt.clone(),
            redirect_host,
            redirect_port: self.redirect_port,
            tenant: self.tenant.clone(),
            keep: self.keep,
            relay,
            cluster,
        })
    }

    fn registration(
        &self,
        purpose: Purpose,
        table: &AudienceTable,
        faults: &mut Vec<String>,
    ) -> Registration {
        let word = purpose.word();
        let needed = |given: bool, what: &str, faults: &mut Vec<String>| {
            if !given {
                faults.push(format!("login.{word}.{what} is needed with this flow"));
            }
        };
        let client = table.client_id.as_ref().or(self.client_id.as_ref()).cloned().unwrap_or_default();
        let kind = match self.flow {
            // There is no ID token without somebody who logs in.
            Flow::ClientCredentials => Kind::Access,
            _ => self.token.unwrap_or(Kind::Id),
        };
        let proof = self.proof(table, faults);
        match self.flow {
            Flow::Browser | Flow::Device => needed(!client.is_empty(), "client-id", faults),
            Flow::ClientCredentials => {
                needed(!client.is_empty(), "client-id", faults);
                if proof == Proof::None {
                    faults.push(
                        "client-credentials need client-secret-file, client-certificate-file with client-key-file, or federated-token-file"
                            .to_owned(),
                    );
                }
            }
            Flow::Gitlab => needed(table.token_env.is_some(), "token-env", faults),
            Flow::Az => {
                needed(table.resource.is_some() || !table.scopes.is_empty(), "scopes (or resource)", faults)
            }
            Flow::Exec => needed(table.exec.is_some(), "exec", faults),
            Flow::Github => {}
        }
        let mut scopes = match (&self.scopes, self.flow) {
            (Some(scopes), _) => scopes.clone(),
            (None, Flow::Browser | Flow::Device) => vec!["openid".to_owned(), "offline_access".to_owned()],
            (None, _) => Vec::new(),
        };
        if kind == Kind::Id && !scopes.iter().any(|scope| scope == "openid") {
            scopes.insert(0, "openid".to_owned());
        }
        scopes.extend(table.scopes.iter().cloned());
        let mut target = Vec::new();
        target.extend(table.resource.clone().map(|resource| ("resource", resource)));
        match (&table.audience, self.flow) {
            (Some(audience), _) => target.push(("audience", audience.clone())),
            (None, Flow::Github) => target.push(("audience", format!("towline-{word}"))),
            (None, _) => {}
        }
        Registration {
            purpose,
            client,
            proof,
            kind,
            scopes,
            own_scopes: table.scopes.clone(),
            target,
            token_env: table.token_env.clone(),
            exec: table.exec.clone(),
        }
    }

    fn proof(&self, table: &AudienceTable, faults: &mut Vec<String>) -> Proof {
        let secret = table.client_secret_file.as_ref().or(self.client_secret_file.as_ref());
        let mut proofs = Vec::new();
        proofs.extend(secret.cloned().map(Proof::Secret));
        match (&self.client_certificate_file, &self.client_key_file) {
            (Some(certificate), Some(key)) => {
                proofs.push(Proof::Certificate { certificate: certificate.clone(), key: key.clone() });
            }
            (None, None) => {}
            _ => faults.push("client-certificate-file and client-key-file go together".to_owned()),
        }
        proofs.extend(self.federated_token_file.clone().map(Proof::Federated));
        if proofs.is_empty() && self.flow == Flow::ClientCredentials {
            // Azure workload identity's webhook says it so.
            let injected = std::env::var_os("AZURE_FEDERATED_TOKEN_FILE").map(PathBuf::from);
            proofs.extend(injected.filter(|path| path.is_absolute()).map(Proof::Federated));
        }
        if proofs.len() > 1 {
            faults.push("a client has one of: a secret, a certificate, a federated token".to_owned());
        }
        proofs.pop().unwrap_or(Proof::None)
    }
}

impl Settings {
    pub(super) fn of(&self, purpose: Purpose) -> &Registration {
        match purpose {
            Purpose::Relay => &self.relay,
            Purpose::Cluster => &self.cluster,
        }
    }

    /// Whether there is a session that is kept, and not a token for the asking.
    pub fn is_interactive(&self) -> bool {
        matches!(self.flow, Flow::Browser | Flow::Device)
    }
}

impl Registration {
    /// Whether an ID token comes along.
    pub(super) fn is_openid(&self) -> bool {
        self.scopes.iter().any(|scope| scope == "openid")
    }
}

/// Whether two registrations can give tokens of different audiences.
fn apart(relay: &Registration, cluster: &Registration) -> bool {
    let by_client = relay.client != cluster.client;
    match relay.kind {
        Kind::Id => by_client,
        Kind::Access => {
            by_client || (&relay.own_scopes, &relay.target) != (&cluster.own_scopes, &cluster.target)
        }
    }
}

/// OpenID Connect Discovery 1.0, section 3.
fn is_issuer(url: &str) -> bool {
    url::Url::parse(url).is_ok_and(|url| {
        url.scheme() == "https"
            && url.has_host()
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none()
    })
}

/// What a file holds, without the white space around it.
pub(super) fn read_secret(path: &Path) -> Result<towline_tunnel::session::message::Secret, Report> {
    use towline_tunnel::session::message::Secret;
    let text = std::fs::read(path).map(Secret::new).map_err(|error| {
        Report::caused_by(Fault::FileUnreadable, format!("{}: {error}", path.display()), error)
    })?;
    let held = text.reveal_text().map(str::trim).filter(|text| !text.is_empty() && text.len() <= 64 * 1024);
    held.map(Secret::new)
        .ok_or_else(|| Report::new(Fault::FileUnreadable, format!("{} does not hold a text", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Settings, Report> {
        toml::from_str::<LoginTable>(text).unwrap().settings("p", false)
    }

    const TWO_CLIENTS: &str = "issuer = 'https://idp'\nrelay.client-id = 'r'\ncluster.client-id = 'c'\n";

    #[test]
    fn two_public_clients_are_all_that_is_needed() {
        let settings = settings(TWO_CLIENTS).unwrap();
        assert_eq!(settings.flow, Flow::Browser);
        let relay = settings.of(Purpose::Relay);
        assert_eq!((relay.client.as_str(), relay.kind), ("r", Kind::Id));
        assert_eq!(relay.scopes, ["openid", "offline_access"]);
        assert_eq!(relay.proof, Proof::None);
    }

    #[test]
    fn one_client_needs_two_scopes_and_gives_access_tokens() {
        let entra = "issuer = 'https://login/t/v2.0'\nclient-id = 'a'\ntoken = 'access'\nredirect-host = 'localhost'\n\
                     relay.scopes = ['api://r/.default']\n";
        let both = format!("{entra}cluster.scopes = ['api://c/.default']\n");
        let settings = settings(&both).unwrap();
        assert_eq!(settings.of(Purpose::Cluster).scopes, ["openid", "offline_access", "api://c/.default"]);
        let same = format!("{entra}cluster.scopes = ['api://r/.default']\n");
        let report = self::settings(&same).unwrap_err();
        assert!(report.to_string().contains("one and the same audience"), "{report}");
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let report =
            settings("issuer = 'http://idp'\nredirect-host = 'example.org'\nclient-key-file = 'k'\n");
        let said = report.unwrap_err().to_string();
        for what in [
            "login.issuer",
            "redirect-host",
            "login.relay.client-id",
            "login.cluster.client-id",
            "go together",
        ] {
            assert!(said.contains(what), "{what}: {said}");
        }
        for (flow, what) in [
            ("client-credentials", "federated-token-file"),
            ("gitlab", "token-env"),
            ("az", "scopes"),
            ("exec", "login.cluster.exec"),
        ] {
            let said = settings(&format!("flow = '{flow}'\n{TWO_CLIENTS}")).unwrap_err().to_string();
            assert!(said.contains(what), "{flow}: {said}");
        }
        settings("flow = 'github'").unwrap();
    }

    #[test]
    fn a_secret_is_never_a_setting() {
        assert!(toml::from_str::<LoginTable>("client-secret = 's'").is_err());
        assert!(toml::from_str::<LoginTable>("relay.token = 's'").is_err());
    }

    #[test]
    fn what_a_job_has_tokens_by_is_not_inherited() {
        let of = |text: &str| toml::from_str::<LoginTable>(text).unwrap().token_variables();
        assert_eq!(of("flow = 'gitlab'\nrelay.token-env = 'R'\ncluster.token-env = 'C'"), ["R", "C"]);
        assert_eq!(of("flow = 'github'"), GITHUB_VARIABLES);
        assert_eq!(of(TWO_CLIENTS), Vec::<String>::new());
    }

    #[test]
    fn a_client_proves_itself_in_one_way() {
        let two = format!("{TWO_CLIENTS}client-secret-file = 's'\nfederated-token-file = 'f'\n");
        assert!(settings(&two).is_err());
        let own = format!("{TWO_CLIENTS}client-secret-file = 's'\nrelay.client-secret-file = 'r'\n");
        let settings = settings(&own).unwrap();
        assert_eq!(settings.of(Purpose::Relay).proof, Proof::Secret("r".into()));
        assert_eq!(settings.of(Purpose::Cluster).proof, Proof::Secret("s".into()));
    }
}

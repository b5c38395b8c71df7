//! What the agent needs of a kubeconfig. What it can't do is refused with a reason, never left out in silence.

use std::{fs, path::Path};

use data_encoding::BASE64;
use serde::{Deserialize, de::IgnoredAny};
use towline_tunnel::{
    fault::{Fault, Report},
    session::message::Secret,
};

use super::target::{ClientCertificate, Material, Server, Target, Token, Trust};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    #[serde(default)]
    current_context: Option<String>,
    #[serde(default)]
    clusters: Option<Vec<NamedCluster>>,
    #[serde(default)]
    contexts: Option<Vec<NamedContext>>,
    #[serde(default)]
    users: Option<Vec<NamedUser>>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default)]
    user: Option<User>,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    #[serde(default)]
    certificate_authority: Option<String>,
    #[serde(default)]
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    #[serde(default)]
    tls_server_name: Option<String>,
    #[serde(default)]
    proxy_url: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    #[serde(default)]
    client_certificate: Option<String>,
    #[serde(default)]
    client_certificate_data: Option<String>,
    #[serde(default)]
    client_key: Option<String>,
    #[serde(default)]
    client_key_data: Option<String>,
    #[serde(default)]
    token: Option<String>,
    #[serde(default, rename = "tokenFile")]
    token_file: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    exec: Option<IgnoredAny>,
    #[serde(default)]
    auth_provider: Option<IgnoredAny>,
    #[serde(default, rename = "as")]
    as_user: Option<String>,
}

/// Reads the context's cluster and user.
pub(super) fn read(path: &Path, context: Option<&str>) -> Result<Target, Report> {
    let name = path.display().to_string();
    let bytes =
        fs::read(path).map_err(|error| Report::caused_by(Fault::FileUnreadable, name.clone(), error))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let told = |fault, why: String| Report::new(fault, format!("{name}: {why}"));
    let config = decode(&bytes).map_err(|why| told(Fault::FileUnreadable, why))?;
    // It can be read: what is wrong with it is what it says.
    choose(config, context, folder).map_err(|why| told(Fault::ConfigInvalid, why))
}

fn decode(bytes: &[u8]) -> Result<Kubeconfig, String> {
    // The parser's own message may repeat what stands in the file.
    serde_norway::from_slice(bytes).map_err(|error| match error.location() {
        Some(at) => format!("not a kubeconfig (line {})", at.line()),
        None => "not a kubeconfig".to_owned(),
    })
}

/// The context's cluster and user.
fn choose(config: Kubeconfig, context: Option<&str>, folder: &Path) -> Result<Target, String> {
    let wanted = context.or(config.current_context.as_deref()).filter(|name| !name.is_empty());
    let wanted = wanted.ok_or("it has no current context: give --context")?;
    let contexts = config.contexts.unwrap_or_default();
    let context = contexts.iter().find(|found| found.name == wanted);
    let context = &context.ok_or_else(|| format!("it has no context {wanted:?}"))?.context;
    let clusters = config.clusters.unwrap_or_default();
    let cluster = clusters.into_iter().find(|found| found.name == context.cluster);
    let cluster = cluster.ok_or_else(|| format!("it has no cluster {:?}", context.cluster))?.cluster;
    let users = config.users.unwrap_or_default();
    let user = users.into_iter().find(|found| found.name == context.user).and_then(|found| found.user);
    target(cluster, user.unwrap_or_default(), folder)
}

fn target(cluster: Cluster, user: User, folder: &Path) -> Result<Target, String> {
    if cluster.insecure_skip_tls_verify {
        return Err("insecure-skip-tls-verify would hand the agent's credential to anyone: give its certificate-authority".into());
    }
    if some(&cluster.proxy_url).is_some() {
        return Err("proxy-url is not supported: the agent must reach kube-apiserver directly".into());
    }
    for (is_there, what) in [
        (user.exec.is_some(), "an exec plugin (a credential command)"),
        (user.auth_provider.is_some(), "an auth-provider"),
        (user.username.is_some(), "a username and password"),
        (user.as_user.is_some(), "impersonation (as)"),
    ] {
        if is_there {
            return Err(format!(
                "its user has {what}, which is not supported: use a client certificate, a token or a tokenFile"
            ));
        }
    }
    let server = Server::parse(&cluster.server).map_err(|report| report.detail)?;
    let trust = material(&cluster.certificate_authority_data, &cluster.certificate_authority, folder)?;
    let chain = material(&user.client_certificate_data, &user.client_certificate, folder)?;
    let key = material(&user.client_key_data, &user.client_key, folder)?;
    let client = match (chain, key) {
        (Some(chain), Some(key)) => Some(ClientCertificate { chain, key }),
        (None, None) => None,
        _ => {
            return Err(
                "its user has a client certificate without a key, or a key without a certificate".into()
            );
        }
    };
    let token = match (some(&user.token_file), some(&user.token)) {
        (Some(file), _) => Token::File(folder.join(file)),
        (None, Some(token)) => Token::Fixed(Secret::new(token)),
        (None, None) => Token::None,
    };
    if client.is_none() && token == Token::None {
        return Err("its user has neither a client certificate nor a token".into());
    }
    Ok(Target {
        server,
        tls_name: cluster.tls_server_name.filter(|name| !name.is_empty()),
        trust: trust.map_or(Trust::System, Trust::Only),
        client,
        token,
    })
}

fn some(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

/// Data goes before a file, as for kubectl. Files are relative to the kubeconfig's own folder.
fn material(data: &Option<String>, file: &Option<String>, folder: &Path) -> Result<Option<Material>, String> {
    match (some(data), some(file)) {
        (Some(data), _) => {
            let joined: String = data.split_ascii_whitespace().collect();
            let bytes = BASE64.decode(joined.as_bytes()).map_err(|_| "a …-data field is not base64")?;
            Ok(Some(Material::Data(bytes)))
        }
        (None, Some(file)) => Ok(Some(Material::File(folder.join(file)))),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "
apiVersion: v1
kind: Config
current-context: one
preferences: {}
clusters:
- name: c
  cluster: {server: 'https://10.0.0.1:6443', certificate-authority: pki/ca.pem}
- name: d
  cluster: {server: 'https://d.example/prefix', certificate-authority-data: Y2E=, tls-server-name: kubernetes}
contexts:
- name: one
  context: {cluster: c, user: u, namespace: x}
- name: two
  context: {cluster: d, user: v}
users:
- name: u
  user: {tokenFile: /run/token, token: old}
- name: v
  user: {client-certificate-data: Y2VydA==, client-key: key.pem}
";

    fn read_text(text: &str, context: Option<&str>) -> Result<Target, String> {
        choose(decode(text.as_bytes())?, context, Path::new("/etc/kube"))
    }

    #[test]
    fn the_current_context_or_a_named_one_is_read() {
        let one = read_text(WHOLE, None).unwrap();
        assert_eq!((one.server.host.as_str(), one.server.port), ("10.0.0.1", 6443));
        assert_eq!(one.trust, Trust::Only(Material::File("/etc/kube/pki/ca.pem".into())));
        assert_eq!((one.token, one.client), (Token::File("/run/token".into()), None));
        let two = read_text(WHOLE, Some("two")).unwrap();
        assert_eq!((two.server.prefix.as_str(), two.tls_name.as_deref()), ("/prefix", Some("kubernetes")));
        assert_eq!(two.trust, Trust::Only(Material::Data(b"ca".to_vec())));
        let client = two.client.unwrap();
        assert_eq!(client.chain, Material::Data(b"cert".to_vec()));
        assert_eq!(client.key, Material::File("/etc/kube/key.pem".into()));
    }

    #[test]
    fn what_is_not_supported_is_refused_with_its_reason() {
        let with_user =
            |user: &str| read_text(&WHOLE.replace("{tokenFile: /run/token, token: old}", user), None);
        let with_cluster =
            |more: &str| read_text(&WHOLE.replace("certificate-authority: pki/ca.pem", more), None);
        for (result, reason) in [
            (with_user("{exec: {command: aws, args: [eks]}}"), "exec plugin"),
            (with_user("{auth-provider: {name: gcp}}"), "auth-provider"),
            (with_user("{username: a, password: b}"), "username"),
            (with_user("{token: t, as: admin}"), "impersonation"),
            (with_user("{client-certificate: c}"), "without a key"),
            (with_user("{}"), "neither"),
            (with_user("{client-certificate-data: '!', client-key-data: '!'}"), "base64"),
            (with_cluster("insecure-skip-tls-verify: true"), "insecure-skip-tls-verify"),
            (with_cluster("proxy-url: 'http://p'"), "proxy-url"),
            (read_text(WHOLE, Some("three")), "three"),
            (read_text(&WHOLE.replace("current-context: one", ""), None), "--context"),
            (read_text("users: secret-canary", None), "not a kubeconfig"),
            (read_text("", None), "--context"),
        ] {
            let error = result.unwrap_err();
            assert!(error.contains(reason) && !error.contains("canary"), "{error} should tell of {reason}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let report = read(Path::new("/nowhere/config"), None).unwrap_err();
        assert_eq!(report.fault, Fault::FileUnreadable);
        assert!(report.to_string().contains("/nowhere/config"), "{report}");
        // What can be read and not be used is another fault.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        for (text, fault) in [
            (
                WHOLE.replace("{tokenFile: /run/token, token: old}", "{exec: {command: aws}}"),
                Fault::ConfigInvalid,
            ),
            (WHOLE.replace("current-context: one", "current-context: gone"), Fault::ConfigInvalid),
            ("users: no list".to_owned(), Fault::FileUnreadable),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(read(&path, None).unwrap_err().fault, fault);
        }
    }
}

//! What a person has of the cluster, as the agent of `towline dev` gets it: one file, of one context.
//!
//! The agent reads one kubeconfig and runs no programs. So what the context names is looked for in all files, as kubectl does, and a
//! credential plugin (client-go's, `client.authentication.k8s.io/v1` and `v1beta1`, which EKS, GKE and AKS use) is run here: its token lies
//! in a file, and is renewed before it ends.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use data_encoding::BASE64;
use serde::Deserialize;
use serde_norway::{Mapping, Value};
use tokio::time::sleep;
use towline_tunnel::fault::{Fault, Report};
use tracing::warn;

use super::write;
use crate::login::plugin;

/// A token is renewed so long before its end, or after half of its life if that is short.
const RENEWED_BEFORE: Duration = Duration::from_secs(120);
/// One without an end is renewed after this time: kubectl would wait for a 401.
const RENEWED_AFTER: Duration = Duration::from_secs(600);
/// A plugin that failed is asked again after this time, and none is asked more often.
const AGAIN_AFTER: Duration = Duration::from_secs(15);

/// A kubeconfig that the agent can use.
#[derive(Debug)]
pub(super) struct Source {
    /// Where it lies.
    pub(super) path: PathBuf,
    /// What renews its token, and when it first should.
    pub(super) renewal: Option<(Plugin, Duration)>,
}

/// Writes the context that is meant into a file of its own in `folder`, which is private. A plugin has run once when this returns.
///
/// # Errors
/// If a file can't be read, the context is not there, or the plugin gives no token.
pub(super) async fn prepare(
    files: &[PathBuf],
    context: Option<&str>,
    folder: &Path,
) -> Result<Source, Report> {
    let Chosen { name, mut cluster, mut user } = chosen(files, context)?;
    let mut renewal = None;
    if let Some(exec) = user.remove("exec") {
        let plugin = Plugin::new(exec, &cluster, folder.join("source.token"))?;
        let next = plugin.renew().await?;
        user.insert("tokenFile".into(), plugin.file.display().to_string().into());
        renewal = Some((plugin, next));
    }
    // Not the agent's: it is for kubectl.
    cluster.remove("extensions");
    let named = |body: Mapping, what: &str| mapping([("name", name.as_str().into()), (what, body.into())]);
    let context = mapping([("cluster", name.as_str().into()), ("user", name.as_str().into())]);
    let list = |item: Mapping| Value::Sequence(vec![item.into()]);
    let config = mapping([
        ("apiVersion", "v1".into()),
        ("kind", "Config".into()),
        ("current-context", name.as_str().into()),
        ("contexts", list(named(context, "context"))),
        ("clusters", list(named(cluster, "cluster"))),
        ("users", list(named(user, "user"))),
    ]);
    let text = serde_norway::to_string(&config)
        .map_err(|error| Report::caused_by(Fault::Internal, "the cluster's kubeconfig", error))?;
    let path = folder.join("source.kubeconfig");
    write(&path, &text)?;
    Ok(Source { path, renewal })
}

fn mapping<const N: usize>(fields: [(&str, Value); N]) -> Mapping {
    fields.into_iter().map(|(name, value)| (name.into(), value)).collect()
}

/// What a context means; paths are no longer relative.
#[derive(Debug)]
struct Chosen {
    name: String,
    cluster: Mapping,
    user: Mapping,
}

/// The first file that says something says it, as for kubectl.
fn chosen(files: &[PathBuf], context: Option<&str>) -> Result<Chosen, Report> {
    let listed = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
    let unusable = |why: String| Report::new(Fault::KubeconfigUnreadable, format!("{listed}: {why}"));
    let mut read = Vec::new();
    for file in files {
        match fs::read_to_string(file) {
            Ok(text) => read.push((file.as_path(), parse(file, &text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && files.len() > 1 => {}
            Err(error) => {
                return Err(Report::caused_by(
                    Fault::KubeconfigUnreadable,
                    file.display().to_string(),
                    error,
                ));
            }
        }
    }
    let current = read.iter().filter_map(|(_, config)| config.get("current-context")?.as_str());
    let name =
        context.map(str::to_owned).or(current.filter(|name| !name.is_empty()).map(str::to_owned).next());
    let name = name.ok_or_else(|| unusable("there is no current context; name one with --context".into()))?;
    let (_, context) = find(&read, "contexts", "context", &name)
        .ok_or_else(|| unusable(format!("there is no context {name:?}")))?;
    let named = |what: &str| context.get(what).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (of_cluster, of_user) = (named("cluster"), named("user"));
    let (at, mut cluster) = find(&read, "clusters", "cluster", &of_cluster)
        .ok_or_else(|| unusable(format!("there is no cluster {of_cluster:?}")))?;
    absolute(&mut cluster, &["certificate-authority"], at);
    let mut user = Mapping::new();
    if let Some((at, found)) = find(&read, "users", "user", &of_user) {
        user = found;
        absolute(&mut user, &["client-certificate", "client-key", "tokenFile"], at);
        // A name without a slash is looked for in PATH.
        if let Some(exec) = user.get_mut("exec").and_then(Value::as_mapping_mut)
            && exec.get("command").and_then(Value::as_str).is_some_and(|command| command.contains('/'))
        {
            absolute(exec, &["command"], at);
        }
    }
    Ok(Chosen { name, cluster, user })
}

fn parse(file: &Path, text: &str) -> Result<Value, Report> {
    // The parser's own message may repeat what stands in the file.
    serde_norway::from_str(text).map_err(|error| {
        let line = error.location().map(|at| format!(" (line {})", at.line())).unwrap_or_default();
        Report::new(Fault::KubeconfigUnreadable, format!("{}: not YAML{line}", file.display()))
    })
}

/// The first entry of this name, and the folder of its file.
fn find<'a>(read: &[(&'a Path, Value)], list: &str, body: &str, name: &str) -> Option<(&'a Path, Mapping)> {
    read.iter().find_map(|(file, config)| {
        let items = config.get(list)?.as_sequence()?;
        let item = items.iter().find(|item| item.get("name").and_then(Value::as_str) == Some(name))?;
        Some((file.parent().unwrap_or(Path::new("")), item.get(body)?.as_mapping()?.clone()))
    })
}

fn absolute(body: &mut Mapping, names: &[&str], folder: &Path) {
    for name in names {
        if let Some(value) = body.get_mut(*name)
            && let Some(path) = value.as_str().filter(|path| !path.is_empty())
        {
            let joined = folder.join(path);
            *value = std::path::absolute(&joined).unwrap_or(joined).display().to_string().into();
        }
    }
}

/// A user's `exec`, as client-go reads it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Exec {
    api_version: String,
    command: String,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
    install_hint: Option<String>,
    #[serde(default)]
    provide_cluster_info: bool,
}

#[derive(Debug, Deserialize)]
struct Variable {
    name: String,
    value: String,
}

/// A plugin that gives tokens, and the file that they go to.
#[derive(Debug)]
pub(super) struct Plugin {
    exec: Exec,
    env: BTreeMap<String, String>,
    file: PathBuf,
}

impl Plugin {
    fn new(exec: Value, cluster: &Mapping, file: PathBuf) -> Result<Self, Report> {
        let mut exec: Exec = serde_norway::from_value(exec).map_err(|_| {
            Report::new(
                Fault::KubeconfigUnreadable,
                "its user's exec has no apiVersion and command as kubectl reads them",
            )
        })?;
        let mut spec = serde_json::json!({ "interactive": false });
        if exec.provide_cluster_info {
            spec["cluster"] = told_of(cluster);
        }
        let info =
            serde_json::json!({ "apiVersion": exec.api_version, "kind": "ExecCredential", "spec": spec });
        let given = exec.env.take().unwrap_or_default();
        let mut env: BTreeMap<_, _> = given.into_iter().map(|one| (one.name, one.value)).collect();
        env.insert("KUBERNETES_EXEC_INFO".to_owned(), info.to_string());
        Ok(Self { exec, env, file })
    }

    /// Puts a new token into the file; says when the next one should be had.
    async fn renew(&self) -> Result<Duration, Report> {
        let Exec { api_version, command, args, install_hint, .. } = &self.exec;
        let args = args.as_deref().unwrap_or_default();
        let given = plugin(api_version, command, args, &self.env).await.map_err(|mut report| {
            if let Some(hint) = install_hint.as_deref().map(str::trim).filter(|hint| !hint.is_empty()) {
                report.detail = format!("{}; its kubeconfig says: {hint}", report.detail);
            }
            report
        })?;
        write(&self.file, given.secret.reveal_text().unwrap_or_default())?;
        Ok(given.expires().map_or(RENEWED_AFTER, |end| {
            let left = end.duration_since(SystemTime::now()).unwrap_or_default();
            left.saturating_sub(RENEWED_BEFORE).max(left / 2).max(AGAIN_AFTER)
        }))
    }

    /// Renews the token for as long as this is polled.
    pub(super) async fn keep_fresh(self, mut next: Duration) {
        loop {
            sleep(next).await;
            next = self.renew().await.unwrap_or_else(|report| {
                warn!(%report, "the cluster's token was not renewed; the last one may still hold for a while");
                AGAIN_AFTER
            });
        }
    }
}

/// What a plugin is told of the cluster that it is asked for.
fn told_of(cluster: &Mapping) -> serde_json::Value {
    let text = |name: &str| cluster.get(name).and_then(Value::as_str).map(str::to_owned);
    let authority = text("certificate-authority-data").or_else(|| {
        let file = text("certificate-authority").filter(|file| !file.is_empty())?;
        Some(BASE64.encode(&fs::read(file).ok()?))
    });
    let config = cluster.get("extensions").and_then(Value::as_sequence).and_then(|extensions| {
        let of_plugins = |one: &&Value| {
            one.get("name").and_then(Value::as_str) == Some("client.authentication.k8s.io/exec")
        };
        extensions.iter().find(of_plugins)?.get("extension").cloned()
    });
    let told = serde_json::json!({
        "server": text("server"),
        "tls-server-name": text("tls-server-name"),
        "certificate-authority-data": authority,
        "config": config.and_then(|config| serde_json::to_value(config).ok()),
    });
    let known =
        |told: serde_json::Map<_, serde_json::Value>| told.into_iter().filter(|(_, value)| !value.is_null());
    match told {
        serde_json::Value::Object(told) => serde_json::Value::Object(known(told).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Bench(tempfile::TempDir);

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            for name in ["a", "b", "to"] {
                fs::create_dir(folder.path().join(name)).unwrap();
            }
            Self(folder)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn put(&self, name: &str, text: &str) -> PathBuf {
            fs::write(self.path(name), text).unwrap();
            self.path(name)
        }

        async fn prepare(&self, files: &[PathBuf], context: Option<&str>) -> Result<(Source, Value), Report> {
            let source = prepare(files, context, &self.path("to")).await?;
            let text = fs::read_to_string(&source.path).unwrap();
            Ok((source, serde_norway::from_str(&text).unwrap()))
        }
    }

    const FIRST: &str = "
current-context: one
clusters: [{name: c, cluster: {server: 'https://c', certificate-authority: ca.pem}}]
contexts: [{name: one, context: {cluster: c, user: u}}]
users: [{name: u, user: {token: first}}]
";
    const SECOND: &str = "
current-context: two
contexts:
- {name: one, context: {cluster: hidden, user: hidden}}
- {name: two, context: {cluster: c, user: v}}
- {name: lost, context: {cluster: gone, user: v}}
users:
- {name: u, user: {token: hidden}}
- {name: v, user: {client-certificate: pki/v.crt, client-key: /abs/v.key}}
";

    #[tokio::test]
    async fn a_context_is_found_in_whichever_file_has_it() {
        let bench = Bench::new();
        let files = [bench.path("none"), bench.put("a/config", FIRST), bench.put("b/config", SECOND)];
        let (_, one) = bench.prepare(&files, None).await.unwrap();
        assert_eq!(one["current-context"], "one");
        assert_eq!(one["users"][0]["user"]["token"], "first");
        // Its cluster stands in the first file, and its user in the second.
        let (source, two) = bench.prepare(&files, Some("two")).await.unwrap();
        let path = |name: &str| Value::from(bench.path(name).display().to_string());
        let (cluster, user) = (&two["clusters"][0]["cluster"], &two["users"][0]["user"]);
        assert_eq!(cluster["certificate-authority"], path("a/ca.pem"));
        assert_eq!(
            (&user["client-certificate"], &user["client-key"]),
            (&path("b/pki/v.crt"), &"/abs/v.key".into())
        );
        assert_eq!(two["contexts"][0]["context"]["user"], two["users"][0]["name"]);
        assert_eq!(fs::metadata(&source.path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(source.renewal.is_none());
        for (context, missing) in [("three", "three"), ("lost", "gone")] {
            let report = bench.prepare(&files, Some(context)).await.unwrap_err();
            assert_eq!(report.fault, Fault::KubeconfigUnreadable);
            let said = report.to_string();
            assert!(said.contains(missing) && said.contains("b/config"), "{said}");
        }
        let broken = [bench.put("a/broken", "users: [secret-canary")];
        let said = bench.prepare(&broken, None).await.unwrap_err().to_string();
        assert!(said.contains("a/broken") && !said.contains("canary"), "{said}");
        let alone = [bench.path("none")];
        assert!(bench.prepare(&alone, None).await.unwrap_err().to_string().contains("none"));
    }

    fn with_plugin(version: &str, more: &str) -> String {
        format!(
            "current-context: one
clusters: [{{name: c, cluster: {{server: 'https://c', certificate-authority-data: Y2E=}}}}]
contexts: [{{name: one, context: {{cluster: c, user: u}}}}]
users: [{{name: u, user: {{exec: {{apiVersion: client.authentication.k8s.io/{version}, command: ./plugin{more}}}}}}}]
"
        )
    }

    fn plugin_that(bench: &Bench, does: &str) {
        let path = bench.put("a/plugin", &format!("#!/bin/sh\n{does}\n"));
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    }

    /// As EKS, GKE and AKS have it.
    #[tokio::test]
    async fn a_plugins_token_lies_in_a_file_and_is_renewed() {
        let bench = Bench::new();
        let counts = bench.path("count");
        plugin_that(
            &bench,
            &format!(
                r#"echo run >> {}; n=$(wc -l < {})
                case "$KUBERNETES_EXEC_INFO" in *'"server":"https://c"'*) ;; *) exit 7;; esac
                end=$(date -u -d "+$LIFE seconds" +%Y-%m-%dT%H:%M:%SZ)
                printf '{{"apiVersion":"client.authentication.k8s.io/v1beta1","kind":"ExecCredential","status":{{"token":"%s-%s","expirationTimestamp":"%s"}}}}' "$1" $n $end"#,
                counts.display(),
                counts.display()
            ),
        );
        let more = ", args: [token], env: [{name: LIFE, value: '840'}], provideClusterInfo: true";
        let files = [bench.put("a/config", &with_plugin("v1beta1", more))];
        let (source, config) = bench.prepare(&files, None).await.unwrap();
        let user = config["users"][0]["user"].as_mapping().unwrap();
        assert!(!user.contains_key("exec"), "the agent runs no programs");
        let file = PathBuf::from(user["tokenFile"].as_str().unwrap());
        assert_eq!(fs::read_to_string(&file).unwrap(), "token-1");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let (plugin, next) = source.renewal.unwrap();
        assert!((700..=720).contains(&next.as_secs()), "two minutes before its end: {next:?}");
        plugin.renew().await.unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "token-2");
    }

    #[tokio::test]
    async fn a_plugin_that_gives_none_is_told_with_its_hint() {
        let bench = Bench::new();
        let files = [bench.put("a/config", &with_plugin("v1", ", installHint: 'get it at example.com'"))];
        for does in [None, Some("echo canary; exit 3"), Some("echo canary")] {
            if let Some(does) = does {
                plugin_that(&bench, does);
            }
            let report = bench.prepare(&files, None).await.unwrap_err();
            assert_eq!(report.fault, Fault::CredentialCommandFailed);
            let said = report.to_string();
            assert!(said.contains("a/plugin") && said.contains("get it at example.com"), "{said}");
            assert!(!said.contains("canary"), "{said}");
        }
        let old = [bench.put("a/config", &with_plugin("v1alpha1", ""))];
        let said = bench.prepare(&old, None).await.unwrap_err().to_string();
        assert!(said.contains("v1alpha1"), "{said}");
    }
}

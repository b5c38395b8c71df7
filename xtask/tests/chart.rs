//! The agent's Helm chart, as helm renders it: without a cluster.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_norway::Value;
use xtask::{chart, cluster::build};

const CANARY: &str = "hunter2-canary";
const CURRENT: [&str; 2] = ["--kube-version", "1.36.0"];
/// The last before constrained impersonation.
const BEFORE: [&str; 2] = ["--kube-version", "1.35.9"];
const LEAST: [&str; 4] = ["--kube-version", "1.36.0", "--set", "oidc.issuerUrl=https://issuer.example.com"];
/// Helm's own labels and annotations, which a plain manifest doesn't have.
const HELMS: &[&str] = &[
    "helm.sh/chart",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "helm.sh/hook",
    "helm.sh/hook-weight",
    "helm.sh/hook-delete-policy",
    "checksum/settings",
];

/// By kind and name; outside of the release's own namespace with that before it.
type Objects = BTreeMap<String, Value>;

fn helm(arguments: &[&str]) -> Output {
    let helm = build::ensure_built().unwrap().path("helm");
    // Nobody's own settings, plugins or cluster.
    let nowhere = std::env::temp_dir().join("towline-no-such-folder");
    let mut command = Command::new(helm);
    command.args(arguments).env_clear().env("HOME", &nowhere).env("KUBECONFIG", nowhere.join("config"));
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What `helm template` makes of some values.
fn template(arguments: &[&str]) -> Output {
    let chart = chart::folder().display().to_string();
    let common = ["template", "towline-agent", &chart, "--namespace", "towline"];
    helm(&[&common, arguments].concat())
}

fn objects(yaml: &str) -> Objects {
    let mut objects = Objects::new();
    for document in serde_norway::Deserializer::from_str(yaml) {
        let object: Value = serde::Deserialize::deserialize(document).unwrap();
        if object.is_null() {
            continue;
        }
        let elsewhere =
            at(&object, "/metadata/namespace").as_str().filter(|namespace| *namespace != "towline");
        let place = elsewhere.map(|namespace| format!("{namespace}/")).unwrap_or_default();
        let name = format!("{} {place}{}", text(&object, "/kind"), text(&object, "/metadata/name"));
        assert!(objects.insert(name.clone(), object).is_none(), "{name} is there twice");
    }
    objects
}

fn rendered(arguments: &[&str]) -> Objects {
    let output = template(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    // A warning (of values that can't be merged, say) would stand here.
    assert!(output.stderr.is_empty(), "{arguments:?}: {}", said(&output));
    objects(&String::from_utf8(output.stdout).unwrap())
}

fn with_file(path: &Path) -> Objects {
    rendered(&[&CURRENT[..], &["--values", &path.display().to_string()]].concat())
}

fn values(name: &str) -> PathBuf {
    chart::folder().join("ci").join(format!("{name}-values.yaml"))
}

fn value_files() -> Vec<PathBuf> {
    let entries = fs::read_dir(chart::folder().join("ci")).unwrap();
    let files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 4, "{files:?}");
    files
}

/// What stands at a JSON pointer (RFC 6901); null where nothing does.
fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    const NOTHING: &Value = &Value::Null;
    pointer.split('/').skip(1).fold(value, |value, key| {
        let found = match key.parse::<usize>() {
            Ok(number) if value.is_sequence() => value.get(number),
            _ => value.get(key.replace("~1", "/").as_str()),
        };
        found.unwrap_or(NOTHING)
    })
}

fn text(value: &Value, pointer: &str) -> String {
    at(value, pointer).as_str().unwrap_or_else(|| panic!("{pointer} is no text in {value:?}")).to_owned()
}

fn list(value: &Value, pointer: &str) -> Vec<Value> {
    at(value, pointer).as_sequence().cloned().unwrap_or_default()
}

fn yaml(text: &str) -> Value {
    serde_norway::from_str(text).unwrap()
}

/// The specification of the pods of a Deployment or Job.
fn pods(object: &Value) -> Option<&Value> {
    Some(at(object, "/spec/template/spec")).filter(|spec| spec.is_mapping())
}

/// Without what is Helm's own.
fn plain(value: &Value) -> Value {
    let is_empty = |value: &Value| value.as_mapping().is_some_and(serde_norway::Mapping::is_empty);
    match value {
        Value::Mapping(map) => {
            let own = map.iter().filter(|(key, _)| !HELMS.iter().any(|helms| key.as_str() == Some(helms)));
            let own = own.map(|(key, value)| (key.clone(), plain(value)));
            let own = own.filter(|(key, value)| {
                !(is_empty(value) && matches!(key.as_str(), Some("annotations" | "labels")))
            });
            Value::Mapping(own.collect())
        }
        Value::Sequence(items) => Value::Sequence(items.iter().map(plain).collect()),
        other => other.clone(),
    }
}

/// The same, without the label that names the program where a plain manifest has none.
fn comparable(object: &Value) -> Value {
    let mut object = plain(object);
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_mapping_mut) {
        metadata.remove("labels");
    }
    object
}

#[test]
fn values_and_readme_are_what_the_schema_says() {
    if std::env::var_os("TOWLINE_BLESS").is_some() {
        chart::write().unwrap();
    }
    for (name, expected) in [("values.yaml", chart::values()), ("README.md", chart::readme())] {
        let found = fs::read_to_string(chart::folder().join(name)).unwrap();
        assert!(found == expected.unwrap(), "{name} of the chart is stale: run `cargo xtask docs`");
    }
}

#[test]
fn helm_lint_finds_nothing() {
    let chart = chart::folder().display().to_string();
    let lint = |more: &[&str]| {
        let output = helm(&[&["lint", "--strict", &chart], more].concat());
        assert!(output.status.success(), "{more:?}: {}", said(&output));
        assert!(said(&output).contains("0 chart(s) failed"), "{}", said(&output));
    };
    lint(&[]);
    for file in value_files() {
        lint(&["--values", &file.display().to_string()]);
    }
    // It can find something.
    assert!(!helm(&["lint", "--strict", &chart, "--set", "replicas=many"]).status.success());
}

#[test]
fn people_may_act_as_the_service_accounts_that_are_named_and_as_no_others() {
    let nobody = rendered(&LEAST);
    assert!(!nobody.keys().any(|name| name.contains("impersonator-as") || name.contains("original-user")));
    let named = ["--set", "impersonation.serviceAccounts={ci/deployer,ci/backup,towline/own}"];
    let objects = rendered(&[&LEAST[..], &named].concat());
    for (role, names) in
        [("ci/towline-impersonator-as", "[deployer, backup]"), ("towline-impersonator-as", "[own]")]
    {
        let rules = format!(
            "[{{apiGroups: [''], resources: [serviceaccounts], resourceNames: {names}, verbs: [impersonate]}}]"
        );
        assert_eq!(*at(&objects[&format!("Role {role}")], "/rules"), yaml(&rules));
        let subject = "[{kind: ServiceAccount, name: towline-impersonator, namespace: towline}]";
        let binding = &objects[&format!("RoleBinding {role}")];
        assert_eq!(*at(binding, "/subjects"), yaml(subject));
        assert_eq!(text(binding, "/roleRef/name"), "towline-impersonator-as");
    }
    let told = "[{apiGroups: [authentication.k8s.io], resources: [userextras/towline.dev/original-user], verbs: [impersonate]}]";
    assert_eq!(*at(&objects["ClusterRole towline-impersonator-original-user"], "/rules"), yaml(told));
    // The older verb on service accounts, or on anything else, is given nowhere beside that.
    let unconstrained = objects.iter().filter(|(name, object)| {
        name.starts_with("ClusterRole ")
            && list(object, "/rules").iter().any(|rule| list(rule, "/verbs").contains(&yaml("impersonate")))
    });
    assert_eq!(unconstrained.count(), 1);
    for wrong in ["ci", "ci/", "ci/a/b", "ci/*", "CI/a"] {
        let value = format!("impersonation.serviceAccounts={{{wrong}}}");
        assert!(!template(&[&LEAST[..], &["--set", &value]].concat()).status.success(), "{wrong}");
    }
}

#[test]
fn the_manifest_is_what_the_chart_renders() {
    let mut manifest = objects(&fs::read_to_string(xtask::root().join("deploy/agent.yaml")).unwrap());
    assert!(manifest.remove("Namespace towline").is_some());
    let file = values("manifest").display().to_string();
    // The manifest is one for all versions.
    let mut chart = rendered(&[&BEFORE[..], &["--values", &file]].concat());
    // There these two roles stand ready to be bound; the chart binds what it makes.
    assert!(chart.remove("ClusterRoleBinding towline-impersonator-groups").is_some());
    let more = ["--values", &file, "--set", "impersonation.anyGroup=true"];
    let mut any = rendered(&[&BEFORE[..], &more].concat());
    assert!(any.contains_key("ClusterRoleBinding towline-impersonator-any"));
    let role = "ClusterRole towline-impersonator-any";
    chart.insert(role.into(), any.remove(role).unwrap());
    let names = |objects: &Objects| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&manifest), names(&chart));
    for (name, object) in &manifest {
        assert_eq!(
            comparable(object),
            comparable(&chart[name]),
            "deploy/agent.yaml and the chart differ in {name}"
        );
    }
}

#[test]
fn the_schema_is_strict_and_says_what_each_value_is() {
    fn strict(schema: &Value, path: &str) -> usize {
        let Some(properties) = schema.get("properties").and_then(Value::as_mapping) else { return 0 };
        assert_eq!(schema.get("additionalProperties"), Some(&Value::Bool(false)), "{path} takes anything");
        let inside = properties.iter().map(|(name, property)| {
            let path = format!("{path}/{}", name.as_str().unwrap());
            let described = property.get("description").and_then(Value::as_str);
            assert!(described.is_some_and(|text| text.ends_with('.')), "{path} is not described");
            assert!(property.get("type").is_some() || property.get("enum").is_some(), "{path} has no type");
            strict(property, &path) + property.get("items").map_or(0, |items| strict(items, &path))
        });
        1 + inside.sum::<usize>()
    }
    let schema = yaml(&fs::read_to_string(chart::folder().join("values.schema.json")).unwrap());
    assert!(strict(&schema, "") > 8);
}

/// A value that no template asks for would be set for nothing.
#[test]
fn every_value_is_asked_for() {
    let files = fs::read_dir(chart::folder().join("templates")).unwrap().map(|entry| entry.unwrap().path());
    let templates: String = files.map(|path| fs::read_to_string(path).unwrap()).collect();
    let mut asked = 0;
    for setting in chart::settings().unwrap().iter().filter(|setting| setting.default.is_some()) {
        // Some are read in a section (`with .Values.image`) or in one of two alike (`index $v "relay"`).
        let last = setting.path.rsplit('.').next().unwrap();
        let ways = [format!(".{}", setting.path), format!("$of.{last}"), format!(" .{last}")];
        let is_asked = ways.iter().any(|way| templates.contains(way.as_str()));
        assert!(is_asked, "{} is asked for by no template", setting.path);
        asked += 1;
    }
    assert!(asked > 60, "{asked}");
}

#[test]
fn values_that_can_not_be_are_refused_in_words() {
    let refused = |values: &[&str], words: &[&str]| {
        let sets = values.iter().flat_map(|value| ["--set", value]);
        let arguments: Vec<&str> = LEAST.into_iter().chain(sets).collect();
        let output = template(&arguments);
        let told = said(&output);
        assert!(!output.status.success(), "{values:?} is taken");
        for word in words {
            assert!(told.contains(word), "{word:?} is missing for {values:?}: {told}");
        }
        assert!(!told.contains(CANARY), "a secret is told: {told}");
    };
    // By the schema.
    refused(&["proxi.https=http://p"], &["additional properties 'proxi' not allowed"]);
    refused(&["proxy.url=http://p"], &["at '/proxy'", "'url' not allowed"]);
    refused(&["replicas=two"], &["at '/replicas'", "got string, want integer"]);
    refused(&["mode=proxy"], &["at '/mode'", "'impersonate', 'passthrough'"]);
    refused(&["image.digest=latest"], &["at '/image/digest'", "does not match"]);
    refused(&["oidc.issuerUrl=http://i"], &["at '/oidc/issuerUrl'", "^(https://.+)?$"]);
    refused(&["oidc.signingAlgs={HS256}"], &["at '/oidc/signingAlgs/0'", "'RS256'"]);
    refused(&["limits.maxStreams=0"], &["at '/limits/maxStreams'", "minimum"]);
    refused(&["bulkLines=4"], &["at '/bulkLines'", "maximum"]);
    refused(&["limits.maxBufferedBytes=1GB"], &["at '/limits/maxBufferedBytes'"]);
    refused(&["enrolment.token=7"], &["at '/enrolment/token'", "want string"]);
    refused(&["preflight.deadlineSeconds=5"], &["at '/preflight/deadlineSeconds'", "minimum"]);
    refused(&["extraEnv[0].nam=A"], &["at '/extraEnv/0'", "missing property 'name'"]);
    // By the templates.
    refused(&["oidc.issuerUrl="], &["whose tokens", "oidc.issuerUrl, authenticationConfig"]);
    refused(&["authenticationConfig=a"], &["oidc.issuerUrl stands beside authenticationConfig"]);
    let certificate = "oidc.ca=-----BEGIN CERTIFICATE-----";
    refused(&["issuerFiles.configMap=a", certificate], &["issuerFiles.configMap takes"]);
    refused(&["issuerFiles.keys={entra.yaml}"], &["Set issuerFiles.configMap"]);
    let token = format!("enrolment.token={CANARY}");
    refused(&[&token], &["enrolment.token is no enrolment token", "--set-file"]);
    let token = format!("enrolment.token=tle1.{CANARY}");
    refused(&[&token, "enrolment.existingSecret=s"], &["enrolment.token and enrolment.existingSecret"]);
    refused(
        &["secondRelay.url=https://b"],
        &["secondRelay.url is of which relay", "secondRelay.existingSecret"],
    );
    refused(
        &["enrolment.existingSecret=s", "secondRelay.existingSecret=s"],
        &["secondRelay.existingSecret and secondRelay.key are the first relay's"],
    );
    refused(&["relay.ca=root.pem"], &["relay.ca has no certificate", "--set-file relay.ca=FILE"]);
    refused(&["proxy.caSecret=a", "proxy.caConfigMap=b"], &["proxy.ca, proxy.caConfigMap"]);
    let url = format!("proxy.https=http://user:{CANARY}@proxy:3128");
    refused(&[&url], &["proxy.https has credentials", "proxy.credentialsSecret"]);
    refused(&["proxy.http=proxy:3128"], &["proxy.http is no proxy's URL"]);
    refused(&["proxy.https=socks5://proxy:1080"], &["proxy.https is no proxy's URL"]);
    refused(&["impersonation.groups={system:masters}"], &["system:masters is none of people's"]);
    let passthrough = ["mode=passthrough", "impersonation.anyGroup=true"];
    refused(&passthrough, &["mean nothing with mode passthrough"]);
    refused(&["audit.stdout=true", "audit.volume.emptyDir.medium=Memory"], &["audit.stdout and"]);
    // All of it at once.
    let many = ["oidc.issuerUrl=", "proxy.http=x", "relay.ca=x"];
    refused(&many, &["whose tokens", "proxy.http", "relay.ca"]);
}

#[test]
fn before_kubernetes_1_36_groups_must_be_named() {
    let of = |version: &str, more: &[&str]| {
        let issuer = ["--set", "oidc.issuerUrl=https://issuer.example.com", "--kube-version", version];
        template(&[&issuer[..], more].concat())
    };
    let output = of("1.35.9", &[]);
    assert!(!output.status.success() && said(&output).contains("impersonation.groups"), "{}", said(&output));
    assert!(of("1.35.9", &["--set", "mode=passthrough"]).status.success());
    // As providers name versions.
    assert!(!of("v1.35.4-gke.100", &[]).status.success());
    assert!(of("v1.36.1-gke.100", &[]).status.success());
    let named = of("1.35.9", &["--set", "impersonation.groups={dev,ops}"]);
    let named = objects(&said(&named));
    let role = &named["ClusterRole towline-impersonator-groups"];
    assert_eq!(at(role, "/rules/1/resourceNames"), &yaml("['system:authenticated', dev, ops]"));
    let binding = &named["ClusterRoleBinding towline-impersonator-groups"];
    assert_eq!(text(binding, "/subjects/0/name"), "towline-impersonator");
    assert!(!named.contains_key("ClusterRole towline-impersonator-any"));
}

/// A right without constraint would be all that counts, whoever forgot to take the value out.
#[test]
fn from_kubernetes_1_36_no_value_gives_a_right_without_constraint() {
    let set = ["--set", "impersonation.groups={dev,ops}", "--set", "impersonation.anyGroup=true"];
    let issuer = ["--set", "oidc.issuerUrl=https://issuer.example.com"];
    let unconstrained = |version: &str| {
        let objects = rendered(&[&["--kube-version", version][..], &issuer, &set].concat());
        let roles = objects.values().filter(|object| text(object, "/kind").ends_with("Role"));
        let rules: Vec<Value> = roles.flat_map(|role| list(role, "/rules")).collect();
        assert!(rules.len() > 4, "{rules:?}");
        rules.into_iter().filter(|rule| list(rule, "/verbs").contains(&yaml("impersonate"))).count()
    };
    // Three rules and two, for the accounts that stay and for the preflight's.
    assert_eq!(unconstrained("1.35.9"), 10);
    for version in ["1.36.0", "v1.36.1-gke.100", "1.37.0-alpha.1"] {
        assert_eq!(unconstrained(version), 0, "{version}");
    }
}

#[test]
fn every_value_reaches_the_agent() {
    let full = with_file(&values("full"));
    let expected = "
RUST_LOG: info,towline_agent=debug
TOWLINE_AGENT_ALLOW_SYSTEM_MASTERS: 'true'
TOWLINE_AGENT_AUDIT_LOG: /var/log/towline/audit.log
TOWLINE_AGENT_AUDIT_LOG_FILES: '0'
TOWLINE_AGENT_AUDIT_LOG_SIZE: 10MiB
TOWLINE_AGENT_BULK_LINES: '0'
TOWLINE_AGENT_DRAIN_TIMEOUT: 30s
TOWLINE_AGENT_ISSUER_VIA_RELAY: 'true'
TOWLINE_AGENT_MAX_BUFFERED_BYTES: 1GiB
TOWLINE_AGENT_MAX_RELAY_ROLE: writer
TOWLINE_AGENT_MAX_STREAMS: '1000000'
TOWLINE_AGENT_MAX_STREAMS_PER_USER: '100'
TOWLINE_AGENT_MAX_TOKEN_AGE: 1h
TOWLINE_AGENT_METRICS_LISTEN: 0.0.0.0:9100
TOWLINE_AGENT_NO_SPARE: 'true'
TOWLINE_AGENT_OIDC_CA_FILE: /etc/towline/issuer/ca.pem
TOWLINE_AGENT_OIDC_CLIENT_ID: cluster
TOWLINE_AGENT_OIDC_GROUPS_CLAIM: groups
TOWLINE_AGENT_OIDC_GROUPS_PREFIX: 'oidc:'
TOWLINE_AGENT_OIDC_ISSUER_URL: https://issuer.example.com
TOWLINE_AGENT_OIDC_REQUIRED_CLAIM: tenant=a,team=b
TOWLINE_AGENT_OIDC_SIGNING_ALGS: RS256,ES256
TOWLINE_AGENT_OIDC_USERNAME_CLAIM: email
TOWLINE_AGENT_OIDC_USERNAME_PREFIX: '-'
TOWLINE_AGENT_ORGANISATION_KEY: MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE
TOWLINE_AGENT_PROXY_CERT: /etc/towline/proxy/ca.pem
TOWLINE_AGENT_PROXY_HTTP: http://proxy.example.com:3128
TOWLINE_AGENT_PROXY_HTTPS: https://proxy.example.com:3129
TOWLINE_AGENT_RELAY_CA_FILE: /etc/towline/relay/ca.pem
TOWLINE_AGENT_RESUME_TIMEOUT: 2m
";
    assert_eq!(at(&full["ConfigMap far-agent"], "/data"), &yaml(expected));
    let spec = pods(&full["Deployment far-agent"]).unwrap();
    let image = "registry.example.com/towline/agent@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    for (pointer, expected) in [
        ("/containers/0/image", image),
        ("/containers/0/imagePullPolicy", "Always"),
        ("/containers/0/resources", "{limits: {memory: 1Gi}, requests: {cpu: 50m, memory: 32Mi}}"),
        ("/containers/0/env/4", "{name: KUBERNETES_SERVICE_HOST, value: 10.0.0.1}"),
        ("/containers/0/ports", "[{name: metrics, containerPort: 9100}]"),
        ("/containers/0/livenessProbe/exec/command", "[/towline-agent, health, --live]"),
        ("/containers/0/readinessProbe/exec/command", "[/towline-agent, health]"),
        ("/imagePullSecrets", "[{name: registry}]"),
        ("/priorityClassName", "system-cluster-critical"),
        ("/nodeSelector", "{kubernetes.io/os: linux}"),
        ("/tolerations", "[{key: edge, operator: Exists}]"),
        ("/topologySpreadConstraints/0/maxSkew", "1"),
        ("/affinity/podAntiAffinity/preferredDuringSchedulingIgnoredDuringExecution/0/weight", "1"),
        ("/terminationGracePeriodSeconds", "45"),
        ("/volumes/5", "{name: audit, persistentVolumeClaim: {claimName: audit}}"),
    ] {
        assert_eq!(at(spec, pointer), &yaml(expected), "{pointer}");
    }
    assert_eq!(at(&full["Deployment far-agent"], "/spec/replicas"), &yaml("2"));
    let metadata = at(&full["Deployment far-agent"], "/spec/template/metadata");
    assert_eq!(text(metadata, "/labels/team"), "platform");
    assert_eq!(text(metadata, "/annotations/example.org~1owner"), "platform");
    let taken_on = at(&full["ClusterRole far-impersonator"], "/rules/0/resources");
    let extra = "userextras/towline.dev/original-user, userextras/example.org/team";
    assert_eq!(taken_on, &yaml(&format!("[users, groups, uids, {extra}]")));
    assert_eq!(text(&full["Secret far-agent-enrolment"], "/stringData/token"), "tle1.bm90IGEgdG9rZW4");
    let least = with_file(&values("least"));
    let data = at(&least["ConfigMap towline-agent"], "/data");
    let said = "TOWLINE_AGENT_AUDIT_LOG: '-'\nTOWLINE_AGENT_OIDC_ISSUER_URL: https://issuer.example.com";
    assert_eq!(data, &yaml(said));
}

/// Whatever a setting names is mounted, and what is mounted is there, or somebody else's.
#[test]
fn files_that_settings_name_are_mounted() {
    for file in value_files() {
        let objects = with_file(&file);
        let of = file.display();
        for (name, spec) in objects.iter().filter_map(|(name, object)| Some((name, pods(object)?))) {
            let container = at(spec, "/containers/0");
            let names =
                |items: &[Value]| items.iter().map(|item| text(item, "/name")).collect::<BTreeSet<_>>();
            let (volumes, mounts) = (list(spec, "/volumes"), list(container, "/volumeMounts"));
            assert_eq!(names(&volumes), names(&mounts), "{name} of {of}");
            let config = &objects[&format!("ConfigMap {}", text(container, "/envFrom/0/configMapRef/name"))];
            let settings = at(config, "/data").as_mapping().unwrap();
            for path in settings.values().filter_map(Value::as_str).filter(|value| value.starts_with('/')) {
                let within = |mount: &Value| path.starts_with(&format!("{}/", text(mount, "/mountPath")));
                assert!(mounts.iter().any(within), "{path} is not mounted in {name} of {of}");
            }
            let own = name.split(' ').nth(1).unwrap();
            for volume in volumes {
                let sources = [("ConfigMap", "/configMap", "/name"), ("Secret", "/secret", "/secretName")];
                for (kind, source, key) in sources {
                    let Some(wanted) = at(at(&volume, source), key).as_str() else { continue };
                    let theirs = !wanted.starts_with(&format!("{own}-"));
                    let optional = at(&volume, source).get("optional") == Some(&Value::Bool(true));
                    let there = objects.contains_key(&format!("{kind} {wanted}"));
                    assert!(there || optional || theirs, "{kind} {wanted} is not there in {of}");
                }
            }
        }
    }
    let entra = with_file(&values("entra"));
    let files = at(&entra["ConfigMap towline-agent-issuer"], "/data");
    assert_eq!(text(&yaml(&text(files, "/authentication.yaml")), "/kind"), "AuthenticationConfiguration");
    assert!(text(files, "/entra.yaml").starts_with("apiVersion: towline.dev/v1\n"));
    let proxy = with_file(&values("proxy"));
    let data = at(&proxy["ConfigMap towline-agent"], "/data");
    assert_eq!(text(data, "/TOWLINE_AGENT_PROXY_SKIP_RANGE"), "10.0.0.0/8,.example.internal,*.svc:8443");
    let credentials = text(data, "/TOWLINE_AGENT_PROXY_CREDENTIALS_FILE");
    assert_eq!(credentials, "/etc/towline/proxy-credentials/credentials");
    let config = with_file(&values("proxy-config"));
    let data = at(&config["ConfigMap towline-agent"], "/data");
    assert_eq!(text(data, "/TOWLINE_AGENT_PROXY_CONFIG"), "/etc/towline/proxy-config/proxy.toml");
    assert!(
        data.get("TOWLINE_AGENT_PROXY_HTTPS").is_none(),
        "an empty one would go before the file's: {data:?}"
    );
}

#[test]
fn a_second_relay_is_joined_by_a_token_of_its_own() {
    let objects = with_file(&values("two-relays"));
    let data = at(&objects["ConfigMap towline-agent"], "/data");
    for (name, value) in [
        ("SECOND_ENROLMENT_TOKEN_FILE", "/etc/towline/second-enrolment/token"),
        ("SECOND_RELAY", "https://other.example.com"),
        ("SECOND_RELAY_CA_FILE", "/etc/towline/relay/ca.pem"),
    ] {
        assert_eq!(text(data, &format!("/TOWLINE_AGENT_{name}")), value);
    }
    for object in ["Deployment towline-agent", "Job towline-preflight"] {
        let spec = pods(&objects[object]).unwrap();
        let mounted = format!("{:?}", at(spec, "/containers/0/volumeMounts"));
        assert!(mounted.contains("/etc/towline/second-enrolment"), "{object}: {mounted}");
        let volumes = list(spec, "/volumes");
        let expected = "{name: second-enrolment, secret: {secretName: other-relay, optional: true}}";
        assert!(volumes.contains(&yaml(expected)), "{object}: {volumes:?}");
    }
    let one = with_file(&values("least"));
    assert!(!format!("{one:?}").contains("SECOND"), "{one:?}");
}

#[test]
fn passthrough_gives_no_right_to_impersonate() {
    let objects = with_file(&values("passthrough"));
    assert!(objects.keys().all(|name| !name.starts_with("Cluster")), "{:?}", objects.keys());
    assert_eq!(list(&objects["Role towline-agent"], "/rules").len(), 1);
    let all = format!("{objects:?}");
    assert!(!all.contains("impersonat"), "{all}");
    assert!(all.contains("TOWLINE_AGENT_MODE") && all.contains("ALLOW_SERVICE_ACCOUNT_TOKENS"));
}

/// Pod security's `restricted`, field by field; e2e asks kube-apiserver.
#[test]
fn pods_are_restricted() {
    let mut looked_at = 0;
    for file in value_files() {
        for spec in with_file(&file).values().filter_map(pods) {
            for (pointer, expected) in [
                ("/securityContext/runAsNonRoot", "true"),
                ("/securityContext/seccompProfile/type", "RuntimeDefault"),
                ("/containers/0/securityContext/allowPrivilegeEscalation", "false"),
                ("/containers/0/securityContext/readOnlyRootFilesystem", "true"),
                ("/containers/0/securityContext/capabilities", "{drop: [ALL]}"),
            ] {
                assert_eq!(at(spec, pointer), &yaml(expected), "{pointer}");
            }
            assert_eq!(list(spec, "/containers").len(), 1);
            assert!(spec.get("hostNetwork").is_none());
            looked_at += 1;
        }
    }
    assert!(looked_at > 8, "{looked_at}");
}

#[test]
fn the_preflight_comes_first_with_the_same_rights_and_leaves_nothing() {
    let objects = with_file(&values("full"));
    let annotation = |name: &str, key: &str| {
        at(&objects[name], "/metadata/annotations").get(key).and_then(Value::as_str).map(str::to_owned)
    };
    let weight = |name: &str| annotation(name, "helm.sh/hook-weight").unwrap().parse::<i32>().unwrap();
    let job = "Job far-preflight";
    assert_eq!(at(&objects[job], "/spec/activeDeadlineSeconds"), &yaml("300"));
    assert_eq!(at(&objects[job], "/spec/template/spec/containers/0/args"), &yaml("[preflight]"));
    let mut copies = 0;
    for name in objects.keys().filter(|name| name.contains("preflight")) {
        assert_eq!(annotation(name, "helm.sh/hook").unwrap(), "pre-install,pre-upgrade", "{name}");
        let policy = annotation(name, "helm.sh/hook-delete-policy").unwrap();
        assert_eq!(policy, "before-hook-creation,hook-succeeded", "{name}");
        if name == job {
            continue;
        }
        assert!(weight(name) < weight(job), "{name} comes after the Job");
        let deputy = |text: &str| text.replace("far-preflight-impersonator", "far-impersonator");
        let real = deputy(name).replace("far-preflight", "far-agent");
        for part in ["rules", "data", "stringData", "automountServiceAccountToken"] {
            let part_of =
                |name: &str| serde_norway::to_string(at(&objects[name], &format!("/{part}"))).unwrap();
            assert_eq!(deputy(&part_of(name)), part_of(&real), "{part} of {name}");
        }
        assert!(annotation(&real, "helm.sh/hook").is_none(), "{real} is a hook");
        copies += 1;
    }
    assert!(copies > 12, "{copies}");
    // Its pods are none of the Deployment's.
    let selected =
        text(&objects["Deployment far-agent"], "/spec/selector/matchLabels/app.kubernetes.io~1name");
    let labelled = text(&objects[job], "/spec/template/metadata/labels/app.kubernetes.io~1name");
    assert_ne!(selected, labelled);
    // The identity is there before, and stays.
    let state = "Secret far-agent-state";
    assert!(weight(state) < weight("ServiceAccount far-preflight"));
    assert_eq!(annotation(state, "helm.sh/hook-delete-policy").unwrap(), "hook-failed");
    let without = rendered(&[&LEAST[..], &["--set", "preflight.enabled=false"]].concat());
    assert!(without.keys().all(|name| !name.contains("preflight")), "{:?}", without.keys());
    assert!(without.contains_key("Secret towline-agent-state"));
}

#[test]
fn names_follow_the_release_and_fit() {
    let chart = chart::folder().display().to_string();
    let names = |release: &str| {
        let output = helm(&[&["template", release, &chart, "--namespace", "towline"], &LEAST[..]].concat());
        assert!(output.status.success(), "{}", said(&output));
        objects(&said(&output)).into_keys().collect::<BTreeSet<_>>()
    };
    assert!(names("towline-agent").contains("ServiceAccount towline-impersonator"));
    assert!(names("edge").contains("Deployment edge-agent"));
    assert!(names("edge").is_disjoint(&names("core")), "two releases share a name");
    // What pods are named after has 63 letters at most, and a release's name 53.
    for name in names(&"a".repeat(53)) {
        assert!(name.split(' ').nth(1).unwrap().len() <= 63, "{name}");
    }
}

#[test]
fn settings_that_change_replace_the_pods() {
    let sum = |value: &str| {
        let objects = rendered(&[&LEAST[..], &["--set", value]].concat());
        text(&objects["Deployment towline-agent"], "/spec/template/metadata/annotations/checksum~1settings")
    };
    let before = sum("clusterName=edge-7");
    assert_eq!(before, sum("preflight.enabled=false"));
    for change in ["maxTokenAge=1h", "oidc.ca=-----BEGIN CERTIFICATE-----", "enrolment.token=tle1.a"] {
        assert_ne!(before, sum(change), "{change}");
    }
}

#[test]
fn the_charts_program_is_this_version() {
    let chart = yaml(&fs::read_to_string(chart::folder().join("Chart.yaml")).unwrap());
    assert_eq!(text(&chart, "/appVersion"), env!("CARGO_PKG_VERSION"));
}

/// Whose own values (`global`) it leaves alone.
#[test]
fn it_can_be_part_of_another_chart() {
    let objects = rendered(&[&LEAST[..], &["--set", "global.region=eu"]].concat());
    assert!(objects.contains_key("Deployment towline-agent"));
}

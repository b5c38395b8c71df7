//! Three logs of the same requests: kube-apiserver's audit log, the agent's, and the relay's. Whatever kube-apiserver did for somebody
//! whom the agent named is one line of the agent's, in the same words, and belongs to one channel of the relay.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use towline_tunnel::ids::StreamKey;

use crate::{
    case::run_within,
    process::pause,
    stage::{Proxy, Stage},
    table::{GROUP, RESTRICTED, TOKEN_LIFETIME, USER, make_namespace},
};

/// What still runs when the logs are read has no line yet: they are read again until then.
const JOINS_WITHIN: Duration = Duration::from_secs(15);

/// Every kind of request that people make. `-n` and a pod `box` are there.
const EVERYTHING: &str = r#"
set -u
kubectl get pods -o name; kubectl get pods --watch --request-timeout=1s; kubectl get pod none
printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one}\ndata: {a: b}\n' > one.yaml
kubectl apply -f one.yaml; kubectl apply --server-side --force-conflicts -f one.yaml; kubectl label configmap one c=d
kubectl patch configmap one -p '{"data":{"a":"c"}}'; kubectl create configmap two --from-literal=a=b; kubectl replace -f one.yaml
kubectl delete configmap one two; kubectl delete --raw "/api/v1/namespaces/$NAMESPACE/configmaps?labelSelector=none%3Dnone"
kubectl create serviceaccount a; kubectl create token a > /dev/null; kubectl scale deployment none --replicas=1
kubectl logs box; timeout 2 kubectl logs -f box
for websockets in true false; do
    export KUBECTL_REMOTE_COMMAND_WEBSOCKETS=$websockets KUBECTL_PORT_FORWARD_WEBSOCKETS=$websockets
    kubectl exec box -- true; echo x | kubectl exec -i box -- cat; kubectl exec box -- sh -c 'exit 3'
    kubectl cp one.yaml box:/tmp/one.yaml; timeout 2 kubectl attach box
    kubectl port-forward box :80 > forwarded 2>&1 & until grep -q 127.0.0.1 forwarded; do sleep 0.05; done; kill $!; wait $!
done
timeout 1 kubectl exec box -- sleep 60; timeout -s KILL 1 kubectl get pods --watch
kubectl auth whoami; kubectl auth can-i --list; kubectl auth whoami --as=carol --as-group=dev; kubectl get pods --as=carol
kubectl api-resources > /dev/null; kubectl version; kubectl get --raw /nothing/here; kubectl explain pods > /dev/null; kubectl top nodes
kubectl get --raw "/api/v1/namespaces/$NAMESPACE/pods/box:80/proxy/x"; kubectl --kubeconfig "$RESTRICTED" get secrets
for n in $(seq 20); do kubectl get configmaps -o name & done; wait
true
"#;

/// What [`EVERYTHING`] must have led to, or it would prove little: verb, resource and subresource.
const KINDS: [&str; 16] = [
    "list pods",
    "watch pods",
    "get pods",
    "patch configmaps",
    "create configmaps",
    "update configmaps",
    "delete configmaps",
    "deletecollection configmaps",
    "create serviceaccounts/token",
    "get pods/log",
    "get pods/exec",
    "create pods/exec",
    "create selfsubjectreviews",
    "get pods/proxy",
    "list secrets",
    "get ",
];

/// How much was joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// Events of kube-apiserver's.
    pub events: usize,
    /// The requests that they are about, each of which is one line of the agent's.
    pub requests: usize,
    /// The channels of the relay that those belong to.
    pub channels: usize,
}

/// The three logs, as far as they concern one agent.
#[derive(Clone, Debug, Default)]
pub struct Logs {
    /// kube-apiserver's events of whatever was done in the agent's name for somebody else.
    pub events: Vec<Value>,
    /// The agent's lines.
    pub lines: Vec<Value>,
    /// The relay's records of channels that were let to this cluster.
    pub channels: Vec<Value>,
}

/// Uses everything once, and joins whatever the stage's agent has done since it began.
///
/// # Errors
/// What does not join.
pub fn run(stage: &Stage) -> anyhow::Result<Joined> {
    stage.let_in(USER)?;
    stage.let_in(RESTRICTED)?;
    let user = stage.proxy("joined", &stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?)?;
    let restricted = stage.proxy("joined-restricted", &stage.tokens(RESTRICTED, &[], TOKEN_LIFETIME)?)?;
    use_everything(stage, &user, &restricted)?;
    let logs = joined(stage)?;
    let kinds: BTreeSet<String> = logs.events.iter().map(kind).collect();
    for wanted in KINDS {
        ensure!(kinds.contains(wanted), "nobody asked for {wanted:?}: {kinds:?}");
    }
    Ok(logs.join().0)
}

/// Reads the stage's logs until all of them joins.
///
/// # Errors
/// What does not join.
pub fn joined(stage: &Stage) -> anyhow::Result<Logs> {
    let since = Instant::now();
    loop {
        let logs = Logs::read(stage)?;
        let (joined, faults) = logs.join();
        if faults.is_empty() {
            ensure!(joined.requests > 0, "kube-apiserver has no event of {}", stage.agent_user);
            return Ok(logs);
        }
        let some = faults.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
        ensure!(since.elapsed() < JOINS_WITHIN, "{} faults of {joined:?}:\n{some}", faults.len());
        pause(Duration::from_millis(250));
    }
}

fn use_everything(stage: &Stage, user: &Proxy, restricted: &Proxy) -> anyhow::Result<()> {
    let namespace = format!("join-{}", StreamKey::random());
    make_namespace(&stage.cluster, &namespace)?;
    let folder = stage.folder().join("joined");
    fs::create_dir_all(&folder)?;
    let programs = stage.cluster.programs().folder().display();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap_or_default());
    let script =
        format!("kubectl config set-context --current --namespace=$NAMESPACE > /dev/null\n{EVERYTHING}");
    let mut command = Command::new("bash");
    command
        .args(["-c", &script])
        .env("KUBECONFIG", &user.kubeconfig)
        .env("RESTRICTED", &restricted.kubeconfig);
    command.env("NAMESPACE", &namespace).env("PATH", path).env("HOME", &folder).current_dir(&folder);
    let outcome = run_within(command, Duration::from_secs(180))?;
    ensure!(outcome.ended == "exit 0", "{}: {}", outcome.ended, outcome.stderr);
    stage.cluster.kubectl_output(&["delete", "namespace", &namespace, "--wait=false"])?;
    Ok(())
}

/// Verb, resource and subresource of an event.
fn kind(event: &Value) -> String {
    let object = |name: &str| event["objectRef"][name].as_str().unwrap_or_default();
    let subresource = object("subresource");
    let slash = if subresource.is_empty() { "" } else { "/" };
    format!("{} {}{slash}{subresource}", event["verb"].as_str().unwrap_or_default(), object("resource"))
}

/// The whole lines of a file; what is being written has no end yet.
fn lines(path: &Path) -> anyhow::Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
        .collect()
}

impl Logs {
    fn read(stage: &Stage) -> anyhow::Result<Self> {
        // kube-apiserver's first: what it has, the others must have.
        let mut events = lines(&stage.cluster.audit_log())?;
        events.retain(|event| {
            event["user"]["username"] == stage.agent_user.as_str() && event["impersonatedUser"].is_object()
        });
        let lines = lines(&stage.agent_audit())?;
        let channels = stage.relay_command(&["audit", "-o", "json", "--limit", "1000000"])?;
        let mut channels: Vec<Value> = serde_json::from_str(&channels)?;
        channels.retain(|channel| {
            channel["clusterId"] == stage.cluster_id.as_str() && channel["verdict"] == "allowed"
        });
        Ok(Self { events, lines, channels })
    }

    /// How much joins, and what does not.
    pub fn join(&self) -> (Joined, Vec<String>) {
        let lines = by(&self.lines, "auditId");
        let channels = by(&self.channels, "channel");
        let (mut requests, mut used, mut faults) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        let has_begun: BTreeSet<&str> = self
            .events
            .iter()
            .filter(|event| event["stage"] == "ResponseStarted")
            .filter_map(|event| event["auditID"].as_str())
            .collect();
        for event in &self.events {
            let id = event["auditID"].as_str().unwrap_or_default();
            let line = match lines.get(id).map(Vec::as_slice) {
                Some([line]) => *line,
                found => {
                    let count = found.map_or(0, <[_]>::len);
                    faults.push(format!("{count} lines of the agent's where one was due: {event}"));
                    continue;
                }
            };
            faults.extend(differences(event, line, has_begun.contains(id)));
            requests.insert(id);
            let channel = line["channel"].as_str().unwrap_or_default();
            match channels.get(channel).map(Vec::as_slice) {
                Some([record]) if record["principal"] == line["principal"] => {
                    used.insert(channel);
                }
                Some([record]) => faults.push(format!("a channel of somebody else's, {record}: {line}")),
                found => {
                    let count = found.map_or(0, <[_]>::len);
                    faults.push(format!("{count} records of the relay's where one was due: {line}"));
                }
            }
        }
        (Joined { events: self.events.len(), requests: requests.len(), channels: used.len() }, faults)
    }
}

fn by<'a>(all: &'a [Value], field: &str) -> HashMap<&'a str, Vec<&'a Value>> {
    let mut found: HashMap<&str, Vec<&Value>> = HashMap::new();
    for one in all {
        if let Some(name) = one[field].as_str() {
            found.entry(name).or_default().push(one);
        }
    }
    found
}

/// Where kube-apiserver's event and the agent's line say different things.
fn differences(event: &Value, line: &Value, has_begun: bool) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &event["objectRef"];
    let whom = if line["actsAs"].is_string() { &line["actsAs"] } else { &line["user"] };
    let mut pairs = vec![
        ("user", text(&event["impersonatedUser"]["username"]), text(whom)),
        ("verb", text(&event["verb"]), text(&line["verb"])),
        ("resource", text(&object["resource"]), text(&line["resource"])),
        ("subresource", text(&object["subresource"]), text(&line["subresource"])),
    ];
    // kube-apiserver takes them from a body or a selector, too, which the agent does not read.
    for field in ["namespace", "name"] {
        if line[field].is_string() {
            pairs.push((field, text(&object[field]), text(&line[field])));
        }
    }
    // Of an answer that began, the head is what the agent saw; and whoever left before it saw none (0).
    let is_head = event["stage"] == "ResponseStarted" || event["stage"] == "ResponseComplete" && !has_begun;
    if is_head && line["code"] != 0 {
        pairs.push(("code", event["responseStatus"]["code"].to_string(), line["code"].to_string()));
    }
    let differ = pairs.into_iter().filter(|(_, event, line)| event != line);
    differ
        .map(|(what, theirs, ours)| format!("{what}: {theirs:?} there, {ours:?} here: {event} {line}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn logs() -> Logs {
        let event = |stage: &str| {
            json!({
                "auditID": "a", "stage": stage, "verb": "get", "user": { "username": "agent" },
                "impersonatedUser": { "username": "alice" }, "responseStatus": { "code": 200 },
                "objectRef": { "resource": "pods", "subresource": "log", "namespace": "n", "name": "box" },
            })
        };
        let line = json!({
            "auditId": "a", "channel": "c", "principal": "i#alice", "user": "alice", "verb": "get",
            "resource": "pods", "subresource": "log", "namespace": "n", "name": "box", "code": 200,
        });
        let channel = json!({ "channel": "c", "principal": "i#alice" });
        Logs {
            events: vec![event("ResponseStarted"), event("ResponseComplete")],
            lines: vec![line.clone(), json!({ "auditId": "another" })],
            channels: vec![channel, json!({ "channel": "d", "principal": "i#bob" })],
        }
    }

    #[test]
    fn what_is_whole_joins() {
        assert_eq!(logs().join(), (Joined { events: 2, requests: 1, channels: 1 }, Vec::new()));
    }

    #[test]
    fn a_line_that_is_missing_doubled_or_another_ones_is_noticed() {
        type Change = fn(&mut Logs);
        let changes: [(&str, Change); 9] = [
            ("0 lines of the agent's", |logs| drop(logs.lines.remove(0))),
            ("2 lines of the agent's", |logs| logs.lines.push(logs.lines[0].clone())),
            ("0 records of the relay's", |logs| drop(logs.channels.remove(0))),
            ("2 records of the relay's", |logs| logs.channels.push(logs.channels[0].clone())),
            ("somebody else's", |logs| logs.channels[0]["principal"] = json!("i#bob")),
            ("user: \"alice\" there, \"bob\" here", |logs| logs.lines[0]["user"] = json!("bob")),
            ("user: \"alice\" there, \"carol\" here", |logs| logs.lines[0]["actsAs"] = json!("carol")),
            ("subresource", |logs| logs.events[0]["objectRef"]["subresource"] = json!("exec")),
            ("code", |logs| logs.lines[0]["code"] = json!(403)),
        ];
        for (expected, change) in changes {
            let mut logs = logs();
            change(&mut logs);
            let (_, faults) = logs.join();
            assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected}: {faults:?}");
        }
    }

    #[test]
    fn whoever_left_before_an_answer_has_a_line_without_a_code() {
        let mut logs = logs();
        logs.lines[0]["code"] = json!(0);
        assert_eq!(logs.join().1, Vec::<String>::new());
    }
}

//! Behind the session: each cluster, its agent, its apiserver, a kubelet.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Instant, SystemTime},
};

use http::StatusCode;
use serde_json::Value;
use towline_tunnel::{
    doctor::{Diagnosis, Examination, Step, Verdict, at},
    fault::{Fault, Report},
    ids::ClusterId,
    inner::DOCTOR_PATH,
    keys::SigningKey,
    ticket::TicketError,
};

use super::Subject;
use crate::{
    app::Choice,
    dial::{Link, Pool},
    forward::Forwarder,
    local::StateFolder,
    token::Tokens,
};

/// Small answers, such as one pod.
const SMALL: usize = 1 << 20;
/// What an OpenAPI document has at most.
const LARGE: usize = 32 << 20;
/// One pod that runs: any will do.
const ONE_POD: &str = "/api/v1/pods?limit=1&fieldSelector=status.phase%3DRunning";
/// The largest document that everybody may read.
const DOCUMENT: &str = "/openapi/v2";

pub(super) async fn examine(
    subject: &Subject,
    link: &Arc<Link>,
    run_key: &SigningKey,
    tokens: Arc<Tokens>,
    examination: &mut Examination<'_>,
) {
    if subject.clusters.is_empty() {
        return examination
            .skip(&[Step::Cluster], "none is named: give --cluster, or name some in the profile");
    }
    for choice in &subject.clusters {
        let found = examination.check(Step::Cluster, found(subject, choice, link, run_key)).await;
        let Some((cluster, pool)) = found else {
            let mut rest = vec![Step::Apiserver, Step::Kubelet];
            if subject.ask_agent {
                rest.push(Step::Agent);
            }
            examination.skip(&rest, &format!("not looked at: {} can't be reached", choice.label()));
            continue;
        };
        let forwarder = Forwarder::new(HashMap::from([(cluster, pool)]), Arc::clone(&tokens));
        let one = One { label: choice.label(), cluster, forwarder };
        one.examine(subject, examination).await;
    }
}

/// The cluster that is meant, and a stream to its agent.
async fn found(
    subject: &Subject,
    choice: &Choice,
    link: &Arc<Link>,
    run_key: &SigningKey,
) -> Verdict<(ClusterId, Arc<Pool>)> {
    let reached = async {
        let cluster = match choice.id {
            Some(id) => id,
            None => confirmed(subject, &choice.label(), link).await?,
        };
        let pool = Pool::new(cluster, run_key, Arc::clone(link))?;
        // The inner handshake shows that whoever answers holds the cluster's key.
        let connection = pool.dial().await?;
        pool.put_back(connection);
        Ok::<_, Report>((cluster, pool))
    };
    match reached.await {
        // The relay signs one for each stream, by a clock that was looked at before this step.
        Err(report) if report.fault == Fault::TicketMismatch && says_time(&report) => Verdict::failed(
            Report::new(Fault::AgentClockWrong, format!("{}: {}", choice.label(), report.detail)),
            format!(
                "it is {} here, and the relay signed the ticket for this stream a moment ago",
                at(SystemTime::now())
            ),
        ),
        reached => Verdict::of(reached, |(cluster, _)| {
            format!("{}: its agent answers with the key of {cluster}", choice.label())
        }),
    }
}

/// Whether an agent, of this version or an earlier one, refused a ticket for its time: the close reason is that of all tickets.
fn says_time(report: &Report) -> bool {
    report.detail.contains(&TicketError::Time.to_string())
}

/// The id of a name, if a person has confirmed it: to any other no token may go.
async fn confirmed(subject: &Subject, name: &str, link: &Link) -> Result<ClusterId, Report> {
    let resolved = link.resolve(name).await?;
    let known = StateFolder::open(&subject.state_dir)?.known(subject.network.pin, name)?;
    match known {
        Some(id) if id == resolved.cluster => Ok(id),
        Some(id) => Err(Report::new(
            Fault::ClusterKeyMismatch,
            format!("{name} was confirmed as {id}, and the relay says {} now", resolved.cluster),
        )),
        None => {
            let what = format!("{name}: the relay says that it is {}", resolved.cluster);
            Err(Report::new(Fault::ClusterUnconfirmed, what))
        }
    }
}

/// A cluster that can be asked.
struct One {
    label: String,
    cluster: ClusterId,
    forwarder: Forwarder,
}

impl One {
    async fn examine(&self, subject: &Subject, examination: &mut Examination<'_>) {
        let version = async {
            Verdict::of(self.forwarder.probe(self.cluster).await, |()| {
                format!("{}: /version is answered through the tunnel", self.label)
            })
        };
        let answered = examination.check(Step::Apiserver, version).await.is_some();
        if answered {
            examination.check(Step::Kubelet, self.kubelet()).await;
        } else {
            let why = format!("not looked at: kube-apiserver of {} does not answer", self.label);
            examination.skip(&[Step::Kubelet], &why);
        }
        if subject.ask_agent {
            self.ask_agent(examination).await;
        }
        if subject.idle.is_some() {
            examination.check(Step::Throughput, self.throughput()).await;
        }
    }

    /// At most one byte of a log, which kube-apiserver has from the kubelet.
    async fn kubelet(&self) -> Verdict<()> {
        let (status, pods) = match self.forwarder.get(self.cluster, ONE_POD, SMALL).await {
            Ok(answer) => answer,
            Err(report) => return Verdict::failed(report, ""),
        };
        if status != StatusCode::OK {
            return Verdict::skipped(format!("pods can't be listed here ({status})"));
        }
        let Some((pod, path)) = log_of(&pods) else {
            return Verdict::skipped("no pod runs there whose log could be asked for");
        };
        match self.forwarder.get(self.cluster, &path, SMALL).await {
            Ok((StatusCode::OK, _)) => Verdict::ok((), format!("the kubelet of {pod} answers")),
            Ok((status, answer)) if status.is_server_error() => {
                let said = serde_json::from_slice::<Value>(&answer).unwrap_or_default();
                let said = said["message"].as_str().unwrap_or_default().to_owned();
                let seen = format!("the log of {pod} is answered {status}: {said}");
                Verdict::failed(
                    Report::new(Fault::KubeletUnreachable, seen),
                    "/version was answered just before",
                )
            }
            Ok((status, _)) => Verdict::skipped(format!("the log of {pod} can't be read by you ({status})")),
            Err(report) => Verdict::failed(report, ""),
        }
    }

    /// What the agent finds where it is.
    async fn ask_agent(&self, examination: &mut Examination<'_>) {
        let asked = async {
            match self.forwarder.get(self.cluster, DOCTOR_PATH, SMALL).await {
                Ok((StatusCode::OK, answer)) => match serde_json::from_slice::<Diagnosis>(&answer) {
                    Ok(diagnosis) => {
                        let seen = format!(
                            "{}: {} has looked at {} things",
                            self.label,
                            diagnosis.program,
                            diagnosis.findings.len()
                        );
                        Verdict::ok(diagnosis, seen)
                    }
                    Err(error) => {
                        let what = "what the agent says of itself can't be read";
                        Verdict::failed(Report::caused_by(Fault::VersionUnsupported, what, error), "")
                    }
                },
                Ok((status, _)) => Verdict::skipped(format!(
                    "the agent of {} does not look at itself ({status}): it may be older",
                    self.label
                )),
                Err(report) => Verdict::failed(report, ""),
            }
        };
        let Some(diagnosis) = examination.check(Step::Agent, asked).await else { return };
        for finding in diagnosis.findings {
            examination.add(finding.seen_by("agent"));
        }
    }

    async fn throughput(&self) -> Verdict<()> {
        let begun = Instant::now();
        match self.forwarder.get(self.cluster, DOCUMENT, LARGE).await {
            Ok((StatusCode::OK, document)) => {
                let seconds = begun.elapsed().as_secs_f64().max(1e-6);
                let rate = document.len() as f64 / seconds / 1e6;
                Verdict::ok(
                    (),
                    format!(
                        "{} kB of {} in {seconds:.2} s: {rate:.1} MB/s",
                        document.len() / 1000,
                        self.label
                    ),
                )
            }
            Ok((status, _)) => Verdict::skipped(format!("{DOCUMENT} is answered {status}")),
            Err(report) => Verdict::failed(report, ""),
        }
    }
}

/// The first pod of a list, and where at most one byte of its log is.
fn log_of(pods: &[u8]) -> Option<(String, String)> {
    let pods: Value = serde_json::from_slice(pods).ok()?;
    let pod = &pods["items"][0];
    let is_name = |name: &&str| {
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
    };
    let text = |value: &Value| value.as_str().filter(is_name).map(str::to_owned);
    let (namespace, name) = (text(&pod["metadata"]["namespace"])?, text(&pod["metadata"]["name"])?);
    let container = text(&pod["spec"]["containers"][0]["name"])?;
    let path = format!(
        "/api/v1/namespaces/{namespace}/pods/{name}/log?container={container}&tailLines=1&limitBytes=1"
    );
    Some((format!("{namespace}/{name}"), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_of_an_apiservers_is_asked_for_one_byte_and_no_path_of_its_choice() {
        let pods = br#"{"items":[{"metadata":{"namespace":"a","name":"b-1"},"spec":{"containers":[{"name":"c"}]}}]}"#;
        let (pod, path) = log_of(pods).unwrap();
        assert_eq!(pod, "a/b-1");
        assert_eq!(path, "/api/v1/namespaces/a/pods/b-1/log?container=c&tailLines=1&limitBytes=1");
        let hostile = br#"{"items":[{"metadata":{"namespace":"a/../b","name":"b"},"spec":{"containers":[{"name":"c"}]}}]}"#;
        assert_eq!(log_of(hostile), None);
        assert_eq!(log_of(br#"{"items":[]}"#), None);
        assert_eq!(log_of(b"no"), None);
    }
}

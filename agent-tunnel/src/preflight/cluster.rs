//! The cluster's side: kube-apiserver, and what the agent's accounts may do there.

use http::Method;
use towline_tunnel::{
    doctor::{Examination, Step, Verdict},
    fault::{Fault, Report},
};

use crate::{dial::Apiserver, rights::Duties};

pub(super) async fn examine(apiserver: &Apiserver, duties: &Duties, examination: &mut Examination<'_>) {
    if examination.check(Step::Apiserver, version(apiserver)).await.is_some() {
        examination.check(Step::Rights, rights(apiserver, duties)).await;
    } else {
        examination.skip(&[Step::Rights], "not looked at: kube-apiserver does not answer");
    }
}

/// Reach, authority and credential in one: `/version`.
async fn version(apiserver: &Apiserver) -> Verdict<()> {
    let refused = |fault, what: String| {
        Verdict::failed(Report::new(fault, format!("{}: {what}", apiserver.address())), "")
    };
    match apiserver.call(Method::GET, "/version", "", Vec::new()).await {
        Ok((401, _)) => {
            refused(Fault::AgentCredential, "it answers 401 to the agent's own credential".to_owned())
        }
        Ok((status @ 500.., _)) => refused(Fault::ApiserverUnreachable, format!("it answers {status}")),
        Ok((_, answer)) => {
            let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
            let version = answer["gitVersion"].as_str().unwrap_or("a version that it does not say");
            Verdict::ok((), format!("{} answers: {version}", apiserver.address()))
        }
        Err(report) => Verdict::failed(report, ""),
    }
}

/// What the accounts may do: all that they must, and no more.
async fn rights(apiserver: &Apiserver, duties: &Duties) -> Verdict<()> {
    let all = match duties.prove(apiserver).await {
        Ok(all) => all,
        Err(report) => return Verdict::failed(report, ""),
    };
    let listed = |of: fn(&crate::rights::Found) -> &Vec<String>| {
        let each = all
            .iter()
            .flat_map(|(who, found)| of(found).iter().map(move |what| format!("{}: {what}", who.name())));
        each.collect::<Vec<_>>().join("; ")
    };
    let (missing, excessive) = (listed(|found| &found.missing), listed(|found| &found.excessive));
    if !missing.is_empty() {
        return Verdict::failed(Report::new(Fault::RightsMissing, missing), "");
    }
    if !excessive.is_empty() {
        return Verdict::warning((), Report::new(Fault::RightsExcessive, excessive), "");
    }
    Verdict::ok((), "all that they must, and no more")
}

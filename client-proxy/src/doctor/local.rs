//! What is on this machine: kubeconfig and port.

use tokio::task::spawn_blocking;
use towline_tunnel::{
    doctor::{Examination, Step, Verdict},
    fault::{Fault, Report},
};

use super::Subject;
use crate::{accept::Endpoint, local::StateFolder};

pub(super) async fn examine(subject: &Subject, examination: &mut Examination<'_>) {
    match &subject.kubeconfig {
        Some(location) => {
            let location = location.clone();
            let check = async {
                let checked = spawn_blocking(move || location.check()).await;
                let checked =
                    checked.map_err(|error| Report::caused_by(Fault::Internal, "", error)).flatten();
                Verdict::of(checked, |path| format!("{} can be written", path.display()))
            };
            examination.check(Step::Kubeconfig, check).await;
        }
        None => examination.skip(&[Step::Kubeconfig], "none is to be written"),
    }
    examination.check(Step::Port, port(subject)).await;
}

async fn port(subject: &Subject) -> Verdict<()> {
    let report = match Endpoint::bind(subject.port).await {
        Ok(endpoint) => return Verdict::ok((), format!("{} is free", endpoint.address())),
        Err(report) => report,
    };
    if report.fault == Fault::PortBusy && is_ours(subject) {
        return Verdict::ok(
            (),
            format!("{}: a towline proxy that serves these clusters runs", report.clone().detail),
        );
    }
    Verdict::failed(report, "")
}

/// Whether a proxy of this person's serves one of these clusters.
fn is_ours(subject: &Subject) -> bool {
    let Ok(state) = StateFolder::open(&subject.state_dir) else { return false };
    let mut ids = subject.clusters.iter().filter_map(|choice| choice.id);
    ids.any(|id| state.serve(id, "").is_err_and(|report| report.fault == Fault::ProxyAlreadyRuns))
}

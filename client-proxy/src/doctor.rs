//! `towline doctor` and `towline endpoints` as values: what is looked at on a person's machine, behind the network checks that agents
//! share (`towline_tunnel::doctor`, `docs/doctor.md`).

mod bundle;
mod cluster;
mod endpoints;
mod idle;
mod local;
mod redact;

use std::{path::PathBuf, sync::Arc, time::Duration};

use towline_tunnel::{
    carrier::{dial::Dialler, ladder::Memory},
    doctor::{Diagnosis, Examination, Finding, Network, Step, Verdict},
    fault::Report,
    keys::SigningKey,
};

pub use bundle::Bundle;
pub use endpoints::{Endpoint, endpoints};
pub use redact::redact;

use crate::{
    app::{Choice, RESUME_TIMEOUT, default_lines},
    dial::{Link, LinkConfig},
    kubeconfig::Location,
    token::{TokenFrom, Tokens},
};

/// What is looked at.
#[derive(Debug)]
pub struct Subject {
    /// The way to the relay.
    pub network: Network,
    /// Where the token for the relay comes from, or why it can't be said.
    pub relay_token: Result<TokenFrom, Report>,
    /// The same for the clusters.
    pub cluster_token: Result<TokenFrom, Report>,
    /// The relay may see a token that the clusters accept.
    pub shared_audience: bool,
    /// Clusters; none is no fault.
    pub clusters: Vec<Choice>,
    /// Agents are asked what they find where they are.
    pub ask_agent: bool,
    /// How long a session is left alone, where that is looked at; then what passes is measured, too.
    pub idle: Option<Duration>,
    /// The kubeconfig that a proxy would write, if any.
    pub kubeconfig: Option<Location>,
    /// The local port that a proxy would take.
    pub port: u16,
    /// Where keys and logins are kept.
    pub state_dir: PathBuf,
}

/// The program's name and version.
pub const PROGRAM: &str = concat!("towline ", env!("CARGO_PKG_VERSION"));

/// Looks at everything, in the order of the journey. `tell` hears of each finding as it is made.
pub async fn examine(subject: Subject, tell: impl FnMut(&Finding) + Send) -> Diagnosis {
    let mut examination = Examination::new(tell);
    let network = subject.network.clone();
    let relay = network.relay.to_string();
    examination.say(Step::Configuration, Verdict::ok((), format!("the relay is {relay}")));
    let reached = network.examine(&mut examination).await;
    let login = tokens(&subject);
    let tokens = examination.check(Step::Login, login).await.map(Arc::new);
    match (reached, tokens) {
        (Some(_), Some(tokens)) => beyond(&subject, tokens, &mut examination).await,
        (None, _) => skip(&subject, &mut examination, "not looked at: the relay was not reached"),
        (Some(_), None) => skip(&subject, &mut examination, "not looked at: there are no tokens"),
    }
    local::examine(&subject, &mut examination).await;
    examination.finish(PROGRAM, Some(relay), network.clock.now())
}

/// Says why nothing could be looked at.
pub fn unusable(report: &Report, tell: impl FnMut(&Finding) + Send) -> Diagnosis {
    let mut examination = Examination::new(tell);
    examination.say(Step::Configuration, Verdict::<()>::failed(report.clone(), ""));
    examination.finish(PROGRAM, None, std::time::SystemTime::now())
}

/// The steps behind the session that this subject has.
fn steps(subject: &Subject) -> Vec<Step> {
    let mut steps = vec![Step::Session];
    if !subject.clusters.is_empty() {
        steps.extend([Step::Cluster, Step::Apiserver, Step::Kubelet]);
    }
    if subject.ask_agent {
        steps.push(Step::Agent);
    }
    if subject.idle.is_some() {
        steps.extend([Step::Idle, Step::Throughput]);
    }
    steps
}

fn skip(subject: &Subject, examination: &mut Examination<'_>, why: &str) {
    examination.skip(&steps(subject), why);
}

/// Both tokens, as far as they can be judged here: there, two, and not over.
async fn tokens(subject: &Subject) -> Verdict<Tokens> {
    let (relay, cluster) = match (&subject.relay_token, &subject.cluster_token) {
        (Ok(relay), Ok(cluster)) => (relay.clone(), cluster.clone()),
        (Err(report), _) | (_, Err(report)) => return Verdict::failed(report.clone(), ""),
    };
    let clock = subject.network.clock.clone();
    let now = clock.now();
    let judged = async {
        let tokens = Tokens::start(relay, cluster, subject.shared_audience, &clock).await?;
        tokens.for_relay(now)?;
        tokens.for_cluster(now)?;
        Ok(tokens)
    };
    Verdict::of(judged.await, |_| "a token for the relay, and another one for clusters".to_owned())
}

/// The session, and what is behind it.
async fn beyond(subject: &Subject, tokens: Arc<Tokens>, examination: &mut Examination<'_>) {
    let network = &subject.network;
    let run_key = Arc::new(SigningKey::generate());
    let begun = async {
        let link = Arc::new(Link::start(link_config(network, &run_key, &tokens)?));
        let session = link.session().await?;
        Ok((link, session))
    };
    let check = async { Verdict::of(begun.await, |(_, session)| format!("channel {}", session.channel)) };
    let Some((link, session)) = examination.check(Step::Session, check).await else {
        let rest = steps(subject);
        return examination.skip(&rest[1..], "not looked at: there is no session with the relay");
    };
    let another = async {
        let link = Link::start(link_config(network, &run_key, &tokens)?);
        let session = link.session().await?;
        Ok((link, session))
    };
    cluster::examine(subject, &link, &run_key, Arc::clone(&tokens), examination).await;
    if let Some(idle) = subject.idle {
        examination.check(Step::Idle, idle::look(&session, another, idle)).await;
    }
    link.close().await;
}

/// A way to the relay for one look.
fn link_config(
    network: &Network,
    run_key: &Arc<SigningKey>,
    tokens: &Arc<Tokens>,
) -> Result<LinkConfig, Report> {
    let trust = network.egress.trust(network.ca_file.as_deref())?;
    Ok(LinkConfig {
        dialler: Dialler::over(network.relay.clone(), network.egress.clone(), trust)?,
        pin: network.pin,
        run_key: Arc::clone(run_key),
        tokens: Arc::clone(tokens),
        resume_timeout: RESUME_TIMEOUT,
        lines: default_lines(),
        brief: true,
        // It looks for itself.
        carriers: Memory::default(),
    })
}

//! What the agent needs, looked at from where it runs: before its first session (`towline-agent preflight`), and on demand while it
//! runs (`docs/doctor.md`).
//!
//! Nothing is used up: an enrolment token is read, and its secret shown to nobody.

mod afar;
mod cluster;
mod enrolment;
mod place;

use std::time::Duration;

use tokio::{net::TcpListener, time::Instant};
use towline_tunnel::{
    clock::Clock,
    doctor::{Diagnosis, Examination, Finding, Network, Step, Verdict},
    fault::{Fault, Report},
};

pub use afar::SelfLook;

use crate::{
    app::{Config, RelayConfig},
    dial::Apiserver,
    issuers::IssuerWay,
    rights::Duties,
    roles::Roles,
    state::{DataDir, Rank},
};
use enrolment::Home;
use place::Kept;

/// All of it ends within this: a chart's hook waits for it.
pub const WITHIN: Duration = Duration::from_secs(60);
/// The program's name and version.
pub(crate) const PROGRAM: &str = concat!("towline-agent ", env!("CARGO_PKG_VERSION"));

/// Looks at everything that an agent with this configuration needs. `tell` hears of each finding as it is made.
pub async fn examine(config: Config, tell: impl FnMut(&Finding) + Send) -> Diagnosis {
    let deadline = Instant::now() + WITHIN;
    let mut examination = Examination::new(tell).until(deadline);
    let clock = config.clock.clone();
    let data_dir = config.data_dir.display().to_string();
    examination.say(Step::Configuration, Verdict::ok((), format!("the data directory is {data_dir}")));

    let opened = Apiserver::new(&config.apiserver, config.impersonator.as_deref());
    let opened = Verdict::of(opened, |apiserver| format!("for kube-apiserver at {}", apiserver.address()));
    let apiserver = examination.say(Step::Credential, opened);
    let mut relay = None;
    for (rank, home) in config.homes() {
        if rank == Rank::Second {
            examination.say(Step::Configuration, Verdict::ok((), "and the second relay"));
        }
        let kept = examination.check(Step::State, place::state(&config, rank, apiserver.as_ref())).await;
        let found = match kept {
            Some(kept) => examine_relay(&config, (rank, home), &kept, &clock, &mut examination).await,
            None => {
                examination
                    .skip(&[Step::Enrolment, Step::Dns], "not looked at: what the agent keeps can't be read");
                None
            }
        };
        relay = relay.or(found);
    }

    match &apiserver {
        Some(apiserver) => {
            cluster::examine(apiserver, &duties(&config, role_groups(&config)), &mut examination).await
        }
        None => examination.skip(
            &[Step::Apiserver, Step::Rights],
            "not looked at: there is no credential for kube-apiserver",
        ),
    }
    examination.check(Step::Issuer, issuer(&config)).await;
    examination.check(Step::Port, port(&config)).await;
    examination.finish(PROGRAM, relay, clock.now())
}

/// The enrolment and the way to the relay that it names, which is in the answer.
async fn examine_relay(
    config: &Config,
    (rank, relay): (Rank, &RelayConfig),
    kept: &Kept,
    clock: &Clock,
    examination: &mut Examination<'_>,
) -> Option<String> {
    let token = relay.enrolment.as_ref();
    let judged = || enrolment::judge(rank, token, kept, clock.now());
    // A token that is over by a clock that is wrong is not over: the way is looked at first, which tells.
    let over = enrolment::home_of_what_is_over(token, kept, clock.now());
    let home = match over.clone() {
        Some(home) => Some(home),
        None => examination.say(Step::Enrolment, judged()),
    };
    let network = home.and_then(|home| network(config, (rank, relay), home, clock, examination));
    match &network {
        Some(network) => {
            network.examine(examination).await;
        }
        None => examination.skip(&[Step::Dns], "not looked at: which relay is meant is not known"),
    }
    if over.is_some() {
        let judged = match examination.has_failed_by(Fault::ClockWrong) {
            true => Verdict::skipped(
                "its time is over by this machine's clock, which is wrong: look again once that is right",
            ),
            false => judged(),
        };
        examination.say(Step::Enrolment, judged);
    }
    network.map(|network| network.relay.to_string())
}

/// Their names end with what is made of the cluster's identity: before the first start there are none.
fn role_groups(config: &Config) -> Vec<String> {
    let Some(settings) = config.roles.clone().filter(|_| config.data_dir.is_dir()) else {
        return Vec::new();
    };
    let identity = DataDir::open(&config.data_dir)
        .and_then(|dir| if dir.has_identity() { dir.identity().map(Some) } else { Ok(None) });
    // What can't be read is told at its own step.
    identity
        .ok()
        .flatten()
        .map(|identity| Roles::new(settings, &identity).possible_groups())
        .unwrap_or_default()
}

fn duties(config: &Config, role_groups: Vec<String>) -> Duties {
    Duties {
        mode: config.access.mode,
        impersonator: config.impersonator.clone(),
        state_secret: config.state_secret.as_ref().map(|secret| secret.name().to_owned()),
        role_groups,
    }
}

/// The way to the relay, as the agent would go it.
fn network(
    config: &Config,
    (rank, relay): (Rank, &RelayConfig),
    home: Home,
    clock: &Clock,
    examination: &mut Examination<'_>,
) -> Option<Network> {
    let address = relay.address.clone().unwrap_or(home.relay);
    let ca_file = match (&relay.ca_file, &home.ca_pem) {
        (Some(file), _) => Ok(Some(file.clone())),
        (None, Some(pem)) => {
            DataDir::open(&config.data_dir).and_then(|dir| dir.relay_ca(rank, pem)).map(Some)
        }
        (None, None) => Ok(None),
    };
    match ca_file {
        Ok(ca_file) => {
            let way = Network::over(config.egress.clone(), address, home.relay_key, ca_file);
            Some(Network { clock: clock.clone(), ..way })
        }
        Err(report) => examination.say(Step::State, Verdict::failed(report, "")),
    }
}

/// The identity provider's keys, by which callers' tokens are verified.
async fn issuer(config: &Config) -> Verdict<()> {
    let names = config.issuer.trust.names();
    if config.issuer_via_relay {
        return Verdict::skipped(format!(
            "not looked at: {names} is reached through the relay, once there is a session"
        ));
    }
    let asked = async {
        let unusable =
            |error: towline_identity::FetchError| Report::new(Fault::IssuerUnreachable, error.to_string());
        let way = IssuerWay::out(config.egress.clone());
        let verifier = way.verifier(config.issuer.trust.clone()).map_err(unusable)?;
        verifier.refresh().await.map_err(unusable)
    };
    Verdict::of(asked.await, |()| format!("{names}: metadata and keys were had"))
}

/// The address for metrics.
async fn port(config: &Config) -> Verdict<()> {
    let address = config.metrics_listen;
    let bound = TcpListener::bind(address).await.map(drop);
    let bound = bound
        .map_err(|error| Report::caused_by(Fault::PortBusy, format!("--metrics-listen {address}"), error));
    Verdict::of(bound, |()| format!("{address} is free"))
}

/// Says why nothing could be looked at.
pub fn unusable(report: &Report, tell: impl FnMut(&Finding) + Send) -> Diagnosis {
    let mut examination = Examination::new(tell);
    examination.say(Step::Configuration, Verdict::<()>::failed(report.clone(), ""));
    examination.finish(PROGRAM, None, std::time::SystemTime::now())
}

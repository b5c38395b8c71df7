//! `towline doctor` and `towline endpoints`.

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde_json::{Value, json};
use towline_tunnel::{
    carrier::dial::RelayAddress,
    doctor::{Finding, Ink, Network, conclusion, line},
    egress::ProxyArgs,
    fault::{Fault, Report},
};

use super::{
    Output, Reach,
    arguments::{given, state_dir},
    log,
    profile::{Profile, is_printed},
    say,
};
use crate::{
    accept::DEFAULT_PORT,
    doctor::{Bundle, Subject, endpoints, examine, unusable},
    kubeconfig::Location,
    token::TokenFrom,
};

/// How long a session is left alone with `--deep`: longer than what firewalls usually give a quiet connection.
const IDLE: Duration = Duration::from_secs(60);

/// Arguments of `towline doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorArguments {
    /// Which clusters, and how they are reached. An agent is asked what it finds where its cluster is named here.
    #[command(flatten)]
    pub reach: Reach,
    /// The kubeconfig that a proxy would write [default: as kubectl].
    #[arg(short = 'f', long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The local port that a proxy would take [default: 47011].
    #[arg(long)]
    pub port: Option<u16>,
    /// Leave a session alone for a minute, and measure what passes, too.
    #[arg(long)]
    pub deep: bool,
    /// Write findings, settings, versions and log, without secrets, to a new file (zip) for whoever is to help.
    #[arg(long, value_name = "FILE")]
    pub bundle: Option<PathBuf>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Arguments of `towline endpoints`.
#[derive(Args, Clone, Debug)]
pub struct EndpointsArguments {
    /// The relay, as https://HOST or https://HOST:PORT [default: the profile's].
    #[arg(long, value_name = "URL")]
    pub relay: Option<String>,
    /// Outbound proxies.
    #[command(flatten)]
    pub proxies: ProxyArgs,
    /// Where the relay and the identity provider stand: a file, or a name such as `work` for ~/.config/towline/work.toml [default: profile].
    #[arg(long, value_name = "NAME|FILE", env = "TOWLINE_PROFILE")]
    pub profile: Option<PathBuf>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Looks at everything; the exit code is that of the first failure.
pub(super) async fn doctor(arguments: DoctorArguments) -> Result<ExitCode, Report> {
    let ink = Ink::of(io::stdout().is_terminal());
    let text = arguments.output == Output::Text;
    let tell = move |finding: &Finding| {
        if text {
            say(&line(finding, ink));
        }
    };
    let (diagnosis, config, secrets) = match arguments.subject() {
        Ok((subject, config)) => {
            let secrets = secrets(&subject);
            (examine(subject, tell).await, config, secrets)
        }
        Err(report) => (unusable(&report, tell), Value::Null, Vec::new()),
    };
    match arguments.output {
        Output::Json => say(&diagnosis.to_json()),
        Output::Text => say(&format!("\n{}", conclusion(&diagnosis, ink))),
    }
    if let Some(path) = &arguments.bundle {
        let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
        Bundle { diagnosis: &diagnosis, config, log: log::kept(), secrets: &secrets }.write(path)?;
        if text {
            say(&format!("written: {} (look into it before you send it)", path.display()));
        }
    }
    Ok(ExitCode::from(diagnosis.exit_code))
}

impl DoctorArguments {
    /// Whether what is logged is to be kept for a bundle.
    pub(super) fn keeps_log(&self) -> bool {
        self.bundle.is_some()
    }

    /// What to look at, and the settings in effect. Without tokens and clusters there is still a network to look at.
    fn subject(&self) -> Result<(Subject, Value), Report> {
        let (reach, profile) = (&self.reach, Profile::load(self.reach.at.profile.as_deref())?);
        let mut missing = Vec::new();
        let relay = given(&reach.at.relay, &profile.relay, "--relay", &mut missing);
        let relay_key = given(&reach.at.relay_key, &profile.relay_key, "--relay-key", &mut missing);
        if !missing.is_empty() {
            let what = format!("missing, here and in the profile: {}", missing.join(", "));
            return Err(Report::new(Fault::ConfigInvalid, what));
        }
        let pin = relay_key
            .parse()
            .map_err(|error| Report::new(Fault::ConfigInvalid, format!("--relay-key: {error}")))?;
        let relay = RelayAddress::parse(&relay)?;
        let ca_file = reach.at.relay_ca_file.clone().or_else(|| profile.relay_ca_file.clone());
        let state_dir = state_dir(reach.at.state_dir.as_ref(), &profile)?;
        let kubeconfig = match self.kubeconfig.clone().or_else(|| profile.kubeconfig.clone()) {
            Some(path) if is_printed(&path) => None,
            Some(path) => Some(Location::file(path)),
            None => Location::from_environment().ok(),
        };
        let egress = profile.egress(&reach.at.proxies)?;
        let subject = Subject {
            relay_token: there(reach.relay_token(&profile, &egress, &state_dir), "--relay-token-file"),
            cluster_token: there(reach.cluster_token(&profile, &egress, &state_dir), "--cluster-token-file"),
            network: Network::over(egress, relay, pin, ca_file),
            shared_audience: reach.at.allow_shared_audience || profile.allow_shared_audience,
            clusters: reach.clusters(&profile)?,
            ask_agent: !reach.clusters.is_empty(),
            idle: self.deep.then_some(IDLE),
            kubeconfig,
            port: self.port.or(profile.port).unwrap_or(DEFAULT_PORT),
            state_dir,
        };
        let config = config(&subject, &profile, &relay_key);
        Ok((subject, config))
    }
}

fn there(token: Result<Option<TokenFrom>, Report>, flag: &str) -> Result<TokenFrom, Report> {
    token?.ok_or_else(|| {
        Report::new(Fault::ConfigInvalid, format!("missing, here and in the profile: {flag} (or [login])"))
    })
}

/// The settings in effect: what is listed here, and nothing else.
fn config(subject: &Subject, profile: &Profile, relay_key: &str) -> Value {
    let place = |token: &Result<TokenFrom, Report>| match token {
        Ok(TokenFrom::File(path)) => path.display().to_string(),
        Ok(TokenFrom::Given(_)) => "standard input".to_owned(),
        Ok(TokenFrom::Issuer(_)) => "[login]".to_owned(),
        Err(report) => report.fault.code().to_owned(),
    };
    let clusters: Vec<Value> = subject
        .clusters
        .iter()
        .map(|choice| json!({ "name": choice.name, "id": choice.id.map(|id| id.to_string()) }))
        .collect();
    json!({
        "profile": profile.name,
        "relay": subject.network.relay.to_string(),
        "relayKey": relay_key,
        "relayCaFile": subject.network.ca_file,
        "relayToken": place(&subject.relay_token),
        "clusterToken": place(&subject.cluster_token),
        "proxy": subject.network.way.as_ref().map(|way| way.name(&subject.network.relay)),
        "issuer": profile.login(&subject.network.egress, true).ok().map(|settings| settings.issuer().to_owned()),
        "clusters": clusters,
        "kubeconfig": subject.kubeconfig.as_ref().map(Location::files),
        "port": subject.port,
        "stateDir": subject.state_dir,
    })
}

/// This person's tokens, which stand nowhere in what is handed over.
fn secrets(subject: &Subject) -> Vec<String> {
    let text = |token: &Result<TokenFrom, Report>| match token {
        Ok(TokenFrom::File(path)) => std::fs::read_to_string(path).ok(),
        Ok(TokenFrom::Given(token)) => token.secret.reveal_text().map(str::to_owned),
        Ok(TokenFrom::Issuer(_)) | Err(_) => None,
    };
    [&subject.relay_token, &subject.cluster_token].into_iter().filter_map(text).collect()
}

/// Says what a firewall must allow.
pub(super) async fn list_endpoints(arguments: EndpointsArguments) -> Result<ExitCode, Report> {
    let profile = Profile::load(arguments.profile.as_deref())?;
    let relay = arguments.relay.or_else(|| profile.relay.clone());
    let missing = || Report::new(Fault::ConfigInvalid, "missing, here and in the profile: --relay");
    let relay = RelayAddress::parse(&relay.ok_or_else(missing)?)?;
    let egress = profile.egress(&arguments.proxies)?;
    let issuers = match profile.login.as_ref().map(|_| profile.login(&egress, true)).transpose()? {
        None => Vec::new(),
        Some(settings) if settings.issuer().is_empty() => Vec::new(),
        Some(settings) => settings.urls().await.unwrap_or_else(|report| {
            tracing::warn!(%report, "the identity provider's further hosts are not known");
            vec![settings.issuer().to_owned()]
        }),
    };
    let all = endpoints(&relay, &issuers);
    let relays = relay.destination();
    let proxy = egress.proxy_for(&relays);
    if arguments.output == Output::Json {
        let proxy = proxy.map(|proxy| {
            json!({ "url": proxy.to_string(), "from": proxy.from().to_string(), "mustAllow": "CONNECT to the hosts and ports above" })
        });
        say(&super::json(&json!({ "version": 1, "endpoints": all, "proxy": proxy }))?);
        return Ok(ExitCode::SUCCESS);
    }
    for one in &all {
        say(&format!("{} -> {} port {} (TCP, {})", one.from, one.host, one.port, one.direction));
        say(&format!("    for             {}", one.why));
        say(&format!("    spoken          {}", one.protocol));
        say(&format!("    TLS inspection  {}", one.tls_inspection));
    }
    say("\nAllow names, not addresses: those may change. Nothing needs to come in.");
    if let Some(proxy) = proxy {
        say(&format!(
            "From here they are reached through the proxy {proxy} ({}), which must allow CONNECT to them.",
            proxy.from()
        ));
    }
    if issuers.is_empty() {
        say("The profile names no identity provider; agent and relay need theirs on port 443.");
    }
    Ok(ExitCode::SUCCESS)
}

//! Arguments, as typed and as usable.

use std::{
    ffi::OsString,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use towline_tunnel::{
    carrier::dial::RelayAddress,
    egress::Egress,
    fault::{Fault, Report},
    mux::{LineSettings, MAX_LINES},
    session::message::{MAX_TOKEN, Secret},
    values::duration,
};

use super::{
    AtRelay, ask,
    profile::{Profile, is_printed},
};
use crate::{
    app::{BULK_LINES, Choice, Config, RESUME_TIMEOUT, default_lines},
    kubeconfig::Location,
    local::StateFolder,
    login::{self, LoginTable, Store},
    token::{Purpose, Token, TokenFrom},
};

/// Whoever lacks it is told where it is to be had.
const RELAY_KEY: &str = "--relay-key (the HASH that `towline-relay key` prints on the relay)";

/// Which clusters, and how they are reached. What is not given is taken from the profile.
#[derive(Args, Clone, Debug, Default)]
pub struct Reach {
    /// Which relay.
    #[command(flatten)]
    pub at: AtRelay,
    /// Holds a service account's token, which the cluster's apiserver itself judges, in place of a cluster token; `-` reads it once from standard input.
    #[arg(long, visible_alias = "token-file", value_name = "FILE", conflicts_with = "cluster_token_file")]
    pub service_account_token_file: Option<PathBuf>,
    /// A cluster, by id, as NAME=ID, or by a name that you confirm on a terminal. May be repeated.
    #[arg(long = "cluster", value_name = "CLUSTER")]
    pub clusters: Vec<String>,
    /// How long open streams (exec, logs -f, cp, a watch) wait to go on when a connection on the way is lost [default: 60s].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub resume_timeout: Option<Duration>,
    /// Connections beside the session, opened and closed as needed, for streams that carry much: a copy then holds up nothing else; 0 for none [default: 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_LINES)))]
    pub bulk_lines: Option<u32>,
}

/// Arguments of `towline proxy`.
#[derive(Args, Clone, Debug)]
pub struct ProxyArguments {
    /// Which clusters, and how they are reached.
    #[command(flatten)]
    pub reach: Reach,
    /// The local port; 0 takes a free one [default: 47011, or a free one where another towline has that].
    #[arg(long)]
    pub port: Option<u16>,
    /// The context's name, where one cluster is served.
    #[arg(long, value_name = "NAME")]
    pub context_name: Option<String>,
    /// The kubeconfig to add contexts to, or - to print one instead [default: as kubectl].
    #[arg(short = 'f', long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// Arguments of `towline run`.
#[derive(Args, Clone, Debug)]
pub struct RunArguments {
    /// Which clusters, and how they are reached.
    #[command(flatten)]
    pub reach: Reach,
    /// What to run, such as `kubectl get pods`; KUBECONFIG is set for it.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

impl ProxyArguments {
    /// Without a kubeconfig where one is to be printed.
    pub(super) fn config(self) -> Result<Config, Report> {
        let profile = Profile::load(self.reach.at.profile.as_deref())?;
        let kubeconfig = match self.kubeconfig.clone().or_else(|| profile.kubeconfig.clone()) {
            Some(path) if is_printed(&path) => None,
            Some(path) => Some(Location::file(path)),
            None => Some(Location::from_environment()?),
        };
        let port = self.port.or(profile.port);
        let mut config = Config { port, kubeconfig, ..self.reach.config(&profile)? };
        if let Some(name) = self.context_name.or(profile.context_name) {
            let [only] = config.clusters.as_mut_slice() else {
                return Err(Report::new(Fault::ConfigInvalid, "--context-name is for one cluster"));
            };
            only.context = Some(name);
        }
        Ok(config)
    }
}

impl RunArguments {
    pub(super) fn config(&self) -> Result<Config, Report> {
        let profile = Profile::load(self.reach.at.profile.as_deref())?;
        self.reach.config(&profile)
    }

    /// Variables that hold tokens: the command is not to inherit them.
    pub(super) fn token_variables(&self) -> Result<Vec<String>, Report> {
        let profile = Profile::load(self.reach.at.profile.as_deref())?;
        Ok(profile.login.as_ref().map(LoginTable::token_variables).unwrap_or_default())
    }
}

impl Reach {
    /// All that a proxy needs, without kubeconfig and on a free port. Everything that is missing is told at once.
    pub(super) fn config(&self, profile: &Profile) -> Result<Config, Report> {
        self.config_of(profile, self.clusters(profile)?, true)
    }

    /// The same for a command that asks the relay, and opens no cluster.
    pub(super) fn at_relay(&self, profile: &Profile) -> Result<Config, Report> {
        self.config_of(profile, Vec::new(), false)
    }

    fn config_of(
        &self,
        profile: &Profile,
        clusters: Vec<Choice>,
        needs_clusters: bool,
    ) -> Result<Config, Report> {
        let mut missing = Vec::new();
        let relay = given(&self.at.relay, &profile.relay, "--relay", &mut missing);
        let relay_key = given(&self.at.relay_key, &profile.relay_key, RELAY_KEY, &mut missing);
        let state_dir = state_dir(self.at.state_dir.as_ref(), profile)?;
        let egress = profile.egress(&self.at.proxies)?;
        let relay_token = self.relay_token(profile, &egress, &state_dir)?;
        let cluster_token = self.cluster_token(profile, &egress, &state_dir)?;
        if relay_token.is_none() {
            missing.push("--relay-token-file (or [login])");
        }
        if cluster_token.is_none() {
            missing.push("--cluster-token-file (or [login])");
        }
        if needs_clusters && clusters.is_empty() {
            missing.push("--cluster");
        }
        let (Some(relay_token), Some(cluster_token), []) = (relay_token, cluster_token, missing.as_slice())
        else {
            let what = format!("missing, here and in the profile: {}", missing.join(", "));
            return Err(Report::new(Fault::ConfigInvalid, what));
        };
        Ok(Config {
            relay: RelayAddress::parse(&relay)?,
            relay_key: relay_key
                .parse()
                .map_err(|error| Report::new(Fault::ConfigInvalid, format!("--relay-key: {error}")))?,
            relay_ca_file: self.at.relay_ca_file.clone().or_else(|| profile.relay_ca_file.clone()),
            egress,
            relay_token,
            cluster_token,
            resume_timeout: self.resume_timeout.or(profile.resume_timeout).unwrap_or(RESUME_TIMEOUT),
            lines: LineSettings {
                max: self.bulk_lines.or(profile.bulk_lines).unwrap_or(BULK_LINES),
                ..default_lines()
            },
            shared_audience: self.at.allow_shared_audience || profile.allow_shared_audience,
            clusters,
            confirm: ask::on_terminal(),
            port: Some(0),
            kubeconfig: None,
            state_dir,
        })
    }

    pub(super) fn relay_token(
        &self,
        profile: &Profile,
        egress: &Egress,
        state_dir: &Path,
    ) -> Result<Option<TokenFrom>, Report> {
        match self.at.relay_token_file.as_ref().or(profile.relay_token_file.as_ref()) {
            Some(path) => token_at(path).map(Some),
            None => self.login(profile, egress, Purpose::Relay, state_dir),
        }
    }

    /// A flag wins over the profile, and a service account's token over a person's.
    pub(super) fn cluster_token(
        &self,
        profile: &Profile,
        egress: &Egress,
        state_dir: &Path,
    ) -> Result<Option<TokenFrom>, Report> {
        let flags = self.service_account_token_file.as_ref().or(self.at.cluster_token_file.as_ref());
        let files = profile.service_account_token_file.as_ref().or(profile.cluster_token_file.as_ref());
        match flags.or(files) {
            Some(path) => token_at(path).map(Some),
            None => self.login(profile, egress, Purpose::Cluster, state_dir),
        }
    }

    fn login(
        &self,
        profile: &Profile,
        egress: &Egress,
        purpose: Purpose,
        state_dir: &Path,
    ) -> Result<Option<TokenFrom>, Report> {
        if profile.login.is_none() {
            return Ok(None);
        }
        let settings = profile.login(egress, self.at.allow_shared_audience)?;
        let store = Store::open(state_dir)?;
        login::issuer(&settings, purpose, &store).map(TokenFrom::Issuer).map(Some)
    }

    /// The clusters that were named, with the pins of the profile; all of the profile's where none was.
    pub(super) fn clusters(&self, profile: &Profile) -> Result<Vec<Choice>, Report> {
        if self.clusters.is_empty() {
            return profile.clusters.iter().map(|(name, id)| format!("{name}={id}").parse()).collect();
        }
        let pinned = |text: &String| {
            let mut choice: Choice = text.parse()?;
            if let (None, Some(id)) = (choice.id, profile.clusters.get(text)) {
                choice = format!("{text}={id}").parse()?;
            }
            Ok(choice)
        };
        self.clusters.iter().map(pinned).collect()
    }
}

/// Where keys and logins are kept.
pub(super) fn state_dir(flag: Option<&PathBuf>, profile: &Profile) -> Result<PathBuf, Report> {
    match flag.or(profile.state_dir.as_ref()) {
        Some(path) => Ok(path.clone()),
        None => StateFolder::default_path(),
    }
}

/// A file that is read again when it changes, or standard input, which has one token and is read once.
fn token_at(path: &Path) -> Result<TokenFrom, Report> {
    if path.as_os_str() == "-" {
        return from_stdin().map(TokenFrom::Given);
    }
    Ok(TokenFrom::File(path.to_owned()))
}

/// The one token that standard input has.
pub(super) fn from_stdin() -> Result<Token, Report> {
    let unusable = |why: String| Report::new(Fault::TokenFileUnusable, format!("standard input: {why}"));
    let mut text = Vec::with_capacity(4 * MAX_TOKEN);
    let read = std::io::stdin().lock().take(4 * MAX_TOKEN as u64).read_to_end(&mut text);
    let text = Secret::new(text);
    read.map_err(|error| unusable(error.to_string()))?;
    let token = text.reveal_text().and_then(Token::parse);
    token.ok_or_else(|| unusable("it does not hold exactly one token".into()))
}

pub(super) fn given<T: Clone + Default>(
    flag: &Option<T>,
    profile: &Option<T>,
    name: &'static str,
    missing: &mut Vec<&'static str>,
) -> T {
    flag.clone().or_else(|| profile.clone()).unwrap_or_else(|| {
        missing.push(name);
        T::default()
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use towline_tunnel::ids::ClusterId;

    use super::*;
    use crate::cli::{Cli, Command};

    fn proxy(arguments: &[&str]) -> Result<Config, Report> {
        let cli = Cli::try_parse_from([&["towline", "proxy"], arguments].concat()).unwrap();
        let Command::Proxy(arguments) = cli.command else { panic!("another command") };
        arguments.config()
    }

    fn profile() -> (tempfile::TempDir, String, ClusterId) {
        let folder = tempfile::tempdir().unwrap();
        let id = ClusterId::of_spki(b"k");
        let path = folder.path().join("p.toml");
        let text = format!(
            "relay = \"https://relay.example\"\nrelay-key = \"{id}\"\nrelay-token-file = \"tokens/relay\"\n\
             cluster-token-file = \"/tokens/cluster\"\nport = 5\n[clusters]\nedge-7 = \"{id}\"\n"
        );
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (folder, path, id)
    }

    #[test]
    fn everything_that_is_missing_is_told_at_once() {
        let (folder, ..) = profile();
        let empty = folder.path().join("empty.toml");
        std::fs::write(&empty, "").unwrap();
        let report = proxy(&["--profile", empty.to_str().unwrap()]).unwrap_err();
        assert_eq!(report.fault, Fault::ConfigInvalid);
        for flag in ["--relay,", "--relay-key", "--relay-token-file", "--cluster-token-file", "--cluster"] {
            assert!(report.to_string().contains(flag), "{flag}: {report}");
        }
        assert!(report.to_string().contains("towline-relay key"), "{report}");
    }

    #[test]
    fn a_flag_wins_over_the_profile_and_the_profile_pins_names() {
        let (folder, path, id) = profile();
        let config = proxy(&["--profile", &path, "-f", "-"]).unwrap();
        assert_eq!(config.clusters, [Choice::named("edge-7", id)]);
        assert_eq!((config.port, config.kubeconfig), (Some(5), None));
        let file = |from: &TokenFrom| match from {
            TokenFrom::File(path) => path.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(file(&config.relay_token), folder.path().join("tokens/relay"));
        assert_eq!(file(&config.cluster_token), PathBuf::from("/tokens/cluster"));
        let account = proxy(&["--profile", &path, "-f", "-", "--service-account-token-file", "/sa"]).unwrap();
        assert_eq!(file(&account.cluster_token), PathBuf::from("/sa"));
        let config = proxy(&[
            "--profile",
            &path,
            "--port",
            "0",
            "--cluster",
            "edge-7",
            "--cluster",
            "edge-8",
            "--relay",
            "other:1",
            "--kubeconfig",
            "/k",
        ])
        .unwrap();
        assert_eq!(config.port, Some(0));
        assert_eq!(config.relay.authority(), "other:1");
        assert_eq!(config.kubeconfig, Some(Location::file("/k")));
        assert_eq!((config.clusters[0].id, config.clusters[1].id), (Some(id), None));
        let named = proxy(&["--profile", &path, "--context-name", "mine", "-f", "-"]).unwrap();
        assert_eq!(named.clusters[0].context.as_deref(), Some("mine"));
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("context-name = 'work'\nkubeconfig = '-'\n{text}")).unwrap();
        let config = proxy(&["--profile", &path]).unwrap();
        assert_eq!((config.clusters[0].context.as_deref(), config.kubeconfig), (Some("work"), None));
        let config = proxy(&["--profile", &path, "--context-name", "mine", "-f", "/k"]).unwrap();
        assert_eq!(config.clusters[0].context.as_deref(), Some("mine"));
        assert_eq!(config.kubeconfig, Some(Location::file("/k")));
        let two = ["--profile", &path, "--context-name", "x", "--cluster", "a", "--cluster", "b", "-f", "-"];
        assert_eq!(proxy(&two).unwrap_err().fault, Fault::ConfigInvalid);
    }

    #[test]
    fn what_runs_comes_after_two_dashes() {
        let parse = |arguments: &[&str]| Cli::try_parse_from([&["towline"], arguments].concat());
        let cli = parse(&["run", "--cluster", "a", "--", "kubectl", "get", "pods", "-o", "json"]).unwrap();
        let Command::Run(arguments) = cli.command else { panic!("another command") };
        assert_eq!(arguments.command, ["kubectl", "get", "pods", "-o", "json"]);
        assert!(parse(&["run", "--cluster", "a"]).is_err());
        assert!(parse(&["proxy", "--relay-token", "t"]).is_err(), "a token is never an argument");
    }
}

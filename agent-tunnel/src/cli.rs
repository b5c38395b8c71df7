//! The command line: arguments as typed, arguments as usable objects, logs, exit codes.
//!
//! Every argument of `run` can stand in the environment as well, so that a manifest needs no command line. None of them
//! is a secret: those are in files.

mod health;
mod roles;

use std::{
    fs,
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use towline_identity::{IssuerSettings, Roots, TrustSettings, TrustSource};
use towline_tunnel::{
    audit::Destination,
    carrier::dial::RelayAddress,
    clock::Clock,
    doctor::{Finding, Ink, conclusion, line},
    egress::Egress,
    enrolment::EnrolmentToken,
    fault::{Fault, Report, name_program},
    keys::SigningKey,
    log,
    mux::{LineSettings, MAX_LINES},
    values::{bytes, duration},
};

use crate::{
    app::{self, BULK_LINES, Config, Holding, Limits, RelayConfig, default_lines},
    dial::ApiserverConfig,
    forward::{Access, Mode},
    preflight,
    proxies::AgentProxies,
    secret::StateSecret,
    state::DataDir,
};

/// The towline agent: connects a cluster to a relay, from the inside.
#[derive(Debug, Parser)]
#[command(name = "towline-agent", version, about)]
pub struct Cli {
    /// How much to log, to stderr: as text on a terminal, as JSON otherwise [default: as RUST_LOG says, or info]
    #[arg(long, global = true, value_enum)]
    log: Option<log::Level>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Connect to the relay, and serve until told to stop
    Run(Box<Run>),
    /// Look at everything that `run` needs, with the same arguments, and say what is wrong and who can repair it
    Preflight(Box<Preflight>),
    /// Print the cluster's id
    Id(Place),
    /// Say whether the agent that runs with this folder has a session with the relay: exit code 0 if so (for probes)
    Health(health::Health),
    /// Roles by the relay in this cluster
    #[command(subcommand)]
    Roles(roles::Command),
}

#[derive(Args, Debug)]
struct Place {
    /// Folder with the cluster's identity key and the relay that was joined
    #[arg(
        long,
        value_name = "DIR",
        env = "TOWLINE_AGENT_DATA_DIR",
        default_value = "/var/lib/towline-agent"
    )]
    data_dir: PathBuf,
}

#[derive(Args, Debug)]
struct Run {
    #[command(flatten)]
    place: Place,

    /// Secret (NAMESPACE/NAME) that holds the same as the data directory, which may then be empty at each start
    #[arg(long, value_name = "SECRET", env = "TOWLINE_AGENT_STATE_SECRET")]
    state_secret: Option<String>,

    /// File with the token that `towline-relay enroll NAME` printed; needed until the cluster is enrolled
    #[arg(long, value_name = "FILE", env = "TOWLINE_AGENT_ENROLMENT_TOKEN_FILE")]
    enrolment_token_file: Option<PathBuf>,

    /// The relay, where it has another address than the enrolment token says
    #[arg(long, value_name = "URL", env = "TOWLINE_AGENT_RELAY")]
    relay: Option<String>,

    /// Authorities (PEM) of the relay's certificate beside the system's, in place of the enrolment token's
    #[arg(long, value_name = "FILE", env = "TOWLINE_AGENT_RELAY_CA_FILE")]
    relay_ca_file: Option<PathBuf>,

    /// File with a second relay's enrolment token: the agent is connected with both, each as if it were the only one. Says that there is a second one, and stays
    #[arg(long, value_name = "FILE", env = "TOWLINE_AGENT_SECOND_ENROLMENT_TOKEN_FILE")]
    second_enrolment_token_file: Option<PathBuf>,

    /// The second relay, where it has another address than its enrolment token says
    #[arg(
        long,
        value_name = "URL",
        env = "TOWLINE_AGENT_SECOND_RELAY",
        requires = "second_enrolment_token_file"
    )]
    second_relay: Option<String>,

    /// Authorities (PEM) of the second relay's certificate beside the system's, in place of its enrolment token's
    #[arg(
        long,
        value_name = "FILE",
        env = "TOWLINE_AGENT_SECOND_RELAY_CA_FILE",
        requires = "second_enrolment_token_file"
    )]
    second_relay_ca_file: Option<PathBuf>,

    /// Reach kube-apiserver as this kubeconfig says, not as a pod
    #[arg(long, value_name = "FILE", env = "TOWLINE_AGENT_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig; its current one if not given
    #[arg(long, value_name = "NAME", env = "TOWLINE_AGENT_CONTEXT", requires = "kubeconfig")]
    context: Option<String>,

    /// Service account (NAMESPACE/NAME) that impersonates, for which tokens are requested; the agent's own if not given
    #[arg(long, value_name = "ACCOUNT", env = "TOWLINE_AGENT_IMPERSONATOR")]
    impersonator: Option<String>,

    /// Address and port for /metrics, /healthz and /readyz; keep it on loopback
    #[arg(long, value_name = "ADDRESS", env = "TOWLINE_AGENT_METRICS_LISTEN", default_value = "127.0.0.1:0")]
    metrics_listen: SocketAddr,

    /// How long streams may go on after SIGTERM
    #[arg(long, value_name = "TIME", env = "TOWLINE_AGENT_DRAIN_TIMEOUT", default_value = "20s", value_parser = duration)]
    drain_timeout: Duration,

    /// How long a stream waits for its client when a connection on the way is lost
    #[arg(long, value_name = "TIME", env = "TOWLINE_AGENT_RESUME_TIMEOUT", default_value = "60s", value_parser = duration)]
    resume_timeout: Duration,

    /// Connections beside the session, opened and closed as needed, for streams that carry much; 0 for none
    #[arg(long, value_name = "N", env = "TOWLINE_AGENT_BULK_LINES", default_value_t = BULK_LINES, value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_LINES)))]
    bulk_lines: u32,

    /// Hold no spare session beside the one that carries: half the connections, and a gap where that is lost
    #[arg(long, env = "TOWLINE_AGENT_NO_SPARE")]
    no_spare: bool,

    /// Reach identity providers by streams through the relay, which must name them (towline-relay serve --issuer-host): where nothing else gets out
    #[arg(long, env = "TOWLINE_AGENT_ISSUER_VIA_RELAY")]
    issuer_via_relay: bool,

    // Those with headings of their own come last: a heading holds for all that follows.
    #[command(flatten)]
    proxies: AgentProxies,

    #[command(flatten)]
    access: AccessArgs,

    #[command(flatten)]
    roles: roles::RoleArgs,

    #[command(flatten)]
    issuer: IssuerArgs,

    #[command(flatten)]
    audit: AuditArgs,

    #[command(flatten)]
    limits: LimitArgs,
}

#[derive(Args, Debug)]
struct Preflight {
    /// How to print what is found
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: OutputArg,

    #[command(flatten)]
    run: Run,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OutputArg {
    /// For people
    Text,
    /// For scripts (docs/doctor.md)
    Json,
}

impl Preflight {
    /// The exit code is that of the first failure.
    async fn look(self) -> Result<ExitCode, Report> {
        let (text, ink) = (self.output == OutputArg::Text, Ink::of(std::io::stdout().is_terminal()));
        let tell = move |finding: &Finding| {
            if text {
                say(&line(finding, ink));
            }
        };
        let diagnosis = match self.run.config() {
            Ok(config) => preflight::examine(config, tell).await,
            Err(report) => preflight::unusable(&report, tell),
        };
        say(&if text { format!("\n{}", conclusion(&diagnosis, ink)) } else { diagnosis.to_json() });
        Ok(ExitCode::from(diagnosis.exit_code))
    }
}

/// A line for standard output; whoever reads may have gone.
fn say(line: &str) {
    let _closed = writeln!(std::io::stdout(), "{line}");
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Audit")]
struct AuditArgs {
    /// Write a line of JSON for each request to this file, or to standard output (-)
    #[arg(long, value_name = "FILE", env = "TOWLINE_AGENT_AUDIT_LOG")]
    audit_log: Option<String>,
    /// Size at which that file is moved to FILE.1
    #[arg(long, value_name = "SIZE", env = "TOWLINE_AGENT_AUDIT_LOG_SIZE", default_value = "100MiB", value_parser = bytes)]
    audit_log_size: u64,
    /// How many moved files are kept
    #[arg(long, value_name = "N", env = "TOWLINE_AGENT_AUDIT_LOG_FILES", default_value = "10")]
    audit_log_files: u32,
}

impl AuditArgs {
    fn parse(self) -> Option<Destination> {
        self.audit_log.map(|to| Destination::parse(&to, self.audit_log_size, self.audit_log_files))
    }
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Towards kube-apiserver")]
struct AccessArgs {
    /// How kube-apiserver learns who is calling
    #[arg(long, value_name = "MODE", env = "TOWLINE_AGENT_MODE", default_value = "impersonate")]
    mode: ModeArg,
    /// Let callers ask to act in the group system:masters (kubectl --as-group), if the cluster's own rules allow it to them
    #[arg(long, env = "TOWLINE_AGENT_ALLOW_SYSTEM_MASTERS")]
    allow_system_masters: bool,
    /// Pass tokens of the cluster's own service accounts on as they are, for kube-apiserver to judge
    #[arg(long, env = "TOWLINE_AGENT_ALLOW_SERVICE_ACCOUNT_TOKENS")]
    allow_service_account_tokens: bool,
    /// Take no token that was issued longer ago, whatever its own end; what was opened with it ends then
    #[arg(long, value_name = "TIME", env = "TOWLINE_AGENT_MAX_TOKEN_AGE", value_parser = duration)]
    max_token_age: Option<Duration>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeArg {
    /// The agent impersonates the verified user
    Impersonate,
    /// The verified token goes on to a kube-apiserver that trusts its issuer
    Passthrough,
}

impl From<AccessArgs> for Access {
    fn from(arguments: AccessArgs) -> Self {
        let mode = match arguments.mode {
            ModeArg::Impersonate => Mode::Impersonate,
            ModeArg::Passthrough => Mode::PassThrough,
        };
        Self {
            mode,
            system_masters: arguments.allow_system_masters,
            service_accounts: arguments.allow_service_account_tokens,
            max_token_age: arguments.max_token_age,
        }
    }
}

/// Whose tokens for this cluster are accepted: names and meanings of kube-apiserver's flags.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "People's tokens for this cluster (OIDC)")]
pub struct IssuerArgs {
    /// kube-apiserver's own file with any number of issuers (apiserver.config.k8s.io/v1), in place of the flags below
    #[arg(
        long,
        value_name = "FILE",
        env = "TOWLINE_AGENT_AUTHENTICATION_CONFIG",
        conflicts_with = "oidc_issuer_url"
    )]
    authentication_config: Option<PathBuf>,
    /// File that says which tokens of Microsoft Entra ID are taken
    #[arg(long, value_name = "FILE", env = "TOWLINE_AGENT_ENTRA_CONFIG")]
    entra_config: Option<PathBuf>,
    /// File that says which issuers are asked, while something of a user's is open, whether their token is still good (RFC 7662)
    #[arg(long, value_name = "FILE", env = "TOWLINE_AGENT_INTROSPECTION_CONFIG")]
    introspection_config: Option<PathBuf>,
    /// Issuer's https URL
    #[arg(
        long,
        value_name = "URL", env = "TOWLINE_AGENT_OIDC_ISSUER_URL",
        required_unless_present_any = ["authentication_config", "entra_config"]
    )]
    oidc_issuer_url: Option<String>,
    /// Audience that tokens for this cluster have
    #[arg(long, value_name = "ID", env = "TOWLINE_AGENT_OIDC_CLIENT_ID", default_value = "towline-cluster")]
    oidc_client_id: String,
    /// Claim that is the username
    #[arg(long, value_name = "CLAIM", env = "TOWLINE_AGENT_OIDC_USERNAME_CLAIM")]
    oidc_username_claim: Option<String>,
    /// Prefix of usernames; `-` for none
    #[arg(
        long,
        value_name = "PREFIX",
        env = "TOWLINE_AGENT_OIDC_USERNAME_PREFIX",
        allow_hyphen_values = true
    )]
    oidc_username_prefix: Option<String>,
    /// Claim that holds the groups
    #[arg(long, value_name = "CLAIM", env = "TOWLINE_AGENT_OIDC_GROUPS_CLAIM")]
    oidc_groups_claim: Option<String>,
    /// Prefix of groups
    #[arg(long, value_name = "PREFIX", env = "TOWLINE_AGENT_OIDC_GROUPS_PREFIX")]
    oidc_groups_prefix: Option<String>,
    /// A claim that must have this value (repeatable, or with commas between)
    #[arg(long, value_name = "KEY=VALUE", env = "TOWLINE_AGENT_OIDC_REQUIRED_CLAIM", value_delimiter = ',')]
    oidc_required_claim: Vec<String>,
    /// The only authorities (PEM) that the issuer is trusted by
    #[arg(long, value_name = "FILE", env = "TOWLINE_AGENT_OIDC_CA_FILE")]
    oidc_ca_file: Option<PathBuf>,
    /// Signature algorithms that are accepted; RS256, or with --authentication-config kube-apiserver's, if not given
    #[arg(long, value_name = "ALGS", env = "TOWLINE_AGENT_OIDC_SIGNING_ALGS", value_delimiter = ',')]
    oidc_signing_algs: Vec<String>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// Streams at once on one session with the relay, of all users together
    #[arg(long, value_name = "N", env = "TOWLINE_AGENT_MAX_STREAMS", default_value = "16384", value_parser = clap::value_parser!(u32).range(1..))]
    max_streams: u32,
    /// Streams at once of one user, on all sessions together
    #[arg(long, value_name = "N", env = "TOWLINE_AGENT_MAX_STREAMS_PER_USER", default_value = "4096", value_parser = clap::value_parser!(u32).range(1..))]
    max_streams_per_user: u32,
    /// Stream data held or promised, beyond 16 KiB each way for each stream
    #[arg(long, value_name = "SIZE", env = "TOWLINE_AGENT_MAX_BUFFERED_BYTES", default_value = "256MiB", value_parser = bytes)]
    max_buffered_bytes: u64,
}

impl IssuerArgs {
    /// Reads the files that they name, and checks everything.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn parse(self) -> Result<TrustSource, Report> {
        if let Some(file) = &self.oidc_ca_file {
            let unusable = |error| Report::new(Fault::FileUnreadable, format!("--oidc-ca-file {error}"));
            Roots::read(file).map_err(unusable)?;
        }
        let signing_algs = self.oidc_signing_algs.clone();
        let oidc = self.oidc_issuer_url.map(|issuer_url| IssuerSettings {
            issuer_url,
            client_id: self.oidc_client_id,
            username_claim: self.oidc_username_claim,
            username_prefix: self.oidc_username_prefix,
            groups_claim: self.oidc_groups_claim,
            groups_prefix: self.oidc_groups_prefix,
            required_claims: self.oidc_required_claim,
            ca_file: self.oidc_ca_file,
            signing_algs: self.oidc_signing_algs,
        });
        TrustSource::load(TrustSettings {
            oidc,
            authentication_config: self.authentication_config,
            signing_algs,
            entra_config: self.entra_config,
            introspection_config: self.introspection_config,
        })
        .map_err(|error| Report::new(Fault::ConfigInvalid, error.to_string()))
    }
}

impl Run {
    fn config(self) -> Result<Config, Report> {
        let apiserver = match self.kubeconfig {
            Some(path) => ApiserverConfig::Kubeconfig { path, context: self.context },
            None => ApiserverConfig::InCluster,
        };
        let access = Access::from(self.access);
        let second_relay = match self.second_enrolment_token_file.as_deref() {
            Some(file) => Some(relay(Some(file), self.second_relay.as_deref(), self.second_relay_ca_file)?),
            None => None,
        };
        Ok(Config {
            data_dir: self.place.data_dir,
            state_secret: self.state_secret.as_deref().map(StateSecret::parse).transpose()?,
            relay: relay(self.enrolment_token_file.as_deref(), self.relay.as_deref(), self.relay_ca_file)?,
            second_relay,
            egress: Egress::new(self.proxies.settings()?)?,
            issuer_via_relay: self.issuer_via_relay,
            apiserver,
            impersonator: self.impersonator,
            roles: self.roles.parse(access.mode)?,
            access,
            issuer: self.issuer.parse()?,
            metrics_listen: self.metrics_listen,
            drain_timeout: self.drain_timeout,
            resume_timeout: self.resume_timeout,
            lines: LineSettings { max: self.bulk_lines, ..default_lines() },
            holding: Holding { spare: !self.no_spare, ..Holding::default() },
            audit: self.audit.parse(),
            limits: Limits {
                max_streams: self.limits.max_streams,
                max_streams_per_user: self.limits.max_streams_per_user,
                max_buffered_bytes: self.limits.max_buffered_bytes,
            },
            clock: Clock::system(),
        })
    }

    async fn run(self) -> Result<(), Report> {
        let config = self.config()?;
        let no_signals = |error| Report::caused_by(Fault::Internal, "signals can't be caught", error);
        let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
        let mut running = app::start(config).await?;
        tokio::select! {
            ended = running.ended() => return ended,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("draining; a second signal ends it at once");
        tokio::select! {
            _quiet = running.drain() => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    }
}

fn relay(
    token: Option<&Path>,
    address: Option<&str>,
    ca_file: Option<PathBuf>,
) -> Result<RelayConfig, Report> {
    let enrolment = token.map(read_token).transpose()?.flatten();
    Ok(RelayConfig { enrolment, address: address.map(RelayAddress::parse).transpose()?, ca_file })
}

/// An enrolment token is used once, and its file may well be gone after that: an empty or missing one is none.
fn read_token(path: &Path) -> Result<Option<EnrolmentToken>, Report> {
    match fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => EnrolmentToken::decode(&text).map(Some).map_err(|mut report| {
            report.detail = format!("{}: {}", path.display(), report.detail);
            report
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            tracing::warn!(file = %path.display(), "there is no enrolment token");
            Ok(None)
        }
        Err(error) => Err(Report::caused_by(Fault::FileUnreadable, path.display().to_string(), error)),
    }
}

/// The identity key of an agent that was started once: nobody is to bind or pin a new one's.
fn kept_identity(place: &Place) -> Result<Arc<SigningKey>, Report> {
    let missing = || {
        Report::new(
            Fault::FileUnreadable,
            format!("{} holds no cluster's identity: start the agent once", place.data_dir.display()),
        )
    };
    if !place.data_dir.is_dir() {
        return Err(missing());
    }
    let dir = DataDir::open(&place.data_dir)?;
    if !dir.has_identity() {
        return Err(missing());
    }
    dir.identity()
}

fn id(place: &Place) -> Result<(), Report> {
    let id = kept_identity(place)?.public().cluster_id();
    writeln!(std::io::stdout(), "{id}")
        .map_err(|error| Report::caused_by(Fault::FileUnwritable, "standard output", error))
}

/// Runs the program; its exit code is the fault's (`docs/errors.md`).
pub fn main() -> ExitCode {
    name_program("towline-agent");
    let cli = Cli::parse();
    log::start(cli.log, &["towline_agent", "towline_tunnel", "towline_identity"]);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Report::caused_by(Fault::Internal, "no runtime can be made", error)),
    };
    let ended = match cli.command {
        Command::Run(run) => runtime.block_on(run.run()).map(|()| ExitCode::SUCCESS),
        Command::Preflight(preflight) => runtime.block_on(preflight.look()),
        Command::Id(place) => id(&place).map(|()| ExitCode::SUCCESS),
        Command::Health(health) => runtime.block_on(health.ask()),
        Command::Roles(command) => command.run().map(|()| ExitCode::SUCCESS),
    };
    // What a second signal left behind is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match ended {
        Ok(code) => code,
        Err(report) => fail(&report),
    }
}

fn fail(report: &Report) -> ExitCode {
    // Where standard error is gone there is nobody to tell.
    let _told = writeln!(std::io::stderr(), "{report}");
    ExitCode::from(report.exit_code())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_its_defaults_are_the_librarys() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["towline-agent", "run", "--oidc-issuer-url", "https://idp.example"])
            .unwrap();
        let Command::Run(run) = cli.command else { panic!("not run") };
        let config = run.config().unwrap();
        assert_eq!((config.limits, config.lines), (Limits::default(), default_lines()));
        assert_eq!(config.apiserver, ApiserverConfig::InCluster);
        assert_eq!(config.access, Access::default());
        assert_eq!(config.issuer.trust.audiences(), ["towline-cluster"]);
        let cli = Cli::try_parse_from(["towline-agent", "id", "--log", "debug"]).unwrap();
        assert_eq!(cli.log, Some(log::Level::Debug));
    }

    #[test]
    fn each_argument_of_run_can_stand_in_the_environment() {
        let run = Cli::command().find_subcommand("run").unwrap().clone();
        let mut asked = 0;
        for argument in run.get_arguments().filter(|argument| argument.get_id() != "help") {
            let name = argument.get_long().unwrap();
            let expected = format!("TOWLINE_AGENT_{}", name.replace('-', "_").to_uppercase());
            assert_eq!(argument.get_env().and_then(|env| env.to_str()), Some(expected.as_str()), "--{name}");
            asked += 1;
        }
        assert!(asked > 20, "{asked}");
    }

    #[test]
    fn required_claims_are_repeated_or_have_commas_between() {
        let read = |more: &[&str]| {
            let cli = Cli::try_parse_from(
                [&["towline-agent", "run", "--oidc-issuer-url", "https://i"], more].concat(),
            );
            let Command::Run(run) = cli.unwrap().command else { panic!("not run") };
            run.issuer.oidc_required_claim
        };
        assert_eq!(read(&["--oidc-required-claim", "a=b,c=d"]), ["a=b", "c=d"]);
        assert_eq!(read(&["--oidc-required-claim", "a=b", "--oidc-required-claim", "c=d"]), ["a=b", "c=d"]);
    }

    #[test]
    fn whom_to_trust_is_said_by_flags_or_by_files_and_never_by_nobody() {
        let reads = |more: &[&str]| Cli::try_parse_from([&["towline-agent", "run"], more].concat()).is_ok();
        assert!(!reads(&[]));
        assert!(reads(&["--authentication-config", "f"]));
        assert!(reads(&["--entra-config", "f"]));
        assert!(reads(&["--entra-config", "f", "--oidc-issuer-url", "https://idp"]));
        assert!(!reads(&["--authentication-config", "f", "--oidc-issuer-url", "https://idp"]));
    }

    #[test]
    fn the_operators_guide_names_every_limit_with_its_default() {
        let guide = include_str!("../../docs/operator-guide.md");
        for limit in ["max-streams", "max-streams-per-user", "max-buffered-bytes"] {
            let run = Cli::command().find_subcommand("run").unwrap().clone();
            let flag = run.get_arguments().find(|flag| flag.get_long() == Some(limit)).unwrap().clone();
            let default = flag.get_default_values()[0].to_str().unwrap();
            let row = format!("| `--{limit}` | {default} |");
            assert!(guide.contains(&row), "docs/operator-guide.md has no row that begins with {row}");
        }
    }

    #[test]
    fn a_token_file_may_be_gone_and_a_damaged_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        assert_eq!(read_token(&path).unwrap(), None);
        fs::write(&path, "\n").unwrap();
        assert_eq!(read_token(&path).unwrap(), None);
        fs::write(&path, "tle1.canary").unwrap();
        let report = read_token(&path).unwrap_err();
        assert_eq!(report.fault, Fault::EnrolTokenUnusable);
        let said = report.to_string();
        assert!(said.contains(path.to_str().unwrap()) && !said.contains("canary"), "{said}");
    }
}

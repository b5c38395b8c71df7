//! The command line of `towline-relay`.

mod audit;
mod clusters;
mod documents;
mod enroll;
mod revoke;
mod roles;
mod serve;
pub mod table;

use std::{io::Write as _, path::PathBuf, process::ExitCode, time::SystemTime};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
pub use table::table;
use towline_tunnel::{
    carrier::dial::RelayAddress,
    fault::{Fault, Report, name_program},
    json, log,
};

use crate::{data_dir, keys::RelayKeys, registry::Registry};

/// A blind relay for kubectl: agents dial in, people are connected to them, and nothing that passes can be read here.
#[derive(Debug, Parser)]
#[command(name = "towline-relay", version)]
struct Cli {
    /// How much to log, to stderr: as text on a terminal, as JSON otherwise [default: as RUST_LOG says, or info]
    #[arg(long, global = true, value_enum)]
    log: Option<log::Level>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve agents and clients
    Serve(Box<serve::Serve>),
    /// Print the hash of the relay's identity key, which agents and clients pin
    Key(Place),
    /// Make a one-time token that lets a cluster in
    Enroll(enroll::Enroll),
    /// List the connected clusters
    Clusters(clusters::Clusters),
    /// List the agent instances of all clusters
    Instances(clusters::Instances),
    /// End an agent instance's certificates and session, for good
    RevokeInstance(clusters::RevokeInstance),
    /// Take a cluster out: its agents, and the roles on it
    RemoveCluster(clusters::RemoveCluster),
    /// Say who may open which cluster
    #[command(subcommand)]
    Role(roles::Role),
    /// End somebody's sessions at once, and refuse the tokens that they were begun with
    Revoke(revoke::Revoke),
    /// List whose tokens are refused
    Revocations(revoke::Revocations),
    /// Show who opened which cluster, and who was refused
    Audit(audit::Audit),
}

/// Where the relay keeps its keys and its registry.
#[derive(Args, Clone, Debug)]
struct Place {
    /// Folder of the relay's keys and registry
    #[arg(
        long,
        value_name = "DIR",
        env = "TOWLINE_RELAY_DATA_DIR",
        default_value = "/var/lib/towline-relay"
    )]
    data_dir: PathBuf,
}

impl Place {
    /// The registry of a relay that served from here at least once: a mistyped folder is not a new relay.
    async fn registry(&self) -> Result<Registry, Report> {
        let file = self.data_dir.join(crate::registry::FILE);
        if !file.exists() {
            return Err(Report::new(
                Fault::FileUnreadable,
                format!(
                    "{} is not there: give the --data-dir of a relay that was started once",
                    file.display()
                ),
            ));
        }
        Ok(Registry::open(&self.data_dir).await?)
    }

    /// The keys of a relay that served from here at least once: nobody is to pin those of a mistyped folder.
    fn existing_keys(&self) -> Result<RelayKeys, Report> {
        if !RelayKeys::exist(&self.data_dir) {
            return Err(Report::new(
                Fault::FileUnreadable,
                format!(
                    "no relay's keys are in {}: give the --data-dir of a relay that was started once",
                    self.data_dir.display()
                ),
            ));
        }
        self.keys()
    }

    /// Whether a relay serves from here now: otherwise nobody is online, whatever its last notes say. Says so to people.
    fn is_served(&self) -> bool {
        let served = data_dir::is_served(&self.data_dir);
        if !served {
            eprintln!("No relay serves from {} now: nobody is online.", self.data_dir.display());
        }
        served
    }

    fn keys(&self) -> Result<RelayKeys, Report> {
        RelayKeys::load_or_create(&self.data_dir)
    }
}

/// What peers are told to dial: they take `host` for an address, too, but who types a word here may mean something else.
fn public_url(text: &str) -> Result<RelayAddress, String> {
    if !text.starts_with("https://") {
        return Err(
            "it must be a URL such as https://relay.example.com or https://relay.example.com:8443".into()
        );
    }
    RelayAddress::parse(text).map_err(|report| report.detail)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    #[default]
    Table,
    /// For scripts
    Json,
}

/// Runs the program; its exit code is the fault's (`docs/errors.md`).
pub fn main() -> ExitCode {
    name_program("towline-relay");
    let cli = Cli::parse();
    log::start(cli.log, &["towline_relay", "towline_tunnel", "towline_identity"]);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Report::caused_by(Fault::Internal, "no runtime can be made", error)),
    };
    match runtime.block_on(run(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(report) => fail(&report),
    }
}

fn fail(report: &Report) -> ExitCode {
    eprintln!("{report}");
    ExitCode::from(report.exit_code())
}

async fn run(command: Command) -> Result<(), Report> {
    let now = SystemTime::now();
    match command {
        Command::Serve(serve) => serve.run().await,
        Command::Key(place) => print(&place.existing_keys()?.identity_hash().to_string()),
        Command::Enroll(enroll) => enroll.run(now).await,
        Command::Clusters(clusters) => clusters.run(now).await,
        Command::Instances(instances) => instances.run(now).await,
        Command::RevokeInstance(revoke) => revoke.run(now).await,
        Command::RemoveCluster(remove) => remove.run().await,
        Command::Role(role) => role.run(now).await,
        Command::Revoke(revoke) => revoke.run(now).await,
        Command::Revocations(revocations) => revocations.run(now).await,
        Command::Audit(audit) => audit.run(now).await,
    }
}

/// What a command is asked for goes to standard output, and everything else to standard error.
fn print(text: &str) -> Result<(), Report> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}") {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => {
            written.map_err(|error| Report::caused_by(Fault::FileUnwritable, "standard output", error))
        }
    }
}

/// A result for scripts. Agents and people have chosen some of its words.
fn print_json(items: &[impl Serialize]) -> Result<(), Report> {
    let text = json::to_string(items);
    print(&text.map_err(|error| Report::caused_by(Fault::Internal, "a result can't be written down", error))?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["towline-relay", "key", "--log", "debug"]).unwrap();
        assert_eq!(cli.log, Some(log::Level::Debug));
    }
}

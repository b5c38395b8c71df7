//! The command line: arguments as typed, and what each command does with them.

mod arguments;
mod ask;
mod at_relay;
mod audit;
mod auth;
mod completion;
mod dev;
mod doctor;
mod list;
mod log;
mod login;
mod profile;
mod proxy;
mod revoke;
mod role;
mod run;
mod signals;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use towline_tunnel::{
    fault::{Fault, Report},
    log::Level,
};

pub use arguments::{ProxyArguments, Reach, RunArguments};
pub use at_relay::AtRelay;
pub use audit::AuditArguments;
pub use auth::{AuthCommand, CheckArguments};
pub use doctor::{DoctorArguments, EndpointsArguments};
pub use list::ListArguments;
pub use log::{start as start_log, start_and_keep as start_kept_log};
pub use login::{LoginArguments, Output, WhoamiArguments, Whose};
use profile::Profile;
pub use revoke::RevokeArguments;
pub use role::RoleCommand;

/// kubectl for clusters behind a towline relay.
#[derive(Debug, Parser)]
#[command(name = "towline", version, about, arg_required_else_help = true)]
pub struct Cli {
    /// How much to log, to stderr: as text on a terminal, as JSON otherwise [default: info for `proxy`, warn otherwise].
    #[arg(long, global = true, value_enum)]
    pub log: Option<Level>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve clusters on a local endpoint, and add contexts for them to the kubeconfig while it runs.
    Proxy(ProxyArguments),
    /// Run one command with a kubeconfig of its own for one or more clusters.
    Run(RunArguments),
    /// Log in at the identity provider that the profile names: once, for the relay's token and the clusters'.
    Login(LoginArguments),
    /// Forget the login, here and at the provider.
    Logout(Whose),
    /// Say who you are for relay and clusters. Never prints a token.
    Whoami(WhoamiArguments),
    /// List the clusters that you may open.
    #[command(alias = "clusters")]
    List(ListArguments),
    /// Show who opened which cluster through the relay, and who was refused: your own, or with the role `auditor` others'.
    Audit(AuditArguments),
    /// End sessions at the relay at once, and refuse the tokens that they were begun with: your own, or with the role `operator` others'.
    Revoke(RevokeArguments),
    /// Look into tokens.
    #[command(subcommand)]
    Auth(AuthCommand),
    /// Roles inside clusters, signed by the organisation's key.
    #[command(subcommand)]
    Role(RoleCommand),
    /// Find out what is wrong between here and a cluster, and who can repair it.
    Doctor(Box<DoctorArguments>),
    /// Say what a firewall must allow, and why.
    Endpoints(EndpointsArguments),
    /// Try towline on a cluster that you have: relay, agent and proxy in one process, with a stand-in for the identity provider.
    Dev(dev::DevArguments),
    /// Print what makes a shell complete commands and flags.
    Completion(completion::CompletionArguments),
}

impl Cli {
    /// How much is logged: a proxy runs for long, and the others have something else to show.
    pub fn level(&self) -> Level {
        let (reach, usual) = match &self.command {
            Command::Proxy(arguments) => (Some(&arguments.reach), Level::Info),
            Command::Run(arguments) => (Some(&arguments.reach), Level::Warn),
            _ => (None, Level::Warn),
        };
        // What is wrong with a profile is told once the command reads it.
        let of_profile = || Profile::load(reach?.at.profile.as_deref()).ok()?.log;
        self.log.or_else(of_profile).unwrap_or(usual)
    }

    /// Whether what is logged is kept for a bundle, too.
    pub fn keeps_log(&self) -> bool {
        matches!(&self.command, Command::Doctor(arguments) if arguments.keeps_log())
    }

    /// Does it. Says what went wrong, and returns the exit code that stands for it.
    pub async fn execute(self) -> ExitCode {
        let done = match self.command {
            Command::Proxy(arguments) => proxy::execute(arguments).await,
            Command::Run(arguments) => run::execute(arguments).await,
            Command::Login(arguments) => login::login(arguments).await,
            Command::Logout(arguments) => login::logout(arguments).await,
            Command::Whoami(arguments) => login::whoami(arguments).await,
            Command::List(arguments) => list::execute(arguments).await,
            Command::Audit(arguments) => audit::execute(arguments).await,
            Command::Revoke(arguments) => revoke::execute(arguments).await,
            Command::Auth(command) => auth::execute(command).await,
            Command::Role(command) => role::execute(command).await,
            Command::Doctor(arguments) => doctor::doctor(*arguments).await,
            Command::Endpoints(arguments) => doctor::list_endpoints(arguments).await,
            Command::Dev(arguments) => dev::execute(arguments).await,
            Command::Completion(arguments) => completion::execute(&arguments),
        };
        let code = done.unwrap_or_else(|report| fail(&report));
        // A refresh token that is being renewed just now is not to be lost.
        crate::login::finish().await;
        code
    }
}

/// Tells a person what went wrong.
pub fn fail(report: &Report) -> ExitCode {
    let _closed = writeln!(io::stderr(), "{report}");
    ExitCode::from(report.exit_code())
}

/// A result for scripts.
fn json(value: &impl serde::Serialize) -> Result<String, Report> {
    towline_tunnel::json::to_string(value)
        .map_err(|error| Report::caused_by(Fault::Internal, "a result can't be written down", error))
}

/// Writes a line that is the command's result. Whoever reads may have gone.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _closed = writeln!(out, "{line}").and_then(|()| out.flush());
}

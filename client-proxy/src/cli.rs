//! The command line: arguments as typed, and what each command does with them.

mod arguments;
mod ask;
mod auth;
mod dev;
mod doctor;
mod log;
mod login;
mod profile;
mod proxy;
mod run;
mod signals;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use towline_tunnel::fault::Report;

pub use arguments::{ProxyArguments, Reach, RunArguments};
pub use auth::{AuthCommand, CheckArguments};
pub use doctor::{DoctorArguments, EndpointsArguments};
pub use log::{Level, start as start_log, start_and_keep as start_kept_log};
pub use login::{LoginArguments, Output, WhoamiArguments, Whose};

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
    /// Look into tokens.
    #[command(subcommand)]
    Auth(AuthCommand),
    /// Find out what is wrong between here and a cluster, and who can repair it.
    Doctor(Box<DoctorArguments>),
    /// Say what a firewall must allow, and why.
    Endpoints(EndpointsArguments),
    /// Try towline on a cluster that you have: relay, agent and proxy in one process, with a stand-in for the identity provider.
    Dev(dev::DevArguments),
}

impl Cli {
    /// How much is logged: a proxy runs for long, and the others have something else to show.
    pub fn level(&self) -> Level {
        self.log.unwrap_or(match self.command {
            Command::Proxy(_) => Level::Info,
            _ => Level::Warn,
        })
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
            Command::Auth(command) => auth::execute(command).await,
            Command::Doctor(arguments) => doctor::doctor(*arguments).await,
            Command::Endpoints(arguments) => doctor::list_endpoints(arguments).await,
            Command::Dev(arguments) => dev::execute(arguments).await,
        };
        done.unwrap_or_else(|report| fail(&report))
    }
}

/// Tells a person what went wrong.
pub fn fail(report: &Report) -> ExitCode {
    let _closed = writeln!(io::stderr(), "{report}");
    ExitCode::from(report.exit_code())
}

/// Writes a line that is the command's result. Whoever reads may have gone.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _closed = writeln!(out, "{line}").and_then(|()| out.flush());
}

//! Development tasks of towline. `cargo xtask --help` lists them.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{checks, cluster, docs, doctor, interrupt, journey, peers, soak, threats};

#[derive(Debug, Parser)]
#[command(about, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run every check and test.
    Test(checks::TestArguments),
    /// A real Kubernetes cluster on this machine.
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// What towline is measured beside: haproxy, OpenSSH, rathole, remotedialer.
    #[command(subcommand)]
    Peers(peers::PeersCommand),
    /// Write the pages that are made from code (docs/errors.md, values and README of the chart).
    Docs,
    /// Put faults in, and list the diagnosis that each gets.
    Doctor {
        /// As a table of fault, code and seconds, which is all that there is.
        #[arg(long)]
        table: bool,
    },
    /// List each threat with its test and result.
    Threats(threats::ThreatsArguments),
    /// Proofs that take longer than a test run.
    #[command(subcommand)]
    Soak(soak::SoakCommand),
    /// The direct-or-through table: every case twice, on a real cluster.
    #[command(disable_help_flag = true)]
    E2e {
        /// Passed on; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Real kubectl out of every kind of network: proxies, middleboxes, NAT.
    #[command(disable_help_flag = true)]
    Egress {
        /// Passed on; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Real kubectl through relay, agent and proxy, before your eyes.
    #[command(disable_help_flag = true)]
    Demo {
        /// Passed on; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

fn main() -> ExitCode {
    interrupt::end_when_nobody_reads();
    let done = match Arguments::parse().task {
        Task::Test(arguments) => checks::run(&arguments),
        Task::Cluster(command) => cluster::run(command),
        Task::Peers(command) => peers::run(command),
        Task::Docs => docs::run(),
        Task::Doctor { table: _ } => doctor::run(),
        Task::Threats(arguments) => threats::run(&arguments),
        Task::Soak(command) => soak::run(command),
        Task::E2e { rest } => journey::e2e(&rest),
        Task::Egress { rest } => journey::egress(&rest),
        Task::Demo { rest } => journey::demo(&rest),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

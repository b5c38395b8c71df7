//! `towline auth check`: what a token would become, rule by rule.

use std::{fs, path::PathBuf, process::ExitCode, sync::Arc, time::SystemTime};

use clap::{Args, Subcommand};
use towline_agent::cli::IssuerArgs;
use towline_identity::{Verifier, VerifyError};
use towline_tunnel::{
    egress::{Egress, EgressSettings, ProxyArgs, SkipRange, Sources, process_environment},
    fault::{Fault, Report},
    session::message::{MAX_TOKEN, Secret},
};

use super::{arguments::from_stdin, say};

/// What is to be done with a token.
#[derive(Clone, Debug, Subcommand)]
pub enum AuthCommand {
    /// Say, rule by rule, what a token would become at an agent or relay with these flags, or why it is refused. Never prints the token.
    Check(Box<CheckArguments>),
}

/// Arguments of `towline auth check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArguments {
    /// Holds the token; `-` reads it from standard input.
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// Whom the agent or relay trusts.
    #[command(flatten)]
    pub issuer: IssuerArgs,
    /// Outbound proxies, through which the issuer's keys are had.
    #[command(flatten)]
    pub proxies: ProxyArgs,
}

/// Explains; the exit code is that of a refusal where the token is refused.
pub(super) async fn execute(command: AuthCommand) -> Result<ExitCode, Report> {
    let AuthCommand::Check(arguments) = command;
    let egress = arguments.egress()?;
    let trust = arguments.issuer.parse()?.trust;
    let verifier = Verifier::over(trust, Arc::new(move |host: &str, port: u16| egress.open(host, port)))
        .map_err(|error| Report::new(Fault::ConfigInvalid, error.to_string()))?;
    let token = read(&arguments.token_file)?;
    let explained = verifier.explain(token.reveal_text().unwrap_or_default(), SystemTime::now()).await;
    // It is made of what a stranger may have written into a token.
    say(explained.to_string().trim_end());
    Ok(ExitCode::from(match explained.verdict {
        Ok(_) => 0,
        Err(VerifyError::IssuerUnreachable(_)) => Fault::IssuerUnreachable.outcome().exit_code(),
        Err(_) => Fault::ClusterTokenRefused.outcome().exit_code(),
    }))
}

impl CheckArguments {
    /// No profile has a part in what an agent or relay would say.
    fn egress(&self) -> Result<Egress, Report> {
        Egress::new(EgressSettings::resolve(&Sources {
            flags: &self.proxies,
            profile: None,
            environment: &process_environment,
            never: SkipRange::default(),
        })?)
    }
}

/// The token as it stands: a malformed one is to be explained, too.
fn read(path: &PathBuf) -> Result<Secret, Report> {
    if path.as_os_str() == "-" {
        return from_stdin().map(|token| token.secret);
    }
    let text = fs::read(path).map(Secret::new).map_err(|error| {
        Report::caused_by(Fault::TokenFileUnusable, format!("{}: {error}", path.display()), error)
    })?;
    let token = text.reveal_text().map(str::trim).filter(|token| token.len() <= 4 * MAX_TOKEN);
    token.map(Secret::new).ok_or_else(|| {
        Report::new(Fault::TokenFileUnusable, format!("{} does not hold one token", path.display()))
    })
}

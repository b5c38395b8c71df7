//! `towline revoke`: ends sessions at the relay.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use towline_tunnel::{
    fault::Report,
    session::question::{RevokeAnswer, RevokeQuestion, Topic, Whom},
    values::duration,
};

use super::{AtRelay, Output, json, say};

/// Arguments of `towline revoke`.
#[derive(Args, Clone, Debug)]
pub struct RevokeArguments {
    /// Whose.
    #[command(flatten)]
    pub whose: Revoked,
    /// Only towards the cluster with this name or id.
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Lock them out for this time (at most 30d): tokens that are issued within it are refused, too.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub lock: Option<Duration>,
    /// Which relay.
    #[command(flatten)]
    pub at: AtRelay,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Whose sessions.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct Revoked {
    /// All of yours, on every machine: your laptop was stolen, say. This one's too.
    #[arg(long)]
    pub mine: bool,
    /// Those of this principal: issuer, `#` and the token's subject, as `towline audit -o json` has it.
    #[arg(long)]
    pub principal: Option<String>,
    /// Those of this username, as the relay makes it from the token.
    #[arg(long)]
    pub user: Option<String>,
}

impl Revoked {
    fn whom(self) -> Whom {
        match (self.principal, self.user) {
            (Some(principal), _) => Whom::Principal(principal),
            (None, Some(user)) => Whom::User(user),
            (None, None) => Whom::Me,
        }
    }
}

/// Revokes, and says what that found.
pub(super) async fn execute(arguments: RevokeArguments) -> Result<ExitCode, Report> {
    let whom = arguments.whose.whom();
    let is_own = whom == Whom::Me;
    let question = RevokeQuestion {
        whom,
        cluster: arguments.cluster,
        for_seconds: arguments.lock.map(|lock| lock.as_secs()),
    };
    let (relay, _profile) = arguments.at.connect().await?;
    let answer: Result<RevokeAnswer, Report> = relay.ask(Topic::REVOKE, &question).await;
    relay.close().await;
    let answer = answer?;
    match arguments.output {
        Output::Json => say(&json(&answer)?),
        Output::Text => say(&people(&answer, is_own)),
    }
    Ok(ExitCode::SUCCESS)
}

fn people(answer: &RevokeAnswer, is_own: bool) -> String {
    let at = answer.cluster.as_ref().map(|name| format!(" at {name}")).unwrap_or_default();
    let ended = format!(
        "{} (revoked{at}): {} sessions and {} streams end now; tokens issued until {} are refused",
        answer.whom, answer.sessions, answer.streams, answer.issued_until
    );
    let more = if is_own {
        "Whoever has your refresh token can still get new ones: log out at your identity provider, too. Then `towline login`."
    } else {
        "They can log in again unless their identity provider or --for keeps them from it, or their role is removed."
    };
    format!("{ended}\n{more}")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(arguments: &[&str]) -> Result<RevokeArguments, clap::Error> {
        let cli = Cli::try_parse_from([&["towline", "revoke"], arguments].concat())?;
        let Command::Revoke(arguments) = cli.command else { panic!("another command") };
        Ok(arguments)
    }

    #[test]
    fn it_is_said_whose_sessions_end_and_only_once() {
        assert!(parse(&[]).is_err());
        assert!(parse(&["--mine", "--user", "ada"]).is_err());
        assert_eq!(parse(&["--mine"]).unwrap().whose.whom(), Whom::Me);
        let named = parse(&["--user", "ada", "--for", "8h", "--cluster", "edge-7"]).unwrap();
        assert_eq!(named.lock, Some(Duration::from_secs(8 * 3600)));
        assert_eq!(named.whose.whom(), Whom::User("ada".into()));
    }
}

//! `towline auth check`: what a token would become, rule by rule.

use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use towline_agent::{
    authority::{Life, until},
    cli::IssuerArgs,
    forward::is_of_account,
};
use towline_identity::{Accepted, Claimed, Explanation, Step, Verifier, VerifyError};
use towline_tunnel::{
    egress::{Egress, EgressSettings, ProxyArgs, SkipRange, Sources, process_environment},
    fault::{Fault, Report},
    session::message::{MAX_TOKEN, Secret},
    values::duration,
};

use super::{Output, arguments::from_stdin, say};
use crate::role::moment;

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
    /// As the agent has it: take no token that was issued longer ago.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub max_token_age: Option<Duration>,
    /// As the agent has it: tokens of the cluster's own service accounts are passed on.
    #[arg(long)]
    pub allow_service_account_tokens: bool,
    /// Outbound proxies, through which the issuer's keys are had.
    #[command(flatten)]
    pub proxies: ProxyArgs,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// What becomes of a token.
enum Verdict {
    /// It is this user, until then at the agent.
    User(Accepted, SystemTime),
    /// It says that it is this service account's, which kube-apiserver judges; until then at the agent.
    Account(Claimed, SystemTime),
    /// It is refused: why, and as which fault.
    Refused(String, Fault),
}

/// Explains; the exit code is that of a refusal where the token is refused.
pub(super) async fn execute(command: AuthCommand) -> Result<ExitCode, Report> {
    let AuthCommand::Check(arguments) = command;
    let egress = arguments.egress()?;
    let trust = arguments.issuer.clone().parse()?.trust;
    let verifier = Verifier::over(trust, Arc::new(move |host: &str, port: u16| egress.open(host, port)))
        .map_err(|error| Report::new(Fault::ConfigInvalid, error.to_string()))?;
    let token = read(&arguments.token_file)?;
    let now = SystemTime::now();
    let text = token.reveal_text().unwrap_or_default();
    let Explanation { mut steps, verdict } = verifier.explain(text, now).await;
    let verdict = arguments.judge(text, verdict, now, &mut steps);
    // It is made of what a stranger may have written into a token.
    say(&match arguments.output {
        Output::Text => told(&steps, &verdict),
        Output::Json => super::json(&item(&steps, &verdict))?,
    });
    Ok(ExitCode::from(match verdict {
        Verdict::User(..) | Verdict::Account(..) => 0,
        Verdict::Refused(_, fault) => fault.outcome().exit_code(),
    }))
}

/// For people.
fn told(steps: &[Step], verdict: &Verdict) -> String {
    let explained = |verdict| Explanation { steps: steps.to_vec(), verdict }.to_string();
    match verdict {
        Verdict::User(accepted, until) => {
            format!("{}    ends  {}", explained(Ok(accepted.clone())), moment(*until))
        }
        Verdict::Account(claimed, until) => {
            format!(
                "{}passed on as it is: it says that it is {:?}, which kube-apiserver judges\n    ends  {}",
                lines(steps),
                claimed.subject,
                moment(*until)
            )
        }
        Verdict::Refused(why, _) => format!("{}refused: {why}", lines(steps)),
    }
}

/// A line for each rule, as an explanation has them.
fn lines(steps: &[Step]) -> String {
    let line = |step: &Step| {
        format!("{:<3} {:<14} {}\n", if step.held { "ok" } else { "NO" }, step.rule, step.detail)
    };
    steps.iter().map(line).collect()
}

/// For scripts.
fn item(steps: &[Step], verdict: &Verdict) -> Value {
    let steps: Vec<Value> = steps
        .iter()
        .map(|step| json!({ "rule": step.rule, "held": step.held, "detail": step.detail }))
        .collect();
    match verdict {
        Verdict::User(Accepted { identity, notes }, until) => json!({
            "verdict": "accepted", "rules": steps, "user": identity.username, "groups": identity.groups,
            "uid": identity.uid, "extra": identity.extra, "principal": identity.principal.to_string(),
            "issuedAt": identity.issued_at.map(moment), "expiresAt": moment(identity.expires_at),
            "endsAt": moment(*until), "notes": notes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }),
        Verdict::Account(claimed, until) => json!({
            "verdict": "passed-on", "rules": steps, "serviceAccount": claimed.subject, "issuer": claimed.issuer,
            "issuedAt": claimed.issued_at.map(moment), "expiresAt": claimed.expires_at.map(moment),
            "endsAt": moment(*until),
        }),
        Verdict::Refused(why, fault) => {
            json!({ "verdict": "refused", "rules": steps, "reason": why, "code": fault.code() })
        }
    }
}

impl CheckArguments {
    /// What the agent makes of what its issuers say: how old a token may be, and tokens that are none of theirs.
    fn judge(
        &self,
        token: &str,
        explained: Result<Accepted, VerifyError>,
        now: SystemTime,
        steps: &mut Vec<Step>,
    ) -> Verdict {
        match explained {
            Ok(accepted) => match self.ends(Life::of(&accepted.identity), now, steps) {
                Ok(until) => Verdict::User(accepted, until),
                Err(report) => Verdict::Refused(report.to_string(), report.fault),
            },
            Err(VerifyError::IssuerUnreachable(error)) => {
                Verdict::Refused(VerifyError::IssuerUnreachable(error).to_string(), Fault::IssuerUnreachable)
            }
            Err(error) => {
                let claimed =
                    matches!(error, VerifyError::Issuer).then(|| Claimed::read(token).ok()).flatten();
                match claimed.filter(is_of_account) {
                    Some(claimed) => self.of_account(claimed, now, steps),
                    None => Verdict::Refused(error.to_string(), Fault::ClusterTokenRefused),
                }
            }
        }
    }

    fn of_account(&self, claimed: Claimed, now: SystemTime, steps: &mut Vec<Step>) -> Verdict {
        let refused = |why: &str| {
            Verdict::Refused(format!("a service account's token: {why}"), Fault::AccountTokenRefused)
        };
        if !self.allow_service_account_tokens {
            return refused("the agent takes none (--allow-service-account-tokens)");
        }
        let Some(expires_at) = claimed.expires_at else {
            return refused("it has no end (kubectl create token makes one that has)");
        };
        // That of a person's issuer: it is no stranger any more.
        steps.retain(|step| step.held);
        let life = Life { issued_at: claimed.issued_at, expires_at, skew: Duration::ZERO };
        match self.ends(life, now, steps) {
            Ok(until) => Verdict::Account(claimed, until),
            Err(report) => Verdict::Refused(report.to_string(), report.fault),
        }
    }

    /// Until when it counts at the agent.
    fn ends(&self, life: Life, now: SystemTime, steps: &mut Vec<Step>) -> Result<SystemTime, Report> {
        let ends = until(life, self.max_token_age, now);
        if self.max_token_age.is_some() {
            let detail = match &ends {
                Ok(until) => format!("it may be used until {}", moment(*until)),
                Err(report) => report.to_string(),
            };
            steps.push(Step { rule: "age", held: ends.is_ok(), detail });
        }
        ends
    }

    /// No profile has a part in what an agent or relay would say.
    fn egress(&self) -> Result<Egress, Report> {
        Egress::new(EgressSettings::resolve(&Sources {
            flags: &self.proxies,
            written: None,
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

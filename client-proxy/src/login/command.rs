//! Tokens that a program prints: a credential plugin, or the Azure CLI.
//!
//! What they are told stands in arguments and environment; what they give comes through a pipe, and nowhere else.

use std::{
    collections::BTreeMap,
    process::Stdio,
    time::{Duration, SystemTime},
};

use serde::Deserialize;
use tokio::process::Command;
use towline_identity::Pending;
use towline_tunnel::{
    fault::{Fault, Report},
    session::message::Secret,
};

use super::{
    child::{Failure, Said, ask},
    exec_credential::{API_VERSION, API_VERSIONS, LONGEST, decode_of},
    settings::{ExecTable, Registration},
};
use crate::token::{Issue, Token};

/// A program that asks somebody, or a network, answers within this.
const WITHIN: Duration = Duration::from_secs(60);

fn failed(program: &str, why: impl std::fmt::Display) -> Report {
    Report::new(Fault::CredentialCommandFailed, format!("{program}: {why}"))
}

/// Runs a program and reads what it prints. What it says to people goes to standard error, as it is.
async fn run(program: &str, args: &[String], env: &BTreeMap<String, String>) -> Result<Secret, Report> {
    let mut command = Command::new(program);
    command.args(args).envs(env).stdin(Stdio::null()).stdout(Stdio::piped());
    let Said { status, printed, .. } =
        ask(&mut command, None, LONGEST, WITHIN).await.map_err(|failure| match failure {
            Failure::NotRun(error) => failed(program, format!("can't be run: {error}")),
            Failure::Endless => failed(program, format!("did not end within {} s", WITHIN.as_secs())),
            Failure::Broken(error) => failed(program, error),
        })?;
    if printed.reveal().len() > LONGEST {
        return Err(failed(program, "it printed more than 64 KiB"));
    }
    if !status.success() {
        return Err(failed(program, format!("ended with {status}; what it said stands above")));
    }
    Ok(printed)
}

fn token(program: &str, text: &Secret, expires: Option<SystemTime>) -> Result<Token, Report> {
    let token = text.reveal_text().and_then(Token::parse).map(|token| token.ending(expires));
    token.ok_or_else(|| failed(program, "what it printed is not one token of at most 16 KiB"))
}

/// Runs a credential plugin that speaks this version; KUBERNETES_EXEC_INFO is among `env`.
///
/// # Errors
/// If it can't be run, or gives no token.
pub(crate) async fn plugin(
    version: &str,
    command: &str,
    args: &[String],
    env: &BTreeMap<String, String>,
) -> Result<Token, Report> {
    if !API_VERSIONS.contains(&version) {
        return Err(failed(command, format!("it speaks {version}, and not {}", API_VERSIONS.join(" or "))));
    }
    let printed = run(command, args, env).await?;
    let read = decode_of(version, printed.reveal()).map_err(|why| failed(command, why))?;
    token(command, &read.token, read.expires)
}

/// A `client.authentication.k8s.io/v1` plugin.
#[derive(Debug)]
pub(super) struct Exec(ExecTable);

impl Exec {
    pub(super) fn new(of: Registration) -> Self {
        Self(of.exec.unwrap_or_default())
    }
}

impl Issue for Exec {
    fn issue(&self, _now: SystemTime) -> Pending<'_, Result<Token, Report>> {
        Box::pin(async move {
            let Self(ExecTable { command, args, env }) = self;
            let mut env = env.clone();
            let info = serde_json::json!({
                "apiVersion": API_VERSION, "kind": "ExecCredential", "spec": { "interactive": false },
            });
            env.insert("KUBERNETES_EXEC_INFO".to_owned(), info.to_string());
            plugin(API_VERSION, command, args, &env).await
        })
    }

    fn place(&self) -> String {
        format!("the plugin {}", self.0.command)
    }
}

/// Whoever is logged in to the Azure CLI.
#[derive(Debug)]
pub(super) struct Az {
    args: Vec<String>,
}

/// What `az account get-access-token` prints; `expires_on` is in seconds since 1970 (Azure CLI 2.54 and later).
#[derive(Deserialize)]
struct AzToken {
    #[serde(rename = "accessToken")]
    access_token: String,
    expires_on: Option<u64>,
}

impl Az {
    pub(super) fn new(tenant: Option<String>, of: Registration) -> Self {
        let mut args = ["account", "get-access-token", "--output", "json"].map(str::to_owned).to_vec();
        match of.target.iter().find(|(name, _)| *name == "resource") {
            Some((_, resource)) => args.extend(["--resource".to_owned(), resource.clone()]),
            None => {
                args.push("--scope".to_owned());
                args.extend(of.own_scopes);
            }
        }
        args.extend(tenant.into_iter().flat_map(|tenant| ["--tenant".to_owned(), tenant]));
        Self { args }
    }
}

impl Issue for Az {
    fn issue(&self, _now: SystemTime) -> Pending<'_, Result<Token, Report>> {
        Box::pin(async move {
            let printed = run("az", &self.args, &BTreeMap::new()).await?;
            let read: AzToken = serde_json::from_slice(printed.reveal())
                .map_err(|_| failed("az", "what it printed is no access token"))?;
            let expires =
                read.expires_on.and_then(|end| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(end)));
            token("az", &Secret::new(read.access_token), expires)
        })
    }

    fn place(&self) -> String {
        "the Azure CLI (az)".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(script: &str) -> Exec {
        let args = vec!["-c".to_owned(), script.to_owned()];
        Exec(ExecTable { command: "sh".to_owned(), args, env: [("T".into(), "t0k".into())].into() })
    }

    #[tokio::test]
    async fn a_plugin_is_told_what_it_needs_and_gives_a_token() {
        let script = r#"case "$KUBERNETES_EXEC_INFO" in *'"interactive":false'*) ;; *) exit 1;; esac
            printf '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"%s"}}' "$T""#;
        let token = exec(script).issue(SystemTime::now()).await.unwrap();
        assert_eq!(token.secret.reveal(), b"t0k");
    }

    #[tokio::test]
    async fn a_plugin_that_fails_says_so_and_repeats_nothing() {
        for (script, why) in [
            ("echo canary; exit 3", "exit status: 3"),
            ("echo canary", "no ExecCredential"),
            ("yes canary | head -c 70000", "64 KiB"),
        ] {
            let report = exec(script).issue(SystemTime::now()).await.unwrap_err();
            assert_eq!(report.fault, Fault::CredentialCommandFailed);
            let said = report.to_string();
            assert!(said.contains(why) && !said.contains("canary"), "{said}");
        }
        let missing = Exec(ExecTable { command: "/nonexistent/plugin".to_owned(), ..ExecTable::default() });
        assert!(missing.issue(SystemTime::now()).await.unwrap_err().to_string().contains("can't be run"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_plugin_that_never_ends_is_ended() {
        let report = exec("sleep 1000").issue(SystemTime::now()).await.unwrap_err();
        assert!(report.to_string().contains("within 60 s"), "{report}");
    }
}

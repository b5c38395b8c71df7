//! The desktop's keyring (freedesktop.org Secret Service), through libsecret's own program `secret-tool`.
//!
//! A secret goes in by standard input and comes out by standard output: it is in no argument and in no environment.
//! Crates that speak to the service bring a second stack of cryptography (docs/adr/0014-logging-in.md).

use std::{ffi::OsString, process::Stdio, time::Duration};

use tokio::process::Command;
use towline_tunnel::{
    fault::{Fault, Report},
    session::message::Secret,
};

use super::child::{Failure, ask};

const PROGRAM: &str = "secret-tool";
/// Somebody may have to unlock the keyring.
const WITHIN: Duration = Duration::from_secs(60);
/// Two tokens and some words.
const LONGEST: usize = 256 * 1024;

/// The program.
#[derive(Clone, Debug)]
pub(super) struct SecretTool {
    program: OsString,
    may_work: bool,
}

impl Default for SecretTool {
    fn default() -> Self {
        let bus = std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some_and(|address| !address.is_empty());
        let installed = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(PROGRAM).is_file()));
        Self { program: PROGRAM.into(), may_work: bus && installed }
    }
}

fn unusable(why: impl std::fmt::Display) -> Report {
    Report::new(Fault::LoginStoreUnusable, format!("secret-tool: {why}"))
}

impl SecretTool {
    /// Another program that does the same.
    #[cfg(test)]
    pub(super) fn at(program: impl Into<OsString>, may_work: bool) -> Self {
        Self { program: program.into(), may_work }
    }

    /// Whether there may be a keyring: a session bus and the program, to begin with.
    pub(super) fn may_work(&self) -> bool {
        self.may_work
    }

    /// Keeps a secret, in place of the one before.
    pub(super) async fn store(&self, account: &str, secret: &Secret) -> Result<(), Report> {
        let label = format!("--label=towline login {account}");
        let (ended, _) = self.run(&["store", &label], account, Some(secret)).await?;
        if ended { Ok(()) } else { Err(unusable("the keyring did not take the login")) }
    }

    /// What is kept; none where nothing is.
    pub(super) async fn lookup(&self, account: &str) -> Result<Option<Secret>, Report> {
        let (_, found) = self.run(&["lookup"], account, None).await?;
        Ok((!found.reveal().is_empty()).then_some(found))
    }

    /// Forgets it. Nothing to forget is no error.
    pub(super) async fn clear(&self, account: &str) -> Result<(), Report> {
        self.run(&["clear"], account, None).await.map(|_| ())
    }

    async fn run(
        &self,
        verb: &[&str],
        account: &str,
        input: Option<&Secret>,
    ) -> Result<(bool, Secret), Report> {
        let mut command = Command::new(&self.program);
        command
            .args(verb)
            .args(["service", "towline", "account", account])
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let said = ask(&mut command, input, LONGEST, WITHIN).await.map_err(|failure| match failure {
            Failure::NotRun(error) => unusable(format!("can't be run: {error}")),
            Failure::Endless => unusable("the keyring does not answer; is it locked?"),
            Failure::Broken(error) => unusable(error),
        })?;
        let ended = said.status.success();
        // Where there is nothing of this name it fails in silence; where there is no keyring it says so.
        if !ended && !said.complaint.trim().is_empty() {
            return Err(unusable(said.complaint.trim()));
        }
        Ok((ended, said.printed))
    }
}

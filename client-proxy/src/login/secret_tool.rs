//! The desktop's keyring (freedesktop.org Secret Service), through libsecret's own program `secret-tool`.
//!
//! A secret goes in by standard input and comes out by standard output: it is in no argument and in no environment.
//! Crates that speak to the service bring a second stack of cryptography (docs/adr/0014-logging-in.md).

use std::{ffi::OsString, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    time::timeout,
};
use towline_tunnel::{
    fault::{Fault, Report},
    session::message::Secret,
};

/// Somebody may have to unlock the keyring.
const WITHIN: Duration = Duration::from_secs(60);
/// Two tokens and some words.
const LONGEST: u64 = 256 * 1024;

/// The program.
#[derive(Clone, Debug)]
pub(super) struct SecretTool(OsString);

impl Default for SecretTool {
    fn default() -> Self {
        Self("secret-tool".into())
    }
}

fn unusable(why: impl std::fmt::Display) -> Report {
    Report::new(Fault::LoginStoreUnusable, format!("secret-tool: {why}"))
}

impl SecretTool {
    /// Another program that does the same.
    #[cfg(test)]
    pub(super) fn at(program: impl Into<OsString>) -> Self {
        Self(program.into())
    }

    /// Whether there may be a keyring: a session bus, to begin with.
    pub(super) fn may_work(&self) -> bool {
        std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some_and(|address| !address.is_empty())
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
        let mut child = Command::new(&self.0)
            .args(verb)
            .args(["service", "towline", "account", account])
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| unusable(format!("can't be run: {error}")))?;
        let (to, from, words) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let done = timeout(WITHIN, async {
            if let (Some(mut to), Some(secret)) = (to, input) {
                to.write_all(secret.reveal()).await?;
            }
            let mut found = Vec::with_capacity(16 * 1024);
            if let Some(from) = from {
                from.take(LONGEST).read_to_end(&mut found).await?;
            }
            let found = Secret::new(found);
            let mut said = String::new();
            if let Some(words) = words {
                words.take(1024).read_to_string(&mut said).await?;
            }
            Ok::<_, std::io::Error>((child.wait().await?.success(), found, said))
        });
        let (ended, found, said) = done
            .await
            .map_err(|_elapsed| unusable("the keyring does not answer; is it locked?"))?
            .map_err(unusable)?;
        // Where there is nothing of this name it fails in silence; where there is no keyring it says so.
        if !ended && !said.trim().is_empty() {
            return Err(unusable(said.trim()));
        }
        Ok((ended, found))
    }
}

//! A program that is asked for something: so much of what it says is read, and it has so much time.

use std::{io, process::ExitStatus, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    time::timeout,
};
use towline_tunnel::session::message::Secret;

/// Of what a program says went wrong, this much is read.
const COMPLAINT: u64 = 1024;

/// How a program ended, and what it said.
pub(crate) struct Said {
    pub(crate) status: ExitStatus,
    /// Its standard output: a byte more than what was allowed, where it is longer.
    pub(crate) printed: Secret,
    /// The beginning of its standard error, where that is piped.
    pub(crate) complaint: String,
}

/// Why a program said nothing.
pub(crate) enum Failure {
    /// It can't be run.
    NotRun(io::Error),
    /// It did not end in time, and was ended.
    Endless,
    /// Its pipes broke.
    Broken(io::Error),
}

/// Runs a program with these pipes, gives it `input`, and reads at most `longest` bytes of what it prints, and one more.
pub(crate) async fn ask(
    command: &mut Command,
    input: Option<&Secret>,
    longest: usize,
    within: Duration,
) -> Result<Said, Failure> {
    let mut child = command.kill_on_drop(true).spawn().map_err(Failure::NotRun)?;
    let (to, from, words) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let said = timeout(within, async {
        if let (Some(mut to), Some(secret)) = (to, input) {
            to.write_all(secret.reveal()).await?;
        }
        // Room for all of it at once, so that no half of a token stays behind in a buffer that grew.
        let mut printed = Vec::with_capacity(longest + 1);
        if let Some(from) = from {
            from.take(longest as u64 + 1).read_to_end(&mut printed).await?;
        }
        let printed = Secret::new(printed);
        let mut complaint = String::new();
        if let Some(words) = words {
            words.take(COMPLAINT).read_to_string(&mut complaint).await?;
        }
        Ok(Said { status: child.wait().await?, printed, complaint })
    });
    said.await.map_err(|_elapsed| Failure::Endless)?.map_err(Failure::Broken)
}

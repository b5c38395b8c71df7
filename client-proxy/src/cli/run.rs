//! `towline run`: one command with a kubeconfig of its own.

use std::{io, os::unix::process::ExitStatusExt as _, process::ExitCode, process::ExitStatus};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use towline_tunnel::{
    drain::drain,
    fault::{Fault, Report},
    keys::write_secret,
};

use super::{
    RunArguments, fail,
    signals::{Asked, Signals},
};
use crate::app::start;

const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Runs the command; its exit code becomes ours.
pub(super) async fn execute(arguments: RunArguments) -> Result<ExitCode, Report> {
    let config = arguments.config()?;
    let mut signals = Signals::new()?;
    let (trigger, watcher) = drain();
    let running = tokio::select! {
        running = start(config, watcher) => running?,
        asked = signals.next() => return Ok(ExitCode::from(asked.exit_code())),
    };
    for one in running.served() {
        if let Some(report) = &one.trouble {
            tracing::warn!(%report, "not ready yet");
        }
    }
    let folder = tempfile::Builder::new().prefix("towline-").tempdir().map_err(|error| {
        Report::caused_by(Fault::FileUnwritable, "a folder for the kubeconfig can't be made", error)
    })?;
    let kubeconfig = folder.path().join("kubeconfig");
    write_secret(&kubeconfig, running.kubeconfig().as_bytes())?;

    let (program, rest) = arguments
        .command
        .split_first()
        .ok_or_else(|| Report::new(Fault::ConfigInvalid, "no command is named"))?;
    let mut command = Command::new(program);
    for variable in arguments.token_variables()? {
        command.env_remove(variable);
    }
    let spawned = command.args(rest).env("KUBECONFIG", &kubeconfig).kill_on_drop(true).spawn();
    let code = match spawned {
        Ok(mut child) => exit_code(wait(&mut child, &mut signals).await?),
        Err(error) => unstartable(program, error),
    };
    trigger.begin();
    running.wait().await?;
    Ok(ExitCode::from(code))
}

/// Tells it, with the exit code of a shell that can't run a command (POSIX, Shell Command Language, 2.8.2).
fn unstartable(program: &std::ffi::OsStr, error: io::Error) -> u8 {
    let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
    let what = format!("the command {} can't be run", program.display());
    let _told_by_the_code = fail(&Report::caused_by(Fault::ConfigInvalid, what, error));
    code
}

/// Passes on what it is asked, and lets the command decide when to end. What comes from the keyboard it got itself.
async fn wait(child: &mut Child, signals: &mut Signals) -> Result<ExitStatus, Report> {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    loop {
        let asked = tokio::select! {
            ended = child.wait() => {
                return ended.map_err(|error| Report::caused_by(Fault::Internal, "waiting for the command", error));
            }
            asked = signals.next() => asked,
        };
        let signal = match asked {
            Asked::Interrupt => continue,
            Asked::Terminate => Signal::TERM,
            Asked::Hangup => Signal::HUP,
        };
        // It is not reaped yet, so that its id is nobody else's.
        let _gone = pid.map(|pid| kill_process(pid, signal));
    }
}

/// As a shell tells it: 128 and the signal where one ended the command.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

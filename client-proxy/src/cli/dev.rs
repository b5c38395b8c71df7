//! `towline dev`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use towline_tunnel::{
    drain::drain,
    fault::{Fault, Report},
};

use super::{say, signals::Signals};
use crate::{
    dev::{Config, Running, start},
    kubeconfig::Location,
    local::StateFolder,
};

/// Arguments of `towline dev`.
#[derive(Args, Clone, Debug)]
pub struct DevArguments {
    /// The cluster's kubeconfig, whose user may impersonate others [default: as kubectl].
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A context of it [default: its current one].
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// As whom your requests run.
    #[arg(long, value_name = "NAME", default_value = "developer")]
    user: String,
    /// A group that you are in, beside system:authenticated. May be repeated.
    #[arg(long = "group", value_name = "NAME")]
    groups: Vec<String>,
    /// The kubeconfig to add the context `towline-dev` to while this runs [default: as kubectl].
    #[arg(long, value_name = "FILE")]
    write_kubeconfig: Option<PathBuf>,
    /// The local port; 0 takes a free one [default: 47011, or a free one where another towline has that].
    #[arg(long)]
    port: Option<u16>,
    /// Keeps the local authority and client certificates [default: ~/.local/state/towline].
    #[arg(long, value_name = "FOLDER")]
    state_dir: Option<PathBuf>,
}

impl DevArguments {
    fn config(self) -> Result<Config, Report> {
        for (flag, name) in
            [("--user", &self.user)].into_iter().chain(self.groups.iter().map(|name| ("--group", name)))
        {
            if name.is_empty() || ["system:", "towline:"].iter().any(|prefix| name.starts_with(prefix)) {
                let why = "names that begin with system: or towline: can't come from a token; choose another";
                return Err(Report::new(Fault::ConfigInvalid, format!("{flag} {name:?}: {why}")));
            }
        }
        let own = Location::from_environment();
        let source = match self.kubeconfig {
            Some(file) => Location::file(file),
            None => own.clone()?,
        };
        Ok(Config {
            source,
            context: self.context,
            user: self.user,
            groups: self.groups,
            kubeconfig: match self.write_kubeconfig {
                Some(file) => Location::file(file),
                None => own?,
            },
            port: self.port,
            state_dir: match self.state_dir {
                Some(folder) => folder,
                None => StateFolder::default_path()?,
            },
        })
    }
}

/// Serves until asked to end. A second signal ends it at once; then the kubeconfig is restored all the same.
pub(super) async fn execute(arguments: DevArguments) -> Result<ExitCode, Report> {
    let (user, groups) = (arguments.user.clone(), arguments.groups.clone());
    let config = arguments.config()?;
    let mut signals = Signals::new()?;
    let (trigger, watcher) = drain();
    let running = tokio::select! {
        running = start(config, watcher) => running?,
        asked = signals.next() => return Ok(ExitCode::from(asked.exit_code())),
    };
    tell(&running, &user, &groups);
    let mut ended = std::pin::pin!(running.wait());
    tokio::select! {
        ended = &mut ended => return ended.map(|()| ExitCode::SUCCESS),
        _asked = signals.next() => trigger.begin(),
    }
    tokio::select! {
        ended = &mut ended => ended.map(|()| ExitCode::SUCCESS),
        asked = signals.next() => Ok(ExitCode::from(asked.exit_code())),
    }
}

fn tell(running: &Running, user: &str, groups: &[String]) {
    say("FOR TRYING ONLY: this process is its own identity provider, and takes your word for who you are.");
    let groups = if groups.is_empty() { String::new() } else { format!(" in {}", groups.join(", ")) };
    say(&format!("You are {user}{groups}: what you may do there, RBAC in the cluster decides."));
    for one in running.proxy().served() {
        if let Some(file) = running.proxy().kubeconfig_file() {
            say(&format!(
                "Try: kubectl --kubeconfig {} --context {} auth whoami",
                file.display(),
                one.context
            ));
        }
        say(&format!("ready: {} at {}", one.context, one.server));
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn names_that_no_token_may_give_are_refused_as_flags() {
        for (flag, name) in [
            ("--user", "system:admin"),
            ("--group", "system:masters"),
            ("--user", "towline:x"),
            ("--user", ""),
        ] {
            let cli = Cli::try_parse_from(["towline", "dev", flag, name]).unwrap();
            let Command::Dev(arguments) = cli.command else { panic!("not dev") };
            let report = arguments.config().unwrap_err();
            assert_eq!((report.fault, report.exit_code()), (Fault::ConfigInvalid, 2), "{report}");
            assert!(report.to_string().contains(&format!("{flag} {name:?}")), "{report}");
        }
    }
}

//! `towline proxy`.

use std::process::ExitCode;

use towline_tunnel::{drain::drain, fault::Report};

use super::{ProxyArguments, say, signals::Signals};
use crate::app::{Running, start};

/// Serves until asked to end. A second signal ends it at once; then the kubeconfig is restored all the same.
pub(super) async fn execute(arguments: ProxyArguments) -> Result<ExitCode, Report> {
    let config = arguments.config()?;
    let prints = config.kubeconfig.is_none();
    let mut signals = Signals::new()?;
    let (trigger, watcher) = drain();
    let running = tokio::select! {
        running = start(config, watcher) => running?,
        asked = signals.next() => return Ok(ExitCode::from(asked.exit_code())),
    };
    tell(&running, prints);
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

fn tell(running: &Running, prints: bool) {
    for one in running.served() {
        match &one.trouble {
            None if prints => tracing::info!(cluster = %one.cluster, server = one.server, "ready"),
            None => say(&format!("ready: {} at {}", one.context, one.server)),
            Some(report) => tracing::warn!(%report, "not ready yet, and served all the same"),
        }
    }
    if prints {
        say(running.kubeconfig().trim_end());
    } else if let (Some(one), Some(file)) = (running.served().first(), running.kubeconfig_file()) {
        tracing::info!(
            kubeconfig = %file.display(), context = one.context,
            "the kubeconfig has the contexts until this ends; kubectl uses the first one by itself"
        );
    }
}

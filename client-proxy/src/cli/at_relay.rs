//! What commands have in common that ask the relay something and leave.

use std::path::PathBuf;

use clap::Args;
use towline_tunnel::fault::Report;

use super::{arguments::Reach, profile::Profile};
use crate::relay::Relay;

/// Which relay, and with which tokens. What is not given is taken from the profile.
#[derive(Args, Clone, Debug, Default)]
pub struct AtRelay {
    /// The relay, as https://HOST or https://HOST:PORT.
    #[arg(long, value_name = "URL")]
    pub relay: Option<String>,
    /// The hash of the relay's identity key, as `towline-relay key` prints it. Nothing is said to another relay.
    #[arg(long, value_name = "HASH")]
    pub relay_key: Option<String>,
    /// The authority of the relay's certificate (PEM), where this machine does not know it.
    #[arg(long, value_name = "FILE")]
    pub relay_ca_file: Option<PathBuf>,
    /// Holds your token for the relay's audience; `-` reads it from standard input.
    #[arg(long, value_name = "FILE")]
    pub relay_token_file: Option<PathBuf>,
    /// Holds your token for the clusters' audience: the relay never sees it, and no token is shown to it that is good for both.
    #[arg(long, value_name = "FILE")]
    pub cluster_token_file: Option<PathBuf>,
    /// Accept tokens with a common audience: the relay can then be you on every cluster that accepts it.
    #[arg(long)]
    pub allow_shared_audience: bool,
    /// Where flags stand that repeat from day to day: a file, or a name such as `work` for ~/.config/towline/work.toml [default: profile].
    #[arg(long, value_name = "NAME|FILE", env = "TOWLINE_PROFILE")]
    pub profile: Option<PathBuf>,
    /// Keeps logins [default: ~/.local/state/towline].
    #[arg(long, value_name = "FOLDER")]
    pub state_dir: Option<PathBuf>,
}

impl AtRelay {
    /// A session with that relay, and the profile that named it.
    pub(super) async fn connect(&self) -> Result<(Relay, Profile), Report> {
        let profile = Profile::load(self.profile.as_deref())?;
        let reach = Reach {
            relay: self.relay.clone(),
            relay_key: self.relay_key.clone(),
            relay_ca_file: self.relay_ca_file.clone(),
            relay_token_file: self.relay_token_file.clone(),
            cluster_token_file: self.cluster_token_file.clone(),
            allow_shared_audience: self.allow_shared_audience,
            state_dir: self.state_dir.clone(),
            ..Reach::default()
        };
        let relay = Relay::connect(&reach.at_relay(&profile)?).await?;
        Ok((relay, profile))
    }
}

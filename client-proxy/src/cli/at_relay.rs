//! What commands have in common that ask the relay something and leave.

use std::path::PathBuf;

use clap::Args;
use towline_tunnel::{egress::ProxyArgs, fault::Report};

use super::{arguments::Reach, profile::Profile};
use crate::relay::Relay;

/// Which relay, by which way, and with which tokens. What is not given is taken from the profile.
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
    /// Outbound proxies.
    #[command(flatten)]
    pub proxies: ProxyArgs,
    /// Holds your token for the relay's audience; read again when it changes; `-` reads it once from standard input.
    #[arg(long, value_name = "FILE")]
    pub relay_token_file: Option<PathBuf>,
    /// Holds your token for the clusters' audience; read again when it changes; `-` reads it once from standard input. The relay never sees it.
    #[arg(long, value_name = "FILE")]
    pub cluster_token_file: Option<PathBuf>,
    /// Accept tokens with a common audience: the relay can then be you on every cluster that accepts it.
    #[arg(long)]
    pub allow_shared_audience: bool,
    /// Where flags stand that repeat from day to day: a file, or a name such as `work` for ~/.config/towline/work.toml [default: profile].
    #[arg(long, value_name = "NAME|FILE", env = "TOWLINE_PROFILE")]
    pub profile: Option<PathBuf>,
    /// Keeps logins, the local authority and client certificates [default: ~/.local/state/towline].
    #[arg(long, value_name = "FOLDER")]
    pub state_dir: Option<PathBuf>,
}

impl AtRelay {
    /// A session with that relay, and the profile that named it.
    pub(super) async fn connect(&self) -> Result<(Relay, Profile), Report> {
        let profile = Profile::load(self.profile.as_deref())?;
        let reach = Reach { at: self.clone(), ..Reach::default() };
        let relay = Relay::connect(&reach.at_relay(&profile)?).await?;
        Ok((relay, profile))
    }
}

//! Outbound proxies on a command line of the agent: the flags that the client has as well, each with its variable, and what in a cluster is
//! never reached through one.

use std::net::IpAddr;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use towline_tunnel::egress::{BareNames, EgressSettings, ProxyArgs, SkipRange, Sources, process_environment};
use towline_tunnel::fault::Report;

/// Each flag's variable.
const VARIABLES: [(&str, &str); 5] = [
    ("proxy_https", "TOWLINE_AGENT_PROXY_HTTPS"),
    ("proxy_http", "TOWLINE_AGENT_PROXY_HTTP"),
    ("proxy_skip_range", "TOWLINE_AGENT_PROXY_SKIP_RANGE"),
    ("proxy_cert", "TOWLINE_AGENT_PROXY_CERT"),
    ("proxy_credentials_file", "TOWLINE_AGENT_PROXY_CREDENTIALS_FILE"),
];
/// Services of a cluster, by name.
const SERVICES: &str = ".svc,.cluster.local";
/// Where kube-apiserver is, for whoever runs in a pod.
const APISERVER: &str = "KUBERNETES_SERVICE_HOST";

/// The flags.
#[derive(Clone, Debug, Default)]
pub(crate) struct AgentProxies(ProxyArgs);

impl AgentProxies {
    /// Checks them, with the environment behind them.
    ///
    /// # Errors
    /// All that is wrong.
    pub(crate) fn settings(&self) -> Result<EgressSettings, Report> {
        let never = never(process_environment(APISERVER).as_deref());
        let sources = Sources { flags: &self.0, profile: None, environment: &process_environment, never };
        EgressSettings::resolve(&sources)
    }
}

/// What the cluster has inside. kube-apiserver itself is dialled by `dial`, which knows no proxy; its address is also the first one of the
/// services' network. How large that is, no pod is told: the smallest that is usual is skipped, and no more, because a network that is skipped
/// in error can't be taken back with a flag.
fn never(apiserver: Option<&str>) -> SkipRange {
    let (names, _) = SkipRange::parse(SERVICES, BareNames::Exact);
    let network = match apiserver.and_then(|host| host.parse::<IpAddr>().ok()) {
        Some(address @ IpAddr::V4(_)) => format!("{address}/20"),
        Some(address @ IpAddr::V6(_)) => format!("{address}/112"),
        None => String::new(),
    };
    let (network, _) = SkipRange::parse(&network, BareNames::Exact);
    names.and(network)
}

impl FromArgMatches for AgentProxies {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        ProxyArgs::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl Args for AgentProxies {
    fn augment_args(command: Command) -> Command {
        let command = ProxyArgs::augment_args(command.next_help_heading("Outbound proxy"));
        VARIABLES
            .iter()
            .fold(command, |command, (flag, variable)| command.mut_arg(flag, |flag| flag.env(variable)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use towline_tunnel::egress::Destination;

    use super::*;

    #[test]
    fn what_a_cluster_has_inside_is_skipped_and_no_more() {
        let skips =
            |apiserver: Option<&str>, host: &str| never(apiserver).contains(&Destination::new(host, 443));
        for host in ["10.96.0.1", "10.96.15.255", "relay.towline.svc", "idp.auth.svc.cluster.local"] {
            assert!(skips(Some("10.96.0.1"), host), "{host}");
        }
        for host in ["10.96.16.0", "10.0.0.1", "relay.example.com", "svc"] {
            assert!(!skips(Some("10.96.0.1"), host), "{host}");
        }
        assert!(
            skips(Some("fd00:10:96::1"), "fd00:10:96::ffff")
                && !skips(Some("fd00:10:96::1"), "fd00:10:96::1:0")
        );
        assert!(!skips(None, "10.96.0.1") && !skips(Some("kubernetes.default"), "kubernetes.default"));
    }

    #[test]
    fn every_flag_has_its_variable_and_hides_what_may_be_a_password() {
        let command = AgentProxies::augment_args(Command::new("agent"));
        let flags: Vec<_> = command.get_arguments().filter(|flag| flag.get_long().is_some()).collect();
        assert_eq!(flags.len(), VARIABLES.len());
        for flag in flags {
            let variable =
                format!("TOWLINE_AGENT_{}", flag.get_long().unwrap().replace('-', "_").to_uppercase());
            assert_eq!(flag.get_env().and_then(|env| env.to_str()), Some(variable.as_str()));
            let hides = ["proxy_https", "proxy_http"].contains(&flag.get_id().as_str());
            assert_eq!(flag.is_hide_env_values_set(), hides, "{variable}");
        }
    }
}

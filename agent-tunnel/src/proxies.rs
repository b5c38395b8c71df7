//! Outbound proxies on a command line of the agent: the flags that the client has as well, each with its variable, and what in a cluster is
//! never reached through one.

mod file;

use std::{net::IpAddr, path::PathBuf};

use clap::{ArgMatches, Args, Command, FromArgMatches};
use towline_tunnel::{
    egress::{
        BareNames, EgressSettings, Origin, ProxyArgs, SkipRange, Sources, Written, process_environment,
    },
    fault::Report,
};

use file::ProxyFile;

/// Each flag's variable.
const VARIABLES: [(&str, &str); 6] = [
    ("proxy_config", "TOWLINE_AGENT_PROXY_CONFIG"),
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

/// The flags, and the file that they name.
#[derive(Clone, Debug, Default)]
pub(crate) struct AgentProxies {
    file: FileArg,
    args: ProxyArgs,
}

#[derive(Args, Clone, Debug, Default)]
struct FileArg {
    /// Holds settings of the outbound proxy, each on a line that is named as its flag is (proxy-https = "…"); flags and their variables win over it, and it over HTTPS_PROXY
    #[arg(long, value_name = "FILE")]
    proxy_config: Option<PathBuf>,
}

impl AgentProxies {
    /// Checks them, with the file and the environment behind them.
    ///
    /// # Errors
    /// What is wrong with the file, or else all that is wrong with the settings.
    pub(crate) fn settings(&self) -> Result<EgressSettings, Report> {
        let apiserver = process_environment(APISERVER);
        let never = never(apiserver.as_deref());
        // An empty name is none, as with the other flags.
        let path = self.file.proxy_config.as_deref().filter(|path| !path.as_os_str().is_empty());
        let file = path.map(ProxyFile::read).transpose()?;
        let origin = |key| file.as_ref().map_or(Origin::Profile(key), |file| file.origin(key));
        let written = file.as_ref().map(|file| Written { args: file.args(), origin: &origin });
        let sources = Sources { flags: &self.args, written, environment: &process_environment, never };
        let settings = EgressSettings::resolve(&sources)?;
        // In a pod nobody else is there to read it, and what is mounted is readable.
        if let Some(file) = file.filter(|file| file.is_readable_by_all() && apiserver.is_none()) {
            let file = file.path().display();
            tracing::warn!(%file, "everybody on this machine can read the proxy's password: chmod 600 it");
        }
        Ok(settings)
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
        Ok(Self { file: FileArg::from_arg_matches(matches)?, args: ProxyArgs::from_arg_matches(matches)? })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.file.update_from_arg_matches(matches)?;
        self.args.update_from_arg_matches(matches)
    }
}

impl Args for AgentProxies {
    fn augment_args(command: Command) -> Command {
        let command = ProxyArgs::augment_args(command.next_help_heading("Outbound proxy"));
        let command = FileArg::augment_args(command);
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
    use std::os::unix::fs::PermissionsExt as _;

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

    #[test]
    fn t29_a_flag_wins_over_the_file_and_what_is_wrong_there_is_told_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proxy.toml");
        let settings = |flags: &[&str]| {
            let command = AgentProxies::augment_args(Command::new("agent"));
            let flags = [&["agent", "--proxy-config", path.to_str().unwrap()], flags].concat();
            AgentProxies::from_arg_matches(&command.get_matches_from(flags)).unwrap().settings()
        };
        let way = |flags: &[&str], host: &str| {
            let settings = settings(flags).unwrap();
            let proxy = settings.proxy_for(&Destination::new(host, 443), true);
            proxy.map_or("direct".to_owned(), |proxy| format!("{proxy} by {}", proxy.from()))
        };
        let text = "proxy-https = 'file:1'\nproxy-skip-range = '.inner'\n";
        std::fs::write(&path, text).unwrap();
        let place = path.display();
        let by_file = format!("http://file:1 by proxy-https in {place}, line 1");
        assert_eq!(way(&[], "relay.test"), by_file);
        assert_eq!(way(&[], "relay.inner"), "direct");
        assert_eq!(way(&["--proxy-https", "flag:1"], "relay.test"), "http://flag:1 by --proxy-https");
        assert_eq!(way(&["--proxy-https", ""], "relay.test"), "direct", "an empty flag is none");
        assert_eq!(way(&["--proxy-skip-range", ".other"], "relay.inner"), by_file);

        let wrong = "proxy-https = 'socks5://me:canary@h'\nproxy-skip-range = 'a*b'\nproxy-cert = 'none.pem'\n\
                     proxy-credentials-file = 'no-login'\n";
        std::fs::write(&path, wrong).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let report = settings(&[]).unwrap_err();
        assert_eq!(report.fault, towline_tunnel::fault::Fault::ProxySettingWrong);
        let said = format!("{report} {report:?}");
        for (line, key) in
            ["proxy-https", "proxy-skip-range", "proxy-cert", "proxy-credentials-file"].iter().enumerate()
        {
            assert!(said.contains(&format!("{key} in {place}, line {}", line + 1)), "{key}: {said}");
        }
        assert!(said.contains("a*b") && said.contains("SOCKS") && !said.contains("canary"), "{said}");
    }
}

//! Which proxy a destination is reached through: flags, then the profile, then the environment.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    sync::Arc,
};

use super::{
    Destination,
    proxy::{CredentialSource, Origin, Proxy},
    skip::{BareNames, SkipRange},
    trust::TrustStore,
};
use crate::fault::{Fault, Report};

/// A proxy's URL as it was typed. A password may stand in it: it does not print.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyText(String);

impl ProxyText {
    /// Whether a user name, or one with a password, seems to stand in it.
    pub fn has_login(&self) -> bool {
        self.0.contains('@')
    }
}

impl From<String> for ProxyText {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for ProxyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProxyText(…)")
    }
}

impl<'de> serde::Deserialize<'de> for ProxyText {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(Self)
    }
}

/// Outbound proxies as typed: flags of a program, or lines of a profile, which have the same names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "program", derive(clap::Args))]
pub struct ProxyArgs {
    /// Proxy to reach the relay and the identity provider through, as http://HOST:PORT or https://HOST:PORT, with USER:PASSWORD@ before HOST where it wants to know; empty for none, whatever HTTPS_PROXY says.
    #[cfg_attr(feature = "program", arg(long, value_name = "URL", hide_env_values = true))]
    pub proxy_https: Option<ProxyText>,
    /// The same for destinations that are spoken to by plain HTTP [default: HTTP_PROXY].
    #[cfg_attr(feature = "program", arg(long, value_name = "URL", hide_env_values = true))]
    pub proxy_http: Option<ProxyText>,
    /// Hosts, addresses, CIDRs, .suffixes (each with :PORT or without) or *, with commas between, that no proxy is asked for [default: NO_PROXY].
    #[cfg_attr(feature = "program", arg(long, value_name = "LIST"))]
    pub proxy_skip_range: Option<String>,
    /// Authorities (PEM, any number) of an https:// proxy, or of one that inspects TLS; read again when the file changes. Never used for the identity provider.
    #[cfg_attr(feature = "program", arg(long, value_name = "FILE"))]
    pub proxy_cert: Option<PathBuf>,
    /// Holds USER:PASSWORD for the proxy, in place of its URL; read at each use.
    #[cfg_attr(feature = "program", arg(long, value_name = "FILE"))]
    pub proxy_credentials_file: Option<PathBuf>,
}

/// Everything that is asked for settings: the first who has one says it.
pub struct Sources<'a> {
    /// Flags of the program, with their own variables.
    pub flags: &'a ProxyArgs,
    /// A profile or file of settings, where there is one.
    pub written: Option<Written<'a>>,
    /// Variables of the process.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// Destinations that are never reached through a proxy, whatever anyone says.
    pub never: SkipRange,
}

/// Settings of a profile or file.
#[derive(Clone, Copy)]
pub struct Written<'a> {
    /// What stands there.
    pub args: &'a ProxyArgs,
    /// How messages name the line of a key.
    pub origin: &'a dyn Fn(&'static str) -> Origin,
}

/// Checked settings.
#[derive(Debug, Default)]
pub struct EgressSettings {
    https: Option<Arc<Proxy>>,
    http: Option<Arc<Proxy>>,
    skip: SkipRange,
    pub(super) cert: Option<PathBuf>,
}

/// The process's own environment.
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl EgressSettings {
    /// Reads and checks.
    ///
    /// # Errors
    /// All that is wrong, each with where it stands.
    pub fn resolve(sources: &Sources<'_>) -> Result<Self, Report> {
        let mut faults = Vec::new();
        let mut settings = Self {
            https: sources.proxy("proxy-https", ["HTTPS_PROXY", "https_proxy"], &mut faults),
            http: sources.proxy("proxy-http", ["HTTP_PROXY", "http_proxy"], &mut faults),
            skip: sources.skip(&mut faults).and(sources.never.clone()),
            cert: None,
        };
        if let Some((path, from)) =
            sources.file("proxy-credentials-file", |args| args.proxy_credentials_file.as_ref())
        {
            let by_flag = matches!(from, Origin::Flag(_));
            let source = CredentialSource::File(path, from);
            // What can't be read is told at the start; it is read again at each use.
            if let Err(report) = source.read() {
                faults.push(report);
            }
            for proxy in [&mut settings.https, &mut settings.http].into_iter().flatten() {
                // A file's password is not for a proxy that a flag names in place of the file's.
                let is_for = by_flag || !matches!(proxy.from(), Origin::Flag(_));
                if let Some(proxy) = Arc::get_mut(proxy).filter(|_| is_for) {
                    proxy.credentials = Some(source.clone());
                }
            }
        }
        if let Some((path, from)) = sources.file("proxy-cert", |args| args.proxy_cert.as_ref()) {
            if let Err(mut report) = TrustStore::new(vec![path.clone()]) {
                report.detail = format!("{from}, {}", report.detail);
                faults.push(report);
            }
            settings.cert = Some(path);
        }
        let mut faults = faults.into_iter();
        let Some(mut first) = faults.next() else { return Ok(settings) };
        for other in faults {
            first.detail = format!("{}; {}", first.detail, other.detail);
        }
        Err(first)
    }

    /// The proxy for a destination that TLS is spoken to, or plain HTTP; nothing where it is reached directly.
    pub fn proxy_for(&self, to: &Destination, tls: bool) -> Option<&Arc<Proxy>> {
        let proxy = if tls { self.https.as_ref() } else { self.http.as_ref() }?;
        // Such a proxy was set for other programs, and none of them asks it for its own machine.
        let own = matches!(proxy.from(), Origin::Environment(_)) && is_loopback(to.host());
        let skipped = own || is_link_local(to.host()) || self.skip.contains(to);
        (!skipped).then_some(proxy)
    }

    /// Nothing but this proxy, without credentials.
    pub(super) fn trying(proxy: Proxy) -> Self {
        Self { https: Some(Arc::new(proxy.without_credentials())), ..Self::default() }
    }

    /// The proxy for TLS where there is one, and the skip range keeps this destination from it.
    pub(super) fn passed_over(&self, to: &Destination) -> Option<&Arc<Proxy>> {
        let proxy = self.https.as_ref()?;
        (!is_loopback(to.host()) && self.skip.contains(to)).then_some(proxy)
    }

    /// Says in the log what will be used, and where it was set.
    pub fn log(&self) {
        for (proxy, what) in [(&self.https, "https"), (&self.http, "http")] {
            if let Some(proxy) = proxy {
                let login = proxy.credentials.is_some();
                tracing::info!(%proxy, from = %proxy.from(), login, skipped = %self.skip, "proxy for {what} destinations");
            }
        }
        if let (None, Some(Origin::Flag(_) | Origin::Profile(_) | Origin::File(..))) =
            (&self.https, self.http.as_ref().map(|proxy| proxy.from()))
        {
            tracing::warn!(
                "--proxy-http alone has no use: relay and identity provider are spoken to by TLS; name the proxy with --proxy-https"
            );
        }
    }
}

impl Sources<'_> {
    fn proxy(
        &self,
        flag: &'static str,
        variables: [&'static str; 2],
        faults: &mut Vec<Report>,
    ) -> Option<Arc<Proxy>> {
        let of = |args: &ProxyArgs| {
            let text = if flag == "proxy-https" { &args.proxy_https } else { &args.proxy_http };
            text.as_ref().map(|text| text.0.clone())
        };
        let given = of(self.flags)
            .map(|text| (text, Origin::Flag(flag)))
            .or_else(|| self.written(flag, of))
            .or_else(|| {
                let (text, name) = self.variable(variables)?;
                Some((text, Origin::Environment(name)))
            });
        let (text, from) = given?;
        if text.trim().is_empty() {
            return None;
        }
        match Proxy::parse(text.trim(), from) {
            Ok(proxy) => Some(Arc::new(proxy)),
            Err(report) => {
                faults.push(report);
                None
            }
        }
    }

    fn skip(&self, faults: &mut Vec<Report>) -> SkipRange {
        let given = |args: &ProxyArgs| args.proxy_skip_range.clone();
        let typed = given(self.flags)
            .map(|text| (text, Origin::Flag("proxy-skip-range")))
            .or_else(|| self.written("proxy-skip-range", given));
        if let Some((text, from)) = typed {
            let (range, wrong) = SkipRange::parse(&text, BareNames::Exact);
            if !wrong.is_empty() {
                let why = format!("{from}: neither host, address, CIDR nor suffix: {}", wrong.join(", "));
                faults.push(Report::new(Fault::ProxySettingWrong, why));
            }
            return range;
        }
        let Some((text, variable)) = self.variable(["NO_PROXY", "no_proxy"]) else {
            return SkipRange::default();
        };
        let (range, wrong) = SkipRange::parse(&text, BareNames::WithSubdomains);
        if !wrong.is_empty() {
            // It was set for all programs: those that can read more of it are not to keep this one from starting.
            tracing::warn!(variable, entries = wrong.join(", "), "entries that can't be read are left out");
        }
        range
    }

    /// A file that a flag or line names, and where; none where the name is empty.
    fn file(
        &self,
        flag: &'static str,
        of: impl Fn(&ProxyArgs) -> Option<&PathBuf>,
    ) -> Option<(PathBuf, Origin)> {
        let of = |args: &ProxyArgs| of(args).cloned();
        let given = of(self.flags).map(|path| (path, Origin::Flag(flag)));
        given.or_else(|| self.written(flag, of)).filter(|(path, _)| !path.as_os_str().is_empty())
    }

    /// What a profile or file has for a key.
    fn written<T>(&self, key: &'static str, of: impl Fn(&ProxyArgs) -> Option<T>) -> Option<(T, Origin)> {
        let written = self.written?;
        Some((of(written.args)?, (written.origin)(key)))
    }

    fn variable(&self, names: [&'static str; 2]) -> Option<(String, &'static str)> {
        let set = |name| (self.environment)(name).filter(|text| !text.trim().is_empty());
        names.into_iter().find_map(|name| Some((set(name)?, name)))
    }
}

fn is_loopback(host: &str) -> bool {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let address = host.parse().is_ok_and(|address: IpAddr| address.to_canonical().is_loopback());
    address || name == "localhost" || name.ends_with(".localhost")
}

/// What is on this link, such as a cloud's metadata service, no proxy elsewhere can reach.
fn is_link_local(host: &str) -> bool {
    match host.parse().map(|address: IpAddr| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => address.is_link_local(),
        Ok(IpAddr::V6(address)) => Ipv6Addr::is_unicast_link_local(&address),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests;

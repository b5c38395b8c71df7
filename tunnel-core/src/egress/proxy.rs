//! One outbound proxy: where it is, how it is spoken to, and who we are there.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, atomic::AtomicBool},
};

use percent_encoding::percent_decode_str;
use url::{Host, Url};

use super::{
    Destination,
    auth::{Credentials, Scheme},
};
use crate::fault::{Fault, Report};

/// Where a setting stands, as messages name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag, or its variable.
    Flag(&'static str),
    /// The line of a profile that is named as the flag is.
    Profile(&'static str),
    /// A line of a file of such settings: its key, and which file and line.
    File(&'static str, Arc<str>),
    /// A variable that other programs know as well.
    Environment(&'static str),
    /// Settings of other programs, which are only looked at where nothing else leads out.
    Elsewhere,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Profile(name) => write!(f, "{name} in the profile"),
            Self::File(name, place) => write!(f, "{name} in {place}"),
            Self::Environment(name) => f.write_str(name),
            Self::Elsewhere => f.write_str("other programs' settings"),
        }
    }
}

/// Where a user name and a password come from.
#[derive(Clone, Debug)]
pub(super) enum CredentialSource {
    /// The proxy's URL.
    Url(Credentials),
    /// A file, read at each use, and where it is named.
    File(PathBuf, Origin),
}

impl CredentialSource {
    pub(super) fn read(&self) -> Result<Credentials, Report> {
        match self {
            Self::Url(credentials) => Ok(credentials.clone()),
            Self::File(path, from) => Credentials::read(path, from),
        }
    }
}

/// An outbound proxy. It prints without credentials.
pub struct Proxy {
    tls: bool,
    at: Destination,
    from: Origin,
    pub(super) credentials: Option<CredentialSource>,
    /// How the last connection was let in, so that the next one need not ask.
    pub(super) let_in: Mutex<Option<Scheme>>,
    /// Then it gets no password in clear text any more.
    pub(super) has_asked_for_digest: AtomicBool,
}

impl Proxy {
    /// Reads `http://[USER:PASSWORD@]HOST[:PORT]` or `https://…`, percent-encoded (RFC 3986, section 3.2.1); without a scheme it
    /// is http, as for other programs.
    ///
    /// # Errors
    /// If the text is none of these. It is not printed: a password may stand in it.
    pub fn parse(text: &str, from: Origin) -> Result<Self, Report> {
        let wrong = |why: &str| Report::new(Fault::ProxySettingWrong, format!("{from}: {why}"));
        let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let url = Url::parse(&text).map_err(|error| wrong(&format!("not a proxy's URL ({error})")))?;
        let tls = match url.scheme() {
            "http" => false,
            "https" => true,
            scheme if scheme.starts_with("socks") => {
                return Err(wrong("SOCKS proxies are not supported; an HTTP proxy is needed"));
            }
            _ => return Err(wrong("its scheme is neither http nor https")),
        };
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(wrong(
                "more than a host and a port (a password with / ? or # in it is percent-encoded)",
            ));
        }
        let host = match url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => return Err(wrong("no host")),
        };
        let port = url.port_or_known_default().filter(|port| *port != 0).ok_or_else(|| wrong("no port"))?;
        let decode = |part: &str| {
            let decoded = percent_decode_str(part).decode_utf8();
            decoded.map(String::from).map_err(|_| wrong("user name and password must be UTF-8"))
        };
        let credentials = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => {
                let password = decode(password.unwrap_or_default())?;
                let credentials = Credentials::new(&decode(user)?, &password).map_err(wrong)?;
                Some(CredentialSource::Url(credentials))
            }
        };
        Ok(Self {
            tls,
            at: Destination::new(host, port),
            from,
            credentials,
            let_in: Mutex::new(None),
            has_asked_for_digest: AtomicBool::new(false),
        })
    }

    /// The same for somebody who says nothing of who they are.
    pub(super) fn without_credentials(self) -> Self {
        Self { credentials: None, ..self }
    }

    /// Where it is.
    pub fn at(&self) -> &Destination {
        &self.at
    }

    /// Where it was named.
    pub fn from(&self) -> &Origin {
        &self.from
    }

    /// Whether it is spoken to by TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.at)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self}, {})", self.from)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FLAG: Origin = Origin::Flag("proxy-https");

    fn login(proxy: &Proxy) -> Option<(String, String)> {
        let credentials = proxy.credentials.as_ref()?.read().unwrap();
        let password = credentials.password().reveal_text().unwrap().to_owned();
        Some((credentials.user().to_owned(), password))
    }

    #[test]
    fn a_proxy_is_a_host_a_port_and_maybe_a_login() {
        for (text, reads, who) in [
            ("proxy.corp:3128", "http://proxy.corp:3128", None),
            ("http://proxy.corp", "http://proxy.corp:80", None),
            ("https://proxy.corp/", "https://proxy.corp:443", None),
            ("http://[2001:db8::1]:8080", "http://[2001:db8::1]:8080", None),
            ("http://192.0.2.1:1", "http://192.0.2.1:1", None),
            ("http://u:p@h:1", "http://h:1", Some(("u", "p"))),
            ("http://CORP%5Cme:p%40%3a%2F%23%25@h:1", "http://h:1", Some(("CORP\\me", "p@:/#%"))),
            ("u:p:q@h:1", "http://h:1", Some(("u", "p:q"))),
        ] {
            let proxy = Proxy::parse(text, FLAG).unwrap();
            assert_eq!(proxy.to_string(), reads);
            let who = who.map(|(user, password): (&str, &str)| (user.to_owned(), password.to_owned()));
            assert_eq!(login(&proxy), who, "{text}");
        }
    }

    #[test]
    fn t29_what_is_no_proxy_is_named_by_its_setting_and_never_printed() {
        for text in [
            "socks5://me:canary@h:1",
            "ftp://me:canary@h:1",
            "http://me:canary@",
            "http://me:canary@h:99999",
            "http://me:canary@h:0",
            "http://me:can/ary@h:1",
            "http://me:canary@h/path",
            "http://me:canary#@h",
            "http://me:%ffcanary@h",
            "http://m%0ae:canary@h",
            "http://m%3ae:canary@h",
        ] {
            let report = Proxy::parse(text, FLAG).unwrap_err();
            assert_eq!(report.fault, Fault::ProxySettingWrong, "{text}");
            let said = format!("{report} {report:?}");
            assert!(said.contains("--proxy-https") && !said.contains("can"), "{said}");
        }
        let proxy = Proxy::parse("http://hugo:canary@h:1", Origin::Environment("HTTPS_PROXY")).unwrap();
        let said = format!("{proxy} {proxy:?} {:?}", proxy.credentials);
        assert!(said.contains("HTTPS_PROXY") && !said.contains("canary") && !said.contains("hugo"), "{said}");
    }

    proptest! {
        #[test]
        fn any_user_and_password_survive_percent_encoding(user in "[^:\u{0}-\u{1f}\u{7f}-\u{9f}]{1,20}", password in "\\PC{0,20}") {
            let encode = |text: &str| {
                percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
            };
            let text = format!("http://{}:{}@proxy:3128", encode(&user), encode(&password));
            prop_assert_eq!(login(&Proxy::parse(&text, FLAG).unwrap()), Some((user, password)));
        }
    }
}

//! Identity providers that an agent reaches through its relay (`docs/protocol-session.md`, "Identity providers").
//!
//! A stream that an agent opens leads to a provider's host. Its first bytes say which: a length (16 bit) and `host:port`. What follows is
//! TLS between the agent and the provider.

use std::{fmt, io, net::IpAddr, str::FromStr};

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Longest `host:port`: a name of 253 bytes (RFC 1035, section 2.3.4, as text) with brackets' room and a port.
const MAX_TEXT: usize = 261;
/// Where no port is said.
const PORT: u16 = 443;

/// A host, by name or address, and a port; names are in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IssuerHost {
    host: String,
    port: u16,
}

/// It is not `HOST` or `HOST:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not HOST or HOST:PORT, such as login.example.com:443 or [2001:db8::1]:443")]
pub struct NoHost;

impl IssuerHost {
    /// A host as a URL has it, without brackets.
    ///
    /// # Errors
    /// If it is neither a name nor an address.
    pub fn new(host: &str, port: u16) -> Result<Self, NoHost> {
        if port == 0 {
            return Err(NoHost);
        }
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(Self { host: address.to_string(), port });
        }
        let is_label = |label: &str| {
            let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            !label.is_empty() && label.len() <= 63 && label.bytes().all(inner) && !label.starts_with('-')
        };
        // What ends in a number is an address that was misspelt, and some resolvers read it as one.
        let ends_in_letters =
            host.rsplit('.').next().is_some_and(|last| !last.bytes().all(|b| b.is_ascii_digit()));
        if host.len() > 253 || !host.split('.').all(is_label) || !ends_in_letters {
            return Err(NoHost);
        }
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }

    /// The name, or the address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address, where it is no name.
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// A stream's first bytes.
    pub fn preamble(&self) -> Vec<u8> {
        let text = self.to_string();
        let length = u16::try_from(text.len()).unwrap_or_default();
        [&length.to_be_bytes()[..], text.as_bytes()].concat()
    }

    /// Reads a stream's first bytes, and nothing behind them.
    ///
    /// # Errors
    /// If they do not come, or name no host with a port.
    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let wrong = |_| io::Error::new(io::ErrorKind::InvalidData, NoHost);
        let length = usize::from(from.read_u16().await?);
        if length == 0 || length > MAX_TEXT {
            return Err(wrong(()));
        }
        let mut text = vec![0; length];
        from.read_exact(&mut text).await?;
        let text = String::from_utf8(text).map_err(|_| wrong(()))?;
        let read: Self = text.parse().map_err(|NoHost| wrong(()))?;
        // One host has one spelling.
        if read.to_string() == text { Ok(read) } else { Err(wrong(())) }
    }
}

impl FromStr for IssuerHost {
    type Err = NoHost;

    fn from_str(text: &str) -> Result<Self, NoHost> {
        let port = |text: &str| match text.strip_prefix(':') {
            None if text.is_empty() => Ok(PORT),
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map_err(|_| NoHost)
            }
            _ => Err(NoHost),
        };
        if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or(NoHost)?;
            let address: std::net::Ipv6Addr = host.parse().map_err(|_| NoHost)?;
            return Self::new(&address.to_string(), port(rest)?);
        }
        let at = text.find(':').unwrap_or(text.len());
        let (host, rest) = text.split_at(at);
        Self::new(host, port(rest)?)
    }
}

impl fmt::Display for IssuerHost {
    /// `host:port`, with brackets around an IPv6 address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_read_back_in_one_spelling() {
        for (typed, meant) in [
            ("login.microsoftonline.com", "login.microsoftonline.com:443"),
            ("IDP.Example.com:8443", "idp.example.com:8443"),
            ("192.0.2.1", "192.0.2.1:443"),
            ("[2001:DB8:0::1]:444", "[2001:db8::1]:444"),
            ("localhost:5", "localhost:5"),
        ] {
            let host: IssuerHost = typed.parse().unwrap();
            assert_eq!(host.to_string(), meant);
            assert_eq!(meant.parse(), Ok(host));
        }
        let long = format!("{}.com", "a".repeat(64));
        for wrong in [
            "",
            ":443",
            "host:",
            "host:0",
            "host:65536",
            "host:+1",
            "ho st",
            "user@host",
            "host/path",
            "a..b",
            "host.",
            "-a.b",
            "2001:db8::1",
            "[2001:db8::1",
            "[host]:1",
            "0x7f.1",
            "127.1",
            "host:1:2",
            "é.example",
            &long,
        ] {
            assert_eq!(wrong.parse::<IssuerHost>(), Err(NoHost), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn a_streams_first_bytes_are_read_and_nothing_behind_them() {
        let host: IssuerHost = "idp.example.com".parse().unwrap();
        let mut bytes = host.preamble();
        assert_eq!(bytes[..6], [0, 19, b'i', b'd', b'p', b'.']);
        bytes.extend_from_slice(b"hello");
        let mut rest = &bytes[..];
        assert_eq!(IssuerHost::read(&mut rest).await.unwrap(), host);
        assert_eq!(rest, b"hello");
        let text = |text: &[u8]| [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text].concat();
        for wrong in [
            text(b""),
            text(b"IDP.example.com:443"),
            text(b"idp.example.com"),
            text(b"idp.example.com:0443"),
            text(b"\xff:1"),
            text(&[b'a'; 262]),
            vec![0, 9, b'a'],
            vec![0],
        ] {
            assert!(IssuerHost::read(&mut &wrong[..]).await.is_err(), "{wrong:?}");
        }
    }
}

//! Which of its addresses this machine sends from, as its routes say now. Asking sends nothing.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
};

/// The routes of a machine: the system's own, or a test's.
#[derive(Clone)]
pub struct Routes(Arc<dyn Fn(IpAddr) -> Option<IpAddr> + Send + Sync>);

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Routes")
    }
}

impl Default for Routes {
    fn default() -> Self {
        Self::system()
    }
}

impl Routes {
    /// The system's.
    pub fn system() -> Self {
        Self::of(source)
    }

    /// What answers for a destination's address.
    pub fn of(source: impl Fn(IpAddr) -> Option<IpAddr> + Send + Sync + 'static) -> Self {
        Self(Arc::new(source))
    }

    /// The address that would be sent from; none where no route leads there.
    pub fn source(&self, to: IpAddr) -> Option<IpAddr> {
        (self.0)(to)
    }
}

/// The address that this machine would send from: a UDP socket that is connected looks its route up, and no more.
pub(crate) fn source(to: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match to {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(to, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_reached_from_loopback() {
        let here = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert_eq!(Routes::system().source(here), Some(here));
        assert_eq!(Routes::of(|_| None).source(here), None);
    }
}

//! The direct way: one connection, and nobody in between.

use std::net::SocketAddr;

use tokio::net::TcpStream;

use crate::{
    certificates::Certificates,
    far::FarEnd,
    path::{Dialling, Io, Path},
};

/// A connection to an address, with TLS to whoever holds the run's certificate, or without.
///
/// That may be the far end itself, or the first hop of something that leads there.
#[derive(Debug)]
pub struct Direct {
    name: String,
    address: SocketAddr,
    tls: Option<Certificates>,
}

impl Direct {
    /// TLS to the far end.
    pub fn tls(far: &FarEnd) -> Self {
        Self::to("direct", far.tls(), Some(far.certificates().clone()))
    }

    /// TCP to the far end.
    pub fn plain(far: &FarEnd) -> Self {
        Self::to("direct without TLS", far.plain(), None)
    }

    /// To any address.
    pub fn to(name: &str, address: SocketAddr, tls: Option<Certificates>) -> Self {
        Self { name: name.to_owned(), address, tls }
    }
}

impl Path for Direct {
    fn name(&self) -> &str {
        &self.name
    }

    fn dial(&self) -> Dialling<'_> {
        Box::pin(async move {
            let tcp = TcpStream::connect(self.address).await?;
            tcp.set_nodelay(true)?;
            Ok(match &self.tls {
                None => Box::new(tcp) as Io,
                Some(certificates) => Box::new(certificates.connect(tcp).await?),
            })
        })
    }
}

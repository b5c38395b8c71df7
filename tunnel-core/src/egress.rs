//! Dialling out: from a host name and a port to a tuned byte stream, straight or through an HTTP proxy.
//!
//! Carriers stand on top of it and do not know which way was taken. Where a proxy is in the way, it resolves the name.

mod destination;
mod stream;
mod trust;

use std::{io, sync::Arc, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

pub use destination::Destination;
pub use stream::EgressStream;
pub use trust::TrustStore;

use crate::{
    carrier::tune,
    fault::{Fault, Report},
};

/// Each address of a name gets this long before the next is tried.
const ADDRESS_WITHIN: Duration = Duration::from_secs(4);

/// The way out of this network.
#[derive(Clone, Debug)]
pub struct Egress(Arc<()>);

impl Egress {
    /// Straight to every destination.
    pub fn direct() -> Self {
        Self(Arc::new(()))
    }

    /// A connection to a destination, tuned as carriers need it.
    ///
    /// # Errors
    /// Which step failed, and why.
    pub async fn connect(&self, to: &Destination, deadline: Instant) -> Result<EgressStream, Report> {
        let found = timeout_at(deadline, tokio::net::lookup_host((to.host(), to.port())))
            .await
            .map_err(|_| Report::new(Fault::NameUnresolved, format!("{to}: DNS does not answer")))?
            .map_err(|error| Report::caused_by(Fault::NameUnresolved, to.to_string(), error))?;
        let mut last = Report::new(Fault::NameUnresolved, format!("{to}: the name has no address"));
        for address in found {
            let until = deadline.min(Instant::now() + ADDRESS_WITHIN);
            last = match timeout_at(until, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => match tune(&stream) {
                    Ok(()) => return Ok(EgressStream::tcp(stream)),
                    Err(error) => Report::caused_by(Fault::RelayUnreachable, to.to_string(), error),
                },
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    Report::caused_by(Fault::ConnectionRefused, to.to_string(), error)
                }
                Ok(Err(error)) => Report::caused_by(Fault::RelayUnreachable, to.to_string(), error),
                Err(_elapsed) => Report::new(Fault::ConnectTimeout, address.to_string()),
            };
        }
        Err(last)
    }
}

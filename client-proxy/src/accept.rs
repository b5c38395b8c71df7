//! The local endpoint: loopback only, mutual TLS, HTTP/1.1 and HTTP/2, for the contexts that we wrote.

mod connection;
mod rules;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use towline_tunnel::{
    drain::DrainWatcher,
    fault::{Fault, Report},
};

pub use rules::Hosts;

use crate::{forward::Forwarder, local::EndpointTls};

/// Where the endpoint listens unless told otherwise.
pub const DEFAULT_PORT: u16 = 47011;
/// Connections at once: far more than one person's programs, and few enough to bound what each may hold.
const MAX_CONNECTIONS: usize = 512;
/// After the drain began, requests that run get this long.
pub(crate) const GRACE: Duration = Duration::from_secs(3);
/// Accepting fails where descriptors are used up; some may be free again soon.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The endpoint, bound and not yet served.
#[derive(Debug)]
pub struct Endpoint {
    listener: TcpListener,
    address: SocketAddr,
}

impl Endpoint {
    /// Takes the port; 0 takes a free one.
    ///
    /// # Errors
    /// If the port is in use or can't be taken.
    pub async fn bind(port: u16) -> Result<Self, Report> {
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => Report::caused_by(Fault::PortBusy, wanted.to_string(), error),
            _ => Report::caused_by(Fault::ConfigInvalid, format!("can't listen on {wanted}: {error}"), error),
        };
        let listener = TcpListener::bind(wanted).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the drain begins; requests that run then get a little time.
    pub async fn serve(self, tls: Arc<EndpointTls>, forwarder: Arc<Forwarder>, drain: DrainWatcher) {
        let scope = Arc::new(connection::Scope { hosts: Hosts::new(self.address.port()), tls, forwarder });
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = drain.begun() => break,
                Some(_ended) = connections.join_next() => {}
                accepted = next(&self.listener, &places) => {
                    let Some((tcp, place)) = accepted else { continue };
                    let (scope, drain) = (Arc::clone(&scope), drain.clone());
                    connections.spawn(async move {
                        connection::serve(tcp, scope, drain).await;
                        drop(place);
                    });
                }
            }
        }
        drop(self.listener);
        let ended = async { while connections.join_next().await.is_some() {} };
        // What is left after that is dropped with the set.
        let _late = timeout(GRACE, ended).await;
    }
}

type Accepted = (tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit);

/// The next connection, once there is a place for it: before that it waits in the kernel.
async fn next(listener: &TcpListener, places: &Arc<Semaphore>) -> Option<Accepted> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((tcp, _)) => Some((tcp, place)),
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            sleep(ACCEPT_AGAIN).await;
            None
        }
    }
}

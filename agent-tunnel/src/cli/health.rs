//! `towline-agent health`: for probes that run a program in the container, because the agent listens on loopback alone.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use towline_tunnel::fault::{Fault, Report};

use super::{Place, say};
use crate::state::METRICS_ADDRESS;

/// A probe is given 5 s in `deploy/agent.yaml`.
const WITHIN: Duration = Duration::from_secs(4);
/// What is said about readiness are a few lines.
const PAGE: usize = 64 * 1024;

#[derive(Args, Debug)]
pub(super) struct Health {
    #[command(flatten)]
    place: Place,
    /// Only whether it lives, with or without a session
    #[arg(long)]
    live: bool,
}

impl Health {
    /// The exit code is 0 where all is well, and 1 where the agent says that it isn't.
    ///
    /// # Errors
    /// If no agent runs with that folder, or it doesn't answer.
    pub(super) async fn ask(self) -> Result<ExitCode, Report> {
        let address = self.address()?;
        let path = if self.live { "/healthz" } else { "/readyz" };
        let late = || Report::new(Fault::AgentTimeout, format!("{address}{path} after {WITHIN:?}"));
        let (status, page) = timeout(WITHIN, page(address, path)).await.map_err(|_elapsed| late())??;
        say(page.trim_end());
        Ok(if status == StatusCode::OK { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Where the agent that runs with this folder has said that it listens.
    fn address(&self) -> Result<SocketAddr, Report> {
        let path = self.place.data_dir.join(METRICS_ADDRESS);
        let unusable = |why: String| {
            Report::new(Fault::FileUnreadable, format!("{}: {why}; does an agent run?", path.display()))
        };
        let text = fs::read_to_string(&path).map_err(|error| unusable(error.to_string()))?;
        let mut address: SocketAddr =
            text.trim().parse().map_err(|_| unusable(format!("{:?} is no address", text.trim())))?;
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        Ok(address)
    }
}

async fn page(address: SocketAddr, path: &str) -> Result<(StatusCode, String), Report> {
    let gone = |error: &dyn std::error::Error| {
        Report::new(Fault::AgentTimeout, format!("{address}{path}: {error}; does an agent run?"))
    };
    let stream = TcpStream::connect(address).await.map_err(|error| gone(&error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| gone(&error))?;
    let _driven = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| gone(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| gone(&error))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), PAGE).collect().await.map_err(|error| gone(&*error))?;
    Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use towline_tunnel::proto::ledger::Ledger;

    use super::*;
    use crate::{health::serve, metrics::Metrics, rights::Findings};

    #[tokio::test]
    async fn a_probe_learns_whether_the_agent_lives_and_whether_it_has_a_session() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path().to_owned();
        let ask = async |live| Health { place: Place { data_dir: data_dir.clone() }, live }.ask().await;
        let report = ask(true).await.unwrap_err();
        assert_eq!(report.fault, Fault::FileUnreadable, "{report}");

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // As with `--metrics-listen 0.0.0.0:…`.
        fs::write(folder.path().join(METRICS_ADDRESS), format!("0.0.0.0:{}\n", address.port())).unwrap();
        let metrics = Metrics::new(Ledger::new(1));
        let serving = tokio::spawn(serve(listener, metrics.clone(), Findings::default()));
        assert_eq!(ask(true).await.unwrap(), ExitCode::SUCCESS);
        assert_eq!(ask(false).await.unwrap(), ExitCode::FAILURE);
        metrics.sessions.inc();
        assert_eq!(ask(false).await.unwrap(), ExitCode::SUCCESS);
        metrics.sessions.dec();
        assert_eq!(ask(false).await.unwrap(), ExitCode::FAILURE);

        serving.abort();
        let _aborted = serving.await;
        let report = ask(true).await.unwrap_err();
        assert_eq!(report.fault, Fault::AgentTimeout, "{report}");
    }
}

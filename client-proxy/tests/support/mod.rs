//! A relay, an agent and an apiserver in one, of which a test decides what they do; and a Kubernetes client.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(unreachable_pub, reason = "shared by test programs, each of which is a crate")]

pub mod apiserver;
pub mod kubectl;
pub mod peer;

use std::{path::PathBuf, process::Stdio, time::Duration};

use data_encoding::BASE64URL_NOPAD;
use tokio::{process::Command, time::timeout};
use towline::{
    app::{Choice, Config},
    token::TokenFrom,
};
use towline_tunnel::{carrier::dial::RelayAddress, egress::Egress, mux::LineSettings};

pub use apiserver::Apiserver;
pub use kubectl::Kubectl;
pub use peer::Peer;

/// Nothing in these tests takes longer unless it hangs.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// Waits until something holds.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    soon(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// What a person has on disk.
pub struct Home(pub tempfile::TempDir);

impl Home {
    pub fn new(peer: &Peer) -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        std::fs::write(home.path("ca.pem"), peer.authority_pem()).unwrap();
        home.tokens(4_000_000_000);
        home
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes both tokens, good until this time.
    pub fn tokens(&self, until: u64) {
        std::fs::write(self.path("relay-token"), jwt("towline-relay", until)).unwrap();
        std::fs::write(self.path("cluster-token"), jwt("towline-cluster", until)).unwrap();
    }

    /// The program, with nothing of whoever runs the tests around it but the PATH.
    pub fn program(&self) -> Command {
        let home = self.path("home");
        std::fs::create_dir_all(&home).unwrap();
        let mut program = Command::new(env!("CARGO_BIN_EXE_towline"));
        program
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        program
    }

    pub fn config(&self, peer: &Peer) -> Config {
        Config {
            relay: RelayAddress::parse(&format!("localhost:{}", peer.address().port())).unwrap(),
            relay_key: peer.relay_key(),
            relay_ca_file: Some(self.path("ca.pem")),
            egress: Egress::direct(),
            relay_token: TokenFrom::File(self.path("relay-token")),
            cluster_token: TokenFrom::File(self.path("cluster-token")),
            resume_timeout: towline::app::RESUME_TIMEOUT,
            // The peer keeps no stream unless it is told to.
            lines: LineSettings::new(0, 0),
            shared_audience: false,
            clusters: vec![Choice::named("edge-7", peer.cluster())],
            confirm: None,
            port: Some(0),
            kubeconfig: None,
            state_dir: self.path("state"),
        }
    }
}

/// Signed by nobody: the peer here believes everything.
pub fn jwt(audience: &str, expires: u64) -> String {
    let claims = format!(r#"{{"aud":"{audience}","exp":{expires},"n":"canary"}}"#);
    format!("e30.{}.c2ln", BASE64URL_NOPAD.encode(claims.as_bytes()))
}

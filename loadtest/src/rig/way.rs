//! How a simulated program's bytes reach the relay.

use std::net::SocketAddr;

use towline_tunnel::{
    carrier::{
        dial::Dialler,
        ladder::{Ladder, Memory},
        rung::{Carrier, Rung},
    },
    fault::Report,
    session::Exporter,
};

/// What is chosen of it.
#[derive(Clone, Copy, Debug)]
pub struct Via {
    /// What leads to the relay, where it is not dialled itself.
    pub line: Option<SocketAddr>,
    /// The one carrier that is used.
    pub rung: Rung,
}

impl Via {
    /// Straight, by websocket.
    pub const STRAIGHT: Self = Self { line: None, rung: Rung::WebSocket };
}

/// Dials the relay by one carrier and no other: nothing is tried, and nothing is remembered.
#[derive(Clone, Debug)]
pub struct Way {
    ladder: Ladder,
    rung: Rung,
}

impl Way {
    /// By this carrier.
    pub fn new(dialler: Dialler, rung: Rung) -> Self {
        Self { ladder: Ladder::new(dialler, Memory::default()), rung }
    }

    /// A new carrier, and the exporter of its outer TLS.
    ///
    /// # Errors
    /// Which step failed, and why.
    pub async fn dial(&self) -> Result<(Carrier, Option<Exporter>), Report> {
        self.ladder.carrier(self.rung).await
    }
}

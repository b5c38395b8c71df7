//! What peers can make grow, and how far. Each limit is a flag of `towline-relay serve`; `docs/operator-guide.md` has
//! the same table, and a test compares the two.

use std::time::Duration;

use clap::{Args, Parser};

use towline_tunnel::{
    fault::{Fault, Report},
    values::{bytes, duration},
};

/// The limits of one relay.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// Sessions (agents and clients) at once
    #[arg(long, value_name = "N", default_value = "20000", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_sessions: u32,

    /// Sessions at once from one address (IPv4, or IPv6 /64; four times as many from a /48); raise it where many agents share one NAT
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_sessions_per_address: u32,

    /// Sessions at once of one user
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_sessions_per_user: u32,

    /// Streams at once on one client's session; a proxy uses one for each request, exec or port-forward connection
    #[arg(long, value_name = "N", default_value = "1024", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_streams_per_client: u32,

    /// Streams at once of one user, on all of their sessions together
    #[arg(long, value_name = "N", default_value = "4096", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_streams_per_user: u32,

    /// Streams at once on one agent's session, of all users together
    #[arg(long, value_name = "N", default_value = "16384", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_streams_per_agent: u32,

    /// Connections at once that are not yet a session: TCP, TLS, HTTP and session handshakes
    #[arg(long, value_name = "N", default_value = "1024", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_handshakes: u32,

    /// From an accepted TCP connection to a session; whoever is slower is closed
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub handshake_timeout: Duration,

    /// From OPEN to the agent's answer; a caller is told that the agent does not answer after that
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub open_timeout: Duration,

    /// Sessions that may begin in any second; further ones wait shortly, or are told when to come back
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    pub accept_rate: u32,

    /// How many of them may begin at once; at most half, which is the default where it is less
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..))]
    pub accept_burst: u32,

    /// Head of one HTTP request to the relay itself
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = bytes)]
    pub max_header_bytes: u64,

    /// Stream data held or promised for all sessions together, beyond 16 KiB each way for each stream
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = bytes)]
    pub max_buffered_bytes: u64,

    /// The same for one user, on all of their sessions and on the agents' sessions that their streams lead to
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = bytes)]
    pub max_buffered_bytes_per_user: u64,

    /// The same for one session
    #[arg(long, value_name = "SIZE", default_value = "128MiB", value_parser = bytes)]
    pub max_buffered_bytes_per_session: u64,

    /// Agent instances of one cluster with a certificate that has not ended
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_instances_per_cluster: u32,

    /// Refused credentials from one address in a minute; further attempts are refused unread
    #[arg(long, value_name = "N", default_value = "120", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_failures_per_minute: u32,
}

/// What `--accept-burst` is where nobody says so.
const ACCEPT_BURST: u32 = 100;

impl Limits {
    /// Whether the limits fit each other.
    ///
    /// # Errors
    /// Which don't.
    pub fn check(&self) -> Result<(), Report> {
        let most = (self.accept_rate / 2).max(1);
        if self.accept_burst > most && self.accept_burst != ACCEPT_BURST {
            return Err(Report::new(
                Fault::ConfigInvalid,
                format!(
                    "--accept-burst {} is more than half of --accept-rate {}: give {most} or less, or a higher rate",
                    self.accept_burst, self.accept_rate
                ),
            ));
        }
        Ok(())
    }
}

#[derive(Parser)]
struct Alone {
    #[command(flatten)]
    limits: Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Alone::try_parse_from(["limits"]).map(|alone| alone.limits).expect("a test parses the defaults")
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn a_burst_beyond_half_of_the_rate_is_refused_and_the_default_gives_way() {
        let limits = |accept_rate, accept_burst| Limits { accept_rate, accept_burst, ..Limits::default() };
        assert_eq!(Limits::default().accept_burst, ACCEPT_BURST);
        for fits in [limits(1000, 500), limits(1, 1), limits(20, 10), limits(20, ACCEPT_BURST)] {
            assert!(fits.check().is_ok(), "{fits:?}");
        }
        let said = limits(1000, 501).check().unwrap_err().to_string();
        assert!(said.contains("--accept-burst 501") && said.contains("500"), "{said}");
    }

    #[test]
    fn the_operators_guide_names_every_limit_with_its_default() {
        let guide = include_str!("../../docs/operator-guide.md");
        assert_eq!(Limits::default().max_sessions, 20_000);
        for arg in Alone::command().get_arguments().filter(|arg| arg.get_id() != "help") {
            let flag = arg.get_long().unwrap();
            let default = arg.get_default_values()[0].to_str().unwrap();
            let row = format!("| `--{flag}` | {default} |");
            assert!(guide.contains(&row), "docs/operator-guide.md has no row that begins with {row}");
        }
    }
}

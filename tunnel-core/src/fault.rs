//! Every fault that a person can meet, in one place.
//!
//! A [`Fault`] is a *kind*: a stable code, the hop where it shows, why it happens, what to do and who can do it.
//! A [`Report`] is one *occurrence*: a fault and what was seen. Messages, Kubernetes `Status` objects, exit codes
//! and the page `docs/errors.md` are all made from the table in `fault/table.rs`, so they can't disagree.

use std::sync::OnceLock;

mod answer;
mod page;
mod report;
mod table;

pub use answer::{Answer, is_read_raw};
pub use page::errors_page;
pub use report::Report;
pub(crate) use report::{is_printed, printed};
pub use table::Fault;

static PROGRAM: OnceLock<&'static str> = OnceLock::new();

/// Names this process: how reports of [`Hop::Here`] begin. For `main`, once; it is `towline` where nobody says so.
pub fn name_program(name: &'static str) {
    let _named_before = PROGRAM.set(name);
}

fn program() -> &'static str {
    PROGRAM.get().unwrap_or(&"towline")
}

/// The part of the journey in which a fault shows itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hop {
    /// The program that says so, whichever it is: its flags and files.
    Here,
    /// The person's machine: `towline` itself, its local endpoint, its files.
    Client,
    /// Between a dialler and the relay.
    Network,
    /// The relay.
    Relay,
    /// The agent in the cluster.
    Agent,
    /// The cluster's kube-apiserver.
    Apiserver,
}

impl Hop {
    /// The hop's name as messages and logs print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Client => "client",
            Self::Network => "network",
            Self::Relay => "relay",
            Self::Agent => "agent",
            Self::Apiserver => "apiserver",
        }
    }
}

/// Who can apply a remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// The person who ran the command.
    You,
    /// Whoever runs the firewall or proxy on the way.
    NetworkTeam,
    /// Whoever runs the relay.
    RelayAdmin,
    /// Whoever administers the cluster and its agent.
    ClusterAdmin,
    /// Whoever runs the identity provider.
    IdentityAdmin,
    /// Whoever holds the organisation's key, which signs roles.
    OrganisationAdmin,
    /// The towline project: a bug.
    Developers,
}

impl Who {
    /// How JSON names this party.
    pub fn id(self) -> &'static str {
        match self {
            Self::You => "you",
            Self::NetworkTeam => "network-team",
            Self::RelayAdmin => "relay-admin",
            Self::ClusterAdmin => "cluster-admin",
            Self::IdentityAdmin => "identity-admin",
            Self::OrganisationAdmin => "organisation-admin",
            Self::Developers => "developers",
        }
    }

    /// How messages and `docs/errors.md` name this party.
    pub fn name(self) -> &'static str {
        match self {
            Self::You => "you",
            Self::NetworkTeam => "the network team",
            Self::RelayAdmin => "the relay's administrator",
            Self::ClusterAdmin => "the cluster's administrator",
            Self::IdentityAdmin => "the identity provider's administrator",
            Self::OrganisationAdmin => "whoever holds the organisation's key",
            Self::Developers => "the towline developers (please report it)",
        }
    }
}

/// What a fault does to the command that met it: the process exit code and the HTTP status of a `Status` object.
///
/// Exit codes are stable: scripts depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Wrong flags, files or values: exit 2, HTTP 400.
    Usage,
    /// The request itself is malformed or forbidden by rule: exit 3, HTTP 400.
    BadRequest,
    /// The relay can't be reached: exit 10, HTTP 503.
    Unreachable,
    /// A peer is not who it must be: exit 11, HTTP 502.
    Untrusted,
    /// Who you are was not accepted: exit 12, HTTP 401.
    Unauthenticated,
    /// You are known, and may not: exit 13, HTTP 403.
    Forbidden,
    /// There is no such cluster: exit 14, HTTP 404.
    NotFound,
    /// It exists, and is away: exit 15, HTTP 503.
    Unavailable,
    /// A limit was reached: exit 16, HTTP 429.
    TooMany,
    /// The connection ended before the answer did: exit 17, HTTP 502.
    Cut,
    /// A wait reached its deadline: exit 18, HTTP 504.
    Timeout,
    /// A bug, or a peer that breaks the protocol: exit 70, HTTP 500.
    Internal,
}

impl Outcome {
    /// Process exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::BadRequest => 3,
            Self::Unreachable => 10,
            Self::Untrusted => 11,
            Self::Unauthenticated => 12,
            Self::Forbidden => 13,
            Self::NotFound => 14,
            Self::Unavailable => 15,
            Self::TooMany => 16,
            Self::Cut => 17,
            Self::Timeout => 18,
            Self::Internal => 70,
        }
    }

    /// HTTP status code of the `Status` object.
    pub fn http_status(self) -> u16 {
        match self {
            Self::Usage | Self::BadRequest => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::TooMany => 429,
            Self::Internal => 500,
            Self::Untrusted | Self::Cut => 502,
            Self::Unreachable | Self::Unavailable => 503,
            Self::Timeout => 504,
        }
    }

    /// `reason` of the Kubernetes `Status` object (`metav1.StatusReason`).
    pub fn status_reason(self) -> &'static str {
        match self {
            Self::Usage | Self::BadRequest => "BadRequest",
            Self::Unauthenticated => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::TooMany => "TooManyRequests",
            Self::Internal | Self::Untrusted | Self::Cut => "InternalError",
            Self::Unreachable | Self::Unavailable => "ServiceUnavailable",
            Self::Timeout => "Timeout",
        }
    }
}

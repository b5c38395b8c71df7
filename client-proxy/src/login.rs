//! Logging in: how a person, a machine or a CI job gets the two tokens, and what is kept of it.
//!
//! [`Settings`] come from the profile, never from the relay. People go through the provider's pages ([`interactive`]), and what
//! that gives is kept ([`Store`]) and renewed by refresh tokens ([`Session`]). Machines have no session: their tokens are asked for when
//! needed ([`issuer`]). Both are [`Issue`]rs, which [`Tokens`](crate::token::Tokens) keeps fresh.

mod browser;
pub(crate) mod child;
mod ci;
mod command;
mod device;
mod exec_credential;
mod hosts;
mod http;
mod machine;
mod oauth;
mod prompt;
mod provider;
mod secret_tool;
mod session;
mod settings;
mod store;
mod who;

use std::sync::Arc;

use towline_tunnel::fault::Report;

pub(crate) use command::plugin;
pub use exec_credential::{Decoded, decode as decode_exec_credential};
pub use prompt::Prompt;
pub use session::{Session, interactive, log_out};
pub use settings::{Flow, LoginTable, Settings};
pub use store::{Keep, Store};
pub use who::Who;

use crate::token::{Issue, Purpose};

/// Whoever issues this profile's token of one kind.
///
/// # Errors
/// If the provider's authorities or the store can't be used.
pub fn issuer(settings: &Settings, purpose: Purpose, store: &Store) -> Result<Arc<dyn Issue>, Report> {
    let registration = settings.of(purpose).clone();
    Ok(match settings.flow {
        Flow::Browser | Flow::Device => Arc::new(Session::new(settings, purpose, store.clone())),
        Flow::ClientCredentials => Arc::new(machine::ClientCredentials::new(settings, registration)),
        Flow::Github => Arc::new(ci::Github::new(registration, &settings.roots, &settings.egress)?),
        Flow::Gitlab => Arc::new(ci::Gitlab::new(registration)),
        Flow::Az => Arc::new(command::Az::new(settings.tenant.clone(), registration)),
        Flow::Exec => Arc::new(command::Exec::new(registration)),
    })
}

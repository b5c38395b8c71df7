//! A machine's own tokens: asked for when they are needed, and never kept.

use std::time::SystemTime;

use tokio::sync::OnceCell;
use towline_identity::Pending;
use towline_tunnel::fault::Report;

use super::{
    oauth,
    provider::Provider,
    settings::{Registration, Settings},
};
use crate::token::{Issue, Token};

/// The client credentials grant.
#[derive(Debug)]
pub(super) struct ClientCredentials {
    settings: Settings,
    of: Registration,
    provider: OnceCell<Provider>,
}

impl ClientCredentials {
    pub(super) fn new(settings: &Settings, of: Registration) -> Self {
        Self { settings: settings.clone(), of, provider: OnceCell::new() }
    }
}

impl Issue for ClientCredentials {
    fn issue(&self, now: SystemTime) -> Pending<'_, Result<Token, Report>> {
        Box::pin(async move {
            let provider = self.provider.get_or_try_init(|| Provider::discover(&self.settings)).await?;
            oauth::client_credentials(provider, &self.of, now).await.map(|grant| grant.token)
        })
    }

    fn place(&self) -> String {
        format!("client {} at {}", self.of.client, self.settings.issuer)
    }
}

//! Which hosts a login needs.

use towline_tunnel::fault::Report;

use super::{Settings, provider::Provider};

impl Settings {
    /// The issuer's URL.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The issuer's URL, and those that its metadata names for logging in.
    ///
    /// # Errors
    /// If the metadata can't be had.
    pub async fn urls(&self) -> Result<Vec<String>, Report> {
        let provider = Provider::discover(self).await?;
        let named = [
            provider.authorization().ok(),
            provider.token().ok(),
            provider.device().ok(),
            provider.revocation(),
        ];
        let named = named.into_iter().flatten().map(ToString::to_string);
        Ok(std::iter::once(self.issuer.clone()).chain(named).collect())
    }
}

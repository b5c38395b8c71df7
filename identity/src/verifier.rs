//! A token in, an identity or a reason out.

use std::time::SystemTime;

use crate::{
    Fetch, FetchError, HttpsFetch, Identity, IssuerConfig,
    cache::{self, Verified},
    claims,
    keys::{Keys, REFRESH},
    token,
};

/// Why a token is not accepted. Never repeats the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It is not a signed token as it should be.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// Its algorithm is not among those that are configured.
    #[error("the token's algorithm is not allowed")]
    Algorithm,
    /// The issuer has no such key.
    #[error("the token is signed with a key that the issuer does not have")]
    UnknownKey,
    /// The signature is wrong.
    #[error("the token's signature is wrong")]
    Signature,
    /// Another issuer's.
    #[error("the token is from another issuer")]
    Issuer,
    /// For someone else.
    #[error("the token is not for the audience {0:?}")]
    Audience(String),
    /// Its time is over.
    #[error("the token is expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not yet valid")]
    NotYetValid,
    /// A claim is not as it must be.
    #[error("the token's {0} {1}")]
    Claim(&'static str, &'static str),
    /// A required claim is missing or has another value.
    #[error("the token lacks the required claim {0:?}")]
    Required(String),
    /// A name that no token may give.
    #[error("the token names {0:?}, which is reserved")]
    Reserved(String),
    /// The issuer's keys can't be had.
    #[error("the issuer's keys can't be had: {0}")]
    IssuerUnreachable(#[from] FetchError),
}

/// Verifies one issuer's tokens.
#[derive(Debug)]
pub struct Verifier {
    config: IssuerConfig,
    keys: Keys,
    verified: Verified,
}

impl Verifier {
    /// A verifier that asks the issuer by https.
    ///
    /// # Errors
    /// If the issuer's CA file can't be used.
    pub fn new(config: IssuerConfig) -> Result<Self, FetchError> {
        let fetch = HttpsFetch::new(config.ca_file.as_deref())?;
        Ok(Self::with_fetch(config, Box::new(fetch)))
    }

    /// A verifier that gets the issuer's documents another way.
    pub fn with_fetch(config: IssuerConfig, fetch: Box<dyn Fetch>) -> Self {
        Self { keys: Keys::new(config.issuer.clone(), fetch), config, verified: Verified::default() }
    }

    /// How the issuer is trusted.
    pub fn config(&self) -> &IssuerConfig {
        &self.config
    }

    /// Who the token says is calling, at `now`. Asks the issuer only where the key is not known.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub async fn verify(&self, token: &str, now: SystemTime) -> Result<Identity, VerifyError> {
        let hash = cache::hash(token);
        if let Some(identity) = self.verified.find(&hash, now) {
            return Ok(identity);
        }
        let unverified = token::parse(token).map_err(VerifyError::Malformed)?;
        if !self.config.algorithms.contains(&unverified.algorithm) {
            return Err(VerifyError::Algorithm);
        }
        // Before a stranger's token makes us ask the issuer for its keys.
        if unverified.claims.get("iss").and_then(|issuer| issuer.as_str()) != Some(&self.config.issuer) {
            return Err(VerifyError::Issuer);
        }
        let key = self.keys.find(&unverified.key_id).await?.ok_or(VerifyError::UnknownKey)?;
        if !key.is_for(unverified.algorithm) {
            return Err(VerifyError::Algorithm);
        }
        let holds = jsonwebtoken::crypto::verify(
            unverified.signature,
            unverified.signed.as_bytes(),
            &key.decoding,
            unverified.algorithm,
        );
        if !holds.is_ok_and(|holds| holds) {
            return Err(VerifyError::Signature);
        }
        let identity = claims::identity(&self.config, &unverified.claims, now)?;
        self.verified.keep(hash, identity.clone(), now);
        Ok(identity)
    }

    /// Asks for the keys now; for a check at start. A failure leaves the last good set.
    ///
    /// # Errors
    /// If they can't be had.
    pub async fn refresh(&self) -> Result<(), FetchError> {
        self.keys.refresh().await?;
        self.verified.clear();
        Ok(())
    }

    /// Refreshes the keys every hour; whoever runs this owns it.
    pub async fn keep_fresh(&self) {
        loop {
            tokio::time::sleep(REFRESH).await;
            if let Err(error) = self.refresh().await {
                tracing::warn!(issuer = self.config.issuer, %error, "the issuer's keys can't be refreshed; the last ones stay");
            }
        }
    }
}

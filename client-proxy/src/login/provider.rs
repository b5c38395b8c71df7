//! The identity provider: what its metadata says, and whether an ID token is really of it.

use std::time::SystemTime;

use http::StatusCode;
use serde::Deserialize;
use towline_identity::{IssuerConfig, IssuerSettings, Verifier, VerifyError};
use towline_tunnel::fault::{Fault, Report};
use url::Url;

use super::{
    http::Http,
    settings::{Registration, Settings},
};
use crate::token::Token;

/// Whatever can be verified; which of them a provider uses is between it and its clients.
const ALGORITHMS: [&str; 10] =
    ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"];

/// What is read of OpenID Connect Discovery 1.0, section 3, and RFC 8414, section 2.
#[derive(Clone, Debug, Deserialize)]
struct Metadata {
    issuer: String,
    authorization_endpoint: Option<Url>,
    token_endpoint: Option<Url>,
    /// RFC 8628, section 4.
    device_authorization_endpoint: Option<Url>,
    /// RFC 7009.
    revocation_endpoint: Option<Url>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    code_challenge_methods_supported: Option<Vec<String>>,
    /// RFC 9207, section 3.
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

/// A provider that has introduced itself.
#[derive(Clone, Debug)]
pub(super) struct Provider {
    pub(super) http: Http,
    metadata: Metadata,
}

pub(super) fn wrong(why: impl Into<String>) -> Report {
    Report::new(Fault::IdpAnswerWrong, why)
}

impl Provider {
    /// Asks for the metadata.
    pub(super) async fn discover(settings: &Settings) -> Result<Self, Report> {
        let http = Http::new(&settings.roots, &settings.egress)?;
        let issuer = &settings.issuer;
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let request = http::Request::get(&url).body(Vec::new());
        let request = request.map_err(|error| wrong(format!("{url}: {error}")))?;
        let answer = http.ask(request).await?;
        if answer.status() != StatusCode::OK {
            return Err(wrong(format!("{url} answered {}", answer.status())));
        }
        let metadata: Metadata = serde_json::from_slice(answer.body())
            .map_err(|error| wrong(format!("{url} is not OpenID metadata: {error}")))?;
        metadata.check(issuer)?;
        Ok(Self { http, metadata })
    }

    pub(super) fn issuer(&self) -> &str {
        &self.metadata.issuer
    }

    pub(super) fn authorization(&self) -> Result<&Url, Report> {
        // PKCE with another method, or without, is no PKCE.
        if let Some(methods) = &self.metadata.code_challenge_methods_supported
            && !methods.iter().any(|method| method == "S256")
        {
            return Err(wrong("the provider does not take PKCE with S256"));
        }
        self.metadata.authorization_endpoint.as_ref().ok_or_else(|| wrong("it has no authorization_endpoint"))
    }

    pub(super) fn token(&self) -> Result<&Url, Report> {
        self.metadata.token_endpoint.as_ref().ok_or_else(|| wrong("it has no token_endpoint"))
    }

    pub(super) fn device(&self) -> Result<&Url, Report> {
        let device = self.metadata.device_authorization_endpoint.as_ref();
        device.ok_or_else(|| wrong("it has no device_authorization_endpoint: its device flow is off"))
    }

    pub(super) fn revocation(&self) -> Option<&Url> {
        self.metadata.revocation_endpoint.as_ref()
    }

    /// Whether an authorisation response names its issuer (RFC 9207).
    pub(super) fn names_itself(&self) -> bool {
        self.metadata.authorization_response_iss_parameter_supported
    }

    /// Whether a client secret travels in the body, because the header is not taken.
    pub(super) fn secret_in_body(&self) -> bool {
        let methods = self.metadata.token_endpoint_auth_methods_supported.as_ref();
        methods.is_some_and(|methods| !methods.iter().any(|method| method == "client_secret_basic"))
    }

    /// Verifies an ID token (OpenID Connect Core 1.0, section 3.1.3.7), and that it answers this login's `nonce`.
    /// Returns its subject.
    pub(super) async fn verify(
        &self,
        token: &Token,
        of: &Registration,
        nonce: Option<&str>,
        now: SystemTime,
    ) -> Result<String, Report> {
        // Google wants to be pinned to a client by another claim than `aud`, which anyone can have there.
        let required_claims = match self.issuer().trim_end_matches('/') {
            "https://accounts.google.com" => vec![format!("azp={}", of.client)],
            _ => Vec::new(),
        };
        let config = IssuerConfig::parse(IssuerSettings {
            issuer_url: self.issuer().to_owned(),
            client_id: of.client.clone(),
            username_prefix: Some("-".to_owned()),
            signing_algs: ALGORITHMS.map(str::to_owned).to_vec(),
            required_claims,
            ..IssuerSettings::default()
        })
        .map_err(|error| Report::new(Fault::ConfigInvalid, error.to_string()))?;
        let verifier =
            Verifier::with_fetch(config, self.http.fetch()).map_err(|error| wrong(error.to_string()))?;
        let text = token.secret.reveal_text().unwrap_or_default();
        let identity = verifier.verify(text, now).await.map_err(|error| match error {
            VerifyError::IssuerUnreachable(_) => Report::new(Fault::IdpUnreachable, error.to_string()),
            _ => wrong(format!("the ID token for the {}: {error}", of.purpose.word())),
        })?;
        let said = token.claims();
        if let Some(nonce) = nonce
            && said["nonce"].as_str() != Some(nonce)
        {
            return Err(wrong("the ID token answers another login (its nonce is not ours)"));
        }
        // Section 3.1.3.7: an authorised party, where there is one, is us.
        if said["azp"].as_str().is_some_and(|party| party != of.client) {
            return Err(wrong("the ID token was issued to another client (azp)"));
        }
        Ok(identity.principal.subject)
    }
}

impl Metadata {
    fn check(&self, issuer: &str) -> Result<(), Report> {
        if self.issuer != issuer {
            return Err(wrong(format!(
                "it says that it is the issuer {:?}, and not {issuer:?}",
                self.issuer
            )));
        }
        let endpoints = [
            &self.authorization_endpoint,
            &self.token_endpoint,
            &self.device_authorization_endpoint,
            &self.revocation_endpoint,
        ];
        match endpoints.into_iter().flatten().find(|url| url.scheme() != "https") {
            Some(url) => Err(wrong(format!("its endpoint {url} is not https"))),
            None => Ok(()),
        }
    }
}

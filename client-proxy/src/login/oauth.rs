//! Requests for tokens (RFC 6749), by the crate `oauth2`; what is made of answers, and of refusals.

use std::time::{Duration, SystemTime};

use oauth2::{
    AuthType, Client, ClientId, ClientSecret, EndpointNotSet, EndpointSet, ErrorResponse, ErrorResponseType,
    ExtraTokenFields, RefreshToken, RequestTokenError, RevocationUrl, Scope, StandardErrorResponse,
    StandardRevocableToken, StandardTokenResponse, TokenResponse as _, TokenUrl,
    basic::{
        BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse, BasicTokenType,
    },
};
use serde::{Deserialize, Serialize};
use towline_identity::client_assertion;
use towline_tunnel::{
    fault::{Fault, Report},
    session::message::Secret,
};

use super::{
    http::NoAnswer,
    provider::{Provider, wrong},
    settings::{Kind, Proof, Registration, read_secret},
};
use crate::token::Token;

const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What OpenID Connect adds to a token response.
#[derive(Clone, Default, Deserialize, Serialize)]
pub(super) struct IdToken {
    id_token: Option<String>,
}

impl std::fmt::Debug for IdToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IdToken(…)")
    }
}

impl ExtraTokenFields for IdToken {}

/// A token endpoint's answer.
pub(super) type Answer = StandardTokenResponse<IdToken, BasicTokenType>;

/// The crate's client, of which the token endpoint is known.
pub(super) type OAuth<Auth = EndpointNotSet, Device = EndpointNotSet, Revocation = EndpointNotSet> = Client<
    BasicErrorResponse,
    Answer,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    Auth,
    Device,
    EndpointNotSet,
    Revocation,
    EndpointSet,
>;

/// What a token request says beside its grant.
pub(super) type Params = Vec<(&'static str, String)>;

/// What was granted for one audience.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    /// The token that is used: which one, the registration says.
    pub(super) token: Token,
    /// What it is renewed by.
    pub(super) refresh: Option<Secret>,
    /// The ID token, if one came along.
    pub(super) id: Option<Token>,
}

/// What a refresh token gave.
#[derive(Debug)]
pub(super) struct Renewed {
    /// What was granted, or why it can't be used.
    pub(super) grant: Result<Grant, Report>,
    /// The refresh token that replaces the one that was shown (RFC 6749, section 6), whatever the grant is worth.
    pub(super) successor: Option<Secret>,
}

/// A client for this registration, and the parameters that go with each of its token requests.
pub(super) fn client(
    provider: &Provider,
    of: &Registration,
    now: SystemTime,
) -> Result<(OAuth, Params), Report> {
    let token = provider.token()?;
    let mut client = Client::new(ClientId::new(of.client.clone()))
        .set_token_uri(TokenUrl::from_url(token.clone()))
        .set_auth_type(AuthType::RequestBody);
    let mut params = of.target.clone();
    match &of.proof {
        Proof::None => {}
        Proof::Secret(path) => {
            let secret = read_secret(path)?;
            client = client.set_client_secret(ClientSecret::new(text(&secret).to_owned()));
            if !provider.secret_in_body() {
                client = client.set_auth_type(AuthType::BasicAuth);
            }
        }
        Proof::Certificate { certificate, key } => {
            let assertion = client_assertion(&of.client, token.as_str(), certificate, key, now)
                .map_err(|why| Report::new(Fault::FileUnreadable, why))?;
            params
                .extend([("client_assertion_type", JWT_BEARER.to_owned()), ("client_assertion", assertion)]);
        }
        Proof::Federated(path) => {
            let assertion = text(&read_secret(path)?).to_owned();
            params
                .extend([("client_assertion_type", JWT_BEARER.to_owned()), ("client_assertion", assertion)]);
        }
    }
    Ok((client, params))
}

fn text(secret: &Secret) -> &str {
    secret.reveal_text().unwrap_or_default()
}

pub(super) fn scopes(of: &[String]) -> Vec<Scope> {
    of.iter().cloned().map(Scope::new).collect()
}

/// Asks for a fresh token by a refresh token (RFC 6749, section 6).
pub(super) async fn refresh(
    provider: &Provider,
    of: &Registration,
    refresh: &Secret,
    now: SystemTime,
) -> Result<Renewed, Report> {
    let (client, params) = client(provider, of, now)?;
    let refresh = RefreshToken::new(text(refresh).to_owned());
    let mut request = client.exchange_refresh_token(&refresh);
    // Without scopes those of the login are meant; where they say the audience they are repeated, all of them, or Entra gives
    // neither ID token nor refresh token.
    if !of.own_scopes.is_empty() {
        request = request.add_scopes(scopes(&of.scopes));
    }
    for (name, value) in params {
        request = request.add_extra_param(name, value);
    }
    let answer = request.request_async(&provider.http).await.map_err(|error| {
        let report = failed(error);
        // The token ended, was used elsewhere, or was revoked; or the provider wants to see the person.
        let over = ["invalid_grant", "interaction_required", "login_required", "consent_required"];
        if report.fault == Fault::LoginRefused && over.iter().any(|code| report.detail.starts_with(code)) {
            Report::new(Fault::LoginEnded, report.detail)
        } else {
            report
        }
    })?;
    Ok(Renewed { successor: replacement(&answer), grant: judged(&answer, of, now) })
}

/// Asks for a client's own token (RFC 6749, section 4.4).
pub(super) async fn client_credentials(
    provider: &Provider,
    of: &Registration,
    now: SystemTime,
) -> Result<Grant, Report> {
    let (client, params) = client(provider, of, now)?;
    let mut request = client.exchange_client_credentials().add_scopes(scopes(&of.scopes));
    for (name, value) in params {
        request = request.add_extra_param(name, value);
    }
    granted(request.request_async(&provider.http).await, of, now)
}

/// Tells the provider to forget a refresh token (RFC 7009), where it can be told.
pub(super) async fn revoke(
    provider: &Provider,
    of: &Registration,
    refresh: &Secret,
    now: SystemTime,
) -> Result<bool, Report> {
    let Some(url) = provider.revocation() else { return Ok(false) };
    let (client, params) = client(provider, of, now)?;
    let client = client.set_revocation_url(RevocationUrl::from_url(url.clone()));
    let token = StandardRevocableToken::RefreshToken(RefreshToken::new(text(refresh).to_owned()));
    let mut request = client.revoke_token(token).map_err(|error| wrong(error.to_string()))?;
    for (name, value) in params {
        request = request.add_extra_param(name, value);
    }
    request.request_async(&provider.http).await.map(|()| true).map_err(failed)
}

/// What a token endpoint's answer gives.
pub(super) fn granted<E: ErrorResponse + Refusal>(
    answer: Result<Answer, RequestTokenError<NoAnswer, E>>,
    of: &Registration,
    now: SystemTime,
) -> Result<Grant, Report> {
    judged(&answer.map_err(failed)?, of, now)
}

fn replacement(answer: &Answer) -> Option<Secret> {
    answer.refresh_token().map(|token| Secret::new(token.secret().as_bytes()))
}

fn judged(answer: &Answer, of: &Registration, now: SystemTime) -> Result<Grant, Report> {
    if answer.token_type() != &BasicTokenType::Bearer {
        return Err(wrong("the token is no bearer token"));
    }
    let id = answer.extra_fields().id_token.as_deref().map(|text| Token::parse(text).ok_or_else(unusable));
    let id = id.transpose()?;
    let token = match of.kind {
        Kind::Id => id.clone().ok_or_else(|| {
            wrong("no ID token came; if the provider gives none at renewals, set `token = \"access\"` in [login]")
        })?,
        Kind::Access => {
            let told = answer.expires_in().map(|life| life.min(Duration::from_secs(10 * 365 * 24 * 3600)));
            Token::parse(answer.access_token().secret())
                .ok_or_else(unusable)?
                .ending(told.and_then(|life| now.checked_add(life)))
        }
    };
    if !token.is_jwt() {
        return Err(wrong(
            "the access token is no JWT, and nobody but the provider could read it: name an audience (scopes, resource or audience) \
             that has JWTs, or set `token = \"id\"`",
        ));
    }
    if token.is_over(now) {
        return Err(wrong("the token has ended already; is this machine's clock right?"));
    }
    Ok(Grant { token, refresh: replacement(answer), id })
}

fn unusable() -> Report {
    wrong("what came is not one token of at most 16 KiB")
}

/// A refusal as the provider words it.
pub(super) trait Refusal {
    fn code(&self) -> &str;
    fn words(&self) -> Option<&str>;
}

impl<T: ErrorResponseType + AsRef<str>> Refusal for StandardErrorResponse<T> {
    fn code(&self) -> &str {
        self.error().as_ref()
    }

    fn words(&self) -> Option<&str> {
        self.error_description().map(String::as_str)
    }
}

/// What an error means to a person. An answer that can't be read is never repeated: it may hold tokens.
pub(super) fn failed<E: ErrorResponse + Refusal>(error: RequestTokenError<NoAnswer, E>) -> Report {
    match error {
        RequestTokenError::ServerResponse(refusal) => refused(refusal.code(), refusal.words()),
        RequestTokenError::Request(no) => no.into(),
        RequestTokenError::Parse(..) => wrong("its token endpoint's answer is no token response"),
        RequestTokenError::Other(_) => wrong("its token endpoint's answer is empty, or not JSON"),
    }
}

/// A refusal: `error` and `error_description`, of any endpoint.
pub(super) fn refused(code: &str, words: Option<&str>) -> Report {
    let fault = match code {
        "expired_token" => Fault::LoginTimeout,
        "temporarily_unavailable" | "server_error" => Fault::IdpUnreachable,
        _ => Fault::LoginRefused,
    };
    let code: String = code.chars().take(64).collect();
    let words = words.map(|words| format!(": {}", words.chars().take(300).collect::<String>()));
    Report::new(fault, format!("{code}{}", words.unwrap_or_default()))
}

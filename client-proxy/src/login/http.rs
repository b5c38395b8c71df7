//! How the provider is asked: by [`HttpsFetch`], with its trust store, deadline and bound, and never along a redirect.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use data_encoding::BASE64;
use http::{HeaderMap, header};
use oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use towline_identity::{Fetch, FetchError, HttpsFetch, Pending, Roots};
use towline_tunnel::{
    egress::Egress,
    fault::{Fault, Report},
};
use url::form_urlencoded;

/// Fields of a request that an answer must not bring back to people's eyes.
const SECRETS: &[&str] =
    &["client_assertion", "client_secret", "code", "code_verifier", "device_code", "refresh_token", "token"];
/// A provider's own words are told up to this length.
const WORDS: usize = 300;

/// Why there is no answer that could be looked at.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{why}")]
pub(super) struct NoAnswer {
    pub(super) why: String,
    /// When the provider wishes to be asked again.
    pub(super) delay: Duration,
}

impl From<FetchError> for NoAnswer {
    fn from(error: FetchError) -> Self {
        Self { why: error.to_string(), delay: Duration::ZERO }
    }
}

impl From<NoAnswer> for Report {
    fn from(no: NoAnswer) -> Self {
        Self::new(Fault::IdpUnreachable, no.why).retry_after(no.delay)
    }
}

/// Asks one provider.
#[derive(Clone)]
pub(super) struct Http(Arc<dyn Fetch>);

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

impl Http {
    /// Trusts exactly these authorities, whichever way leads there.
    pub(super) fn new(roots: &Roots, egress: &Egress) -> Result<Self, Report> {
        let egress = egress.clone();
        let fetch = HttpsFetch::new(roots, Arc::new(move |host: &str, port: u16| egress.open(host, port)));
        fetch.map(|fetch| Self(Arc::new(fetch))).map_err(|error| NoAnswer::from(error).into())
    }

    pub(super) fn fetch(&self) -> Arc<dyn Fetch> {
        Arc::clone(&self.0)
    }

    /// One question. A provider that has trouble of its own has not answered.
    pub(super) async fn ask(&self, request: HttpRequest) -> Result<HttpResponse, NoAnswer> {
        let url = request.uri().to_string();
        let mut sent = fields(request.body());
        sent.extend(credentials(request.headers()));
        let response = self.0.send(request.map(Bytes::from)).await?;
        let status = response.status();
        if status.is_server_error() || status == http::StatusCode::TOO_MANY_REQUESTS {
            let seconds = response.headers().get(http::header::RETRY_AFTER);
            let seconds = seconds.and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
            let delay = Duration::from_secs(seconds.unwrap_or(0));
            return Err(NoAnswer { why: format!("{url} answered {status}"), delay });
        }
        let (parts, body) = response.into_parts();
        let body = if status == http::StatusCode::OK { body.to_vec() } else { without_words(&body, &sent) };
        Ok(HttpResponse::from_parts(parts, body))
    }
}

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = NoAnswer;
    type Future = Pending<'c, Result<HttpResponse, NoAnswer>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.ask(request))
    }
}

/// The secret fields of a form.
fn fields(form: &[u8]) -> Vec<String> {
    form_urlencoded::parse(form)
        .filter(|(name, value)| SECRETS.contains(&name.as_ref()) && !value.is_empty())
        .map(|(_, value)| value.into_owned())
        .collect()
}

/// The secrets of `Authorization`: as they stand there, and those of a client (RFC 6749, section 2.3.1) as they are meant as well.
fn credentials(headers: &HeaderMap) -> Vec<String> {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (scheme, told) = value.split_once(' ').unwrap_or_default();
    let mut secrets = vec![told.trim().to_owned()];
    if scheme.eq_ignore_ascii_case("basic")
        && let Ok(pair) = BASE64.decode(told.trim().as_bytes())
        && let Some(colon) = pair.iter().position(|byte| *byte == b':')
    {
        let password = &pair[colon + 1..];
        secrets.push(String::from_utf8_lossy(password).into_owned());
        secrets.extend(form_urlencoded::parse(password).map(|(name, _)| name.into_owned()));
    }
    secrets.retain(|secret| !secret.is_empty());
    secrets
}

/// An error's answer, whose words are bounded, and left out where they repeat a secret that was sent.
fn without_words(body: &[u8], sent: &[String]) -> Vec<u8> {
    let Ok(mut error) = serde_json::from_slice::<serde_json::Value>(body) else { return body.to_vec() };
    let repeats = |value: &serde_json::Value| {
        value.as_str().is_some_and(|text| sent.iter().any(|secret| text.contains(secret.as_str())))
    };
    for name in ["error", "error_description", "error_uri"] {
        let Some(words) = error.get_mut(name) else { continue };
        if repeats(words) {
            *words = "(its words repeat a secret)".into();
        } else if let Some(text) = words.as_str() {
            *words = text.chars().take(WORDS).collect::<String>().into();
        }
    }
    error.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t29_an_error_that_repeats_what_was_sent_is_not_told() {
        let sent = fields(b"grant_type=refresh_token&refresh_token=cana%2Bry&client_id=c");
        assert_eq!(sent, ["cana+ry"]);
        let body = br#"{"error":"invalid_grant","error_description":"no such token cana+ry"}"#;
        let told = String::from_utf8(without_words(body, &sent)).unwrap();
        assert!(told.contains("invalid_grant") && !told.contains("cana+ry"), "{told}");
        let long = format!(r#"{{"error":"e","error_description":"{}"}}"#, "x".repeat(100_000));
        assert!(without_words(long.as_bytes(), &sent).len() < 1000);
        assert_eq!(without_words(b"<html>", &sent), b"<html>");
    }

    #[test]
    fn t29_what_authorises_a_request_is_a_secret_however_it_is_written() {
        let of = |value: &str| {
            credentials(&[(header::AUTHORIZATION, value.parse().unwrap())].into_iter().collect())
        };
        // `c:s3cr+t%3D`, which means the secret `s3cr t=`.
        assert_eq!(of("Basic YzpzM2NyK3QlM0Q="), ["YzpzM2NyK3QlM0Q=", "s3cr+t%3D", "s3cr t="]);
        assert_eq!(of("Bearer canary"), ["canary"]);
        assert_eq!(of("Basic Yzo="), ["Yzo="], "an empty password is in every text");
        assert!(credentials(&HeaderMap::new()).is_empty() && of("Basic").is_empty());
    }
}

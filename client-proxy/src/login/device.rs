//! Device authorisation grant (RFC 8628): a page on any device, and a code for each audience.

use std::time::Duration;

use oauth2::DeviceAuthorizationResponse;
use oauth2::{
    DeviceAuthorizationUrl, EmptyExtraDeviceAuthorizationFields, StandardDeviceAuthorizationResponse,
};
use towline_tunnel::{
    clock::Clock,
    fault::{Fault, Report},
};

use super::{
    Prompt,
    oauth::{self, Grant, failed, granted},
    provider::{Provider, wrong},
    settings::Registration,
};

/// A code that nobody uses is given up after this, however long the provider would wait.
const WITHIN: Duration = Duration::from_secs(900);
/// The longest code that a person could be asked to type.
const CODE: usize = 64;

/// Logs in for each registration, one after the other; `say` is told each page and code.
///
/// # Errors
/// If the provider refuses, its answers are not what they must be, or nobody uses a code in time.
pub(super) async fn log_in(
    provider: &Provider,
    registrations: &[&Registration],
    say: &(dyn Fn(&Prompt) + Sync),
    clock: &Clock,
) -> Result<Vec<Grant>, Report> {
    let mut grants = Vec::new();
    for (at, of) in registrations.iter().enumerate() {
        let (client, params) = oauth::client(provider, of, clock.now())?;
        let url = DeviceAuthorizationUrl::from_url(provider.device()?.clone());
        let client = client.set_device_authorization_url(url);
        let mut request = client.exchange_device_code().add_scopes(oauth::scopes(&of.scopes));
        for (name, value) in &params {
            request = request.add_extra_param(*name, value.clone());
        }
        let details: DeviceAuthorizationResponse<EmptyExtraDeviceAuthorizationFields> =
            request.request_async(&provider.http).await.map_err(failed)?;
        say(&prompt(&details, of, at + 1, registrations.len())?);
        let mut request = client.exchange_device_access_token(&details).set_time_fn({
            let clock = clock.clone();
            move || clock.now().into()
        });
        for (name, value) in params {
            request = request.add_extra_param(name, value);
        }
        let within = WITHIN.min(details.expires_in());
        let polled = request.request_async(&provider.http, tokio::time::sleep, Some(within));
        // Its own deadline is looked at between questions, whose distance the provider chooses.
        let answer = tokio::time::timeout(within + Duration::from_secs(10), polled).await;
        let answer = answer.map_err(|_elapsed| Report::from(Fault::LoginTimeout))?;
        grants.push(granted(answer, of, clock.now())?);
    }
    Ok(grants)
}

fn prompt(
    details: &StandardDeviceAuthorizationResponse,
    of: &Registration,
    number: usize,
    count: usize,
) -> Result<Prompt, Report> {
    let code = details.user_code().secret();
    // It is shown on a terminal: as it was parsed, with what is no part of a URL escaped.
    let page = |url: &str| {
        let url = url::Url::parse(url).ok().filter(|url| url.scheme() == "https");
        url.map(|url| url.to_string()).ok_or_else(|| wrong("the page for the code is not https"))
    };
    let url = page(details.verification_uri().as_str())?;
    let complete = details.verification_uri_complete().map(|url| page(url.secret())).transpose()?;
    if code.is_empty() || code.len() > CODE || !code.chars().all(|c| c == ' ' || c.is_ascii_graphic()) {
        return Err(wrong("the code is none that a person could type"));
    }
    Ok(Prompt::Code { purpose: of.purpose, number, of: count, url, code: code.clone(), complete })
}

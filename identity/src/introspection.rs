//! Token introspection (RFC 7662): the file that says which issuers are asked (`--introspection-config`), and the asking.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use data_encoding::BASE64;
use http::{Request, StatusCode, header};
use serde::Deserialize;

use crate::{
    ConfigError, Fetch,
    config::is_issuer_url,
    entra::{encoded, form, retry_after},
    fetch,
    keys::KeySource,
    standing::{Definite, EVERY, LONGEST, NoAnswer},
};

/// How the tokens of one issuer are asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Introspection {
    /// Where; as the issuer's metadata says if not given.
    endpoint: Option<String>,
    client: String,
    /// Read at each use, so that what is rotated is taken up.
    secret_file: PathBuf,
    authentication: Authentication,
    token_type: Option<String>,
    pub(crate) every: Duration,
}

/// How the client shows its secret (RFC 6749, section 2.3.1).
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Authentication {
    #[default]
    Basic,
    Post,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    api_version: String,
    kind: String,
    issuers: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Entry {
    url: String,
    endpoint: Option<String>,
    client_id: String,
    client_secret_file: PathBuf,
    #[serde(default)]
    authentication: Authentication,
    token_type_hint: Option<String>,
    every_seconds: Option<u64>,
}

/// Issuers' URLs, and how each is asked.
///
/// # Errors
/// All that is wrong with it.
pub(crate) fn parse(text: &str) -> Result<Vec<(String, Introspection)>, ConfigError> {
    let file: File = serde_norway::from_str(text).map_err(|error| ConfigError::one(error.to_string()))?;
    let mut faults = Vec::new();
    if file.api_version != "towline.dev/v1" || file.kind != "IntrospectionConfiguration" {
        faults.push("apiVersion and kind are not towline.dev/v1 IntrospectionConfiguration".to_owned());
    }
    if file.issuers.is_empty() {
        faults.push("issuers: there is none".into());
    }
    let mut seen = BTreeSet::new();
    let mut read = Vec::new();
    for (number, entry) in file.issuers.into_iter().enumerate() {
        let mut fault = |what: String| faults.push(format!("issuers[{number}].{what}"));
        if !seen.insert(entry.url.clone()) {
            fault(format!("url {:?} stands twice", entry.url));
        }
        // The token itself is sent there.
        let is_https = |url: &String| is_issuer_url(url.split('?').next().unwrap_or_default());
        if !entry.endpoint.iter().all(is_https) {
            fault("endpoint is not an https URL without user and fragment".into());
        }
        if entry.client_id.is_empty() {
            fault("clientId is empty".into());
        }
        if let Err(error) = std::fs::read_to_string(&entry.client_secret_file) {
            fault(format!("clientSecretFile {}: {error}", entry.client_secret_file.display()));
        }
        let every = entry.every_seconds.map_or(EVERY, Duration::from_secs);
        if every.is_zero() || every > LONGEST {
            fault(format!("everySeconds is not 1 to {}", LONGEST.as_secs()));
        }
        let introspection = Introspection {
            endpoint: entry.endpoint,
            client: entry.client_id,
            secret_file: entry.client_secret_file,
            authentication: entry.authentication,
            token_type: entry.token_type_hint,
            every,
        };
        read.push((entry.url, introspection));
    }
    if faults.is_empty() { Ok(read) } else { Err(ConfigError(faults)) }
}

#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    introspection_endpoint: Option<String>,
}

/// RFC 7662, section 2.2; what else stands there says nothing that counts here.
#[derive(Deserialize)]
struct Answer {
    active: bool,
}

/// Asks one issuer.
pub(crate) struct Introspector {
    settings: Introspection,
    source: KeySource,
    fetch: Arc<dyn Fetch>,
    /// What the metadata said.
    endpoint: Mutex<Option<String>>,
}

impl std::fmt::Debug for Introspector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Introspector({})", self.source.issuer)
    }
}

impl Introspector {
    pub(crate) fn new(settings: Introspection, source: KeySource, fetch: Arc<dyn Fetch>) -> Self {
        let endpoint = Mutex::new(settings.endpoint.clone());
        Self { settings, source, fetch, endpoint }
    }

    /// Whether the token is active. Whoever asks has a deadline.
    pub(crate) async fn ask(&self, token: &str) -> Result<Definite, NoAnswer> {
        let endpoint = self.endpoint().await?;
        let request = self.request(&endpoint, token)?;
        let response = self.fetch.send(request).await.map_err(|error| error.to_string())?;
        let pause = match response.status() {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                Some(retry_after(response.headers()))
            }
            _ => None,
        };
        if response.status() != StatusCode::OK {
            // Of our own client (401, 403), or of a kind of token that can't be asked about (400): nothing is said of the user.
            let why = format!("{endpoint} answered {}{}", response.status(), error_code(response.body()));
            return Err(NoAnswer { why, pause });
        }
        let answer: Answer = serde_json::from_slice(response.body())
            .map_err(|_| format!("{endpoint} answered no introspection (RFC 7662): `active` is missing"))?;
        if answer.active {
            return Ok(Ok(()));
        }
        Ok(Err("the identity provider says that the token is no longer active: the account may be disabled, or its session ended".into()))
    }

    fn known(&self) -> Option<String> {
        self.endpoint.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn endpoint(&self) -> Result<String, NoAnswer> {
        if let Some(known) = self.known() {
            return Ok(known);
        }
        let url = &self.source.metadata;
        let body = fetch::get(&*self.fetch, url).await.map_err(|error| error.to_string())?;
        let metadata: Metadata =
            serde_json::from_slice(&body).map_err(|error| format!("{url}: not OpenID metadata: {error}"))?;
        if metadata.issuer != self.source.issuer {
            return Err(format!("{url}: says that it is the issuer {:?}", metadata.issuer).into());
        }
        let endpoint = metadata.introspection_endpoint;
        let endpoint =
            endpoint.ok_or_else(|| format!("{url}: names no introspection_endpoint; give `endpoint`"))?;
        if !endpoint.starts_with("https://") {
            return Err(format!("{url}: its introspection_endpoint is not https").into());
        }
        *self.endpoint.lock().unwrap_or_else(PoisonError::into_inner) = Some(endpoint.clone());
        Ok(endpoint)
    }

    fn request(&self, endpoint: &str, token: &str) -> Result<Request<Bytes>, NoAnswer> {
        let Introspection { client, secret_file, authentication, token_type, .. } = &self.settings;
        let secret = std::fs::read_to_string(secret_file)
            .map_err(|error| format!("clientSecretFile {}: {error}", secret_file.display()))?;
        let secret = secret.trim();
        let mut fields = vec![("token", token)];
        fields.extend(token_type.as_deref().map(|hint| ("token_type_hint", hint)));
        let mut request = Request::post(endpoint)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json");
        match authentication {
            Authentication::Basic => {
                let pair = BASE64.encode(format!("{}:{}", encoded(client), encoded(secret)).as_bytes());
                request = request.header(header::AUTHORIZATION, format!("Basic {pair}"));
            }
            Authentication::Post => {
                fields.extend([("client_id", client.as_str()), ("client_secret", secret)])
            }
        }
        request.body(Bytes::from(form(&fields))).map_err(|error| error.to_string().into())
    }
}

/// The `error` of an answer (RFC 6749, section 5.2), if it is one of its short words.
fn error_code(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    let refusal = serde_json::from_slice::<Refusal>(body).ok().map(|refusal| refusal.error);
    let is_word = |error: &String| {
        error.len() <= 64 && error.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    refusal.filter(is_word).map(|error| format!(" ({error})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: towline.dev/v1\nkind: IntrospectionConfiguration\n";

    #[test]
    fn all_faults_are_told_together() {
        let faults = |body: &str| parse(body).err().map(|error| error.0).unwrap_or_default();
        let secret = tempfile::NamedTempFile::new().unwrap();
        let secret = secret.path().display();
        let sound =
            format!("{HEAD}issuers:\n- {{url: 'https://a', clientId: c, clientSecretFile: {secret}}}\n");
        assert_eq!(faults(&sound), Vec::<String>::new());
        let wrong = faults(&format!(
            "apiVersion: v1\nkind: X\nissuers:\n\
             - {{url: 'https://a', clientId: '', clientSecretFile: /nowhere, everySeconds: 31, endpoint: 'http://b'}}\n\
             - {{url: 'https://a', clientId: c, clientSecretFile: {secret}, everySeconds: 0}}\n"
        ));
        assert_eq!(wrong.len(), 7, "{wrong:#?}");
        assert_eq!(faults(&format!("{HEAD}issuers: []\n")), ["issuers: there is none"]);
        assert!(faults(&sound.replace("clientId", "client"))[0].contains("unknown field"));
    }

    #[test]
    fn of_a_refusal_a_word_is_told_and_nothing_else() {
        assert_eq!(error_code(br#"{"error":"invalid_client"}"#), " (invalid_client)");
        for body in [&b"<html>"[..], br#"{"error":"the token eyJ.."}"#, b"{}"] {
            assert_eq!(error_code(body), "");
        }
    }
}

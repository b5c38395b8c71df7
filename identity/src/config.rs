//! How one issuer is trusted: settings as given, and the same, checked.

use std::{fmt, path::PathBuf};

use jsonwebtoken::Algorithm;

/// Settings as they are given, with the names and meanings of kube-apiserver's `--oidc-*` flags.
#[derive(Clone, Debug, Default)]
pub struct IssuerSettings {
    /// `--oidc-issuer-url`: an https URL; the `iss` of its tokens.
    pub issuer_url: String,
    /// `--oidc-client-id`: the audience that a token must be for.
    pub client_id: String,
    /// `--oidc-username-claim`; `sub` where none is given.
    pub username_claim: Option<String>,
    /// `--oidc-username-prefix`; `-` for none. Where it isn't given, `ISSUER#`, except for the claim `email`.
    pub username_prefix: Option<String>,
    /// `--oidc-groups-claim`; no groups where none is given.
    pub groups_claim: Option<String>,
    /// `--oidc-groups-prefix`.
    pub groups_prefix: Option<String>,
    /// `--oidc-required-claim`, each `KEY=VALUE`.
    pub required_claims: Vec<String>,
    /// `--oidc-ca-file`: the only authorities that the issuer is trusted by; the system's where none is given.
    pub ca_file: Option<PathBuf>,
    /// `--oidc-signing-algs`; RS256 where none is given.
    pub signing_algs: Vec<String>,
}

/// One issuer, ready to be asked.
#[derive(Clone, Debug)]
pub struct IssuerConfig {
    pub(crate) issuer: String,
    pub(crate) audience: String,
    pub(crate) username_claim: String,
    pub(crate) username_prefix: String,
    pub(crate) groups_claim: Option<String>,
    pub(crate) groups_prefix: String,
    pub(crate) required_claims: Vec<(String, String)>,
    pub(crate) algorithms: Vec<Algorithm>,
    /// Where the issuer's own authorities are.
    pub ca_file: Option<PathBuf>,
}

/// All that is wrong with the settings, together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(pub Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for ConfigError {}

impl IssuerConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn parse(settings: IssuerSettings) -> Result<Self, ConfigError> {
        let mut faults = Vec::new();
        let issuer = settings.issuer_url;
        let uri = issuer
            .parse::<http::Uri>()
            .ok()
            .filter(|uri| uri.scheme_str() == Some("https") && uri.query().is_none());
        if uri.is_none() {
            faults.push(format!("--oidc-issuer-url {issuer:?} is not an https URL without a query"));
        }
        if settings.client_id.is_empty() {
            faults.push(
                "--oidc-client-id is needed: without an audience any token of the issuer would do".into(),
            );
        }
        let required_claims = settings.required_claims.iter().filter_map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Some((key.to_owned(), value.to_owned())),
            _ => {
                faults.push(format!("--oidc-required-claim {pair:?} is not KEY=VALUE"));
                None
            }
        });
        let required_claims = required_claims.collect();
        let mut algorithms: Vec<Algorithm> = Vec::new();
        for name in &settings.signing_algs {
            match name.parse() {
                Ok(Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512) | Err(_) => {
                    faults.push(format!(
                        "--oidc-signing-algs {name:?} is not RS/PS256-512, ES256, ES384 or EdDSA"
                    ));
                }
                Ok(algorithm) => algorithms.push(algorithm),
            }
        }
        if algorithms.is_empty() {
            algorithms.push(Algorithm::RS256);
        }
        let username_claim = settings.username_claim.unwrap_or_else(|| "sub".into());
        let username_prefix = match settings.username_prefix.as_deref() {
            Some("-") => String::new(),
            Some(prefix) => prefix.to_owned(),
            None if username_claim == "email" => String::new(),
            None => format!("{issuer}#"),
        };
        if !faults.is_empty() {
            return Err(ConfigError(faults));
        }
        Ok(Self {
            issuer,
            audience: settings.client_id,
            username_claim,
            username_prefix,
            groups_claim: settings.groups_claim,
            groups_prefix: settings.groups_prefix.unwrap_or_default(),
            required_claims,
            algorithms,
            ca_file: settings.ca_file,
        })
    }

    /// The issuer's URL.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The audience that tokens must be for.
    pub fn audience(&self) -> &str {
        &self.audience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_faults_are_told_together() {
        let error = IssuerConfig::parse(IssuerSettings {
            issuer_url: "http://idp.example".into(),
            required_claims: vec!["novalue".into()],
            signing_algs: vec!["HS256".into(), "none".into()],
            ..IssuerSettings::default()
        })
        .unwrap_err();
        assert_eq!(error.0.len(), 5, "{error}");
    }

    #[test]
    fn the_default_prefix_is_kube_apiservers() {
        let parse = |claim: Option<&str>, prefix: Option<&str>| {
            IssuerConfig::parse(IssuerSettings {
                issuer_url: "https://idp".into(),
                client_id: "c".into(),
                username_claim: claim.map(Into::into),
                username_prefix: prefix.map(Into::into),
                ..IssuerSettings::default()
            })
            .unwrap()
            .username_prefix
        };
        assert_eq!(parse(None, None), "https://idp#");
        assert_eq!(parse(Some("email"), None), "");
        assert_eq!(parse(None, Some("-")), "");
        assert_eq!(parse(None, Some("oidc:")), "oidc:");
    }
}

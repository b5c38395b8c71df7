//! How one issuer is trusted: settings as given, and the same, checked.

use std::{fmt, path::PathBuf};

use crate::{
    Algorithm,
    entra::EntraRules,
    fetch::Roots,
    introspection::Introspection,
    keys::KeySource,
    oidc::{ClaimRule, OidcRules, Source},
    shared,
};

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

/// What makes users of an issuer's tokens.
#[derive(Clone, Debug)]
pub(crate) enum Rules {
    Oidc { rules: Box<OidcRules>, discovery_url: Option<String> },
    Entra(Box<EntraRules>),
}

/// One issuer, ready to be asked.
#[derive(Clone, Debug)]
pub struct IssuerConfig {
    pub(crate) rules: Rules,
    pub(crate) algorithms: Vec<Algorithm>,
    pub(crate) roots: Roots,
    /// Whether and how its tokens are asked about while something hangs on them.
    pub(crate) introspection: Option<Introspection>,
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

impl ConfigError {
    pub(crate) fn one(fault: impl Into<String>) -> Self {
        Self(vec![fault.into()])
    }
}

/// Reads names of signature algorithms; RS256 where there is none.
pub(crate) fn algorithms(names: &[String], place: &str, faults: &mut Vec<String>) -> Vec<Algorithm> {
    let mut algorithms: Vec<Algorithm> = Vec::new();
    for name in names {
        match name.parse() {
            Ok(algorithm) => algorithms.push(algorithm),
            Err(()) => faults.push(format!("{place} {name:?} is not RS, PS or ES256-512, or EdDSA")),
        }
    }
    if algorithms.is_empty() {
        algorithms.push(Algorithm::RS256);
    }
    algorithms
}

/// Whether a URL may be an issuer's (OpenID Connect Discovery 1.0, section 3): https, without user, query or fragment.
pub(crate) fn is_issuer_url(url: &str) -> bool {
    let uri = url.parse::<http::Uri>().ok();
    let plain = |uri: &http::Uri| {
        uri.scheme_str() == Some("https")
            && uri.query().is_none()
            && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
    };
    !url.contains('#') && uri.as_ref().is_some_and(plain)
}

impl IssuerConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn parse(settings: IssuerSettings) -> Result<Self, ConfigError> {
        let mut faults = Vec::new();
        let issuer = settings.issuer_url;
        if !is_issuer_url(&issuer) {
            faults.push(format!(
                "--oidc-issuer-url {issuer:?} is not an https URL without user, query or fragment"
            ));
        }
        if settings.client_id.is_empty() {
            faults.push(
                "--oidc-client-id is needed: without an audience any token of the issuer would do".into(),
            );
        }
        let claim_rules = settings.required_claims.iter().filter_map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Some(ClaimRule::Required { claim: key.to_owned(), value: value.to_owned() })
            }
            _ => {
                faults.push(format!("--oidc-required-claim {pair:?} is not KEY=VALUE"));
                None
            }
        });
        let claim_rules = claim_rules.collect();
        let algorithms = algorithms(&settings.signing_algs, "--oidc-signing-algs", &mut faults);
        let username_claim = settings.username_claim.unwrap_or_else(|| "sub".into());
        let username_prefix = match settings.username_prefix.as_deref() {
            Some("-") => String::new(),
            Some(prefix) => prefix.to_owned(),
            None if username_claim == "email" => String::new(),
            None => format!("{issuer}#"),
        };
        let roots = match settings.ca_file.as_deref().map(Roots::read).transpose() {
            Ok(roots) => roots.unwrap_or_default(),
            Err(error) => {
                faults.push(format!("--oidc-ca-file {error}"));
                Roots::System
            }
        };
        let groups_prefix = settings.groups_prefix.unwrap_or_default();
        let rules = OidcRules {
            issuer,
            audiences: vec![settings.client_id],
            claim_rules,
            username: Source::Claim { name: username_claim, prefix: username_prefix },
            groups: settings.groups_claim.map(|name| Source::Claim { name, prefix: groups_prefix }),
            uid: None,
            extra: Vec::new(),
            user_rules: Vec::new(),
        };
        faults.extend(shared::check(&rules));
        if !faults.is_empty() {
            return Err(ConfigError(faults));
        }
        Ok(Self {
            rules: Rules::Oidc { rules: Box::new(rules), discovery_url: None },
            algorithms,
            roots,
            introspection: None,
        })
    }

    /// The issuer's URL; Entra's first tenant's.
    pub fn issuer(&self) -> &str {
        match &self.rules {
            Rules::Oidc { rules, .. } => &rules.issuer,
            Rules::Entra(rules) => rules.name(),
        }
    }

    /// The audiences that tokens must be for one of.
    pub fn audiences(&self) -> &[String] {
        match &self.rules {
            Rules::Oidc { rules, .. } => &rules.audiences,
            Rules::Entra(rules) => rules.audiences(),
        }
    }

    /// Each `iss` that it answers for, with where its keys are.
    pub(crate) fn sources(&self) -> Vec<KeySource> {
        match &self.rules {
            Rules::Oidc { rules, discovery_url } => {
                vec![KeySource::discovery(&rules.issuer, discovery_url.as_deref())]
            }
            Rules::Entra(rules) => rules.sources(),
        }
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
            ca_file: Some("/nowhere/ca.pem".into()),
            ..IssuerSettings::default()
        })
        .unwrap_err();
        assert_eq!(error.0.len(), 6, "{error}");
    }

    #[test]
    fn the_default_prefix_is_kube_apiservers() {
        let parse = |claim: Option<&str>, prefix: Option<&str>| {
            let config = IssuerConfig::parse(IssuerSettings {
                issuer_url: "https://idp".into(),
                client_id: "c".into(),
                username_claim: claim.map(Into::into),
                username_prefix: prefix.map(Into::into),
                ..IssuerSettings::default()
            });
            let Rules::Oidc { rules, .. } = config.unwrap().rules else { panic!("it is no OIDC issuer") };
            match rules.username {
                Source::Claim { prefix, .. } => prefix,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(parse(None, None), "https://idp#");
        assert_eq!(parse(Some("email"), None), "");
        assert_eq!(parse(None, Some("-")), "");
        assert_eq!(parse(None, Some("oidc:")), "oidc:");
    }

    #[test]
    fn an_issuers_url_has_no_user_query_or_fragment() {
        for url in ["https://idp", "https://idp:8443/a/", "https://[::1]:1/a"] {
            assert!(is_issuer_url(url), "{url}");
        }
        for url in ["", "idp", "http://idp", "https://a@idp", "https://idp?a", "https://idp#a", "https://"] {
            assert!(!is_issuer_url(url), "{url}");
        }
    }
}

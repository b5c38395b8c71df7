//! Which issuers are trusted: any number at once, from flags and files.

use std::{fs, path::PathBuf};

use crate::{
    ConfigError, IssuerConfig, IssuerSettings, config::Rules, entra, introspection, structured, uses,
};

/// Issuers that are trusted together: nobody of one can have a name of another's (THREATS T48).
#[derive(Clone, Debug)]
pub struct Trust {
    pub(crate) issuers: Vec<IssuerConfig>,
}

/// With which texts an issuer's usernames begin, and its groups if it has any.
struct Names<'a> {
    issuer: &'a str,
    username: String,
    groups: Option<String>,
}

impl From<IssuerConfig> for Trust {
    fn from(issuer: IssuerConfig) -> Self {
        Self { issuers: vec![issuer] }
    }
}

impl Trust {
    /// Trusts these.
    ///
    /// # Errors
    /// If there is none, one stands twice, or names of two could be the same.
    pub fn new(issuers: Vec<IssuerConfig>) -> Result<Self, ConfigError> {
        let mut faults = Vec::new();
        if issuers.is_empty() {
            faults.push("there is no issuer: nobody could be let in".to_owned());
        }
        let names: Vec<Names<'_>> = issuers.iter().map(Names::of).collect();
        for (number, one) in names.iter().enumerate() {
            for other in &names[number + 1..] {
                faults.extend(one.clashes(other));
            }
        }
        let sources: Vec<String> =
            issuers.iter().flat_map(IssuerConfig::sources).map(|source| source.issuer).collect();
        for (number, issuer) in sources.iter().enumerate() {
            if sources[..number].contains(issuer) {
                faults.push(format!("the issuer {issuer:?} stands twice"));
            }
        }
        if faults.is_empty() { Ok(Self { issuers }) } else { Err(ConfigError(faults)) }
    }

    /// The audiences of all of them.
    pub fn audiences(&self) -> Vec<&str> {
        self.issuers.iter().flat_map(IssuerConfig::audiences).map(String::as_str).collect()
    }

    /// The issuers' URLs, for a log.
    pub fn names(&self) -> String {
        self.issuers.iter().map(IssuerConfig::issuer).collect::<Vec<_>>().join(", ")
    }
}

impl<'a> Names<'a> {
    fn of(config: &'a IssuerConfig) -> Self {
        let (username, groups) = match &config.rules {
            Rules::Oidc { rules, .. } => uses::prefixes(rules),
            Rules::Entra(rules) => (rules.username_prefix.clone(), rules.groups_prefix.clone()),
        };
        Self { issuer: config.issuer(), username, groups }
    }

    fn clashes(&self, other: &Self) -> Vec<String> {
        let overlap = |one: &str, other: &str| one.starts_with(other) || other.starts_with(one);
        let mut faults = Vec::new();
        if overlap(&self.username, &other.username) {
            faults.push(format!(
                "usernames of {:?} (they begin with {:?}) and {:?} ({:?}) could be the same: give each a prefix of its own",
                self.issuer, self.username, other.issuer, other.username
            ));
        }
        if let (Some(one), Some(two)) = (&self.groups, &other.groups)
            && overlap(one, two)
        {
            faults.push(format!(
                "groups of {:?} (they begin with {one:?}) and {:?} ({two:?}) could be the same: give each a prefix of its own",
                self.issuer, other.issuer
            ));
        }
        faults
    }
}

/// What a program was told about whom to trust. Files are read when it loads, and again when they change.
#[derive(Clone, Debug, Default)]
pub struct TrustSettings {
    /// One issuer by kube-apiserver's `--oidc-*` flags.
    pub oidc: Option<IssuerSettings>,
    /// `--authentication-config`: kube-apiserver's own file.
    pub authentication_config: Option<PathBuf>,
    /// `--oidc-signing-algs` beside a file; those of kube-apiserver where it is empty.
    pub signing_algs: Vec<String>,
    /// `--entra-config`: tokens of Entra ID.
    pub entra_config: Option<PathBuf>,
    /// `--introspection-config`: which issuers are asked whether a token is still good while something hangs on it.
    pub introspection_config: Option<PathBuf>,
}

impl TrustSettings {
    /// Reads the files and checks everything.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn load(&self) -> Result<Trust, ConfigError> {
        let mut issuers = Vec::new();
        let mut faults = Vec::new();
        if self.oidc.is_some() && self.authentication_config.is_some() {
            faults.push("--oidc-issuer-url and --authentication-config exclude each other".to_owned());
        }
        let mut take = |read: Result<Vec<IssuerConfig>, ConfigError>, place: &str| match read {
            Ok(read) => issuers.extend(read),
            Err(error) => faults.extend(error.0.into_iter().map(|fault| format!("{place}{fault}"))),
        };
        if let Some(settings) = &self.oidc {
            take(IssuerConfig::parse(settings.clone()).map(|issuer| vec![issuer]), "");
        }
        let text =
            |path: &PathBuf| fs::read_to_string(path).map_err(|error| ConfigError::one(error.to_string()));
        if let Some(path) = &self.authentication_config {
            let read = text(path).and_then(|text| structured::parse(&text)).and_then(|mut issuers| {
                structured::restrict(&mut issuers, &self.signing_algs).map(|()| issuers)
            });
            take(read, &format!("--authentication-config {}: ", path.display()));
        }
        if let Some(path) = &self.entra_config {
            let read = text(path).and_then(|text| entra::parse(&text)).map(|issuer| vec![issuer]);
            take(read, &format!("--entra-config {}: ", path.display()));
        }
        if let Some(path) = &self.introspection_config {
            let read = text(path).and_then(|text| introspection::parse(&text));
            let joined = read.and_then(|read| join(&mut issuers, read));
            if let Err(error) = joined {
                let place = format!("--introspection-config {}: ", path.display());
                faults.extend(error.0.into_iter().map(|fault| format!("{place}{fault}")));
            }
        }
        if !faults.is_empty() {
            return Err(ConfigError(faults));
        }
        Trust::new(issuers)
    }
}

/// Each issuer with how it is asked. One that nobody trusts is a misspelt one: its accounts would not be looked at.
fn join(
    issuers: &mut [IssuerConfig],
    asked: Vec<(String, introspection::Introspection)>,
) -> Result<(), ConfigError> {
    let mut faults = Vec::new();
    for (url, introspection) in asked {
        let issuer = issuers.iter_mut().find(|issuer| issuer.issuer() == url);
        match issuer {
            Some(issuer) if matches!(issuer.rules, Rules::Oidc { .. }) => issuer.introspection = Some(introspection),
            Some(_) => faults.push(format!("{url:?} is Microsoft Entra ID's, which has no introspection: use checkAccounts of --entra-config")),
            None => faults.push(format!("{url:?} is none of the trusted issuers")),
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(ConfigError(faults)) }
}

/// Whom to trust, and where that was read, if it was.
#[derive(Clone, Debug)]
pub struct TrustSource {
    /// As it was read first.
    pub trust: Trust,
    /// Read again when it changes.
    pub settings: Option<TrustSettings>,
}

impl TrustSource {
    /// Reads settings.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn load(settings: TrustSettings) -> Result<Self, ConfigError> {
        Ok(Self { trust: settings.load()?, settings: Some(settings) })
    }
}

impl From<IssuerConfig> for TrustSource {
    fn from(issuer: IssuerConfig) -> Self {
        Self { trust: issuer.into(), settings: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer(url: &str, username: &str, groups: Option<&str>) -> IssuerConfig {
        IssuerConfig::parse(IssuerSettings {
            issuer_url: url.into(),
            client_id: "c".into(),
            username_prefix: Some(username.into()),
            groups_claim: groups.map(|_| "groups".into()),
            groups_prefix: groups.map(Into::into),
            ..IssuerSettings::default()
        })
        .unwrap()
    }

    #[test]
    fn t48_two_issuers_without_distinct_prefixes_are_refused() {
        let trust = |one: (&str, Option<&str>), other: (&str, Option<&str>)| {
            Trust::new(vec![issuer("https://a", one.0, one.1), issuer("https://b", other.0, other.1)])
        };
        assert!(trust(("a:", Some("a:")), ("b:", Some("b:"))).is_ok());
        assert!(trust(("a:", Some("")), ("b:", None)).is_ok());
        assert!(trust(("-", None), ("b:", None)).is_err(), "no prefix takes in every other");
        assert!(trust(("a:", None), ("a:", None)).is_err());
        assert!(trust(("a:", None), ("a:b:", None)).is_err(), "a user b:… of a is one of b");
        assert!(trust(("a:", Some("")), ("b:", Some(""))).is_err());
        assert!(trust(("a:", Some("g")), ("b:", Some("gb:"))).is_err());
    }

    #[test]
    fn t48_what_expressions_make_counts_as_well() {
        let file = |one: &str, other: &str, rules: &str| {
            let text = format!(
                "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n\
                 - issuer: {{url: 'https://a', audiences: [c]}}\n  claimMappings: {{username: {{expression: \"{one}\"}}}}\n\
                 - issuer: {{url: 'https://b', audiences: [c]}}\n  claimMappings: {{username: {{expression: \"{other}\"}}}}\n{rules}",
            );
            structured::parse(&text).and_then(Trust::new)
        };
        assert!(file("'a:' + claims.sub", "'b:' + claims.sub", "").is_ok());
        assert!(file("'a:' + claims.sub", "claims.sub", "").is_err());
        let pinned =
            "  userValidationRules: [{expression: \"user.username.startsWith('b:') && user.uid != 'x'\"}]\n";
        assert!(file("'a:' + claims.sub", "claims.sub", pinned).is_ok());
        let either =
            "  userValidationRules: [{expression: \"user.username.startsWith('b:') || user.uid != 'x'\"}]\n";
        assert!(file("'a:' + claims.sub", "claims.sub", either).is_err());
    }

    #[test]
    fn one_issuer_stands_once() {
        let error =
            Trust::new(vec![issuer("https://a", "a:", None), issuer("https://a", "b:", None)]).unwrap_err();
        assert!(error.to_string().contains("stands twice"), "{error}");
        assert!(Trust::new(Vec::new()).is_err());
    }
}

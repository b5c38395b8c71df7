//! kube-apiserver's structured authentication file (`apiserver.config.k8s.io/v1`, `jwt:`), as issuers.
//!
//! Judged as kube-apiserver judges it, and more strictly where it can be: unknown fields, expressions outside the subset
//! of CEL, shared issuers without an owner, and issuers whose names could be taken for each other's are refused.

mod model;
#[cfg(test)]
mod oracle;

use std::collections::BTreeSet;

use crate::{
    Algorithm, ConfigError, IssuerConfig,
    cel::{Expression, Type, Variable, gives_raw_list},
    config::{self, Rules, is_issuer_url},
    fetch::{HttpsFetch, Roots},
    oidc::{ClaimRule, OidcRules, Source, UserRule},
    shared, uses,
};
use model::{Authenticator, ClaimMappings, ClaimValidationRule, File, Mapping};

/// The issuers of a file. The algorithms are kube-apiserver's: RS, PS and ES 256 to 512, whichever of them an issuer
/// publishes keys for.
///
/// # Errors
/// All that is wrong with it.
pub(crate) fn parse(text: &str) -> Result<Vec<IssuerConfig>, ConfigError> {
    let file: File = serde_norway::from_str(text).map_err(|error| ConfigError::one(error.to_string()))?;
    let mut faults = Vec::new();
    if !["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1"].contains(&file.api_version.as_str())
    {
        faults.push(format!("apiVersion {:?} is not apiserver.config.k8s.io/v1", file.api_version));
    }
    if file.kind != "AuthenticationConfiguration" {
        faults.push(format!("kind {:?} is not AuthenticationConfiguration", file.kind));
    }
    if file.anonymous.is_some_and(|anonymous| anonymous.enabled) {
        faults.push("anonymous: nobody is let through without a token here; take it out".into());
    }
    let mut issuers = Vec::new();
    let (mut urls, mut discovery) = (BTreeSet::new(), BTreeSet::new());
    for (number, authenticator) in file.jwt.into_iter().enumerate() {
        let place = format!("jwt[{number}]");
        if !urls.insert(authenticator.issuer.url.clone()) {
            faults.push(format!("{place}.issuer.url {:?} stands twice", authenticator.issuer.url));
        }
        if let Some(url) = &authenticator.issuer.discovery_url
            && !discovery.insert(url.clone())
        {
            faults.push(format!("{place}.issuer.discoveryURL {url:?} stands twice"));
        }
        let mut reader = Reader { place, faults: &mut faults };
        issuers.extend(reader.issuer(authenticator));
    }
    if issuers.is_empty() && faults.is_empty() {
        faults.push("jwt: there is no issuer".into());
    }
    if faults.is_empty() { Ok(issuers) } else { Err(ConfigError(faults)) }
}

/// Reads one entry, and notes all its faults.
struct Reader<'a> {
    place: String,
    faults: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn fault(&mut self, at: &str, what: impl std::fmt::Display) {
        self.faults.push(format!("{}.{at}: {what}", self.place));
    }

    fn issuer(&mut self, authenticator: Authenticator) -> Option<IssuerConfig> {
        let before = self.faults.len();
        let issuer = authenticator.issuer;
        if !is_issuer_url(&issuer.url) {
            self.fault("issuer.url", "is not an https URL without user, query or fragment");
        }
        let discovery_url = issuer.discovery_url.filter(|url| !url.is_empty());
        if let Some(url) = &discovery_url {
            if !is_issuer_url(url) {
                self.fault("issuer.discoveryURL", "is not an https URL without user, query or fragment");
            }
            if url.trim_end_matches('/') == issuer.url.trim_end_matches('/') {
                self.fault("issuer.discoveryURL", "must differ from the URL");
            }
        }
        let distinct: BTreeSet<&String> = issuer.audiences.iter().collect();
        if issuer.audiences.is_empty()
            || issuer.audiences.iter().any(String::is_empty)
            || distinct.len() < issuer.audiences.len()
        {
            self.fault("issuer.audiences", "is a list of different names, and not empty");
        }
        match issuer.audience_match_policy.as_deref().unwrap_or_default() {
            "MatchAny" => {}
            "" if issuer.audiences.len() <= 1 => {}
            _ => self.fault("issuer.audienceMatchPolicy", "is MatchAny where there are several audiences"),
        }
        if !matches!(
            issuer.egress_selector_type.as_deref().unwrap_or_default(),
            "" | "controlplane" | "cluster"
        ) {
            self.fault("issuer.egressSelectorType", "is neither controlplane nor cluster");
        }
        let roots = match issuer.certificate_authority.filter(|pem| !pem.is_empty()) {
            None => Roots::System,
            Some(pem) => Roots::Pem(pem),
        };
        if roots != Roots::System
            && HttpsFetch::new(&roots, std::sync::Arc::new(crate::fetch::Direct)).is_err()
        {
            self.fault("issuer.certificateAuthority", "holds no certificate");
        }
        let claim_rules = self.claim_rules(authenticator.claim_validation_rules);
        let mappings = authenticator.claim_mappings;
        let username = self.source("claimMappings.username", mappings.username.clone(), true);
        let groups = self.source("claimMappings.groups", mappings.groups.clone(), false);
        if let Some(Source::Expression(expression)) = &groups {
            self.check_list("claimMappings.groups", expression);
        }
        let uid = self.uid(&mappings);
        let extra = self.extra(&mappings);
        let user_rules = self.user_rules(authenticator.user_validation_rules);
        let rules = OidcRules {
            issuer: issuer.url,
            audiences: issuer.audiences,
            claim_rules,
            username: username?,
            groups,
            uid,
            extra,
            user_rules,
        };
        if let Some(fault) = uses::email_without_verification(&rules) {
            self.fault("claimMappings.username.expression", fault);
        }
        if let Some(fault) = shared::check(&rules) {
            self.fault("issuer.url", fault);
        }
        let algorithms: Vec<_> = Algorithm::ALL.into_iter().filter(|one| *one != Algorithm::EdDSA).collect();
        let rules = Rules::Oidc { rules: Box::new(rules), discovery_url };
        let config = IssuerConfig { rules, algorithms, roots, introspection: None };
        (self.faults.len() == before).then_some(config)
    }

    fn expression(&mut self, at: &str, source: &str, variable: Variable) -> Option<Expression> {
        match Expression::parse(source, variable) {
            Ok(expression) => Some(expression),
            Err(why) => {
                self.fault(at, format_args!("{source:?}: {why}"));
                None
            }
        }
    }

    fn check_list(&mut self, at: &str, expression: &Expression) {
        if gives_raw_list(expression.tree()) {
            let source = expression.source();
            self.fault(at, format_args!("{source:?}: kube-apiserver takes no list straight from split or findAll; go through it with map or filter"));
        }
    }

    /// An expression that must be true.
    fn condition(&mut self, at: &str, source: &str, variable: Variable) -> Option<Expression> {
        let expression = self.expression(at, source, variable)?;
        if *expression.kind() != Type::Bool {
            self.fault(at, format_args!("{source:?} must evaluate to bool, and is {}", expression.kind()));
            return None;
        }
        Some(expression)
    }

    fn claim_rules(&mut self, rules: Vec<ClaimValidationRule>) -> Vec<ClaimRule> {
        let mut seen = BTreeSet::new();
        let mut read = Vec::new();
        for (number, rule) in rules.into_iter().enumerate() {
            let at = format!("claimValidationRules[{number}]");
            let (claim, expression) = (rule.claim.unwrap_or_default(), rule.expression.unwrap_or_default());
            let (value, message) =
                (rule.required_value.unwrap_or_default(), rule.message.unwrap_or_default());
            if !seen.insert((claim.clone(), expression.clone())) {
                self.fault(&at, "stands twice");
            }
            match (claim.is_empty(), expression.is_empty()) {
                (true, true) | (false, false) => self.fault(&at, "either claim or expression is set"),
                (false, true) if !message.is_empty() => self.fault(&at, "message goes with expression"),
                (false, true) => read.push(ClaimRule::Required { claim, value }),
                (true, false) if !value.is_empty() => self.fault(&at, "requiredValue goes with claim"),
                (true, false) => {
                    if let Some(expression) = self.condition(&at, &expression, Variable::Claims) {
                        read.push(ClaimRule::Holds { expression, message });
                    }
                }
            }
        }
        read
    }

    fn source(&mut self, at: &str, mapping: Option<Mapping>, needed: bool) -> Option<Source> {
        let mapping = mapping.unwrap_or_default();
        let (claim, expression) = (mapping.claim.unwrap_or_default(), mapping.expression.unwrap_or_default());
        match (claim.is_empty(), expression.is_empty(), mapping.prefix) {
            (true, true, _) if needed => self.fault(at, "claim or expression is needed"),
            (true, true, None) => {}
            (true, true, Some(_)) => self.fault(at, "prefix goes with claim"),
            (false, false, _) => self.fault(at, "either claim or expression is set"),
            (true, false, Some(_)) => self.fault(at, "prefix goes with claim"),
            (true, false, None) => {
                return self.expression(at, &expression, Variable::Claims).map(Source::Expression);
            }
            (false, true, None) => self.fault(at, "prefix is needed with claim, and may be empty"),
            (false, true, Some(prefix)) => return Some(Source::Claim { name: claim, prefix }),
        }
        None
    }

    fn uid(&mut self, mappings: &ClaimMappings) -> Option<Source> {
        let uid = mappings.uid.clone().unwrap_or_default();
        let (claim, expression) = (uid.claim.unwrap_or_default(), uid.expression.unwrap_or_default());
        match (claim.is_empty(), expression.is_empty()) {
            (true, true) => None,
            (false, true) => Some(Source::Claim { name: claim, prefix: String::new() }),
            (true, false) => {
                let at = "claimMappings.uid.expression";
                self.expression(at, &expression, Variable::Claims).map(Source::Expression)
            }
            (false, false) => {
                self.fault("claimMappings.uid", "either claim or expression is set");
                None
            }
        }
    }

    fn extra(&mut self, mappings: &ClaimMappings) -> Vec<(String, Expression)> {
        let mut seen = BTreeSet::new();
        let mut read = Vec::new();
        for (number, mapping) in mappings.extra.iter().enumerate() {
            let at = format!("claimMappings.extra[{number}]");
            if let Some(fault) = model::extra_key_fault(&mapping.key) {
                self.fault(&at, fault);
            }
            if !seen.insert(mapping.key.clone()) {
                self.fault(&at, "its key stands twice");
            }
            if let Some(expression) = self.expression(&at, &mapping.value_expression, Variable::Claims) {
                self.check_list(&at, &expression);
                read.push((mapping.key.clone(), expression));
            }
        }
        read
    }

    fn user_rules(&mut self, rules: Vec<model::UserValidationRule>) -> Vec<UserRule> {
        let mut seen = BTreeSet::new();
        let mut read = Vec::new();
        for (number, rule) in rules.into_iter().enumerate() {
            let at = format!("userValidationRules[{number}]");
            if !seen.insert(rule.expression.clone()) {
                self.fault(&at, "stands twice");
            }
            if let Some(expression) = self.condition(&at, &rule.expression, Variable::User) {
                read.push(UserRule { expression, message: rule.message.unwrap_or_default() });
            }
        }
        read
    }
}

/// Names of algorithms in front of a file's own, for the flag `--oidc-signing-algs`.
pub(crate) fn restrict(issuers: &mut [IssuerConfig], names: &[String]) -> Result<(), ConfigError> {
    if names.is_empty() {
        return Ok(());
    }
    let mut faults = Vec::new();
    let algorithms = config::algorithms(names, "--oidc-signing-algs", &mut faults);
    for issuer in issuers {
        issuer.algorithms.clone_from(&algorithms);
    }
    if faults.is_empty() { Ok(()) } else { Err(ConfigError(faults)) }
}

#[cfg(test)]
mod tests;

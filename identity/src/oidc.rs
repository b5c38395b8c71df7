//! Any OpenID Connect issuer: from the claims of a token whose signature holds to an identity, as kube-apiserver does it.

use std::{collections::BTreeMap, time::SystemTime};

use serde_json::Value;

use crate::{
    Accepted, Identity, Principal, VerifyError,
    cel::{Expression, Scope},
    claims::{self, Times, check_groups, check_name, check_reserved, texts},
    token::Object,
    trace::{Trace, quoted},
};

/// Where a name comes from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A claim, and what is put before it.
    Claim {
        name: String,
        prefix: String,
    },
    Expression(Expression),
}

/// What must hold of the claims.
#[derive(Clone, Debug)]
pub(crate) enum ClaimRule {
    /// This claim is this text.
    Required { claim: String, value: String },
    /// This expression is true.
    Holds { expression: Expression, message: String },
}

/// What must hold of the user.
#[derive(Clone, Debug)]
pub(crate) struct UserRule {
    pub(crate) expression: Expression,
    pub(crate) message: String,
}

/// From claims to a user.
#[derive(Clone, Debug)]
pub(crate) struct OidcRules {
    pub(crate) issuer: String,
    pub(crate) audiences: Vec<String>,
    pub(crate) claim_rules: Vec<ClaimRule>,
    pub(crate) username: Source,
    pub(crate) groups: Option<Source>,
    pub(crate) uid: Option<Source>,
    pub(crate) extra: Vec<(String, Expression)>,
    pub(crate) user_rules: Vec<UserRule>,
}

impl OidcRules {
    /// The identity of a token whose signature holds.
    pub(crate) fn identity(
        &self,
        claims: &Object,
        now: SystemTime,
        trace: &mut Trace,
    ) -> Result<Accepted, VerifyError> {
        if claims.text("iss") != Some(&self.issuer) {
            return Err(VerifyError::Issuer);
        }
        claims::check_audience(claims, &self.audiences)?;
        trace.held("audience", || format!("it is for {}", self.audiences.join(" or ")));
        let times = Times::read(claims, now)?;
        trace.held("time", || times.told(now));
        claims::check_unbound(claims)?;
        let subject = claims.text("sub").ok_or(VerifyError::Claim("sub", "is missing or not a text"))?;
        check_name("sub", subject)?;
        let principal = Principal { issuer: self.issuer.clone(), subject: subject.to_owned() };
        trace.held("subject", || format!("the principal is {}", quoted(&principal.to_string())));

        let scope = if self.has_expressions() { Scope::claims(claims) } else { Scope::default() };
        for rule in &self.claim_rules {
            rule.check(claims, &scope)?;
            trace.held("claim rule", || rule.told());
        }
        let username = self.username(claims, &scope)?;
        trace.held("username", || quoted(&username));
        let groups = self.groups(claims, &scope)?;
        trace.held("groups", || quoted(&groups.join(" ")));
        let uid = self.uid(claims, &scope)?;
        let extra = self.extra(&scope)?;
        let identity = Identity {
            username,
            groups,
            uid,
            extra,
            principal,
            issued_at: times.issued_at,
            expires_at: times.expires_at,
        };
        if !self.user_rules.is_empty() {
            let scope = Scope::user(&identity);
            for rule in &self.user_rules {
                rule.expression.holds(&scope, &rule.message)?;
                trace.held("user rule", || rule.expression.source().to_owned());
            }
        }
        Ok(Accepted::from(identity))
    }

    fn has_expressions(&self) -> bool {
        let is = |source: &Source| matches!(source, Source::Expression(_));
        is(&self.username)
            || self.groups.as_ref().is_some_and(is)
            || self.uid.as_ref().is_some_and(is)
            || !self.extra.is_empty()
            || self.claim_rules.iter().any(|rule| matches!(rule, ClaimRule::Holds { .. }))
    }

    fn username(&self, claims: &Object, scope: &Scope) -> Result<String, VerifyError> {
        let username = match &self.username {
            Source::Claim { name, prefix } => {
                let text =
                    claims.text(name).ok_or(VerifyError::Claim("username", "is missing or not a text"))?;
                check_name("username", text)?;
                if name == "email"
                    && claims.get("email_verified").is_some_and(|verified| *verified != Value::Bool(true))
                {
                    return Err(VerifyError::Claim("email", "is not verified"));
                }
                format!("{prefix}{text}")
            }
            Source::Expression(expression) => expression.text(scope)?,
        };
        check_name("username", &username)?;
        check_reserved(&username)?;
        Ok(username)
    }

    fn groups(&self, claims: &Object, scope: &Scope) -> Result<Vec<String>, VerifyError> {
        let groups = match &self.groups {
            None => Vec::new(),
            Some(Source::Claim { name, prefix }) => {
                let Some(claim) = claims.get(name).filter(|claim| !claim.is_null()) else {
                    return Ok(Vec::new());
                };
                let names = texts(claim)
                    .ok_or(VerifyError::Claim("groups", "is neither a text nor a list of texts"))?;
                for name in &names {
                    check_name("groups", name)?;
                }
                names.into_iter().map(|name| format!("{prefix}{name}")).collect()
            }
            Some(Source::Expression(expression)) => expression.texts(scope)?,
        };
        check_groups(&groups)?;
        Ok(groups)
    }

    fn uid(&self, claims: &Object, scope: &Scope) -> Result<Option<String>, VerifyError> {
        let uid = match &self.uid {
            None => return Ok(None),
            Some(Source::Claim { name, .. }) => {
                claims.text(name).ok_or(VerifyError::Claim("uid", "is missing or not a text"))?.to_owned()
            }
            Some(Source::Expression(expression)) => expression.text(scope)?,
        };
        if uid.is_empty() {
            return Ok(None);
        }
        check_name("uid", &uid)?;
        Ok(Some(uid))
    }

    fn extra(&self, scope: &Scope) -> Result<BTreeMap<String, Vec<String>>, VerifyError> {
        let mut extra = BTreeMap::new();
        for (key, expression) in &self.extra {
            let values = expression.texts(scope)?;
            if values.len() > claims::MAX_GROUPS {
                return Err(VerifyError::Claim("extra", "has more than 500 entries"));
            }
            for value in &values {
                check_name("extra", value)?;
            }
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        Ok(extra)
    }
}

impl ClaimRule {
    fn check(&self, claims: &Object, scope: &Scope) -> Result<(), VerifyError> {
        match self {
            Self::Required { claim, value } if claims.text(claim) == Some(value) => Ok(()),
            Self::Required { claim, .. } => Err(VerifyError::Required(claim.clone())),
            Self::Holds { expression, message } => expression.holds(scope, message),
        }
    }

    fn told(&self) -> String {
        match self {
            Self::Required { claim, value } => format!("{claim} is {value:?}"),
            Self::Holds { expression, .. } => expression.source().to_owned(),
        }
    }
}

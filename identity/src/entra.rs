//! Microsoft Entra ID: which tokens of which tenants are whose.
//!
//! Stricter than plain OIDC, because tenants share their issuer's host, keys and applications: every rule here has been
//! somebody's hole (THREATS T18 to T24).

mod credential;
mod graph;
mod groups;
mod model;
mod pop;

use std::{collections::BTreeMap, time::SystemTime};

use serde_json::Value;

use crate::{
    Identity, Principal, VerifyError,
    claims::{Times, check_name, check_reserved, check_unbound},
    keys::KeySource,
    token::Object,
    trace::{Trace, quoted},
};
pub(crate) use credential::{encoded, form};
pub(crate) use graph::{Graph, retry_after};
pub(crate) use groups::Membership;
pub(crate) use model::parse;
pub(crate) use pop::{Nonces, PopRules, Proof};

/// Accounts of private people (outlook.com, live.com). Keys for it must say so themselves.
const CONSUMERS: &str = "9188040d-6c67-4c5b-b112-36a304b66dad";

/// Hosts of a cloud, each an origin without a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cloud {
    /// Tokens of version 2, metadata, keys, and tokens for Graph.
    pub(crate) login: String,
    /// Issuer of tokens of version 1.
    pub(crate) sts: String,
    /// Microsoft Graph.
    pub(crate) graph: String,
}

/// What a user is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// `TENANT/OBJECT`: never given to another.
    Object,
    /// The user principal name; only within one tenant, and for its own members.
    Principal,
}

/// Which applications may call without a user.
#[derive(Clone, Debug, Default)]
pub(crate) struct Apps {
    pub(crate) ids: Vec<String>,
    pub(crate) roles: Vec<String>,
}

/// How tokens of Entra become users.
#[derive(Clone, Debug)]
pub(crate) struct EntraRules {
    pub(crate) cloud: Cloud,
    pub(crate) tenants: Vec<String>,
    pub(crate) audiences: Vec<String>,
    pub(crate) naming: Naming,
    pub(crate) username_prefix: String,
    /// None: groups are left out.
    pub(crate) groups_prefix: Option<String>,
    /// Groups are called by their names, which Graph knows.
    pub(crate) group_names: bool,
    /// One of these must be in `scp`, if there are any.
    pub(crate) scopes: Vec<String>,
    pub(crate) apps: Apps,
    pub(crate) graph: Option<credential::Credential>,
    /// Graph is asked again and again whether accounts are enabled.
    pub(crate) check_accounts: bool,
    pub(crate) pop: Option<PopRules>,
}

/// Of which tenant and version an `iss` is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) tenant: String,
    pub(crate) version: u8,
}

/// What a token says, groups aside.
#[derive(Debug)]
pub(crate) struct Entrant {
    pub(crate) identity: Identity,
    pub(crate) tenant: String,
    pub(crate) object: String,
    pub(crate) is_app: bool,
    pub(crate) membership: Membership,
}

impl EntraRules {
    pub(crate) fn name(&self) -> &str {
        &self.cloud.login
    }

    pub(crate) fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// Groups by their ids, as they go out.
    pub(crate) fn prefixed(&self, ids: Vec<String>) -> Vec<String> {
        let prefix = self.groups_prefix.as_deref().unwrap_or_default();
        ids.into_iter().map(|id| format!("{prefix}{id}")).collect()
    }

    fn issuer(&self, tenant: &str, version: u8) -> String {
        match version {
            1 => format!("{}/{tenant}/", self.cloud.sts),
            _ => format!("{}/{tenant}/v2.0", self.cloud.login),
        }
    }

    /// Versions 1 and 2 of each tenant, in the order of [`EntraRules::origin`].
    pub(crate) fn sources(&self) -> Vec<KeySource> {
        let login = &self.cloud.login;
        let sources = self.tenants.iter().flat_map(|tenant| {
            [(1, format!("{login}/{tenant}")), (2, format!("{login}/{tenant}/v2.0"))].map(
                |(version, base)| KeySource {
                    issuer: self.issuer(tenant, version),
                    metadata: format!("{base}/.well-known/openid-configuration"),
                    keys_host: Some(login.trim_start_matches("https://").to_owned()),
                },
            )
        });
        sources.collect()
    }

    /// Whose the source with this number is.
    pub(crate) fn origin(&self, source: usize) -> Option<Origin> {
        let tenant = self.tenants.get(source / 2)?.clone();
        Some(Origin { tenant, version: if source.is_multiple_of(2) { 1 } else { 2 } })
    }

    /// Whether a key may sign for a tenant: keys are published for all of them, some with `{tenantid}` in their issuer.
    pub(crate) fn check_key(&self, issuer: Option<&str>, origin: &Origin) -> Result<(), VerifyError> {
        let own = [self.issuer(&origin.tenant, 1), self.issuer(&origin.tenant, 2)];
        let is_own = match issuer {
            // The consumers' keys are marked, so that no tenant's key can sign for them.
            _ if origin.tenant == CONSUMERS => {
                issuer.is_some_and(|issuer| own.iter().any(|own| own == issuer))
            }
            None => true,
            Some(issuer) => own.contains(&issuer.replace("{tenantid}", &origin.tenant)),
        };
        if is_own { Ok(()) } else { Err(VerifyError::Tenant("the key signs for another tenant")) }
    }

    /// Whom a token is from, whose signature holds. `proven` says that the key in its `cnf` was shown.
    pub(crate) fn entrant(
        &self,
        claims: &Object,
        origin: &Origin,
        now: SystemTime,
        proven: bool,
        trace: &mut Trace,
    ) -> Result<Entrant, VerifyError> {
        if claims.text("iss") != Some(&self.issuer(&origin.tenant, origin.version)) {
            return Err(VerifyError::Issuer);
        }
        if claims.text("ver") != Some(if origin.version == 1 { "1.0" } else { "2.0" }) {
            return Err(VerifyError::Claim("ver", "is not its issuer's version"));
        }
        if claims.text("tid") != Some(&origin.tenant) {
            return Err(VerifyError::Tenant("its tid is not its issuer's tenant"));
        }
        trace.held("tenant", || format!("version {} of tenant {}", origin.version, origin.tenant));
        let audience = claims.text("aud");
        if !audience.is_some_and(|one| self.audiences.iter().any(|audience| audience == one)) {
            return Err(VerifyError::Audience(self.audiences.join(", ")));
        }
        trace.held("audience", || format!("it is for {}", audience.unwrap_or_default()));
        let times = Times::read(claims, now)?;
        if times.begins_at.is_none() {
            return Err(VerifyError::Claim("nbf", "is missing"));
        }
        trace.held("time", || times.told(now));
        if !proven {
            check_unbound(claims)?;
        }
        let (is_app, app) = self.kind(claims, origin)?;
        trace.held("kind", || {
            format!("{} through application {app}", if is_app { "an application" } else { "a user" })
        });
        let object = claims.text("oid").filter(|oid| is_guid(oid));
        let object = object.ok_or(VerifyError::Claim("oid", "is missing or no GUID"))?.to_owned();
        let username = self.username(claims, origin, &object, is_app)?;
        trace.held("username", || quoted(&username));
        let membership = match &self.groups_prefix {
            Some(prefix) => groups::read(claims, prefix)?,
            None => Membership::Told(Vec::new()),
        };
        let identity = Identity {
            username,
            groups: Vec::new(),
            uid: Some(object.clone()),
            extra: BTreeMap::new(),
            // The same for tokens of both versions.
            principal: Principal { issuer: self.issuer(&origin.tenant, 2), subject: object.clone() },
            issued_at: times.issued_at,
            expires_at: times.expires_at,
        };
        Ok(Entrant { identity, tenant: origin.tenant.clone(), object, is_app, membership })
    }

    /// Whether claims are an application's own, not a user's.
    pub(crate) fn is_app(claims: &Object) -> bool {
        let scopes = claims.text("scp").unwrap_or_default();
        claims.text("idtyp") == Some("app") || scopes.split_ascii_whitespace().next().is_none()
    }

    /// Whether it is an application's own token, and whose application it came through. Only access tokens say so.
    fn kind(&self, claims: &Object, origin: &Origin) -> Result<(bool, String), VerifyError> {
        let name = if origin.version == 1 { "appid" } else { "azp" };
        let app = claims.text(name).filter(|app| is_guid(app)).ok_or(VerifyError::Claim(
            "azp or appid",
            "is missing: it is an ID token, which is for the application that asked for it",
        ))?;
        let scopes: Vec<&str> = claims.text("scp").unwrap_or_default().split_ascii_whitespace().collect();
        let is_app = Self::is_app(claims);
        if is_app {
            let by_role = match claims.get("roles") {
                Some(Value::Array(roles)) => roles
                    .iter()
                    .filter_map(Value::as_str)
                    .any(|role| self.apps.roles.iter().any(|allowed| allowed == role)),
                _ => false,
            };
            if !by_role && !self.apps.ids.iter().any(|allowed| allowed == app) {
                return Err(VerifyError::AppToken(app.to_owned()));
            }
        } else if !self.scopes.is_empty()
            && !scopes.iter().any(|scope| self.scopes.iter().any(|wanted| wanted == scope))
        {
            return Err(VerifyError::Claim("scp", "has none of the scopes that are asked for"));
        }
        Ok((is_app, app.to_owned()))
    }

    fn username(
        &self,
        claims: &Object,
        origin: &Origin,
        object: &str,
        is_app: bool,
    ) -> Result<String, VerifyError> {
        let name = match self.naming {
            Naming::Object => format!("{}/{object}", origin.tenant),
            // An application has no user principal name.
            Naming::Principal if is_app => format!("{}/{object}", origin.tenant),
            Naming::Principal => self.member(claims, origin)?,
        };
        let username = format!("{}{name}", self.username_prefix);
        check_reserved(&username)?;
        Ok(username)
    }

    /// The user principal name of the tenant's own member: a guest's is another tenant's to choose.
    fn member(&self, claims: &Object, origin: &Origin) -> Result<String, VerifyError> {
        let upn = claims.text("upn").ok_or(VerifyError::Claim("upn", "is missing or not a text"))?;
        check_name("upn", upn)?;
        let home = claims.get("idp").is_none_or(|idp| {
            idp.as_str().is_some_and(|idp| (1..=2).any(|version| idp == self.issuer(&origin.tenant, version)))
        });
        // An optional claim: 0 for a member, 1 for a guest.
        let member =
            claims.get("acct").is_none_or(|acct| acct.as_u64() == Some(0) || acct.as_str() == Some("0"));
        if !home || !member || upn.contains('#') {
            return Err(VerifyError::Claim("upn", "is a guest's"));
        }
        if upn.contains('/') || !upn.contains('@') {
            return Err(VerifyError::Claim("upn", "is no user principal name"));
        }
        Ok(upn.to_owned())
    }
}

/// Lower-case GUIDs as Entra writes them; nothing else is one, least of all `{tenantid}`.
pub(crate) fn is_guid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        })
}

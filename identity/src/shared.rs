//! Issuers that anyone can get a token of, with any audience (THREATS T47): a CI provider signs for all its customers.
//!
//! A repository's or an owner's *name* can be given up and taken by another; its number can't. So the configuration must
//! pin one of the claims listed here.

use ::cel::{
    IdedExpr,
    common::ast::{Expr, LiteralValue, operators},
};

use crate::oidc::{ClaimRule, OidcRules};

/// Issuers, and the claims of each that say for good whose a token is.
const SHARED: &[(&str, &[&str])] = &[
    (
        "https://token.actions.githubusercontent.com",
        &["repository_owner_id", "repository_id", "enterprise_id"],
    ),
    ("https://gitlab.com", &["namespace_id", "project_id"]),
    ("https://agent.buildkite.com", &["organization_id", "pipeline_id"]),
    (
        "https://app.terraform.io",
        &["terraform_organization_id", "terraform_project_id", "terraform_workspace_id"],
    ),
    ("https://oidc.codefresh.io", &["account_id", "pipeline_id"]),
    // A service account of Google's gets a token for any audience.
    ("https://accounts.google.com", &["hd", "sub", "azp"]),
];

/// Hosts of Microsoft Entra ID, of all clouds.
const ENTRA: &[&str] = &[
    "login.microsoftonline.com",
    "login.microsoftonline.us",
    "login.partner.microsoftonline.cn",
    "sts.windows.net",
    "sts.chinacloudapi.cn",
];

/// What is missing, if something is.
pub(crate) fn check(rules: &OidcRules) -> Option<String> {
    let bare = rules.issuer.trim_end_matches('/').to_ascii_lowercase();
    let host = bare.strip_prefix("https://").and_then(|rest| rest.split(['/', ':']).next());
    if host.is_some_and(|host| ENTRA.contains(&host)) {
        // Its `sub` is another one for each application, so that the relay's user is never the cluster's; and T18 to T24 are
        // kept by --entra-config only.
        return Some(format!(
            "{:?} is Microsoft Entra ID's, which names people otherwise than OpenID Connect does: configure it with --entra-config",
            rules.issuer
        ));
    }
    let (_, claims) = SHARED.iter().find(|(issuer, _)| *issuer == bare)?;
    let pinned = rules.claim_rules.iter().any(|rule| match rule {
        ClaimRule::Required { claim, value } => claims.contains(&claim.as_str()) && !value.is_empty(),
        ClaimRule::Holds { expression, .. } => pins(expression.tree(), claims),
    });
    (!pinned).then(|| {
        format!(
            "{:?} signs tokens for anyone, with any audience: require one of the claims {} (a name can change hands, these can't)",
            rules.issuer,
            claims.join(", ")
        )
    })
}

/// Whether an expression can only be true where one of these claims is a constant.
fn pins(tree: &IdedExpr, claims: &[&str]) -> bool {
    let Expr::Call(call) = &tree.expr else { return false };
    let claim = |tree: &IdedExpr| match &tree.expr {
        Expr::Select(select) => {
            !select.test
                && claims.contains(&select.field.as_str())
                && matches!(&select.operand.expr, Expr::Ident(name) if name == "claims")
        }
        _ => false,
    };
    let text = |tree: &IdedExpr| matches!(&tree.expr, Expr::Literal(LiteralValue::String(text)) if !text.inner().is_empty());
    match (call.func_name.as_str(), call.args.as_slice()) {
        (operators::LOGICAL_AND, [one, other]) => pins(one, claims) || pins(other, claims),
        (operators::LOGICAL_OR, [one, other]) => pins(one, claims) && pins(other, claims),
        (operators::EQUALS, [one, other]) => (claim(one) && text(other)) || (text(one) && claim(other)),
        (operators::IN, [one, list]) => {
            claim(one)
                && matches!(&list.expr, Expr::List(list) if list.optional_indices.is_empty() && list.elements.iter().all(text))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use crate::{IssuerConfig, IssuerSettings, structured};

    fn github(required: &[&str]) -> bool {
        IssuerConfig::parse(IssuerSettings {
            issuer_url: "https://token.actions.githubusercontent.com".into(),
            client_id: "towline-cluster".into(),
            required_claims: required.iter().map(|pair| (*pair).into()).collect(),
            ..IssuerSettings::default()
        })
        .is_ok()
    }

    #[test]
    fn t47_a_shared_issuer_needs_a_claim_that_says_whose_for_good() {
        assert!(!github(&[]));
        assert!(!github(&["repository_owner=acme"]), "a name changes hands");
        assert!(!github(&["repository_owner_id="]));
        assert!(github(&["repository_owner_id=4711"]));
        assert!(github(&["repository=acme/app", "repository_id=1"]));
    }

    #[test]
    fn t21_entra_is_not_taken_for_plain_openid_connect() {
        for issuer_url in [
            "https://login.microsoftonline.com/11111111-2222-3333-4444-555555555555/v2.0",
            "https://LOGIN.microsoftonline.us:443/common/v2.0",
            "https://sts.windows.net/11111111-2222-3333-4444-555555555555/",
        ] {
            let settings = IssuerSettings {
                issuer_url: issuer_url.into(),
                client_id: "towline-cluster".into(),
                username_claim: Some("email".into()),
                ..IssuerSettings::default()
            };
            let error = IssuerConfig::parse(settings).unwrap_err().to_string();
            assert!(error.contains("--entra-config"), "{error}");
        }
    }

    #[test]
    fn t47_an_expression_counts_where_it_can_only_hold_for_one_owner() {
        let loads = |rule: &str| {
            let rule = serde_json::json!(rule);
            structured::parse(&format!(
                "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer: {{url: 'https://gitlab.com', audiences: [a]}}\n  claimValidationRules: [{{expression: {rule}}}]\n  claimMappings: {{username: {{claim: sub, prefix: 'gl:'}}}}\n",
            ))
        };
        for rule in [
            "claims.namespace_id == '72'",
            "'72' == claims.namespace_id && claims.ref_protected == 'true'",
            "claims.project_id in ['1', '2']",
            "claims.project_id == '1' || claims.project_id == '2'",
        ] {
            assert!(loads(rule).is_ok(), "{rule}: {:?}", loads(rule).err());
        }
        for rule in [
            "claims.namespace_path == 'acme'",
            "claims.namespace_id == '72' || claims.ref_protected == 'true'",
            "claims.namespace_id != '72'",
            "has(claims.namespace_id)",
            "claims.namespace_id == claims.project_id",
            "claims.namespace_id == ''",
        ] {
            let error = loads(rule).unwrap_err();
            assert!(error.to_string().contains("signs tokens for anyone"), "{rule}: {error}");
        }
    }
}

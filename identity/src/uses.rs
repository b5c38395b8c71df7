//! What can be said of an issuer's rules without a token: which claims an expression looks at, and with which constant
//! text its names begin.

use ::cel::{
    IdedExpr,
    common::ast::{CallExpr, Expr, LiteralValue, operators},
};

use crate::oidc::{ClaimRule, OidcRules, Source};

/// As kube-apiserver asks for: an expression that takes the user's name from an email address looks at whether that is
/// verified, there or elsewhere.
pub(crate) fn email_without_verification(rules: &OidcRules) -> Option<&'static str> {
    let Source::Expression(username) = &rules.username else { return None };
    let verified = |tree: &IdedExpr| looks_at(tree, "email_verified");
    let elsewhere = rules.extra.iter().any(|(_, expression)| verified(expression.tree()))
        || rules.claim_rules.iter().any(|rule| match rule {
            ClaimRule::Holds { expression, .. } => verified(expression.tree()),
            ClaimRule::Required { .. } => false,
        });
    let missing = looks_at(username.tree(), "email") && !verified(username.tree()) && !elsewhere;
    missing.then_some("claims.email_verified must be looked at where claims.email is")
}

/// Whether an expression has `claims.CLAIM` or `claims.?CLAIM` in it.
fn looks_at(tree: &IdedExpr, claim: &str) -> bool {
    let is_claims = |tree: &IdedExpr| matches!(&tree.expr, Expr::Ident(name) if name == "claims");
    match &tree.expr {
        Expr::Select(select) => {
            (select.field == claim && is_claims(&select.operand)) || looks_at(&select.operand, claim)
        }
        Expr::Call(call) => {
            let optional = call.func_name == operators::OPT_SELECT
                && matches!(call.args.as_slice(), [of, name] if is_claims(of) && text(name) == Some(claim));
            optional
                || call.args.iter().any(|arg| looks_at(arg, claim))
                || call.target.as_ref().is_some_and(|target| looks_at(target, claim))
        }
        Expr::List(list) => list.elements.iter().any(|element| looks_at(element, claim)),
        _ => false,
    }
}

fn text(tree: &IdedExpr) -> Option<&str> {
    match &tree.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

/// With which text every username begins, and every group, as far as that is certain. `None` for groups: there are none.
pub(crate) fn prefixes(rules: &OidcRules) -> (String, Option<String>) {
    let pinned = |of: fn(&IdedExpr) -> Option<&str>| {
        let mut found =
            rules.user_rules.iter().flat_map(|rule| conjuncts(rule.expression.tree())).filter_map(of);
        found.next().unwrap_or_default().to_owned()
    };
    let longest = |one: String, other: String| if one.len() >= other.len() { one } else { other };
    let of = |source: &Source| match source {
        Source::Claim { prefix, .. } => prefix.clone(),
        Source::Expression(expression) => begins_with(expression.tree()).to_owned(),
    };
    let username = longest(of(&rules.username), pinned(username_begins));
    let groups = rules.groups.as_ref().map(|groups| longest(of(groups), pinned(groups_begin)));
    (username, groups)
}

/// The constant text that an expression's result, or each text of it, begins with.
fn begins_with(tree: &IdedExpr) -> &str {
    if let Some(text) = text(tree) {
        return text;
    }
    let Expr::Call(call) = &tree.expr else { return "" };
    match (call.func_name.as_str(), call.target.as_ref(), call.args.as_slice()) {
        (operators::ADD, None, [first, _]) => match &first.expr {
            // A sum of lists: only its first part would be known.
            Expr::List(_) => "",
            _ => begins_with(first),
        },
        ("map", Some(_), [_, body]) => begins_with(body),
        (operators::CONDITIONAL, None, [_, yes, no]) => common(begins_with(yes), begins_with(no)),
        _ => "",
    }
}

fn common<'a>(one: &'a str, other: &str) -> &'a str {
    let same = one.char_indices().zip(other.chars()).find(|((_, a), b)| a != b).map(|((at, _), _)| at);
    &one[..same.unwrap_or_else(|| one.len().min(other.len()))]
}

fn conjuncts(tree: &IdedExpr) -> Vec<&IdedExpr> {
    match &tree.expr {
        Expr::Call(CallExpr { func_name, args, .. }) if func_name == operators::LOGICAL_AND => {
            args.iter().flat_map(conjuncts).collect()
        }
        _ => vec![tree],
    }
}

/// `user.username.startsWith('…')`.
fn username_begins(tree: &IdedExpr) -> Option<&str> {
    starts_with(tree).filter(|(of, _)| is_user(of, "username")).map(|(_, text)| text)
}

/// `user.groups.all(g, g.startsWith('…'))`.
fn groups_begin(tree: &IdedExpr) -> Option<&str> {
    let Expr::Call(CallExpr { func_name, target: Some(target), args }) = &tree.expr else { return None };
    let [name, body] = args.as_slice() else { return None };
    let Expr::Ident(name) = &name.expr else { return None };
    let (of, text) = starts_with(body)?;
    let each = matches!(&of.expr, Expr::Ident(used) if used == name);
    (func_name == "all" && is_user(target, "groups") && each).then_some(text)
}

fn starts_with(tree: &IdedExpr) -> Option<(&IdedExpr, &str)> {
    let Expr::Call(CallExpr { func_name, target: Some(target), args }) = &tree.expr else { return None };
    match (func_name.as_str(), args.as_slice()) {
        ("startsWith", [begin]) => Some((target, text(begin)?)),
        _ => None,
    }
}

fn is_user(tree: &IdedExpr, field: &str) -> bool {
    matches!(&tree.expr, Expr::Select(select)
        if select.field == field && matches!(&select.operand.expr, Expr::Ident(name) if name == "user"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cel::{Expression, Variable};

    #[test]
    fn what_names_begin_with_is_read_from_an_expression() {
        let begin = |source: &str| {
            begins_with(Expression::parse(source, Variable::Claims).unwrap().tree()).to_owned()
        };
        assert_eq!(begin("'a:' + claims.sub"), "a:");
        assert_eq!(begin("'a:' + claims.sub + ':x'"), "a:");
        assert_eq!(begin("claims.sub + 'a:'"), "");
        assert_eq!(begin("claims.roles.split(' ').map(g, 'team:' + g)"), "team:");
        assert_eq!(begin("claims.a == 'x' ? 'ab:' + claims.sub : 'ac:' + claims.sub"), "a");
        assert_eq!(begin("['a:x'] + claims.roles.split(' ')"), "");
        assert_eq!(begin("claims.roles.split(' ').filter(g, g.startsWith('a:'))"), "");
    }
}

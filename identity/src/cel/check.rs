//! Which expressions are in the subset, and the type of each.
//!
//! The list, and nothing else:
//! - texts, whole numbers, doubles, `true`, `false`, `null`, lists of one type;
//! - `claims.a.b`, `claims['a']`, `claims.?a`, `claims[?'a']`, `has(claims.a.b)`, an index of a list; the same on `user`;
//! - `&& || !`, `== != < <= > >=`, `in` a list, `? :`, `+` of texts, lists and numbers, one of the two known, `-` of numbers;
//! - `all exists exists_one map filter` of what is known to be a list, one within another not;
//! - `size startsWith endsWith contains`, `matches find findAll` with a constant pattern, `charAt indexOf lastIndexOf
//!   lowerAscii upperAscii replace split substring trim join`, `sets.contains sets.equivalent sets.intersects`,
//!   `hasValue value orValue or optional.of optional.none`.

use std::collections::BTreeMap;

use ::cel::{
    IdedExpr,
    common::ast::{CallExpr, Expr, LiteralValue, operators},
};
use regex::Regex;

use super::{patterns, types::Type};

/// What an expression may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variable {
    /// The token's claims.
    Claims,
    /// The user that was made of them.
    User,
}

type Checked = Result<Type, String>;

/// The type of an expression of the subset; its patterns are read on the way.
///
/// # Errors
/// What is not in the subset, or does not fit together.
pub(super) fn check(tree: &IdedExpr, variable: Variable, patterns: &mut BTreeMap<String, Regex>) -> Checked {
    Checker { variable, patterns, bound: None }.kind(tree)
}

struct Checker<'a> {
    variable: Variable,
    patterns: &'a mut BTreeMap<String, Regex>,
    /// The variable of the macro that we are in.
    bound: Option<(String, Type)>,
}

fn refuse<T>(what: impl std::fmt::Display) -> Result<T, String> {
    Err(format!("{what} is not in the subset of CEL that is read here"))
}

/// `claims.a__b` would be unescaped by kube-apiserver.
fn check_key(key: &str) -> Result<(), String> {
    if key.contains("__") { refuse(format_args!("the name {key:?}, with two underscores,")) } else { Ok(()) }
}

/// Whether an expression may give a list straight from `split` or `findAll`. kube-apiserver takes no such list for groups
/// or attributes: it knows lists of CEL and of JSON, and not Go's own.
pub(crate) fn gives_raw_list(tree: &IdedExpr) -> bool {
    let Expr::Call(call) = &tree.expr else { return false };
    match call.func_name.as_str() {
        "split" | "findAll" => true,
        "map" | "filter" | "join" => false,
        _ => call.args.iter().chain(call.target.as_deref()).any(gives_raw_list),
    }
}

pub(super) fn constant_text(tree: &IdedExpr) -> Option<&str> {
    match &tree.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

impl Checker<'_> {
    fn kind(&mut self, tree: &IdedExpr) -> Checked {
        match &tree.expr {
            Expr::Literal(literal) => match literal {
                LiteralValue::Boolean(_) => Ok(Type::Bool),
                LiteralValue::Int(_) => Ok(Type::Int),
                LiteralValue::Double(_) => Ok(Type::Double),
                LiteralValue::String(_) => Ok(Type::Text),
                LiteralValue::Null => Ok(Type::Null),
                LiteralValue::Bytes(_) | LiteralValue::UInt(_) => refuse("a literal of bytes or uint"),
            },
            Expr::Ident(name) => match &self.bound {
                Some((bound, kind)) if bound == name => Ok(kind.clone()),
                _ if name == "claims" || name == "user" => refuse(format_args!("{name} as a whole")),
                _ => refuse(format_args!("the name {name:?}")),
            },
            Expr::Select(select) if !select.test => {
                check_key(&select.field)?;
                if let Some(kind) = self.root(&select.operand, &select.field)? {
                    return Ok(kind);
                }
                let of = self.kind(&select.operand)?;
                Self::member(&of)
            }
            Expr::List(list) if list.optional_indices.is_empty() => {
                let mut of: Option<Type> = None;
                for element in &list.elements {
                    let kind = self.kind(element)?;
                    of = Some(match of {
                        None => kind,
                        // Lists of one type only, known beforehand or not at all.
                        Some(so_far) if so_far == kind => kind,
                        Some(so_far) => return refuse(format_args!("a list of {so_far} and {kind}")),
                    });
                }
                Ok(Type::list(of.unwrap_or(Type::Any)))
            }
            Expr::Call(call) => self.call(call),
            _ => refuse("a map, a message, or an optional element"),
        }
    }

    /// The type of a field of the one variable, if this is it.
    fn root(&self, operand: &IdedExpr, field: &str) -> Result<Option<Type>, String> {
        let Expr::Ident(name) = &operand.expr else { return Ok(None) };
        if self.bound.as_ref().is_some_and(|(bound, _)| bound == name) {
            return Ok(None);
        }
        match (self.variable, name.as_str(), field) {
            (Variable::Claims, "claims", _) => Ok(Some(Type::Any)),
            (Variable::User, "user", "username" | "uid") => Ok(Some(Type::Text)),
            (Variable::User, "user", "groups") => Ok(Some(Type::list(Type::Text))),
            (Variable::User, "user", "extra") => Ok(Some(Type::Map(Box::new(Type::list(Type::Text))))),
            (Variable::User, "user", field) => Err(format!("user has no field {field:?}")),
            (_, name, _) => refuse(format_args!("the name {name:?}")),
        }
    }

    /// The type of a named member.
    fn member(of: &Type) -> Checked {
        match of {
            Type::Any => Ok(Type::Any),
            Type::Map(value) => Ok((**value).clone()),
            other => Err(format!("a value of type {other} has no members")),
        }
    }

    fn call(&mut self, call: &CallExpr) -> Checked {
        let args: Vec<&IdedExpr> = call.args.iter().collect();
        match (call.target.as_deref(), call.func_name.as_str(), args.as_slice()) {
            (None, operators::CONDITIONAL, [condition, yes, no]) => {
                self.expect(condition, &Type::Bool)?;
                let (yes, no) = (self.kind(yes)?, self.kind(no)?);
                yes.or(&no).ok_or_else(|| format!("? : gives {yes} or {no}"))
            }
            (None, operators::LOGICAL_AND | operators::LOGICAL_OR, [one, other]) => {
                self.expect(one, &Type::Bool)?;
                self.expect(other, &Type::Bool)
            }
            (None, operators::LOGICAL_NOT, [one]) => self.expect(one, &Type::Bool),
            (None, operators::EQUALS | operators::NOT_EQUALS, [one, other]) => {
                let (one, other) = (self.kind(one)?, self.kind(other)?);
                if matches!(one, Type::Optional(_)) || matches!(other, Type::Optional(_)) {
                    return refuse("a comparison of optional values");
                }
                one.or(&other).ok_or_else(|| format!("{one} is never {other}"))?;
                Ok(Type::Bool)
            }
            (
                None,
                operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS,
                [one, other],
            ) => {
                let (one, other) = (self.kind(one)?, self.kind(other)?);
                let number = |kind: &Type| matches!(kind, Type::Int | Type::Double | Type::Any);
                let text = |kind: &Type| matches!(kind, Type::Text | Type::Any);
                if (number(&one) && number(&other)) || (text(&one) && text(&other)) {
                    Ok(Type::Bool)
                } else {
                    Err(format!("{one} and {other} have no order"))
                }
            }
            (None, operators::ADD, [one, other]) => {
                let (one, other) = (self.kind(one)?, self.kind(other)?);
                match (&one, &other) {
                    (Type::Text, Type::Text | Type::Any) | (Type::Any, Type::Text) => Ok(Type::Text),
                    (Type::Double, Type::Double | Type::Any) | (Type::Any, Type::Double) => Ok(Type::Double),
                    (Type::Int, Type::Int) => Ok(Type::Int),
                    (Type::Any, Type::List(_)) => Ok(Type::list(Type::Any)),
                    (Type::List(_), Type::List(_)) => {
                        one.or(&other).ok_or_else(|| format!("{one} + {other} is nothing"))
                    }
                    // A list and a map: an error there, and the map's keys here.
                    _ => refuse(format_args!("{one} + {other}")),
                }
            }
            (None, operators::SUBSTRACT, [one, other]) => {
                let (one, other) = (self.kind(one)?, self.kind(other)?);
                let number = |kind: &Type| matches!(kind, Type::Double | Type::Int | Type::Any);
                let difference = one.or(&other).filter(|_| number(&one) && number(&other));
                difference.ok_or_else(|| format!("{one} - {other} is nothing"))
            }
            (None, operators::NEGATE, [one])
                if matches!(one.expr, Expr::Literal(LiteralValue::Int(_) | LiteralValue::Double(_))) =>
            {
                self.kind(one)
            }
            (None, operators::IN, [one, list]) => {
                let (one, list) = (self.kind(one)?, self.kind(list)?);
                match &list {
                    Type::List(of) if one.may_be(of) => Ok(Type::Bool),
                    // It may be a map, whose keys can't be null.
                    Type::Any if matches!(one, Type::Text | Type::Int | Type::Double) => Ok(Type::Bool),
                    other => Err(format!("{one} in {other} is nothing")),
                }
            }
            (None, operators::INDEX, [of, index]) => self.index(of, index),
            (None, operators::OPT_INDEX | operators::OPT_SELECT, [of, index]) => {
                let Some(name) = constant_text(index) else {
                    return refuse("an optional index that is no constant text");
                };
                check_key(name)?;
                // On what is no map, cel-go gives an error and the crate gives none: only where it can't happen.
                match self.root(of, name)? {
                    Some(kind) => Ok(Type::optional(kind)),
                    None => match self.kind(of)? {
                        Type::Map(value) => Ok(Type::optional(*value)),
                        other => refuse(format_args!("an optional member of {other}")),
                    },
                }
            }
            (None, "has", [tested]) => match &tested.expr {
                Expr::Select(select) if !select.test => {
                    self.kind(tested)?;
                    match self.root(&select.operand, &select.field)? {
                        Some(_) => Ok(Type::Bool),
                        None => match self.kind(&select.operand)? {
                            Type::Map(_) | Type::Any => Ok(Type::Bool),
                            other => refuse(format_args!("has() of a member of {other}")),
                        },
                    }
                }
                _ => Err("has() is of a member".into()),
            },
            (None, "size", [of]) => self.sized(of),
            (Some(of), "size", []) => self.sized(of),
            (Some(of), "all" | "exists" | "exists_one" | "map" | "filter", [name, body]) => {
                self.comprehension(&call.func_name, of, name, body)
            }
            (Some(target), name, args) => self.method(target, name, args),
            (None, name, _) => refuse(format_args!("the function {name:?}")),
        }
    }

    fn expect(&mut self, tree: &IdedExpr, wanted: &Type) -> Checked {
        let kind = self.kind(tree)?;
        if kind.may_be(wanted) {
            Ok(wanted.clone())
        } else {
            Err(format!("{kind} stands where {wanted} must"))
        }
    }

    fn index(&mut self, of: &IdedExpr, index: &IdedExpr) -> Checked {
        match &index.expr {
            Expr::Literal(LiteralValue::String(name)) => {
                check_key(name.inner())?;
                match self.root(of, name.inner())? {
                    Some(kind) => Ok(kind),
                    None => match self.kind(of)? {
                        Type::Any => Ok(Type::Any),
                        Type::Map(value) => Ok(*value),
                        other => refuse(format_args!("a named member of {other}")),
                    },
                }
            }
            Expr::Literal(LiteralValue::Int(_)) => match self.kind(of)? {
                Type::Any => Ok(Type::Any),
                Type::List(value) => Ok(*value),
                other => refuse(format_args!("an element of {other}")),
            },
            _ => refuse("an index that is no constant"),
        }
    }

    fn sized(&mut self, of: &IdedExpr) -> Checked {
        match self.kind(of)? {
            Type::Any | Type::Text | Type::List(_) | Type::Map(_) => Ok(Type::Int),
            other => Err(format!("a value of type {other} has no size")),
        }
    }

    fn comprehension(
        &mut self,
        macro_name: &str,
        of: &IdedExpr,
        name: &IdedExpr,
        body: &IdedExpr,
    ) -> Checked {
        if self.bound.is_some() {
            return refuse(format_args!("{macro_name:?} within another"));
        }
        // kube-apiserver has no ranges over what is only known with a token: `claims.groups` can't be gone through.
        let element = match self.kind(of)? {
            Type::List(of) => *of,
            other => return refuse(format_args!("{macro_name:?} of {other}")),
        };
        let Expr::Ident(name) = &name.expr else {
            return Err(format!("the first argument of {macro_name:?} is a name"));
        };
        if name == "claims" || name == "user" || name == "sets" || name == "optional" {
            return refuse(format_args!("a variable called {name:?}"));
        }
        self.bound = Some((name.clone(), element.clone()));
        let body = if macro_name == "map" { self.kind(body) } else { self.expect(body, &Type::Bool) };
        self.bound = None;
        let body = body?;
        match macro_name {
            "map" => Ok(Type::list(body)),
            "filter" => Ok(Type::list(element)),
            _ => Ok(Type::Bool),
        }
    }

    fn method(&mut self, target: &IdedExpr, name: &str, args: &[&IdedExpr]) -> Checked {
        if let Expr::Ident(space) = &target.expr
            && self.bound.as_ref().is_none_or(|(bound, _)| bound != space)
        {
            return match (space.as_str(), name, args) {
                ("sets", "contains" | "equivalent" | "intersects", [one, other]) => {
                    let (one, other) = (self.kind(one)?, self.kind(other)?);
                    let list = Type::list(Type::Any);
                    let fits = one.may_be(&list) && other.may_be(&list) && one.may_be(&other);
                    if fits { Ok(Type::Bool) } else { Err(format!("sets of {one} and {other}")) }
                }
                ("optional", "of", [one]) => self.kind(one).map(Type::optional),
                ("optional", "none", []) => Ok(Type::optional(Type::Any)),
                (space, name, _) => refuse(format_args!("the function \"{space}.{name}\"")),
            };
        }
        let of = self.kind(target)?;
        if let Type::Optional(inner) = &of {
            return match (name, args) {
                ("hasValue", []) => Ok(Type::Bool),
                ("value", []) => Ok((**inner).clone()),
                ("orValue", [other]) => {
                    let other = self.kind(other)?;
                    inner.or(&other).ok_or_else(|| format!("orValue gives {inner} or {other}"))
                }
                ("or", [other]) => {
                    let other = self.kind(other)?;
                    match of.or(&other) {
                        Some(kind @ Type::Optional(_)) => Ok(kind),
                        _ => refuse(format_args!("or() of {of} and {other}")),
                    }
                }
                _ => refuse(format_args!("{name:?} of {of}")),
            };
        }
        if name == "join" {
            return match (&of, args) {
                (Type::Any, []) => Ok(Type::Text),
                (Type::List(of), []) if of.may_be(&Type::Text) => Ok(Type::Text),
                (Type::Any, [separator]) => self.expect(separator, &Type::Text),
                (Type::List(of), [separator]) if of.may_be(&Type::Text) => {
                    self.expect(separator, &Type::Text)
                }
                _ => refuse(format_args!("\"join\" of {of}")),
            };
        }
        if !of.may_be(&Type::Text) {
            return refuse(format_args!("{name:?} of {of}"));
        }
        let mut takes = |wanted: &[Type]| -> Result<(), String> {
            wanted.iter().zip(args).try_for_each(|(wanted, arg)| self.expect(arg, wanted).map(drop))
        };
        use Type::{Int, Text};
        match (name, args.len()) {
            ("startsWith" | "endsWith" | "contains", 1) => takes(&[Text]).map(|()| Type::Bool),
            ("matches" | "find" | "findAll", 1) => {
                let Some(pattern) = constant_text(args[0]) else {
                    return refuse(format_args!("{name:?} with a pattern that is no constant"));
                };
                self.patterns.insert(pattern.to_owned(), patterns::parse(pattern)?);
                Ok(match name {
                    "matches" => Type::Bool,
                    "find" => Text,
                    _ => Type::list(Text),
                })
            }
            ("charAt", 1) => takes(&[Int]).map(|()| Text),
            ("indexOf" | "lastIndexOf", 1) => takes(&[Text]).map(|()| Int),
            ("lowerAscii" | "upperAscii" | "trim", 0) => Ok(Text),
            ("replace", 2) => takes(&[Text, Text]).map(|()| Text),
            ("replace", 3) => takes(&[Text, Text, Int]).map(|()| Text),
            ("split", 1) => takes(&[Text]).map(|()| Type::list(Text)),
            ("split", 2) => takes(&[Text, Int]).map(|()| Type::list(Text)),
            ("substring", 1) => takes(&[Int]).map(|()| Text),
            ("substring", 2) => takes(&[Int, Int]).map(|()| Text),
            _ => refuse(format_args!("the function {name:?}")),
        }
    }
}

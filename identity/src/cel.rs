//! A listed subset of CEL, as kube-apiserver's authentication configuration uses it.
//!
//! An expression is parsed by the `cel` crate, then read by [`check`], which knows the types of `claims` and `user` and
//! refuses whatever is not on its list: what loads here loads in kube-apiserver and means the same there, which
//! `identity/cel-oracle` compares. An error while it is evaluated denies.

mod check;
mod has;
mod library;
mod patterns;
mod types;
mod value;

use std::{collections::BTreeMap, fmt, sync::Arc};

use ::cel::{Context, Env, IdedExpr, Value};
use regex::Regex;

pub(crate) use check::{Variable, gives_raw_list};
pub(crate) use types::Type;
pub(crate) use value::Scope;

use crate::VerifyError;

/// Longest expression, in bytes.
const MAX_SOURCE: usize = 4096;
/// Deepest nesting of an expression.
const MAX_DEPTH: u16 = 32;

/// An expression that was found to be in the subset.
#[derive(Clone)]
pub(crate) struct Expression {
    source: Arc<str>,
    /// As it was written.
    tree: Arc<IdedExpr>,
    /// With macros expanded.
    program: Arc<IdedExpr>,
    patterns: Arc<BTreeMap<String, Regex>>,
    kind: Type,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expression({:?})", self.source)
    }
}

impl Expression {
    /// Reads an expression over `claims`, or over `user`.
    ///
    /// # Errors
    /// What about it is no CEL, or not in the subset.
    pub(crate) fn parse(source: &str, variable: Variable) -> Result<Self, String> {
        if source.len() > MAX_SOURCE {
            return Err("is longer than 4,096 bytes".into());
        }
        // Without macros first: what people wrote is easier to judge than what it expands to.
        let parse = |env: &Env| {
            let parser = env.parser().max_recursion_depth(MAX_DEPTH);
            parser.parse(source).map_err(|error| format!("is not CEL: {error}"))
        };
        let tree = Arc::new(parse(&Env::default())?);
        let mut patterns = BTreeMap::new();
        let kind = check::check(&tree, variable, &mut patterns)?;
        let mut program = parse(&library::environment())?;
        has::rewrite(&mut program);
        Ok(Self {
            source: source.into(),
            tree,
            program: Arc::new(program),
            patterns: Arc::new(patterns),
            kind,
        })
    }

    /// The expression as it was written.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// What is known of its result beforehand.
    pub(crate) fn kind(&self) -> &Type {
        &self.kind
    }

    /// Its syntax tree, for what can be said of it without evaluating it.
    pub(crate) fn tree(&self) -> &IdedExpr {
        &self.tree
    }

    fn evaluate(&self, scope: &Scope) -> Result<Value, VerifyError> {
        let mut context = Context::with_env(library::environment());
        library::add_functions(&mut context, &self.patterns).map_err(|why| self.failed(&why))?;
        scope.bind(&mut context);
        // Values stand in the crate's messages, and secrets may stand in claims.
        Value::resolve(&self.program, &context).map_err(|_| self.failed("can't be evaluated"))
    }

    fn failed(&self, why: &str) -> VerifyError {
        VerifyError::Expression(self.source.to_string(), why.to_owned())
    }

    /// Its result as a text.
    pub(crate) fn text(&self, scope: &Scope) -> Result<String, VerifyError> {
        match self.evaluate(scope)? {
            Value::String(text) => Ok(text.to_string()),
            _ => Err(self.failed("is not a text")),
        }
    }

    /// Its result as texts: none where it is null or empty, and none of them is empty.
    pub(crate) fn texts(&self, scope: &Scope) -> Result<Vec<String>, VerifyError> {
        let texts = match self.evaluate(scope)? {
            Value::Null => Vec::new(),
            Value::String(text) => vec![text.to_string()],
            Value::List(list) => list
                .iter()
                .map(|one| match one {
                    Value::String(text) => Ok(text.to_string()),
                    _ => Err(self.failed("is not a list of texts")),
                })
                .collect::<Result<_, _>>()?,
            _ => return Err(self.failed("is neither a text nor a list of texts")),
        };
        Ok(texts.into_iter().filter(|text| !text.is_empty()).collect())
    }

    /// That it is true.
    pub(crate) fn holds(&self, scope: &Scope, message: &str) -> Result<(), VerifyError> {
        match self.evaluate(scope)? {
            Value::Bool(true) => Ok(()),
            Value::Bool(false) if message.is_empty() => Err(self.failed("does not hold")),
            Value::Bool(false) => Err(VerifyError::Rule(message.to_owned())),
            _ => Err(self.failed("is not a boolean")),
        }
    }
}

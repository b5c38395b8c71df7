//! The functions of the subset: CEL's own, cel-go's strings extension, and Kubernetes' `find`, `findAll` and `sets`.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use ::cel::{
    Context, DeclarationError, Env, ExecutionError, Value,
    common::{
        types::{CelBool, CelList, LIST_TYPE},
        value::CowVal,
    },
    extractors::This,
};
use regex::Regex;

use super::has;

/// What expressions are evaluated in, once for all.
pub(super) fn environment() -> Arc<Env> {
    static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
        let mut env = Env::stdlib();
        declare(&mut env).expect("each name is declared once");
        Arc::new(env)
    });
    Arc::clone(&ENVIRONMENT)
}

fn declare(env: &mut Env) -> Result<(), DeclarationError> {
    ::cel::extensions::strings(env)?;
    let lists = || vec![LIST_TYPE, LIST_TYPE];
    env.add_overload("sets.contains", "towline_sets_contains", lists(), |args| {
        let (one, other) = pair(&args)?;
        Ok(CowVal::owned(CelBool::from(has_all(one, other))))
    })?;
    env.add_overload("sets.equivalent", "towline_sets_equivalent", lists(), |args| {
        let (one, other) = pair(&args)?;
        Ok(CowVal::owned(CelBool::from(has_all(one, other) && has_all(other, one))))
    })?;
    env.add_overload("sets.intersects", "towline_sets_intersects", lists(), |args| {
        let (one, other) = pair(&args)?;
        let meets = one.inner().iter().any(|value| other.inner().iter().any(|found| **found == **value));
        Ok(CowVal::owned(CelBool::from(meets)))
    })
}

type Lists<'a, 'v> = (&'a CelList<'v>, &'a CelList<'v>);

fn pair<'a, 'b, 'v>(args: &'a [CowVal<'b, 'v>]) -> Result<Lists<'a, 'v>, ExecutionError> {
    let list = |at: usize| args.get(at).and_then(|arg| arg.downcast_ref::<CelList<'_>>());
    list(0).zip(list(1)).ok_or_else(ExecutionError::missing_argument_or_target)
}

fn has_all(one: &CelList<'_>, other: &CelList<'_>) -> bool {
    other.inner().iter().all(|value| one.inner().iter().any(|found| **found == **value))
}

/// What can't be declared once for all: functions of any value, and those over the patterns of one expression, which
/// were all read when it was loaded.
pub(super) fn add_functions(
    context: &mut Context<'_, '_>,
    patterns: &Arc<BTreeMap<String, Regex>>,
) -> Result<(), String> {
    let told = |error: DeclarationError| error.to_string();
    context.add_function(has::NAME, has::has).map_err(told)?;
    if patterns.is_empty() {
        return Ok(());
    }
    fn known<'a>(patterns: &'a BTreeMap<String, Regex>, pattern: &str) -> Result<&'a Regex, ExecutionError> {
        patterns.get(pattern).ok_or_else(|| ExecutionError::function_error("matches", "not a constant"))
    }
    let text = |text: &str| Value::String(Arc::new(text.to_owned()));
    let of = Arc::clone(patterns);
    let matches = move |This(this): This<Arc<String>>, pattern: Arc<String>| {
        known(&of, &pattern).map(|regex| regex.is_match(&this))
    };
    let of = Arc::clone(patterns);
    let find = move |This(this): This<Arc<String>>, pattern: Arc<String>| {
        known(&of, &pattern).map(|regex| text(regex.find(&this).map_or("", |found| found.as_str())))
    };
    let of = Arc::clone(patterns);
    let find_all = move |This(this): This<Arc<String>>, pattern: Arc<String>| {
        let regex = known(&of, &pattern)?;
        let found = regex.find_iter(&this).map(|found| text(found.as_str())).collect();
        Ok::<_, ExecutionError>(Value::List(Arc::new(found)))
    };
    context.add_function("matches", matches).map_err(told)?;
    context.add_function("find", find).map_err(told)?;
    context.add_function("findAll", find_all).map_err(told)?;
    Ok(())
}

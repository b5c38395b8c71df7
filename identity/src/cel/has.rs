//! `has(claims.a.b)` as cel-go has it: of a value that has no members it is false, and no error.
//!
//! The crate gives an error there. So the test of a deeper member is made a call of a function of ours, whose name no
//! expression can spell.

use std::sync::Arc;

use ::cel::{
    ExecutionError, IdedExpr, Value,
    common::{
        ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue},
        types::CelString,
    },
    objects::Key,
};

/// The function's name.
pub(super) const NAME: &str = "@has";

/// What the function gives.
pub(super) fn has(value: Value, field: Arc<String>) -> Result<bool, ExecutionError> {
    match value {
        Value::Map(map) => Ok(map.map.contains_key(&Key::String(field))),
        Value::List(_) => Err(ExecutionError::function_error("has", "a list has no members")),
        _ => Ok(false),
    }
}

/// Puts the call in place of each test of a member of anything but a variable.
pub(super) fn rewrite(tree: &mut IdedExpr) {
    match &mut tree.expr {
        Expr::Select(select) => {
            rewrite(&mut select.operand);
            if select.test && !matches!(select.operand.expr, Expr::Ident(_)) {
                let operand = std::mem::take(&mut *select.operand);
                let field = LiteralValue::String(CelString::from(select.field.clone()));
                let field = IdedExpr { id: tree.id, expr: Expr::Literal(field) };
                tree.expr = Expr::Call(CallExpr {
                    func_name: NAME.to_owned(),
                    target: None,
                    args: vec![operand, field],
                });
            }
        }
        Expr::Call(call) => {
            call.target.as_deref_mut().into_iter().chain(&mut call.args).for_each(rewrite);
        }
        Expr::List(list) => list.elements.iter_mut().for_each(rewrite),
        Expr::Map(map) => map.entries.iter_mut().for_each(|entry| match &mut entry.expr {
            EntryExpr::MapEntry(entry) => {
                rewrite(&mut entry.key);
                rewrite(&mut entry.value);
            }
            EntryExpr::StructField(field) => rewrite(&mut field.value),
        }),
        Expr::Comprehension(comprehension) => {
            let ComprehensionExpr { iter_range, accu_init, loop_cond, loop_step, result, .. } =
                &mut **comprehension;
            [iter_range, accu_init, loop_cond, loop_step, result].into_iter().for_each(rewrite);
        }
        Expr::Ident(_) | Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => {}
    }
}

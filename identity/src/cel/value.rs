//! Claims and users as CEL values. A number of a token's JSON is a double there, as it is in kube-apiserver.

use std::{collections::HashMap, sync::Arc};

use ::cel::{Context, Value, objects::Key};
use serde_json::Value as Json;

use crate::{Identity, token::Object};

/// The one variable that an expression sees.
#[derive(Default)]
pub(crate) struct Scope(Option<(&'static str, Value)>);

impl Scope {
    /// `claims`.
    pub(crate) fn claims(claims: &Object) -> Self {
        Self(Some(("claims", map(claims.entries().map(|(name, value)| (name.to_owned(), json(value)))))))
    }

    /// `user`, as `authentication.k8s.io/v1` UserInfo.
    pub(crate) fn user(user: &Identity) -> Self {
        let text = |text: &str| Value::String(Arc::new(text.to_owned()));
        let list = |texts: &[String]| Value::List(Arc::new(texts.iter().map(|one| text(one)).collect()));
        let extra = user.extra.iter().map(|(key, values)| (key.clone(), list(values)));
        Self(Some((
            "user",
            map([
                ("username".to_owned(), text(&user.username)),
                ("uid".to_owned(), text(user.uid.as_deref().unwrap_or_default())),
                ("groups".to_owned(), list(&user.groups)),
                ("extra".to_owned(), map(extra)),
            ]),
        )))
    }

    pub(crate) fn bind(&self, context: &mut Context<'_, '_>) {
        if let Some((name, value)) = &self.0 {
            context.add_variable_from_value(*name, value.clone());
        }
    }
}

fn map(entries: impl IntoIterator<Item = (String, Value)>) -> Value {
    let map: HashMap<Key, Value> =
        entries.into_iter().map(|(name, value)| (Key::String(Arc::new(name)), value)).collect();
    Value::Map(map.into())
}

fn json(value: &Json) -> Value {
    match value {
        Json::Null => Value::Null,
        Json::Bool(truth) => Value::Bool(*truth),
        Json::Number(number) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Value::String(Arc::new(text.clone())),
        Json::Array(list) => Value::List(Arc::new(list.iter().map(json).collect())),
        Json::Object(entries) => map(entries.iter().map(|(name, value)| (name.clone(), json(value)))),
    }
}

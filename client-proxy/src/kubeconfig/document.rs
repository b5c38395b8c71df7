//! A kubeconfig as a tree, of which only our own entries are ever changed.

use std::path::Path;

use serde_norway::{Mapping, Value};
use towline_tunnel::{
    fault::{Fault, Report},
    ids::ClusterId,
};

use super::{Entry, mapping};

/// The lists of a kubeconfig, and the key under which an item of each keeps its body.
const LISTS: [(&str, &str); 3] = [("clusters", "cluster"), ("contexts", "context"), ("users", "user")];
/// The name of the extension that marks our entries.
const MARK: &str = "towline";
/// kubectl reads YAML 1.1, where these words are booleans; a YAML 1.2 reader takes them for text.
const BOOLEANS: [&str; 3] = ["insecure-skip-tls-verify", "disable-compression", "provideClusterInfo"];

/// A kubeconfig. Fields that nobody here knows stay as they are, in their order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Document(Mapping);

impl Default for Document {
    fn default() -> Self {
        Self(mapping([("apiVersion", Value::from("v1")), ("kind", Value::from("Config"))]))
    }
}

impl Document {
    /// Reads a kubeconfig; nothing at all is an empty one.
    ///
    /// # Errors
    /// If it is not YAML or not a kubeconfig. The text is never repeated: it holds secrets.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, Report> {
        let wrong =
            |why: &str| Report::new(Fault::KubeconfigUnreadable, format!("{}: {why}", path.display()));
        let value: Value = serde_norway::from_str(text).map_err(|error| {
            wrong(&match error.location() {
                Some(at) => format!("not YAML (line {}, column {})", at.line(), at.column()),
                None => "not YAML".to_owned(),
            })
        })?;
        let mut root = match value {
            Value::Null => return Ok(Self::default()),
            Value::Mapping(root) => root,
            _ => return Err(wrong("not a kubeconfig")),
        };
        let field = |name: &str| root.get(name).and_then(Value::as_str);
        if !matches!(field("kind"), None | Some("Config"))
            || !matches!(field("apiVersion"), None | Some("v1"))
        {
            return Err(wrong("not a kubeconfig of version v1"));
        }
        for (list, _) in LISTS {
            let sound = match root.get(list) {
                None | Some(Value::Null) => true,
                Some(Value::Sequence(items)) => items.iter().all(|item| name_of(item).is_some()),
                Some(_) => false,
            };
            if !sound {
                return Err(wrong(&format!("its {list} are not a list of named entries")));
            }
        }
        booleans(&mut root);
        let document = Self(root);
        // What was read must be written again, whole. YAML has more than can be, such as tags in place of keys, or with `%2C` in them.
        let written = serde_norway::to_string(&document.0).ok();
        let again = written.and_then(|text| serde_norway::from_str::<Mapping>(&text).ok());
        if again.as_ref() != Some(&document.0) {
            return Err(wrong("it has YAML that can't be written back, such as a tag (!name) for a key"));
        }
        Ok(document)
    }

    /// The kubeconfig as text.
    pub(super) fn to_text(&self) -> String {
        serde_norway::to_string(&self.0).expect("what was read can be written, and so can what was added")
    }

    fn items(&self, list: &str) -> impl Iterator<Item = &Value> {
        self.0.get(list).and_then(Value::as_sequence).into_iter().flatten()
    }

    fn items_mut(&mut self, list: &str) -> &mut Vec<Value> {
        let slot = self.0.entry(Value::from(list)).or_insert(Value::Null);
        if !slot.is_sequence() {
            *slot = Value::Sequence(Vec::new());
        }
        slot.as_sequence_mut().expect("it was made one just now")
    }

    /// Whether an entry of this name is there that is not ours.
    pub(super) fn has_foreign(&self, name: &str) -> bool {
        LISTS.iter().any(|(list, body)| {
            self.items(list).any(|item| name_of(item) == Some(name) && mark(item, body).is_none())
        })
    }

    /// Whether there is an entry of this name at all.
    pub(super) fn has(&self, name: &str) -> bool {
        LISTS.iter().any(|(list, _)| self.items(list).any(|item| name_of(item) == Some(name)))
    }

    pub(super) fn has_context(&self, name: &str) -> bool {
        self.items("contexts").any(|item| name_of(item) == Some(name))
    }

    pub(super) fn current_context(&self) -> Option<&str> {
        self.0.get("current-context").and_then(Value::as_str).filter(|name| !name.is_empty())
    }

    pub(super) fn set_current_context(&mut self, name: Option<&str>) {
        match name {
            Some(name) => {
                self.0.insert(Value::from("current-context"), Value::from(name));
            }
            None => {
                self.0.shift_remove("current-context");
            }
        }
    }

    /// Adds a context of ours, or replaces the one of the same name; `previous` is the context to come back to.
    pub(super) fn put(&mut self, entry: &Entry, previous: Option<&str>) {
        let bodies = [entry.cluster_body(), entry.context_body(), entry.user_body()];
        for ((list, key), mut body) in LISTS.into_iter().zip(bodies) {
            let previous = previous.filter(|_| list == "contexts");
            body.insert(Value::from("extensions"), marked(entry.cluster, previous));
            let item = Value::Mapping(mapping([
                ("name", Value::from(entry.name.as_str())),
                (key, Value::Mapping(body)),
            ]));
            let items = self.items_mut(list);
            match items.iter_mut().find(|item| name_of(item) == Some(&entry.name)) {
                Some(old) => *old = item,
                None => items.push(item),
            }
        }
    }

    /// The context to come back to, as the context of ours with this name remembers it.
    pub(super) fn previous_of(&self, name: &str) -> Option<&str> {
        let item = self.items("contexts").find(|item| name_of(item) == Some(name))?;
        mark(item, "context")?.get("previous-context")?.as_str()
    }

    /// Takes our entries of this name and cluster away. Whoever would come back to this context comes back to where
    /// it would have.
    pub(super) fn remove(&mut self, name: &str, cluster: ClusterId) {
        let previous = self.previous_of(name).map(str::to_owned);
        let id = cluster.to_string();
        for (list, body) in LISTS {
            if self.0.get(list).is_some_and(Value::is_sequence) {
                self.items_mut(list).retain(|item| {
                    let ours = || mark(item, body)?.get("cluster")?.as_str();
                    name_of(item) != Some(name) || ours() != Some(&id)
                });
            }
        }
        if self.has_context(name) {
            return;
        }
        for item in self.0.get_mut("contexts").and_then(Value::as_sequence_mut).into_iter().flatten() {
            let Some(mark) = mark_mut(item, "context") else { continue };
            if mark.get("previous-context").and_then(Value::as_str) == Some(name) {
                match &previous {
                    Some(previous) => {
                        mark.insert(Value::from("previous-context"), Value::from(previous.as_str()));
                    }
                    None => {
                        mark.shift_remove("previous-context");
                    }
                }
            }
        }
    }
}

fn name_of(item: &Value) -> Option<&str> {
    item.get("name").and_then(Value::as_str)
}

fn marked(cluster: ClusterId, previous: Option<&str>) -> Value {
    let mut extension = mapping([("cluster", Value::from(cluster.to_string()))]);
    if let Some(previous) = previous {
        extension.insert(Value::from("previous-context"), Value::from(previous));
    }
    let named = mapping([("name", Value::from(MARK)), ("extension", Value::Mapping(extension))]);
    Value::Sequence(vec![Value::Mapping(named)])
}

/// Our extension on an item, if it is one of ours.
fn mark<'a>(item: &'a Value, body: &str) -> Option<&'a Value> {
    let extensions = item.get(body)?.get("extensions")?.as_sequence()?;
    extensions.iter().find(|extension| name_of(extension) == Some(MARK))?.get("extension")
}

fn mark_mut<'a>(item: &'a mut Value, body: &str) -> Option<&'a mut Mapping> {
    let extensions = item.get_mut(body)?.get_mut("extensions")?.as_sequence_mut()?;
    let ours = extensions.iter_mut().find(|extension| name_of(extension) == Some(MARK))?;
    ours.get_mut("extension")?.as_mapping_mut()
}

/// Writes the words that YAML 1.1 takes for booleans as such, where a boolean must stand.
fn booleans(mapping: &mut Mapping) {
    for (key, value) in mapping.iter_mut() {
        match value {
            Value::Mapping(inner) => booleans(inner),
            Value::Sequence(items) => {
                items.iter_mut().filter_map(Value::as_mapping_mut).for_each(booleans);
            }
            Value::String(word) if key.as_str().is_some_and(|key| BOOLEANS.contains(&key)) => {
                match word.to_ascii_lowercase().as_str() {
                    "y" | "yes" | "on" => *value = Value::Bool(true),
                    "n" | "no" | "off" => *value = Value::Bool(false),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

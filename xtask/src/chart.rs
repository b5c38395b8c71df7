//! The agent's Helm chart: `values.schema.json` says what its values are, and `values.yaml` and the table in its README are made
//! from that.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::Context as _;
use serde_norway::{Mapping, Value};

const TABLE_BEGINS: &str = "<!-- The table is written by `cargo xtask docs`. -->\n";
const TABLE_ENDS: &str = "<!-- It ends here. -->\n";
/// Where comments of `values.yaml` are wrapped.
const WIDTH: usize = 110;

/// One value that can be set.
#[derive(Clone, Debug)]
pub struct Setting {
    /// `proxy.skipRange`.
    pub path: String,
    /// What it means.
    pub description: String,
    /// What it is where nobody sets it; none for a section, which only holds others.
    pub default: Option<Value>,
}

/// Where the chart is.
pub fn folder() -> PathBuf {
    crate::root().join("deploy/charts/towline-agent")
}

/// All values in the order of the schema, each section before what is in it.
///
/// # Errors
/// If the schema can't be read, or leaves something undescribed.
pub fn settings() -> anyhow::Result<Vec<Setting>> {
    let path = folder().join("values.schema.json");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    // JSON is YAML, and this reader keeps the order.
    let schema: Value = serde_norway::from_str(&text)?;
    let mut settings = Vec::new();
    collect(&schema, "", &mut settings)?;
    Ok(settings)
}

fn collect(schema: &Value, prefix: &str, settings: &mut Vec<Setting>) -> anyhow::Result<()> {
    let properties = schema.get("properties").and_then(Value::as_mapping);
    for (name, property) in properties.with_context(|| format!("{prefix} has no properties"))? {
        let path = format!("{prefix}{}", name.as_str().context("a property has a name")?);
        let description = property.get("description").and_then(Value::as_str);
        let description = description.with_context(|| format!("{path} has no description"))?.to_owned();
        let (section, default) = (property.get("properties").is_some(), property.get("default"));
        match (section, default) {
            (true, None) => {
                let inside = format!("{path}.");
                settings.push(Setting { path, description, default: None });
                collect(property, &inside, settings)?;
            }
            (false, Some(default)) => {
                settings.push(Setting { path, description, default: Some(default.clone()) });
            }
            // What a parent chart passes on is nobody's to set here.
            (false, None) if path == "global" => {}
            _ => anyhow::bail!("{path} must have properties or a default, and not both"),
        }
    }
    Ok(())
}

/// `values.yaml`.
///
/// # Errors
/// See [`settings`].
pub fn values() -> anyhow::Result<String> {
    let mut page = String::from(
        "# What can be set, and what it means. Written by `cargo xtask docs` from values.schema.json: change that.\n",
    );
    for setting in settings()? {
        let depth = setting.path.matches('.').count();
        let indent = "  ".repeat(depth);
        let name = setting.path.rsplit('.').next().unwrap_or_default();
        if depth == 0 {
            page.push('\n');
        }
        for line in wrap(&setting.description, WIDTH - indent.len()) {
            writeln!(page, "{indent}# {line}")?;
        }
        match &setting.default {
            None => writeln!(page, "{indent}{name}:")?,
            Some(default) => writeln!(page, "{indent}{name}: {}", flow(default)?)?,
        }
    }
    Ok(page)
}

/// The README, with the table as it must be.
///
/// # Errors
/// If it can't be read or has no place for a table, and see [`settings`].
pub fn readme() -> anyhow::Result<String> {
    let path = folder().join("README.md");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let place = text.split_once(TABLE_BEGINS).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(TABLE_ENDS)?;
        Some((before, after))
    });
    let (before, after) = place.with_context(|| format!("{} has no place for a table", path.display()))?;
    let mut table = String::from("| value | default | |\n|---|---|---|\n");
    for Setting { path, description, default } in settings()? {
        let description = description.replace('|', "\\|");
        match default {
            None => writeln!(table, "| **{path}** | | {description} |")?,
            Some(default) => writeln!(table, "| `{path}` | `{}` | {description} |", flow(&default)?)?,
        }
    }
    Ok(format!("{before}{TABLE_BEGINS}{table}{TABLE_ENDS}{after}"))
}

/// Writes both.
///
/// # Errors
/// If they can't be made or written.
pub fn write() -> anyhow::Result<()> {
    fs::write(folder().join("values.yaml"), values()?)?;
    fs::write(folder().join("README.md"), readme()?)?;
    Ok(())
}

/// A value on one line.
fn flow(value: &Value) -> anyhow::Result<String> {
    let joined = |parts: anyhow::Result<Vec<String>>| anyhow::Ok(parts?.join(", "));
    Ok(match value {
        Value::Sequence(items) => format!("[{}]", joined(items.iter().map(flow).collect())?),
        Value::Mapping(map) => format!("{{{}}}", joined(entries(map))?),
        Value::Tagged(_) => anyhow::bail!("JSON has no tags"),
        scalar => serde_json::to_string(scalar)?,
    })
}

fn entries(map: &Mapping) -> anyhow::Result<Vec<String>> {
    let entry = |(key, value): (&Value, &Value)| {
        Ok(format!("{}: {}", key.as_str().context("a key is a text")?, flow(value)?))
    };
    map.iter().map(entry).collect()
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let full = lines.last().is_some_and(|line| !line.is_empty() && line.len() + 1 + word.len() > width);
        if full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_on_one_line_and_comments_are_wrapped() {
        let value: Value = serde_norway::from_str("{a: [1, null, true], b: {c: 'x: y'}, d: []}").unwrap();
        assert_eq!(flow(&value).unwrap(), r#"{a: [1, null, true], b: {c: "x: y"}, d: []}"#);
        assert_eq!(serde_norway::from_str::<Value>(&flow(&value).unwrap()).unwrap(), value);
        assert_eq!(wrap("a bb ccc dddddddd", 6), ["a bb", "ccc", "dddddddd"]);
    }
}

//! Which clusters are meant.

use std::{fmt, str::FromStr, sync::Arc};

use towline_tunnel::{
    fault::{Fault, Report},
    ids::ClusterId,
};

use super::{Config, off_runtime};
use crate::{dial::Link, local::StateFolder};

/// Longest name that is asked for.
const MAX_NAME: usize = 253;
const ID_LENGTH: usize = 52;

/// A cluster as a person names it: `ID`, `NAME=ID` or `NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What it is called here.
    pub name: Option<String>,
    /// Its id, which is the pin; where it is missing, the relay is asked.
    pub id: Option<ClusterId>,
    /// The context's name, where the person chose one.
    pub context: Option<String>,
}

impl Choice {
    /// The cluster with this id.
    pub fn id(id: ClusterId) -> Self {
        Self { name: None, id: Some(id), context: None }
    }

    /// The cluster with this id, called so.
    pub fn named(name: impl Into<String>, id: ClusterId) -> Self {
        Self { name: Some(name.into()), id: Some(id), context: None }
    }

    /// How messages call it.
    pub fn label(&self) -> String {
        match (&self.name, self.id) {
            (Some(name), _) => name.clone(),
            (None, Some(id)) => id.to_string(),
            (None, None) => String::new(),
        }
    }
}

impl FromStr for Choice {
    type Err = Report;

    fn from_str(text: &str) -> Result<Self, Report> {
        let wrong = |why: &str| Report::new(Fault::ConfigInvalid, format!("--cluster {text:?}: {why}"));
        let id = |text: &str| text.parse::<ClusterId>().map_err(|error| wrong(&error.to_string()));
        let name = |name: &str| {
            let sound = (1..=MAX_NAME).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
            if sound { Ok(Some(name.to_owned())) } else { Err(wrong("not a cluster's name")) }
        };
        let context = None;
        match text.split_once('=') {
            Some((called, of)) => Ok(Self { name: name(called)?, id: Some(id(of)?), context }),
            // Whatever is as long as an id is meant to be one: a typing error must not become a name.
            None if text.len() == ID_LENGTH => Ok(Self { name: None, id: Some(id(text)?), context }),
            None => Ok(Self { name: name(text)?, id: None, context }),
        }
    }
}

/// Asks a person whether the relay is right: name, id, answer.
#[derive(Clone)]
pub struct Confirm(Arc<Ask>);

type Ask = dyn Fn(&str, ClusterId) -> bool + Send + Sync;

impl Confirm {
    /// Asks by this function, which may wait for a person.
    pub fn new(ask: impl Fn(&str, ClusterId) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }
}

impl fmt::Debug for Confirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Confirm")
    }
}

/// Checks the choices against each other.
///
/// # Errors
/// If there are none, or one stands twice.
pub(super) fn chosen(choices: &[Choice]) -> Result<Vec<Choice>, Report> {
    let wrong = |why: String| Err(Report::new(Fault::ConfigInvalid, why));
    if choices.is_empty() {
        return wrong("no cluster is named; use --cluster".to_owned());
    }
    for (at, choice) in choices.iter().enumerate() {
        let same = |other: &Choice| {
            (choice.id.is_some() && other.id == choice.id)
                || (choice.name.is_some() && other.name == choice.name)
        };
        if choices[..at].iter().any(same) {
            return wrong(format!("cluster {} is named twice", choice.label()));
        }
    }
    Ok(choices.to_vec())
}

/// The ids of all choices. A name that the relay resolved is believed once a person has confirmed the id, and then
/// remembered.
///
/// # Errors
/// If the relay knows no such cluster, or nobody confirms it.
pub(crate) async fn resolve(
    choices: &[Choice],
    config: &Config,
    state: &StateFolder,
    link: &Link,
) -> Result<Vec<ClusterId>, Report> {
    let mut ids = Vec::new();
    for choice in choices {
        let id = match (choice.id, &choice.name) {
            (Some(id), _) => id,
            (None, Some(name)) => by_name(name, config, state, link).await?,
            (None, None) => return Err(Report::new(Fault::ConfigInvalid, "a cluster without name and id")),
        };
        if ids.contains(&id) {
            return Err(Report::new(
                Fault::ConfigInvalid,
                format!("{} is the same cluster as another", choice.label()),
            ));
        }
        ids.push(id);
    }
    Ok(ids)
}

async fn by_name(name: &str, config: &Config, state: &StateFolder, link: &Link) -> Result<ClusterId, Report> {
    if let Some(known) = state.known(config.relay_key, name)? {
        return Ok(known);
    }
    let unconfirmed =
        |id: ClusterId| Report::new(Fault::ClusterUnconfirmed, format!("the relay says that {name} is {id}"));
    let resolved = link.resolve(name).await?;
    let Some(Confirm(ask)) = config.confirm.clone() else { return Err(unconfirmed(resolved.cluster)) };
    let (asked, relay, state) = (name.to_owned(), config.relay_key, state.clone());
    let confirmed = off_runtime(move || {
        let confirmed = ask(&asked, resolved.cluster);
        if confirmed {
            state.remember(relay, &asked, resolved.cluster)?;
        }
        Ok(confirmed)
    })
    .await?;
    if confirmed { Ok(resolved.cluster) } else { Err(unconfirmed(resolved.cluster)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_named_by_id_by_name_or_by_both() {
        let id = ClusterId::of_spki(b"k");
        assert_eq!(id.to_string().parse::<Choice>().unwrap(), Choice::id(id));
        assert_eq!(format!("edge-7={id}").parse::<Choice>().unwrap(), Choice::named("edge-7", id));
        let by_name: Choice = "edge-7".parse().unwrap();
        assert_eq!((by_name.label().as_str(), by_name.id), ("edge-7", None));
        let nearly = format!("{}1", &id.to_string()[..51]);
        for bad in ["", "=", "edge 7", "edge-7=", "edge-7=x", nearly.as_str(), "a/b", &"x".repeat(300)] {
            assert_eq!(bad.parse::<Choice>().unwrap_err().fault, Fault::ConfigInvalid, "{bad:?}");
        }
    }

    #[test]
    fn a_cluster_that_is_named_twice_is_refused() {
        let id = ClusterId::of_spki(b"k");
        assert!(chosen(&[]).is_err());
        assert!(chosen(&[Choice::id(id), Choice::named("a", id)]).is_err());
        assert!(chosen(&["a".parse().unwrap(), Choice::named("a", id)]).is_err());
        chosen(&[Choice::id(id), "a".parse().unwrap()]).unwrap();
    }
}

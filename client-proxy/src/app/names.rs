//! What contexts are called.

use towline_tunnel::fault::Report;

use super::Choice;
use crate::kubeconfig::{Location, Wanted};

/// Enough of an id to tell a person's clusters apart.
const SHORT: usize = 8;

/// The name of each choice's context: the one that was chosen, the cluster's name, or the begin of its id.
///
/// # Errors
/// If the kubeconfig can't be read, or a name is taken.
pub(super) fn contexts(choices: &[Choice], location: Option<&Location>) -> Result<Vec<String>, Report> {
    let wanted: Vec<Wanted> = choices.iter().map(wanted).collect();
    match location {
        Some(location) => location.names(&wanted),
        None => Ok(wanted.into_iter().map(|wanted| wanted.name).collect()),
    }
}

fn wanted(choice: &Choice) -> Wanted {
    if let Some(context) = &choice.context {
        return Wanted { name: context.clone(), chosen: true };
    }
    let name = match (&choice.name, choice.id) {
        (Some(name), _) => name.clone(),
        (None, id) => {
            let id = id.map(|id| id.to_string()).unwrap_or_default();
            format!("towline-{}", id.get(..SHORT).unwrap_or_default())
        }
    };
    Wanted { name, chosen: false }
}

#[cfg(test)]
mod tests {
    use towline_tunnel::ids::ClusterId;

    use super::*;

    #[test]
    fn a_context_is_called_as_was_chosen_or_like_its_cluster() {
        let id = ClusterId::of_spki(b"k");
        let chosen = Choice { context: Some("mine".into()), ..Choice::named("edge-7", id) };
        let names = contexts(&[Choice::id(id), Choice::named("edge-7", id), chosen], None).unwrap();
        assert_eq!(names, [format!("towline-{}", &id.to_string()[..8]), "edge-7".into(), "mine".into()]);
    }
}

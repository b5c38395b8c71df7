//! Flags about roles, and `towline-agent roles`.

use std::{fs, io::Write as _, path::PathBuf};

use clap::{Args, Subcommand};
use towline_tunnel::{
    fault::{Fault, Report},
    keys::VerifyingKey,
    role::{MAX_KEYS, RoleName, parse_key},
};

use super::{Place, kept_identity};
use crate::{
    forward::Mode,
    roles::{FRESH_FOR, Groups, RoleSettings, manifest::manifest},
};

/// Roles that the organisation signs and the relay carries. Off unless a ceiling is given.
#[derive(Args, Debug)]
#[command(next_help_heading = "Roles by the relay")]
pub(super) struct RoleArgs {
    /// Let roles count that the organisation has signed, but none for more than this: viewer, writer, admin or cluster-admin
    #[arg(long, value_name = "ROLE", env = "TOWLINE_AGENT_MAX_RELAY_ROLE")]
    max_relay_role: Option<RoleName>,
    /// The organisation's public key, as `towline role key new` prints it (repeatable, or with commas between)
    #[arg(long, value_name = "KEY", env = "TOWLINE_AGENT_ORGANISATION_KEY", value_delimiter = ',', value_parser = key)]
    organisation_key: Vec<VerifyingKey>,
    /// The same in a file, in that form or as PEM
    #[arg(long, value_name = "FILE", env = "TOWLINE_AGENT_ORGANISATION_KEY_FILE")]
    organisation_key_file: Option<PathBuf>,
}

fn key(text: &str) -> Result<VerifyingKey, String> {
    parse_key(text).map_err(|error| format!("{error}: it is printed by `towline role key new`"))
}

impl RoleArgs {
    /// What is said about roles, if they are to count.
    ///
    /// # Errors
    /// If there is a ceiling and no key, or the other way round, or nobody is impersonated.
    pub(super) fn parse(self, mode: Mode) -> Result<Option<RoleSettings>, Report> {
        let wrong = |what: &str| Err(Report::new(Fault::ConfigInvalid, what));
        let mut keys = self.organisation_key;
        if let Some(path) = &self.organisation_key_file {
            let unreadable =
                |why: String| Report::new(Fault::FileUnreadable, format!("{}: {why}", path.display()));
            let text = fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
            keys.push(parse_key(&text).map_err(|error| unreadable(error.to_string()))?);
        }
        if keys.len() > MAX_KEYS {
            return wrong(&format!("{} keys of --organisation-key are more than {MAX_KEYS}", keys.len()));
        }
        let Some(ceiling) = self.max_relay_role else {
            return match keys.is_empty() {
                true => Ok(None),
                false => wrong("--organisation-key does nothing without --max-relay-role"),
            };
        };
        if ceiling.cluster_role().is_none() {
            return wrong(
                "--max-relay-role is viewer, writer, admin or cluster-admin; cluster-user grants nothing inside",
            );
        }
        if keys.is_empty() {
            return wrong(
                "--max-relay-role needs --organisation-key or --organisation-key-file: roles are signed",
            );
        }
        if mode == Mode::PassThrough {
            return wrong(
                "--max-relay-role needs --mode impersonate: a token that is passed on gets no group",
            );
        }
        Ok(Some(RoleSettings { ceiling, keys, fresh_for: FRESH_FOR }))
    }
}

/// Roles in this cluster.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the bindings (YAML) by which roles count in this cluster, for `kubectl apply`
    Manifest(Manifest),
}

/// `towline-agent roles manifest`.
#[derive(Args, Debug)]
pub(super) struct Manifest {
    #[command(flatten)]
    place: Place,
    /// The strongest role that is bound
    #[arg(long, value_name = "ROLE", env = "TOWLINE_AGENT_MAX_RELAY_ROLE")]
    max_relay_role: RoleName,
    /// Service account (NAMESPACE/NAME) that impersonates, which is given the groups by name
    #[arg(long, value_name = "ACCOUNT", env = "TOWLINE_AGENT_IMPERSONATOR")]
    impersonator: Option<String>,
}

impl Command {
    pub(super) fn run(self) -> Result<(), Report> {
        let Self::Manifest(arguments) = self;
        let groups = Groups::of(&*kept_identity(&arguments.place)?);
        let yaml = manifest(&groups, arguments.max_relay_role, arguments.impersonator.as_deref());
        write!(std::io::stdout(), "{yaml}")
            .map_err(|error| Report::caused_by(Fault::FileUnwritable, "standard output", error))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use towline_tunnel::{keys::SigningKey, role::print_key};

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        roles: RoleArgs,
    }

    fn parsed(arguments: &[&str], mode: Mode) -> Result<Option<RoleSettings>, Report> {
        Only::try_parse_from([&["x"], arguments].concat()).unwrap().roles.parse(mode)
    }

    #[test]
    fn roles_are_off_unless_a_ceiling_and_a_key_are_given() {
        let key = SigningKey::generate().public();
        let text = print_key(&key);
        assert_eq!(parsed(&[], Mode::Impersonate).unwrap(), None);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        fs::write(&file, format!("{text}\n")).unwrap();
        let file = file.to_str().unwrap();
        for by in [["--organisation-key", text.as_str()], ["--organisation-key-file", file]] {
            let settings =
                parsed(&[&["--max-relay-role", "writer"][..], &by].concat(), Mode::Impersonate).unwrap();
            let expected = RoleSettings { ceiling: RoleName::Writer, keys: vec![key], fresh_for: FRESH_FOR };
            assert_eq!(settings, Some(expected));
        }
        for (arguments, mode) in [
            (vec!["--max-relay-role", "writer"], Mode::Impersonate),
            (vec!["--organisation-key", &text], Mode::Impersonate),
            (vec!["--max-relay-role", "cluster-user", "--organisation-key", &text], Mode::Impersonate),
            (vec!["--max-relay-role", "viewer", "--organisation-key", &text], Mode::PassThrough),
        ] {
            assert_eq!(parsed(&arguments, mode).unwrap_err().fault, Fault::ConfigInvalid, "{arguments:?}");
        }
        let four = [text.as_str(); 5].join(",");
        assert!(
            parsed(&["--max-relay-role", "viewer", "--organisation-key", &four], Mode::Impersonate).is_err()
        );
        assert!(Only::try_parse_from(["x", "--organisation-key", "nonsense"]).is_err());
    }
}

//! The profile: flags that repeat from day to day, as TOML.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, de::Error as _};
use towline_tunnel::{
    fault::{Fault, Report},
    mux::MAX_LINES,
    values::duration,
};

/// What a profile may hold. Names are those of the flags; relative paths start at the profile's folder.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Profile {
    pub(super) relay: Option<String>,
    pub(super) relay_key: Option<String>,
    pub(super) relay_ca_file: Option<PathBuf>,
    pub(super) relay_token_file: Option<PathBuf>,
    pub(super) cluster_token_file: Option<PathBuf>,
    pub(super) allow_shared_audience: bool,
    pub(super) port: Option<u16>,
    #[serde(deserialize_with = "time")]
    pub(super) resume_timeout: Option<Duration>,
    #[serde(deserialize_with = "lines")]
    pub(super) bulk_lines: Option<u32>,
    pub(super) kubeconfig: Option<PathBuf>,
    pub(super) state_dir: Option<PathBuf>,
    /// Names and ids: the ids are pins.
    pub(super) clusters: BTreeMap<String, String>,
}

impl Profile {
    /// The profile that was named, or the usual one if it is there.
    ///
    /// # Errors
    /// If it can't be read, or says something that no profile says.
    pub(super) fn load(named: Option<&Path>) -> Result<Self, Report> {
        let usual = usual_path();
        let Some(path) = named.or(usual.as_deref()) else { return Ok(Self::default()) };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => {
                return Ok(Self::default());
            }
            Err(error) => {
                return Err(Report::caused_by(
                    Fault::FileUnreadable,
                    format!("profile {}: {error}", path.display()),
                    error,
                ));
            }
        };
        let mut profile: Self = toml::from_str(&text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start].matches('\n').count() + 1);
            let at = line.map(|line| format!(", line {line}")).unwrap_or_default();
            Report::new(Fault::ConfigInvalid, format!("profile {}{at}: {}", path.display(), error.message()))
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for file in [
            &mut profile.relay_ca_file,
            &mut profile.relay_token_file,
            &mut profile.cluster_token_file,
            &mut profile.kubeconfig,
            &mut profile.state_dir,
        ] {
            *file = file.take().map(|file| place(folder, &file));
        }
        Ok(profile)
    }
}

fn time<'de, D: Deserializer<'de>>(profile: D) -> Result<Option<Duration>, D::Error> {
    duration(&String::deserialize(profile)?).map(Some).map_err(D::Error::custom)
}

fn lines<'de, D: Deserializer<'de>>(profile: D) -> Result<Option<u32>, D::Error> {
    match u32::deserialize(profile)? {
        lines if lines <= MAX_LINES => Ok(Some(lines)),
        lines => Err(D::Error::custom(format!("bulk-lines is at most {MAX_LINES}, and not {lines}"))),
    }
}

fn place(folder: &Path, file: &Path) -> PathBuf {
    match (file.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => folder.join(file),
    }
}

fn usual_path() -> Option<PathBuf> {
    let absolute = |path: &PathBuf| path.is_absolute();
    std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(absolute)
        .or_else(|| std::env::home_dir().filter(absolute).map(|home| home.join(".config")))
        .map(|base| base.join("towline").join("profile.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_profile_says_is_told_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.toml");
        fs::write(&path, "relay = \"r\"\nrelay-token = \"canary\"\n").unwrap();
        let report = Profile::load(Some(&path)).unwrap_err();
        let said = report.to_string();
        assert!(
            said.contains("line 2") && said.contains("relay-token") && !said.contains("canary"),
            "{said}"
        );
        let report = Profile::load(Some(&folder.path().join("none"))).unwrap_err();
        assert_eq!(report.fault, Fault::FileUnreadable);
    }

    #[test]
    fn every_flag_that_repeats_can_stand_in_a_profile() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.toml");
        fs::write(&path, "resume-timeout = \"90s\"\nbulk-lines = 0\n").unwrap();
        let profile = Profile::load(Some(&path)).unwrap();
        assert_eq!((profile.resume_timeout, profile.bulk_lines), (Some(Duration::from_secs(90)), Some(0)));
        for (wrong, why) in [("resume-timeout = \"soon\"", "\"soon\""), ("bulk-lines = 4", "at most 3")] {
            fs::write(&path, wrong).unwrap();
            let said = Profile::load(Some(&path)).unwrap_err().to_string();
            assert!(said.contains(why) && said.contains("line 1"), "{said}");
        }
    }

    #[test]
    fn paths_start_at_the_profile_or_at_home() {
        assert_eq!(place(Path::new("/etc/t"), Path::new("a/b")), PathBuf::from("/etc/t/a/b"));
        assert_eq!(place(Path::new("/etc/t"), Path::new("/a")), PathBuf::from("/a"));
        if let Some(home) = std::env::home_dir() {
            assert_eq!(place(Path::new("/etc/t"), Path::new("~/a")), home.join("a"));
        }
    }
}

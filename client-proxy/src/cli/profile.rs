//! The profile: flags that repeat from day to day, as TOML.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, de::Error as _};
use towline_tunnel::{
    egress::{
        Egress, EgressSettings, Origin, ProxyArgs, ProxyText, SkipRange, Sources, Written,
        process_environment,
    },
    fault::{Fault, Report},
    log::Level,
    mux::MAX_LINES,
    values::duration,
};

use crate::login::{LoginTable, Settings};

/// The profile that is used where none is named.
const USUAL: &str = "profile";

/// What a profile may hold. Names are those of the flags; relative paths start at the profile's folder.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Profile {
    pub(super) relay: Option<String>,
    pub(super) relay_key: Option<String>,
    pub(super) relay_ca_file: Option<PathBuf>,
    proxy_https: Option<ProxyText>,
    proxy_http: Option<ProxyText>,
    proxy_skip_range: Option<String>,
    proxy_cert: Option<PathBuf>,
    proxy_credentials_file: Option<PathBuf>,
    pub(super) relay_token_file: Option<PathBuf>,
    pub(super) cluster_token_file: Option<PathBuf>,
    pub(super) service_account_token_file: Option<PathBuf>,
    pub(super) allow_shared_audience: bool,
    pub(super) port: Option<u16>,
    #[serde(deserialize_with = "time")]
    pub(super) resume_timeout: Option<Duration>,
    #[serde(deserialize_with = "lines")]
    pub(super) bulk_lines: Option<u32>,
    /// `-` prints one, as the flag does.
    pub(super) kubeconfig: Option<PathBuf>,
    pub(super) context_name: Option<String>,
    pub(super) log: Option<Level>,
    pub(super) state_dir: Option<PathBuf>,
    /// Names and ids: the ids are pins.
    pub(super) clusters: BTreeMap<String, String>,
    /// How tokens are had where no file has them.
    pub(super) login: Option<LoginTable>,
    /// What logins of this profile are kept under.
    #[serde(skip)]
    pub(super) name: String,
}

impl Profile {
    /// The profile that was named, by a bare name or as a file, or the usual one if it is there.
    ///
    /// # Errors
    /// If it can't be read, or says something that no profile says.
    pub(super) fn load(named: Option<&Path>) -> Result<Self, Report> {
        let place = Place::of(named);
        let Some(path) = place.path.as_deref() else {
            return Ok(Self { name: place.name, ..Self::default() });
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => {
                return Ok(Self { name: place.name, ..Self::default() });
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
            &mut profile.proxy_cert,
            &mut profile.proxy_credentials_file,
            &mut profile.relay_token_file,
            &mut profile.cluster_token_file,
            &mut profile.service_account_token_file,
            &mut profile.state_dir,
        ] {
            *file = file.take().map(|file| within(folder, &file));
        }
        let kubeconfig = profile.kubeconfig.take();
        profile.kubeconfig =
            kubeconfig.map(|file| if is_printed(&file) { file } else { within(folder, &file) });
        for file in profile.login.iter_mut().flat_map(LoginTable::files) {
            *file = file.take().map(|file| within(folder, &file));
        }
        for plugin in profile.login.iter_mut().flat_map(LoginTable::plugins) {
            let file = within(folder, Path::new(plugin)).into_os_string().into_string();
            *plugin = file.map_err(|file| {
                Report::new(Fault::ConfigInvalid, format!("the plugin's path {} is no text", file.display()))
            })?;
        }
        profile.name = place.name;
        Ok(profile)
    }

    /// `[login]`, checked; the provider is reached this way. With `shared_audience` the two tokens may have one audience, even if the
    /// profile does not say so.
    ///
    /// # Errors
    /// If it is missing or wrong.
    pub(super) fn login(&self, egress: &Egress, shared_audience: bool) -> Result<Settings, Report> {
        let missing = || Report::new(Fault::ConfigInvalid, format!("profile {} has no [login]", self.name));
        let login = self.login.as_ref().ok_or_else(missing)?;
        let mut settings = login.settings(&self.name, shared_audience || self.allow_shared_audience)?;
        settings.egress = egress.clone();
        Ok(settings)
    }

    /// The way out, as flags, this profile and the environment say.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub(super) fn egress(&self, flags: &ProxyArgs) -> Result<Egress, Report> {
        let profile = ProxyArgs {
            proxy_https: self.proxy_https.clone(),
            proxy_http: self.proxy_http.clone(),
            proxy_skip_range: self.proxy_skip_range.clone(),
            proxy_cert: self.proxy_cert.clone(),
            proxy_credentials_file: self.proxy_credentials_file.clone(),
        };
        let sources = Sources {
            flags,
            written: Some(Written { args: &profile, origin: &Origin::Profile }),
            environment: &process_environment,
            never: SkipRange::default(),
        };
        Egress::new(EgressSettings::resolve(&sources)?)
    }
}

#[cfg(test)]
impl Profile {
    /// One that pins these clusters, and says nothing else.
    pub(in crate::cli) fn pinning(name: &str, clusters: &[(&str, towline_tunnel::ids::ClusterId)]) -> Self {
        let clusters = clusters.iter().map(|(name, id)| ((*name).to_owned(), id.to_string())).collect();
        Self { clusters, name: name.to_owned(), ..Self::default() }
    }
}

/// Whether a kubeconfig is to be printed, and not to be added to.
pub(super) fn is_printed(kubeconfig: &Path) -> bool {
    kubeconfig.as_os_str() == "-"
}

/// Where a profile is, and its name.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    path: Option<PathBuf>,
    name: String,
}

impl Place {
    /// `work` is `work.toml` in towline's folder; whatever has a slash or a dot in it is a file.
    fn of(named: Option<&Path>) -> Self {
        let folder = folder();
        let in_folder = |name: &str| folder.as_ref().map(|folder| folder.join(format!("{name}.toml")));
        let Some(named) = named else { return Self { path: in_folder(USUAL), name: USUAL.to_owned() } };
        if let Some(name) = named.to_str().filter(|name| is_name(name)) {
            return Self { path: in_folder(name), name: name.to_owned() };
        }
        let real = fs::canonicalize(named).unwrap_or_else(|_| named.to_owned());
        if let Some(name) = real.file_stem().and_then(|stem| stem.to_str()).filter(|name| is_name(name))
            && in_folder(name).is_some_and(|path| path == real)
        {
            return Self { name: name.to_owned(), path: Some(named.to_owned()) };
        }
        // Two files of one name are two profiles.
        let hash = digest(&SHA256, real.as_os_str().as_encoded_bytes());
        let stem =
            real.file_stem().and_then(|stem| stem.to_str()).filter(|stem| is_name(stem)).unwrap_or("file");
        let name = format!("{stem}-{}", HEXLOWER.encode(&hash.as_ref()[..8]));
        Self { path: Some(named.to_owned()), name }
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
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

fn within(folder: &Path, file: &Path) -> PathBuf {
    match (file.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => folder.join(file),
    }
}

/// Where profiles are.
fn folder() -> Option<PathBuf> {
    let absolute = |path: &PathBuf| path.is_absolute();
    std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(absolute)
        .or_else(|| std::env::home_dir().filter(absolute).map(|home| home.join(".config")))
        .map(|base| base.join("towline"))
}

#[cfg(test)]
mod tests {
    use towline_tunnel::egress::Destination;

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
        let text = "resume-timeout = '90s'\nbulk-lines = 0\ncontext-name = 'mine'\nlog = 'debug'\nkubeconfig = 'k'\n";
        fs::write(&path, text).unwrap();
        let profile = Profile::load(Some(&path)).unwrap();
        assert_eq!((profile.context_name.as_deref(), profile.log), (Some("mine"), Some(Level::Debug)));
        assert_eq!(profile.kubeconfig, Some(folder.path().join("k")));
        fs::write(&path, "kubeconfig = '-'\n").unwrap();
        assert_eq!(Profile::load(Some(&path)).unwrap().kubeconfig, Some("-".into()), "no file of that name");
        assert_eq!((profile.resume_timeout, profile.bulk_lines), (Some(Duration::from_secs(90)), Some(0)));
        for (wrong, why) in [
            ("resume-timeout = \"soon\"", "\"soon\""),
            ("bulk-lines = 4", "at most 3"),
            ("log = 'loud'", "loud"),
        ] {
            fs::write(&path, wrong).unwrap();
            let said = Profile::load(Some(&path)).unwrap_err().to_string();
            assert!(said.contains(why) && said.contains("line 1"), "{said}");
        }
    }

    #[test]
    fn t29_proxies_stand_in_a_profile_and_a_flag_wins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.toml");
        fs::write(folder.path().join("login"), "me:secret").unwrap();
        let text = "proxy-https = \"http://u:canary@proxy.corp:3128\"\nproxy-skip-range = \".inner\"\n\
                    proxy-credentials-file = \"login\"\n";
        fs::write(&path, text).unwrap();
        let profile = Profile::load(Some(&path)).unwrap();
        let way = |flags: &ProxyArgs, host: &str| {
            let egress = profile.egress(flags).unwrap();
            egress.proxy_for(&Destination::new(host, 443)).map(ToString::to_string)
        };
        let none = ProxyArgs::default();
        assert_eq!(way(&none, "relay.test").as_deref(), Some("http://proxy.corp:3128"));
        assert_eq!(way(&none, "relay.inner"), None);
        let flags = ProxyArgs { proxy_https: Some("other:1".to_owned().into()), ..none };
        assert_eq!(way(&flags, "relay.test").as_deref(), Some("http://other:1"));
        assert!(!format!("{profile:?}").contains("canary"));
        fs::write(&path, "proxy-https = \"socks5://u:canary@h\"\n").unwrap();
        let said = Profile::load(Some(&path)).unwrap().egress(&ProxyArgs::default()).unwrap_err().to_string();
        assert!(said.contains("proxy-https in the profile") && !said.contains("canary"), "{said}");
    }

    #[test]
    fn a_bare_name_is_a_profile_in_the_folder_and_files_are_told_apart() {
        let named = |text: &str| Place::of(Some(Path::new(text)));
        let Some(folder) = folder() else { return };
        assert_eq!(
            Place::of(None),
            Place { path: Some(folder.join("profile.toml")), name: "profile".into() }
        );
        assert_eq!(named("work"), Place { path: Some(folder.join("work.toml")), name: "work".into() });
        let (one, two) = (named("/a/p.toml"), named("/b/p.toml"));
        assert!(one.name.starts_with("p-") && one.name != two.name);
        assert_eq!(one.path.as_deref(), Some(Path::new("/a/p.toml")));
        assert!(named("/a/..%2f").name.starts_with("file-"));
    }

    #[test]
    fn a_login_starts_at_the_profile_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.toml");
        let text = "[login]\nflow = \"client-credentials\"\nissuer = \"https://idp\"\nfederated-token-file = \"t\"\n\
                    [login.relay]\nclient-id = \"r\"\n[login.cluster]\nclient-id = \"c\"\n";
        fs::write(&path, text).unwrap();
        let mut profile = Profile::load(Some(&path)).unwrap();
        profile.login(&Egress::direct(), false).unwrap();
        let files: Vec<_> = profile.login.as_mut().unwrap().files().filter_map(|file| file.clone()).collect();
        assert_eq!(files, [folder.path().join("t")]);
    }

    /// Whoever stands in a folder of somebody else's does not run that folder's programs.
    #[test]
    fn a_plugin_with_a_path_starts_at_the_profile_and_a_bare_name_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.toml");
        let text = "[login]\nflow = \"exec\"\nrelay.exec.command = \"bin/plugin\"\ncluster.exec.command = \"plugin\"\n";
        fs::write(&path, text).unwrap();
        let mut profile = Profile::load(Some(&path)).unwrap();
        let files: Vec<_> = profile.login.as_mut().unwrap().plugins().map(|plugin| plugin.clone()).collect();
        assert_eq!(files, [folder.path().join("bin/plugin").to_str().unwrap()]);
    }

    #[test]
    fn paths_start_at_the_profile_or_at_home() {
        assert_eq!(within(Path::new("/etc/t"), Path::new("a/b")), PathBuf::from("/etc/t/a/b"));
        assert_eq!(within(Path::new("/etc/t"), Path::new("/a")), PathBuf::from("/a"));
        if let Some(home) = std::env::home_dir() {
            assert_eq!(within(Path::new("/etc/t"), Path::new("~/a")), home.join("a"));
        }
    }
}

//! Where proxies are set for other programs, and how that is read: as much as names a proxy, and nothing else.

use std::{
    fs::{self, File},
    io::Read as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use super::Hint;

/// Variables of other programs, in lower case; which case they have is no matter here.
const VARIABLES: [&str; 5] =
    ["https_proxy", "all_proxy", "http_proxy", "npm_config_https_proxy", "npm_config_proxy"];
/// The system's files and folders: login shells, apt, SUSE, dnf and yum, wget, git, Docker's daemon.
const SYSTEM: [&str; 12] = [
    "etc/environment",
    "etc/profile",
    "etc/profile.d",
    "etc/sysconfig/proxy",
    "etc/apt/apt.conf",
    "etc/apt/apt.conf.d",
    "etc/dnf/dnf.conf",
    "etc/yum.conf",
    "etc/wgetrc",
    "etc/gitconfig",
    "etc/docker/daemon.json",
    "etc/systemd/system/docker.service.d",
];
/// Those of a person.
const PERSONAL: [&str; 8] =
    [".profile", ".bashrc", ".zshrc", ".curlrc", ".wgetrc", ".gitconfig", ".docker/config.json", ".npmrc"];
/// What a line begins with that names a proxy, in lower case: `https_proxy=`, apt's `Acquire::https::Proxy "…"`, Docker's `"httpsProxy":`,
/// and `proxy = …` of the others.
const KEYS: [&str; 11] = [
    "https_proxy",
    "all_proxy",
    "http_proxy",
    "acquire::https::proxy",
    "acquire::http::proxy",
    "httpsproxy",
    "https-proxy",
    "httpproxy",
    "http-proxy",
    "https.proxy",
    "proxy",
];
/// No such file is longer, as far as it is read; no such folder has more.
const MAX_FILE: u64 = 64 * 1024;
const MAX_FILES: usize = 32;

/// Variables that towline does not read, or not in this spelling, or was told to pass over.
pub(super) fn variables(all: &[(String, String)]) -> Vec<Hint> {
    let named = |(name, value): &(String, String)| {
        let order = VARIABLES.iter().position(|known| name.eq_ignore_ascii_case(known))?;
        Some((order, Hint { url: url(value)?, place: format!("the variable {name}") }))
    };
    let mut found: Vec<(usize, Hint)> = all.iter().filter_map(named).collect();
    found.sort_by_key(|(order, _)| *order);
    found.into_iter().map(|(_, hint)| hint).collect()
}

/// What stands in files of other programs.
pub(super) fn files(root: &Path, home: Option<&Path>) -> Vec<Hint> {
    let system = SYSTEM.iter().map(|path| root.join(path));
    let personal = home.into_iter().flat_map(|home| PERSONAL.iter().map(|path| home.join(path)));
    let each = system.chain(personal).flat_map(|path| below(&path));
    each.flat_map(|path| of_file(&path)).collect()
}

/// The file itself, or those of a folder, in the order of their names.
fn below(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return vec![path.to_owned()] };
    let mut paths: Vec<PathBuf> =
        entries.take(MAX_FILES).filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

fn of_file(path: &Path) -> Vec<Hint> {
    // What is no file, such as a pipe, may never end.
    let text = path.metadata().ok().filter(fs::Metadata::is_file).and_then(|_| {
        let mut text = Vec::new();
        File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    });
    let text = text.unwrap_or_default();
    let hint = |url| Hint { url, place: path.display().to_string() };
    text.lines().filter_map(setting).map(hint).collect()
}

/// The proxy that a line names, if it does.
fn setting(line: &str) -> Option<String> {
    let mut line = line.trim();
    if line.starts_with(['#', ';']) || line.starts_with("//") {
        return None;
    }
    for before in ["export ", "--", "\"", "Environment=", "\""] {
        line = line.strip_prefix(before).unwrap_or(line).trim_start();
    }
    let key = KEYS.iter().find(|key| {
        let begins = line.get(..key.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(key));
        begins && line[key.len()..].starts_with(['=', ':', ' ', '\t', '"'])
    })?;
    url(line[key.len()..].trim_start_matches(['=', ':', ' ', '\t', '"']))
}

/// The URL at the beginning of a value. A bare word, such as apt's `DIRECT`, is none.
fn url(value: &str) -> Option<String> {
    let value = value.trim().trim_start_matches(['"', '\'']);
    let end =
        value.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ';' | ',')).unwrap_or(value.len());
    let value = value[..end].trim_end_matches('/');
    (value.contains(':') && !value.starts_with('$')).then(|| value.to_owned())
}

/// The proxies that a script for automatic configuration may answer with. It is not run: which one is for the relay only it could say.
pub(super) fn of_script(script: &str) -> Vec<Hint> {
    if !script.contains("FindProxyForURL") {
        return Vec::new();
    }
    let after = |(at, word): (usize, &str)| {
        let rest = script[at + word.len()..].trim_start();
        let end =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || ".-:[]".contains(c))).unwrap_or(rest.len());
        Some(Hint { url: url(&rest[..end])?, place: "http://wpad/wpad.dat".to_owned() })
    };
    script.match_indices("PROXY ").filter_map(after).collect()
}

/// The address of the default route's gateway, as Linux lists it.
pub(super) fn gateway(root: &Path) -> Option<Ipv4Addr> {
    let routes = fs::read_to_string(root.join("proc/net/route")).ok()?;
    routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (destination, gateway) = (fields.next()?, fields.next()?);
        // In the machine's own order, of which the address is the bytes.
        let gateway = u32::from_str_radix(gateway, 16).ok().filter(|gateway| *gateway != 0)?;
        (destination == "00000000").then(|| Ipv4Addr::from(gateway.to_ne_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(hints: &[Hint]) -> Vec<&str> {
        hints.iter().map(|hint| hint.url.as_str()).collect()
    }

    #[test]
    fn lines_of_other_programs_name_their_proxy() {
        for (line, expected) in [
            ("https_proxy=http://proxy.corp:3128", Some("http://proxy.corp:3128")),
            (
                "export HTTPS_PROXY=\"http://me:secret@proxy.corp:3128/\"",
                Some("http://me:secret@proxy.corp:3128"),
            ),
            ("Acquire::https::Proxy \"http://proxy.corp:8080\";", Some("http://proxy.corp:8080")),
            ("    \"httpsProxy\": \"http://proxy.corp:8080\",", Some("http://proxy.corp:8080")),
            ("Environment=\"HTTPS_PROXY=http://proxy.corp:1\"", Some("http://proxy.corp:1")),
            ("\tproxy = proxy.corp:3128", Some("proxy.corp:3128")),
            ("proxy=http://proxy.corp:3128", Some("http://proxy.corp:3128")),
            ("--proxy proxy.corp:3128", Some("proxy.corp:3128")),
            ("Acquire::http::Proxy \"DIRECT\";", None),
            ("#https_proxy=http://proxy.corp:3128", None),
            ("export https_proxy=$OTHER:1", None),
            ("proxy_connect = 5:6", None),
            ("no_proxy=localhost:1", None),
            ("", None),
            ("é=1", None),
        ] {
            assert_eq!(setting(line).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn files_below_a_root_and_a_home_are_read_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for (path, text) in [
            ("etc/environment", "PATH=/bin\nhttps_proxy=http://a:1\n"),
            ("etc/apt/apt.conf.d/90proxy", "Acquire::http::Proxy \"http://b:2\";\n"),
            ("home/.curlrc", "proxy = c:3\n"),
        ] {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), text).unwrap();
        }
        let found = files(root, Some(&root.join("home")));
        assert_eq!(urls(&found), ["http://a:1", "http://b:2", "c:3"]);
        assert!(found[1].place.ends_with("etc/apt/apt.conf.d/90proxy"), "{found:?}");
        assert!(files(&root.join("nothing"), None).is_empty());
    }

    #[test]
    fn variables_count_in_any_spelling_and_the_likeliest_comes_first() {
        let all = [("ALL_PROXY", "http://a:1"), ("Https_Proxy", "b:2"), ("PATH", "/bin:/sbin")];
        let all = all.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(urls(&variables(&all)), ["b:2", "http://a:1"]);
    }

    #[test]
    fn a_script_names_proxies_and_any_other_page_none() {
        let script = "function FindProxyForURL(u, h) { return \"PROXY proxy.corp:8080; PROXY 10.0.0.1:3128; DIRECT\"; }";
        assert_eq!(urls(&of_script(script)), ["proxy.corp:8080", "10.0.0.1:3128"]);
        assert!(of_script("<html>PROXY proxy.corp:8080</html>").is_empty());
    }

    #[test]
    fn the_default_routes_gateway_is_read() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("proc/net")).unwrap();
        let gateway_hex = format!("{:08X}", u32::from_ne_bytes([192, 0, 2, 1]));
        let table = format!(
            "Iface\tDestination\tGateway\teth0\neth0\t0002A8C0\t00000000\t1\neth0\t00000000\t{gateway_hex}\t3\n"
        );
        fs::write(folder.path().join("proc/net/route"), table).unwrap();
        assert_eq!(gateway(folder.path()), Some(Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!(gateway(&folder.path().join("nothing")), None);
    }
}

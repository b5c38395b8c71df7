use super::*;

fn args(https: Option<&str>, skip: Option<&str>) -> ProxyArgs {
    ProxyArgs {
        proxy_https: https.map(|text| ProxyText::from(text.to_owned())),
        proxy_skip_range: skip.map(str::to_owned),
        ..ProxyArgs::default()
    }
}

fn resolve(
    flags: &ProxyArgs,
    profile: Option<&ProxyArgs>,
    environment: &[(&str, &str)],
) -> Result<EgressSettings, Report> {
    let look = |name: &str| {
        let mut set = environment.iter().filter(|(known, _)| *known == name);
        set.next().map(|(_, value)| (*value).to_owned())
    };
    let (never, _) = SkipRange::parse("10.96.0.0/20,.svc", BareNames::Exact);
    let written = profile.map(|args| Written { args, origin: &Origin::Profile });
    EgressSettings::resolve(&Sources { flags, written, environment: &look, never })
}

fn way(settings: &EgressSettings, host: &str) -> String {
    settings
        .proxy_for(&Destination::new(host, 443), true)
        .map_or("direct".to_owned(), |proxy| format!("{proxy} by {}", proxy.from()))
}

#[test]
fn a_flag_wins_over_the_profile_and_that_over_the_environment() {
    let none = ProxyArgs::default();
    let environment = [("HTTPS_PROXY", "env:1"), ("https_proxy", "lower:1"), ("HTTP_PROXY", "plain:1")];
    let of = |flag, profile: Option<&str>| {
        let profile = profile.map(|text| args(Some(text), None));
        way(&resolve(&args(flag, None), profile.as_ref(), &environment).unwrap(), "relay.test")
    };
    assert_eq!(of(Some("flag:1"), Some("profile:1")), "http://flag:1 by --proxy-https");
    assert_eq!(of(None, Some("profile:1")), "http://profile:1 by proxy-https in the profile");
    assert_eq!(of(None, None), "http://env:1 by HTTPS_PROXY");
    assert_eq!(of(Some(""), None), "direct", "an empty flag is none, whatever the environment says");
    let lower = resolve(&none, None, &[("HTTPS_PROXY", " "), ("https_proxy", "lower:1")]).unwrap();
    assert_eq!(way(&lower, "relay.test"), "http://lower:1 by https_proxy");
    assert_eq!(way(&resolve(&none, None, &environment[2..]).unwrap(), "relay.test"), "direct");
    let plain = resolve(&none, None, &environment).unwrap();
    let proxy = plain.proxy_for(&Destination::new("relay.test", 80), false).unwrap();
    assert_eq!(proxy.to_string(), "http://plain:1");
}

#[test]
fn the_skip_range_decides_for_each_destination() {
    let environment = [("HTTPS_PROXY", "env:1"), ("NO_PROXY", "corp.test,192.0.2.0/24")];
    let settings = resolve(&ProxyArgs::default(), None, &environment).unwrap();
    for direct in ["corp.test", "relay.corp.test", "192.0.2.7", "10.96.0.1", "api.default.svc"] {
        assert_eq!(way(&settings, direct), "direct", "{direct}");
    }
    for direct in ["localhost", "127.0.0.1", "::1", "169.254.169.254", "fe80::1"] {
        assert_eq!(way(&settings, direct), "direct", "{direct}");
    }
    assert_ne!(way(&settings, "relay.test"), "direct");
    // A flag's list stands in place of the environment's, and not beside it; its names are exact.
    let settings = resolve(&args(Some("flag:1"), Some("other.test")), None, &environment).unwrap();
    assert_eq!(way(&settings, "other.test"), "direct");
    assert_ne!(way(&settings, "a.other.test"), "direct");
    assert_ne!(way(&settings, "corp.test"), "direct");
    assert_eq!(way(&settings, "10.96.0.1"), "direct", "what is never proxied");
    assert_ne!(way(&settings, "localhost"), "direct", "a flag means what it says");
    assert_eq!(way(&settings, "169.254.169.254"), "direct");
}

#[test]
fn t29_everything_that_is_wrong_is_told_at_once_and_without_secrets() {
    let mut flags = args(Some("socks5://me:canary@h"), Some("ok,a*b"));
    flags.proxy_cert = Some("/nowhere/ca.pem".into());
    flags.proxy_credentials_file = Some("/nowhere/login".into());
    let report = resolve(&flags, None, &[]).unwrap_err();
    let said = report.to_string();
    assert_eq!(report.fault, Fault::ProxySettingWrong);
    for part in ["--proxy-https", "SOCKS", "--proxy-skip-range", "a*b", "/nowhere/ca.pem", "/nowhere/login"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!format!("{said} {flags:?}").contains("canary"), "{said} {flags:?}");
    // The environment is not only ours: what can't be read of NO_PROXY is left out.
    assert!(resolve(&ProxyArgs::default(), None, &[("NO_PROXY", "a*b")]).is_ok());
    assert!(resolve(&ProxyArgs::default(), None, &[("HTTPS_PROXY", "socks5://h")]).is_err());
}

#[test]
fn a_credentials_file_takes_the_place_of_the_urls() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("login");
    std::fs::write(&path, "file:one\n").unwrap();
    let mut flags = args(Some("http://url:two@h:1"), None);
    flags.proxy_credentials_file = Some(path.clone());
    let settings = resolve(&flags, None, &[]).unwrap();
    let proxy = settings.proxy_for(&Destination::new("relay.test", 443), true).unwrap();
    let user = || proxy.credentials.as_ref().unwrap().read().unwrap().user().to_owned();
    assert_eq!(user(), "file");
    std::fs::write(&path, "rotated:one\n").unwrap();
    assert_eq!(user(), "rotated");
}

#[test]
fn t29_a_profiles_password_is_not_for_a_proxy_that_a_flag_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("login");
    std::fs::write(&path, "profile:one\n").unwrap();
    let mut profile = args(Some("http://in-profile:1"), None);
    profile.proxy_credentials_file = Some(path);
    let user = |flags: &ProxyArgs, environment: &[(&str, &str)], profile: &ProxyArgs| {
        let settings = resolve(flags, Some(profile), environment).unwrap();
        let proxy = settings.proxy_for(&Destination::new("relay.test", 443), true).unwrap();
        proxy.credentials.as_ref().map(|source| source.read().unwrap().user().to_owned())
    };
    assert_eq!(user(&args(Some("http://me:own@other:1"), None), &[], &profile).as_deref(), Some("me"));
    assert_eq!(user(&args(Some("http://other:1"), None), &[], &profile), None);
    assert_eq!(user(&ProxyArgs::default(), &[], &profile).as_deref(), Some("profile"));
    profile.proxy_https = None;
    let environment = [("HTTPS_PROXY", "http://env:two@h:1")];
    assert_eq!(user(&ProxyArgs::default(), &environment, &profile).as_deref(), Some("profile"));
}

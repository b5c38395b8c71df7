use proptest::prelude::*;

use super::*;

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        let name: HeaderName = name.parse().unwrap();
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

fn read(lines: &[(&str, &str)]) -> Result<Option<Wanted>, Report> {
    Wanted::read(&headers(lines), false)
}

fn fault(lines: &[(&str, &str)]) -> (Fault, u16) {
    let report = read(lines).unwrap_err();
    (report.fault, report.http_status())
}

#[test]
fn t01_each_header_is_a_part_in_any_case_of_letters() {
    assert_eq!(read(&[("accept", "x")]).unwrap(), None);
    let wanted = read(&[
        ("IMPERSONATE-USER", "bob"),
        ("impersonate-Group", "dev"),
        ("Impersonate-Group", "ops,all"),
        ("Impersonate-Uid", "7"),
        ("Impersonate-Extra-Scopes", "view"),
        ("Impersonate-Extra-example.org%2Fcost%20center", "1"),
        ("Impersonate-Extra-example.org%2fcost%20c%65nter", "2"),
    ]);
    let wanted = wanted.unwrap().unwrap();
    let part =
        |group, resource, subresource, name| Part { group, resource, subresource, namespace: "", name };
    let authentication = "authentication.k8s.io";
    assert_eq!(
        wanted.parts().unwrap(),
        [
            part("", "users", "", "bob"),
            part("", "groups", "", "dev"),
            part("", "groups", "", "ops,all"),
            part(authentication, "uids", "", "7"),
            part(authentication, "userextras", "example.org/cost center", "1"),
            part(authentication, "userextras", "example.org/cost center", "2"),
            part(authentication, "userextras", "scopes", "view"),
        ]
    );
}

#[test]
fn a_service_account_is_judged_as_one_and_what_only_looks_like_one_is_refused() {
    let wanted = read(&[("Impersonate-User", "system:serviceaccount:kube-system:a.b-c")]).unwrap().unwrap();
    let parts = wanted.parts().unwrap();
    assert_eq!(
        (parts[0].resource, parts[0].namespace, parts[0].name),
        ("serviceaccounts", "kube-system", "a.b-c")
    );
    for user in ["a", "a:", ":b", "a:b:c", "A:b", "a:-b", "a.b:c", "a:b..c", "a:b/c"] {
        let user = format!("system:serviceaccount:{user}");
        assert_eq!(fault(&[("Impersonate-User", &user)]), (Fault::ActingMalformed, 400), "{user}");
    }
    let node = read(&[("Impersonate-User", "system:node:a")]).unwrap().unwrap();
    assert_eq!(node.parts().unwrap()[0].resource, "users");
}

#[test]
fn t01_what_two_programs_could_read_differently_is_malformed() {
    for lines in [
        &[("Impersonate-Group", "dev")][..],
        &[("Impersonate-Uid", "7")],
        &[("Impersonate-Extra-scopes", "x")],
        &[("Impersonate-User", "")],
        &[("Impersonate-User", "\u{a0}bob")],
        &[("Impersonate-User", "a\tb")],
        &[("Impersonate-User", "bob"), ("impersonate-user", "bob")],
        &[("Impersonate-User", "bob"), ("Impersonate-Uid", "1"), ("Impersonate-Uid", "2")],
        &[("Impersonate-User", "bob"), ("Impersonate-Group", "")],
        &[("Impersonate-User", "bob"), ("Impersonate-Extra-", "x")],
        &[("Impersonate-User", "bob"), ("Impersonate-Extra-a%4", "x")],
        &[("Impersonate-User", "bob"), ("Impersonate-Extra-a%zz", "x")],
        &[("Impersonate-User", "bob"), ("Impersonate-Extra-a%ff", "x")],
        &[("Impersonate-User", "bob"), ("Impersonate-Extra-%41", "x")],
        &[("Impersonate-User", "bob"), ("Impersonate-Extra-a%00", "x")],
        &[("Impersonate-User", "bob"), ("Impersonate-Extra-a", "")],
    ] {
        assert_eq!(fault(lines), (Fault::ActingMalformed, 400), "{lines:?}");
    }
    let mut raw = headers(&[]);
    raw.insert(USER, HeaderValue::from_bytes(b"b\xffb").unwrap());
    assert_eq!(Wanted::read(&raw, false).unwrap_err().fault, Fault::ActingMalformed);
}

#[test]
fn t01_names_and_keys_are_as_long_as_may_be_and_no_longer() {
    let (longest, longer) = ("x".repeat(1024), ["x".repeat(1025), "x".repeat(1026)]);
    assert!(read(&[("Impersonate-User", &longest)]).is_ok());
    let key = |key: &str| format!("Impersonate-Extra-{key}");
    assert!(read(&[("Impersonate-User", "bob"), (&key(&longest), "x")]).is_ok());
    for longer in &longer {
        assert_eq!(fault(&[("Impersonate-User", longer)]), (Fault::ActingMalformed, 400));
        let lines = [("Impersonate-User", "bob"), (&key(longer), "x")];
        assert_eq!(fault(&lines), (Fault::ActingMalformed, 400));
    }
}

#[test]
fn t01_whom_nobody_may_be_is_refused_before_anybody_is_asked() {
    for lines in [
        &[("Impersonate-User", "bob"), ("Impersonate-Group", "system:masters")][..],
        &[("Impersonate-User", "bob"), ("Impersonate-Group", "SYSTEM:Masters")],
        &[("Impersonate-User", "bob"), ("Impersonate-Group", "dev, system:masters")],
        &[("Impersonate-User", "system:masters")],
        &[("Impersonate-User", "towline:role:admin")],
        &[("Impersonate-User", "bob"), ("Impersonate-Group", "Towline:role:admin")],
        &[("Impersonate-User", "bob"), ("Impersonate-Group", "dev,towline:x")],
        &[("Impersonate-User", "bob"), ("Impersonate-Extra-towline.dev%2Foriginal-user", "bob")],
        &[("Impersonate-User", "bob"), ("Impersonate-Extra-%74owline.dev%2Foriginal-user", "bob")],
        &[("Impersonate-User", "bob"), ("Impersonate-Extra-a.towline.dev%2Fb", "bob")],
        &[("Impersonate-User", "bob"), ("Impersonate-Unheard-Of", "x")],
        &[("Impersonate-Unheard-Of", "x")],
    ] {
        assert_eq!(fault(lines), (Fault::ImpersonationUnsupported, 403), "{lines:?}");
    }
    let masters = headers(&[("Impersonate-User", "bob"), ("Impersonate-Group", "system:masters")]);
    assert!(Wanted::read(&masters, true).unwrap().is_some());
    let own = headers(&[("Impersonate-User", "towline:x")]);
    assert!(Wanted::read(&own, true).is_err(), "the flag is for system:masters alone");
}

#[test]
fn t53_more_than_32_parts_are_refused_unread() {
    let mut lines = vec![("Impersonate-User", "bob")];
    lines.extend(std::iter::repeat_n(("Impersonate-Group", "g"), 31));
    assert_eq!(read(&lines).unwrap().unwrap().parts().unwrap().len(), 32);
    lines.push(("Impersonate-Extra-a", "x"));
    assert_eq!(fault(&lines), (Fault::ActingMalformed, 400));
    let many = vec![("Impersonate-Group", "g"); 10_000];
    assert_eq!(fault(&many), (Fault::ActingMalformed, 400));
}

proptest! {
    #[test]
    fn t01_whatever_asks_is_refused_or_counted_and_never_lost(
        lines in prop::collection::vec(
            ("(impersonate|Impersonate|IMPERSONATE)-(user|user|Group|UID|extra-[a-z%0-9]{0,6}|x)", "[a-z ,:]{1,12}"), 1..6),
    ) {
        let lines: Vec<(&str, &str)> = lines.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        match read(&lines) {
            Ok(wanted) => prop_assert_eq!(wanted.unwrap().parts().unwrap().len(), lines.len()),
            Err(report) => prop_assert!(matches!(report.http_status(), 400 | 403)),
        }
    }
}

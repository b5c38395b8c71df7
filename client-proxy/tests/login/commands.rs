//! The program itself: `login`, `whoami`, `logout`, `auth check`, and tokens of CI jobs.

use std::{process::Stdio, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use crate::{
    CLIENTS, Home,
    scripted::{Asked, Reply, Scripted, claims, granted, sign},
    sessions::{come_back, grants, parameter},
    soon,
};

/// What the program said.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn towline(home: &Home, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_towline"));
    command.args(arguments).env_clear().env("HOME", home.0.path()).stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn run(mut command: Command) -> Said {
    let output = soon("the program", command.output()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Writes the profile `work`.
fn profile(home: &Home, login: &str) {
    let folder = home.0.path().join(".config/towline");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("work.toml"), format!("[login]\n{login}")).unwrap();
}

#[tokio::test]
async fn t29_a_person_logs_in_is_told_who_they_are_and_logs_out() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    profile(&home, &home.table(&idp.url(), CLIENTS));
    grants(&idp);
    let nobody = run(towline(&home, &["whoami", "--profile", "work"])).await;
    assert!(nobody.code == Some(12) && nobody.err.contains("TL-LGN-001"), "{nobody:?}");

    let mut child = towline(&home, &["login", "--profile", "work", "--no-browser", "--log", "trace"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut told = String::new();
    soon("the login", async {
        while let Some(line) = lines.next_line().await.unwrap() {
            told += &line;
            let Ok(url) = line.trim().parse::<url::Url>() else { continue };
            let second = come_back(&url, "").await.location.unwrap();
            come_back(&second, "").await;
        }
    })
    .await;
    let ended = soon("the end", child.wait_with_output()).await.unwrap();
    let out = String::from_utf8(ended.stdout).unwrap();
    assert!(ended.status.success() && out.contains("towline-cluster"), "{out} {told}");

    let json = run(towline(&home, &["whoami", "--profile", "work", "-o", "json"])).await;
    let read: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(read["profile"], "work");
    assert_eq!(read["identities"][1]["audiences"], json!(["towline-cluster"]));
    assert_eq!(read["identities"][0]["name"], "ada@example");
    let text = run(towline(&home, &["whoami", "--profile", "work"])).await;
    assert!(text.out.contains("subject    ada"), "{text:?}");

    // Kept for its owner alone, and said nowhere.
    let kept = home.0.path().join(".local/state/towline/logins/work.relay.json");
    let kept = std::fs::read_to_string(kept).unwrap();
    let kept: Value = serde_json::from_str(&kept).unwrap();
    let token = kept["secrets"]["token"].as_str().unwrap();
    for said in [&out, &told, &json.out, &text.out] {
        assert!(!said.contains(token) && !said.contains(token.split('.').nth(1).unwrap()), "{said}");
        assert!(!said.contains("canary"), "{said}");
    }

    let out = run(towline(&home, &["logout", "--profile", "work"])).await;
    assert!(out.code == Some(0) && out.out.contains("relay: logged out"), "{out:?}");
    let nobody = run(towline(&home, &["whoami", "--profile", "work"])).await;
    assert_eq!(nobody.code, Some(12), "{nobody:?}");
}

/// A login that went to a file while the keyring was out of reach leaves the one before in there: logging out revokes both.
#[tokio::test]
async fn logging_out_revokes_what_was_left_in_the_keyring() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    profile(&home, &home.table(&idp.url(), CLIENTS));
    grants(&idp);
    let settings = home.settings(&idp.url(), CLIENTS);
    crate::sessions::log_in(&settings, &home.store()).await;
    let logins = home.0.path().join(".local/state/towline");
    std::fs::create_dir_all(logins.parent().unwrap()).unwrap();
    std::fs::rename(home.0.path().join("state"), &logins).unwrap();
    for purpose in ["relay", "cluster"] {
        let file = |name: &str| logins.join(format!("logins/{name}.{purpose}.json"));
        std::fs::rename(file("p"), file("work")).unwrap();
    }
    // What libsecret's program does with a keyring of one login.
    let (bin, kept) = (home.0.path().join("bin"), home.0.path().join("kept"));
    std::fs::create_dir(&bin).unwrap();
    let script = format!(
        "#!/bin/sh\n[ \"$5\" = work.relay ] || exit 1\ncase $1 in lookup) cat '{kept}' 2>/dev/null;; clear) rm -f '{kept}';; esac\n",
        kept = kept.display()
    );
    std::fs::write(bin.join("secret-tool"), script).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(bin.join("secret-tool"), executable).unwrap();
    let of = json!({ "issuer": idp.url(), "client": "towline-relay" });
    let left = json!({ "token": "canary", "refresh": "canary-left", "of": of });
    std::fs::write(&kept, left.to_string()).unwrap();

    idp.on("/revoke", |_| Reply::new(200, ""));
    let mut logout = towline(&home, &["logout", "--profile", "work"]);
    let path = format!("{}:/usr/bin:/bin", bin.display());
    logout.env("PATH", path).env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere");
    let said = run(logout).await;
    assert!(said.code == Some(0) && said.out.contains("relay: logged out, and the provider"), "{said:?}");
    let mut told: Vec<_> = idp.asked("/revoke").iter().map(|asked| asked.form["token"].clone()).collect();
    told.sort();
    assert_eq!(told, ["canary-left", "canary-refresh-0", "canary-refresh-1"]);
    assert!(!kept.exists());
}

#[tokio::test]
async fn t29_what_a_token_would_become_is_told_rule_by_rule_and_never_the_token() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let check = async |token: &str, audience: &str| {
        let path = home.0.path().join("token");
        std::fs::write(&path, token).unwrap();
        let ca = home.0.path().join("ca.pem");
        let (path, ca, url) = (path.to_str().unwrap(), ca.to_str().unwrap(), idp.url());
        let mut arguments =
            vec!["auth", "check", "--token-file", path, "--oidc-issuer-url", &url, "--oidc-ca-file", ca];
        arguments.extend([
            "--oidc-signing-algs",
            "ES256",
            "--oidc-client-id",
            audience,
            "--oidc-groups-claim",
            "groups",
        ]);
        arguments.extend(["--oidc-username-prefix", "oidc:"]);
        let said = run(towline(&home, &arguments)).await;
        for part in token.split('.').filter(|part| part.len() > 20) {
            assert!(!said.out.contains(part) && !said.err.contains(part), "{said:?}");
        }
        said
    };
    let mut claims = idp.claims("towline-cluster");
    claims["groups"] = json!(["devs"]);
    let token = idp.sign(&claims);
    let good = check(&token, "towline-cluster").await;
    assert_eq!(good.code, Some(0), "{good:?}");
    assert!(good.out.contains("accepted as \"oidc:ada\"") && good.out.contains("group \"devs\""), "{good:?}");
    let bad = check(&token, "another").await;
    assert_eq!(bad.code, Some(12));
    assert!(bad.out.contains("refused: the token is not for the audience"), "{bad:?}");
    assert!(bad.out.lines().any(|line| line.starts_with("ok") && line.contains("signature")), "{bad:?}");
    let broken = check("canary", "another").await;
    assert!(broken.code == Some(12) && broken.out.contains("malformed"), "{broken:?}");
}

/// What an agent adds to its issuers' rules: how old a token may be, and tokens of service accounts.
#[tokio::test]
async fn auth_check_judges_as_the_agents_own_flags_do() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let url = idp.url();
    let check = async |token: &str, more: &[&str]| {
        let (file, ca) = (home.0.path().join("t"), home.0.path().join("ca.pem"));
        std::fs::write(&file, token).unwrap();
        let (file, ca) = (file.to_str().unwrap(), ca.to_str().unwrap());
        let common = [
            "auth",
            "check",
            "--token-file",
            file,
            "--oidc-issuer-url",
            &url,
            "--oidc-ca-file",
            ca,
            "-o",
            "json",
        ];
        let said =
            run(towline(&home, &[&common[..], &["--oidc-signing-algs", "ES256"], more].concat())).await;
        let read: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"));
        (said.code, read)
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let mut claims = idp.claims("towline-cluster");
    claims["iat"] = json!(now - 7200);
    let old = idp.sign(&claims);
    let (code, read) = check(&old, &[]).await;
    assert_eq!((code, &read["verdict"]), (Some(0), &json!("accepted")));
    assert_eq!(read["principal"], json!(format!("{url}#ada")));
    assert!(read["endsAt"].is_string() && read["rules"].as_array().unwrap().len() > 4, "{read}");
    let (code, read) = check(&old, &["--max-token-age", "1h"]).await;
    assert_eq!((code, &read["verdict"], &read["code"]), (Some(12), &json!("refused"), &json!("TL-IDN-003")));
    assert_eq!(read["rules"].as_array().unwrap().last().unwrap()["rule"], "age");
    assert_eq!(check(&old, &["--max-token-age", "3h"]).await.0, Some(0));

    claims["iss"] = json!("https://kubernetes.default.svc");
    claims["sub"] = json!("system:serviceaccount:ci:deployer");
    let account = idp.sign(&claims);
    let (code, read) = check(&account, &[]).await;
    assert_eq!((code, &read["code"]), (Some(12), &json!("TL-IDN-025")));
    let (code, read) = check(&account, &["--allow-service-account-tokens"]).await;
    assert_eq!((code, &read["verdict"]), (Some(0), &json!("passed-on")));
    assert_eq!(read["serviceAccount"], claims["sub"]);
}

#[tokio::test]
async fn a_github_job_has_two_tokens_by_two_requests() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    profile(&home, "flow = 'github'\ncluster.audience = 'prod'\n");
    let (signer, issuer) = (Arc::clone(&idp.signer), idp.url());
    idp.on("/job", move |asked: &Asked| {
        let url: url::Url = format!("https://x{}", asked.target).parse().unwrap();
        let audience = parameter(&url, "audience");
        Reply::json(&json!({ "value": sign(&signer, &claims(&issuer, &audience)), "count": 1 }))
    });
    let mut command = towline(&home, &["whoami", "--profile", "work", "-o", "json"]);
    command
        .env("SSL_CERT_FILE", home.0.path().join("ca.pem"))
        .env("ACTIONS_ID_TOKEN_REQUEST_URL", format!("{}/job?api=2", idp.url()))
        .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "canary-job");
    let said = run(command).await;
    let read: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"));
    assert_eq!(read["identities"][0]["audiences"], json!(["towline-relay"]));
    assert_eq!(read["identities"][1]["audiences"], json!(["prod"]));
    assert_eq!(read["identities"][0]["renewable"], json!(true));
    let asked = idp.asked("/job");
    assert_eq!(asked[0].authorization.as_deref(), Some("Bearer canary-job"));
    assert!(asked[0].target.contains("api=2&audience=towline-relay"), "{asked:?}");
    assert!(!said.err.contains("canary") && !said.out.contains("canary"));
    // A GitHub of one's own, whose authority the profile names.
    let ca = home.0.path().join("ca.pem");
    profile(&home, &format!("flow = 'github'\nca-file = '{}'\n", ca.display()));
    let mut own = towline(&home, &["whoami", "--profile", "work", "-o", "json"]);
    own.env("ACTIONS_ID_TOKEN_REQUEST_URL", format!("{}/job?api=2", idp.url()))
        .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "canary-job");
    let said = run(own).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let without = run(towline(&home, &["whoami", "--profile", "work"])).await;
    assert!(without.err.contains("TL-LGN-010") && without.code == Some(12), "{without:?}");

    // GitHub Enterprise Server with an authority of its own, which the machine does not know.
    let asks = async |login: &str| {
        profile(&home, login);
        let mut command = towline(&home, &["whoami", "--profile", "work", "-o", "json"]);
        command
            .env("ACTIONS_ID_TOKEN_REQUEST_URL", format!("{}/job?api=2", idp.url()))
            .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "canary-job");
        run(command).await
    };
    let unknown = asks("flow = 'github'\n").await;
    assert!(unknown.code != Some(0) && !unknown.err.contains("canary"), "{unknown:?}");
    let known =
        asks(&format!("flow = 'github'\nca-file = '{}'\n", home.0.path().join("ca.pem").display())).await;
    let read: Value = serde_json::from_str(&known.out).unwrap_or_else(|_| panic!("{known:?}"));
    assert_eq!(read["identities"][0]["audiences"], json!(["towline-relay"]));
}

/// A provider that has but one client for both: the flag, or the profile, says so.
#[tokio::test]
async fn one_audience_is_taken_where_somebody_says_so() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    profile(&home, &home.table(&idp.url(), "client-id = 'shared'"));
    grants(&idp);
    let refused = run(towline(&home, &["login", "--profile", "work", "--no-browser"])).await;
    assert!(refused.code == Some(2) && refused.err.contains("--allow-shared-audience"), "{refused:?}");
    let login = ["login", "--profile", "work", "--no-browser", "--allow-shared-audience"];
    let mut child = towline(&home, &login).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    soon("the login", async {
        while let Some(line) = lines.next_line().await.unwrap() {
            let Ok(url) = line.trim().parse::<url::Url>() else { continue };
            let second = come_back(&url, "").await.location.unwrap();
            come_back(&second, "").await;
        }
    })
    .await;
    let ended = soon("the end", child.wait_with_output()).await.unwrap();
    assert!(ended.status.success(), "{ended:?}");
    let who = run(towline(&home, &["whoami", "--profile", "work", "-o", "json"])).await;
    let read: Value = serde_json::from_str(&who.out).unwrap_or_else(|_| panic!("{who:?}"));
    assert_eq!(read["identities"][1]["audiences"], json!(["shared"]));
    let out = run(towline(&home, &["logout", "--profile", "work"])).await;
    assert!(out.code == Some(0) && out.out.contains("cluster: logged out"), "{out:?}");
}

/// A short command begins while its token is due: it may be over before the provider has answered, and the successor of the refresh
/// token is kept all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_command_that_ends_during_a_renewal_does_not_lose_the_login() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    grants(&idp);
    crate::sessions::log_in(&settings, &home.store()).await;
    // Three quarters of its life are over.
    let file = home.0.path().join("state/logins/p.relay.json");
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let mut due = idp.claims("towline-relay");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    (due["iat"], due["exp"]) = (json!(now - 3000), json!(now + 600));
    kept["secrets"]["token"] = json!(idp.sign(&due));
    std::fs::write(&file, kept.to_string()).unwrap();
    // The relay hangs up once the provider has been asked, and the provider answers once the command has said so.
    let (asked, mut is_asked) = tokio::sync::mpsc::channel(1);
    let (answer, answers) = std::sync::mpsc::channel::<()>();
    let id = idp.sign(&idp.claims("towline-relay"));
    idp.on("/token", move |_| {
        let _test_is_over = asked.try_send(());
        let late = || answers.recv_timeout(Duration::from_secs(4));
        let _answered = tokio::task::block_in_place(late);
        granted(&id, "canary-successor")
    });
    let relay = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let folder = home.0.path().join(".config/towline");
    std::fs::create_dir_all(&folder).unwrap();
    let text = format!(
        "relay = 'https://{}'\nrelay-key = '{}'\nstate-dir = '{}'\ncluster-token-file = 'cluster-token'\n[login]\n{}",
        relay.local_addr().unwrap(),
        "a".repeat(52),
        home.0.path().join("state").display(),
        home.table(&idp.url(), CLIENTS),
    );
    std::fs::write(folder.join("p.toml"), text).unwrap();
    std::fs::write(folder.join("cluster-token"), idp.sign(&idp.claims("towline-cluster"))).unwrap();
    let mut child = towline(&home, &["list", "--profile", "p"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let hung_up = async {
        let held = relay.accept().await.unwrap();
        is_asked.recv().await.unwrap();
        drop((held, relay));
    };
    soon("the relay", hung_up).await;
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let said = soon("the command", async {
        loop {
            let line = lines.next_line().await.unwrap().expect("it says what went wrong");
            if line.contains("[TL-") {
                return line;
            }
        }
    })
    .await;
    answer.send(()).unwrap();
    let mut said = said;
    soon("the last words", async {
        while let Some(line) = lines.next_line().await.unwrap() {
            said += &line;
        }
    })
    .await;
    let status = soon("the end", child.wait()).await.unwrap();
    assert_ne!(status.code(), Some(0), "{said}");
    let kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(kept["secrets"]["refresh"], "canary-successor", "{said}");
}

#[tokio::test]
async fn a_gitlab_jobs_tokens_stand_in_variables() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    profile(&home, "flow = 'gitlab'\nrelay.token-env = 'RELAY_T'\ncluster.token-env = 'CLUSTER_T'\n");
    let mut command = towline(&home, &["whoami", "--profile", "work", "-o", "json"]);
    command
        .env("RELAY_T", idp.sign(&idp.claims("towline-relay")))
        .env("CLUSTER_T", idp.sign(&idp.claims("towline-cluster")));
    let said = run(command).await;
    let read: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"));
    assert_eq!(read["identities"][0]["audiences"], json!(["towline-relay"]));
    assert_eq!(read["identities"][0]["renewable"], json!(false));
}

/// `az` as it answers, in a folder of PATH.
#[tokio::test]
async fn who_is_logged_in_to_az_has_its_tokens() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    profile(
        &home,
        "flow = 'az'\ntenant = 'T'\nrelay.scopes = ['api://r/.default']\ncluster.resource = 'api://c'\n",
    );
    let tokens = [idp.sign(&idp.claims("r")), idp.sign(&idp.claims("c"))];
    let az = home.0.path().join("az");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in\n\
         'account get-access-token --output json --scope api://r/.default --tenant T') t='{}';;\n\
         'account get-access-token --output json --resource api://c --tenant T') t='{}';;\n\
         *) exit 1;; esac\n\
         printf '{{\"accessToken\":\"%s\",\"expires_on\":4000000000,\"expiresOn\":\"x\",\"tokenType\":\"Bearer\"}}' \"$t\"\n",
        tokens[0], tokens[1]
    );
    std::fs::write(&az, script).unwrap();
    std::fs::set_permissions(&az, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = towline(&home, &["whoami", "--profile", "work", "-o", "json"]);
    command.env("PATH", format!("{}:/usr/bin:/bin", home.0.path().display()));
    let said = run(command).await;
    let read: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"));
    assert_eq!(read["identities"][1]["audiences"], json!(["c"]));
    assert!(!said.out.contains(&tokens[0]) && !said.err.contains(&tokens[0]));
    // Nobody is logged in there.
    std::fs::write(&az, "#!/bin/sh\necho 'Please run az login' >&2; exit 1\n").unwrap();
    let mut command = towline(&home, &["whoami", "--profile", "work"]);
    command.env("PATH", format!("{}:/usr/bin:/bin", home.0.path().display()));
    let said = run(command).await;
    assert!(
        said.err.contains("TL-LGN-007") && said.err.contains("az login") && said.code == Some(12),
        "{said:?}"
    );
}

/// Ctrl-C gives a login up, at once.
#[tokio::test]
async fn a_login_can_be_given_up() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    profile(&home, &home.table(&idp.url(), CLIENTS));
    let mut child = towline(&home, &["login", "--profile", "work", "--no-browser"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    soon("the prompt", lines.next_line()).await.unwrap().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), child.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(130));
}

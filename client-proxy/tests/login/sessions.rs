//! What a login gives: one visit, two tokens, renewals, and an end.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use data_encoding::BASE64URL_NOPAD;
use serde_json::json;
use towline::{
    login::{Prompt, Session, Settings, Store, interactive, issuer, log_out},
    token::{Issue as _, Purpose, Token, TokenFrom, Tokens},
};
use towline_tunnel::{clock::Clock, fault::Fault};
use url::Url;

use crate::{
    CLIENTS, Home, Told, person,
    scripted::{Asked, Reply, Scripted, claims, granted, sign},
    soon,
};

/// A query's parameter.
pub fn parameter(url: &Url, name: &str) -> String {
    let mut values =
        url.query_pairs().filter(|(known, _)| known == name).map(|(_, value)| value.into_owned());
    let value = values.next().unwrap_or_else(|| panic!("{name} is not in {url}"));
    assert!(values.next().is_none(), "{name} stands twice");
    value
}

/// Answers token requests with ID tokens whose nonce is taken from `code`, which is made of it; counts up refresh tokens.
pub fn grants(idp: &Scripted) {
    let (signer, url, count) = (Arc::clone(&idp.signer), idp.url(), AtomicU32::new(0));
    idp.on("/token", move |asked| {
        let client = asked.form["client_id"].clone();
        let mut said = claims(&url, &client);
        if let Some(nonce) = asked.form.get("code").and_then(|code| code.strip_prefix("code-")) {
            said["nonce"] = json!(nonce);
        }
        let number = count.fetch_add(1, Ordering::Relaxed);
        said["n"] = json!(number);
        granted(&sign(&signer, &said), &format!("canary-refresh-{number}"))
    });
}

/// Comes back from the provider as it would send the browser.
pub async fn come_back(asked: &Url, more: &str) -> person::Page {
    let back = format!(
        "{}?state={}&code=code-{}{more}",
        parameter(asked, "redirect_uri"),
        parameter(asked, "state"),
        parameter(asked, "nonce")
    );
    get(&back.parse().unwrap()).await
}

pub async fn get(url: &Url) -> person::Page {
    let host = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
    get_as(url, &host).await
}

pub async fn get_as(url: &Url, host: &str) -> person::Page {
    let request = http::Request::get("/").header("host", host).body(http_body_util::Full::default()).unwrap();
    person::plain(url, request).await
}

/// Logs in at the scripted provider, in the browser's place.
pub async fn log_in(settings: &Settings, store: &Store) {
    let (told, mut prompts) = Told::new();
    let say = |prompt: &Prompt| told.say(prompt);
    let clock = Clock::system();
    let (people, ()) = soon("the login", async {
        tokio::join!(interactive(settings, store, &say, &clock), async {
            let Some(Prompt::Visit { url }) = prompts.recv().await else {
                panic!("nobody is told where to go")
            };
            let next = come_back(&url.parse().unwrap(), "").await.location.expect("the second authorisation");
            let last = come_back(&next, "").await;
            assert!(last.body.contains("Your part is done"), "{last:?}");
        })
    })
    .await;
    assert_eq!(people.unwrap().len(), 2);
}

#[tokio::test]
async fn one_visit_of_the_browser_gives_both_tokens() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    grants(&idp);
    let (told, mut prompts) = Told::new();
    let say = |prompt: &Prompt| told.say(prompt);
    let (store, clock) = (home.store(), Clock::system());
    let (people, (first, second)) = soon("the login", async {
        tokio::join!(interactive(&settings, &store, &say, &clock), async {
            let Some(Prompt::Visit { url }) = prompts.recv().await else {
                panic!("nobody is told where to go")
            };
            let first: Url = url.parse().unwrap();
            let second = come_back(&first, "").await.location.expect("the second authorisation");
            let done = come_back(&second, "").await;
            assert!(done.body.contains("Your part is done"), "{done:?}");
            (first, second)
        })
    })
    .await;
    let people = people.unwrap();
    assert_eq!(
        (people[0].audiences[0].as_str(), people[1].audiences[0].as_str()),
        ("towline-relay", "towline-cluster")
    );
    assert!(people.iter().all(|who| who.renewable && who.subject.as_deref() == Some("ada")));
    assert!(prompts.try_recv().is_err(), "nobody is told twice");

    for (url, client) in [(&first, "towline-relay"), (&second, "towline-cluster")] {
        assert_eq!(parameter(url, "client_id"), client);
        assert_eq!(parameter(url, "scope"), "openid offline_access");
        assert_eq!(parameter(url, "response_type"), "code");
        assert_eq!(parameter(url, "code_challenge_method"), "S256");
        assert!(parameter(url, "redirect_uri").starts_with("http://127.0.0.1:"));
    }
    for fresh in ["state", "nonce", "code_challenge"] {
        assert_ne!(parameter(&first, fresh), parameter(&second, fresh), "{fresh} is used once");
        assert!(parameter(&first, fresh).len() >= 43, "{fresh} is long");
    }
    // The verifier is what was promised (RFC 7636, section 4.6).
    for (asked, url) in idp.asked("/token").iter().zip([&first, &second]) {
        let hash =
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, asked.form["code_verifier"].as_bytes());
        assert_eq!(BASE64URL_NOPAD.encode(hash.as_ref()), parameter(url, "code_challenge"));
        assert_eq!(asked.form["redirect_uri"], parameter(url, "redirect_uri"));
        assert!(!asked.form.contains_key("client_secret") && asked.authorization.is_none());
    }

    let token = |purpose| TokenFrom::Issuer(issuer(&settings, purpose, &store).unwrap());
    let tokens = Tokens::start(token(Purpose::Relay), token(Purpose::Cluster), false, &clock).await.unwrap();
    let relay = Token::parse(tokens.for_relay(SystemTime::now()).unwrap().reveal_text().unwrap()).unwrap();
    assert_eq!(relay.claims()["aud"], "towline-relay");
    assert_eq!(idp.asked("/token").len(), 2, "what is kept is used as it is");
}

/// `redirect-host`, `prompt`, `resource` and access tokens: as Entra ID and others want it.
#[tokio::test]
async fn one_client_with_two_scopes_gives_two_access_tokens() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(
        &idp.url(),
        "client-id = 'one'\ntoken = 'access'\nredirect-host = 'localhost'\nprompt = 'consent'\n\
         relay.scopes = ['api://r/.default']\ncluster.scopes = ['api://c/.default']\ncluster.resource = 'https://c'",
    );
    let (signer, url) = (Arc::clone(&idp.signer), idp.url());
    idp.on("/token", move |asked: &Asked| {
        let mut id = claims(&url, "one");
        if let Some(code) = asked.form.get("code") {
            id["nonce"] = json!(code.strip_prefix("code-").unwrap());
        }
        let audience = if asked.form.contains_key("resource") { "c" } else { "r" };
        let access = sign(&signer, &claims(&url, audience));
        Reply::json(&json!({ "access_token": access, "token_type": "bearer", "id_token": sign(&signer, &id),
            "refresh_token": "canary-refresh", "expires_in": 3600 }))
    });
    log_in(&settings, &home.store()).await;
    let session = Session::new(&settings, Purpose::Cluster, home.store());
    assert_eq!(session.kept(SystemTime::now()).await.unwrap().unwrap().claims()["aud"], "c");
    session.issue(SystemTime::now()).await.unwrap();
    let asked = idp.asked("/token");
    let last = asked.last().unwrap();
    assert_eq!(last.form["scope"], "openid offline_access api://c/.default");
    assert_eq!(
        (last.form["resource"].as_str(), last.form["grant_type"].as_str()),
        ("https://c", "refresh_token")
    );
}

/// A refresh token that is replaced at each use: two processes that renew at once use it once.
#[tokio::test]
async fn two_processes_never_use_one_refresh_token_twice() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    grants(&idp);
    log_in(&settings, &home.store()).await;
    let before = idp.asked("/token").len();
    let sessions = [(); 4].map(|()| Session::new(&settings, Purpose::Relay, home.store()));
    for session in &sessions {
        assert!(session.kept(SystemTime::now()).await.unwrap().is_some());
    }
    let [one, two, three, four] = &sessions;
    let now = SystemTime::now();
    let (one, two, three, four) =
        tokio::join!(one.issue(now), two.issue(now), three.issue(now), four.issue(now));
    let tokens: Vec<_> = [one, two, three, four].into_iter().map(|token| token.unwrap()).collect();
    assert!(tokens.iter().all(|token| *token == tokens[0]), "all have the fresh one");
    let asked = idp.asked("/token");
    assert_eq!(asked.len(), before + 1);
    assert_eq!(asked[before].form["refresh_token"], "canary-refresh-0");
    // And the next renewal is by its successor.
    sessions[0].issue(now).await.unwrap();
    assert_eq!(idp.asked("/token").last().unwrap().form["refresh_token"], "canary-refresh-2");
}

#[tokio::test]
async fn a_login_that_is_over_is_not_asked_for_again_until_somebody_logs_in() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    grants(&idp);
    log_in(&settings, &home.store()).await;
    let session = Session::new(&settings, Purpose::Cluster, home.store());
    session.kept(SystemTime::now()).await.unwrap();
    idp.on("/token", |_| Reply::error("invalid_grant"));
    let before = idp.asked("/token").len();
    for _ in 0..3 {
        assert_eq!(session.issue(SystemTime::now()).await.unwrap_err().fault, Fault::LoginEnded);
    }
    assert_eq!(idp.asked("/token").len(), before + 1, "a refused token is not shown again");
    // Somebody logs in again, in another process; the running one takes it up.
    grants(&idp);
    log_in(&settings, &home.store()).await;
    let asked = idp.asked("/token").len();
    session.issue(SystemTime::now()).await.unwrap();
    assert_eq!(idp.asked("/token").len(), asked, "what the other process has is fresh");
}

#[tokio::test]
async fn a_provider_that_is_away_ends_nothing_and_says_when_to_come_again() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    grants(&idp);
    log_in(&settings, &home.store()).await;
    idp.on("/token", |_| Reply::new(503, "canary").with("retry-after", "7"));
    let session = Session::new(&settings, Purpose::Relay, home.store());
    let kept = session.kept(SystemTime::now()).await.unwrap();
    assert!(kept.is_some(), "a start asks nobody");
    let report = session.issue(SystemTime::now()).await.unwrap_err();
    assert_eq!((report.fault, report.delay()), (Fault::IdpUnreachable, Duration::from_secs(7)));
    assert!(!report.to_string().contains("canary"));
    // No connection at all: the same, and the login is still there.
    drop(idp);
    assert_eq!(session.issue(SystemTime::now()).await.unwrap_err().fault, Fault::IdpUnreachable);
    assert_eq!(session.kept(SystemTime::now()).await.unwrap(), kept);
}

/// A renewal that brings another person's token gives none; the refresh token that came with it replaces the old one.
#[tokio::test]
async fn a_renewed_token_is_of_the_same_person() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    grants(&idp);
    log_in(&settings, &home.store()).await;
    let (signer, mut said) = (Arc::clone(&idp.signer), idp.claims("towline-relay"));
    said["sub"] = json!("eve");
    idp.on("/token", move |_| granted(&sign(&signer, &said), "canary-next"));
    let session = Session::new(&settings, Purpose::Relay, home.store());
    session.kept(SystemTime::now()).await.unwrap();
    let report = session.issue(SystemTime::now()).await.unwrap_err();
    assert_eq!(report.fault, Fault::IdpAnswerWrong, "{report}");
    grants(&idp);
    session.issue(SystemTime::now()).await.unwrap();
    assert_eq!(idp.asked("/token").last().unwrap().form["refresh_token"], "canary-next");
}

/// A provider that sees an old refresh token again ends the login: its successor is kept, whatever came along with it.
#[tokio::test]
async fn a_renewal_that_can_not_be_used_still_replaces_the_refresh_token() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    grants(&idp);
    log_in(&settings, &home.store()).await;
    let session = Session::new(&settings, Purpose::Relay, home.store());
    let kept = session.kept(SystemTime::now()).await.unwrap();
    let mut over = idp.claims("towline-relay");
    over["exp"] = json!(1000);
    let answers = [
        ("no ID token", None),
        ("no JWT", Some("canary".to_owned())),
        ("no place for it", Some("x".repeat(20_000))),
        ("a clock that is wrong", Some(idp.sign(&over))),
    ];
    let mut shown = "canary-refresh-0".to_owned();
    for (number, (what, id)) in answers.into_iter().enumerate() {
        let next = format!("canary-next-{number}");
        let mut answer = json!({ "access_token": "canary", "token_type": "Bearer", "refresh_token": next });
        if let Some(id) = id {
            answer["id_token"] = json!(id);
        }
        idp.on("/token", move |_| Reply::json(&answer));
        let report = session.issue(SystemTime::now()).await.unwrap_err();
        assert_eq!(report.fault, Fault::IdpAnswerWrong, "{what}: {report}");
        assert_eq!(idp.asked("/token").last().unwrap().form["refresh_token"], shown, "{what}");
        assert_eq!(session.kept(SystemTime::now()).await.unwrap(), kept, "{what}: the token is still good");
        shown = next;
    }
    grants(&idp);
    session.issue(SystemTime::now()).await.unwrap();
    assert_eq!(idp.asked("/token").last().unwrap().form["refresh_token"], shown);
}

/// Whoever is killed while a renewed token is verified has its refresh token's successor: the old one is worth nothing any more.
#[tokio::test]
async fn the_successor_of_a_refresh_token_is_kept_before_the_token_is_verified() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    grants(&idp);
    log_in(&settings, &home.store()).await;
    let session = Session::new(&settings, Purpose::Relay, home.store());
    let before = session.kept(SystemTime::now()).await.unwrap();
    let id = idp.sign(&idp.claims("towline-relay"));
    idp.on("/token", move |_| granted(&id, "canary-successor"));
    idp.introduce(json!({ "jwks_uri": format!("{}/keys", idp.url()) }));
    // What stands on the disk while the provider's keys are asked for.
    let (file, seen) = (home.0.path().join("state/logins/p.relay.json"), Arc::new(Mutex::new(None)));
    let noted = Arc::clone(&seen);
    idp.on("/keys", move |_| {
        *noted.lock().unwrap() = Some(std::fs::read_to_string(&file).unwrap());
        Reply::error("server_error")
    });
    session.issue(SystemTime::now()).await.unwrap_err();
    let on_disk = seen.lock().unwrap().take().expect("the keys are asked for");
    let on_disk: serde_json::Value = serde_json::from_str(&on_disk).unwrap();
    assert_eq!(on_disk["secrets"]["refresh"], "canary-successor");
    let token = before.unwrap().secret;
    assert_eq!(
        on_disk["secrets"]["token"].as_str(),
        token.reveal_text(),
        "and no token that nobody has verified"
    );
}

#[tokio::test]
async fn logging_out_forgets_here_and_there() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    grants(&idp);
    log_in(&settings, &home.store()).await;
    idp.on("/revoke", |_| Reply::new(200, ""));
    let ended = log_out(&settings, &home.store(), &Clock::system()).await.unwrap();
    assert!(ended.iter().all(|one| one.was_kept && *one.revoked.as_ref().unwrap()));
    let told: Vec<_> = idp.asked("/revoke").iter().map(|asked| asked.form["token"].clone()).collect();
    assert_eq!(told, ["canary-refresh-0", "canary-refresh-1"]);
    let session = Session::new(&settings, Purpose::Relay, home.store());
    assert_eq!(session.kept(SystemTime::now()).await.unwrap_err().fault, Fault::LoginNeeded);
    let again = log_out(&settings, &home.store(), &Clock::system()).await.unwrap();
    assert!(again.iter().all(|one| !one.was_kept));
}

#[tokio::test]
async fn a_provider_that_is_away_keeps_nobody_from_logging_out() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    grants(&idp);
    log_in(&settings, &home.store()).await;
    drop(idp);
    let ended = log_out(&settings, &home.store(), &Clock::system()).await.unwrap();
    assert!(ended.iter().all(|one| one.was_kept && one.revoked.is_err()));
}

/// A login is of one issuer and client: where the profile says another, it is none.
#[tokio::test]
async fn a_login_of_another_client_or_profile_is_none() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    grants(&idp);
    log_in(&settings, &home.store()).await;
    let others = [
        home.settings(&idp.url(), "relay.client-id = 'another'\ncluster.client-id = 'c'"),
        home.settings("https://127.0.0.1:1", CLIENTS),
        {
            let mut elsewhere = settings;
            elsewhere.name = "q".to_owned();
            elsewhere
        },
    ];
    for other in others {
        let session = Session::new(&other, Purpose::Relay, home.store());
        assert_eq!(session.kept(SystemTime::now()).await.unwrap_err().fault, Fault::LoginNeeded);
    }
}

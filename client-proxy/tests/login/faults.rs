//! What a provider, or somebody beside it, may try; and what a person is told then.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use serde_json::{Value, json};
use towline::{
    login::{Prompt, Session, Settings, Store, Who, interactive, issuer},
    token::{Issue as _, Purpose},
};
use towline_tunnel::{
    clock::Clock,
    fault::{Fault, Report},
};
use url::Url;

use crate::{
    CLIENTS, Home, Told,
    scripted::{Asked, Reply, Scripted, claims, granted, sign},
    sessions::{come_back, get, get_as, grants, parameter},
    soon,
};

/// Logs in, with somebody else in the browser's place.
async fn log_in<F: Future>(
    settings: &Settings,
    store: &Store,
    browser: impl FnOnce(Url) -> F,
) -> (Result<Vec<Who>, Report>, F::Output) {
    let (told, mut prompts) = Told::new();
    let say = |prompt: &Prompt| told.say(prompt);
    let clock = Clock::system();
    soon("the login", async {
        tokio::join!(interactive(settings, store, &say, &clock), async {
            let Some(Prompt::Visit { url }) = prompts.recv().await else {
                panic!("nobody is told where to go")
            };
            browser(url.parse().unwrap()).await
        })
    })
    .await
}

async fn nothing_is_kept(settings: &Settings, store: &Store) {
    for purpose in Purpose::BOTH {
        let session = Session::new(settings, purpose, store.clone());
        assert_eq!(session.kept(SystemTime::now()).await.unwrap_err().fault, Fault::LoginNeeded);
    }
}

#[tokio::test]
async fn what_does_not_answer_this_login_is_refused_and_the_login_goes_on() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    grants(&idp);
    let (done, ()) = log_in(&settings, &home.store(), async |first| {
        let redirect = parameter(&first, "redirect_uri");
        let state = parameter(&first, "state");
        let at = |rest: &str| -> Url { format!("{redirect}{rest}").parse().unwrap() };
        assert_eq!(get(&at("?state=another&code=canary")).await.status, 400);
        assert_eq!(get(&at("?code=canary")).await.status, 400);
        assert_eq!(get(&at(&format!("?state={state}&state={state}&code=canary"))).await.status, 400);
        let good = at(&format!("?state={state}&code=canary"));
        // A page whose name was made to lead to this machine.
        assert_eq!(get_as(&good, "evil.example").await.status, 421);
        assert_eq!(get_as(&good, &format!("localhost:{}", good.port().unwrap())).await.status, 421);
        let elsewhere = good.join("/favicon.ico").unwrap();
        assert_eq!(get(&elsewhere).await.status, 404);
        assert!(idp.asked("/token").is_empty(), "none of it was believed");

        let second = come_back(&first, "").await.location.unwrap();
        // The first answer again: it counted once.
        let again = come_back(&first, "").await;
        assert_eq!(again.status, 400);
        assert!(!again.body.contains("code-"), "nothing of a request stands in a page");
        come_back(&second, "").await;
    })
    .await;
    done.unwrap();
    assert_eq!(idp.asked("/token").len(), 2);
}

/// Connections that say nothing, of a browser that opens some in advance or of somebody who wants the place.
#[tokio::test]
async fn silent_connections_keep_no_browser_out() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    grants(&idp);
    let (done, _silent) = log_in(&settings, &home.store(), async |first| {
        let redirect: Url = parameter(&first, "redirect_uri").parse().unwrap();
        let mut silent = Vec::new();
        for _ in 0..40 {
            let port = redirect.port().unwrap();
            silent.push(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap());
        }
        let second = come_back(&first, "").await.location.unwrap();
        come_back(&second, "").await;
        silent
    })
    .await;
    done.unwrap();
}

#[tokio::test]
async fn a_refusal_is_told_in_the_providers_words() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    let (done, page) = log_in(&settings, &home.store(), async |first| {
        let (redirect, state) = (parameter(&first, "redirect_uri"), parameter(&first, "state"));
        let words = "AADSTS50105%3A+not%1b%5B2Jassigned";
        let back = format!("{redirect}?state={state}&error=access_denied&error_description={words}");
        get(&back.parse().unwrap()).await
    })
    .await;
    let report = done.unwrap_err();
    assert_eq!(report.fault, Fault::LoginRefused);
    let said = report.to_string();
    assert!(said.contains("access_denied: AADSTS50105: not") && !said.contains('\u{1b}'), "{said}");
    assert!(page.body.contains("You are not logged in") && !page.body.contains("AADSTS"), "{page:?}");
    assert!(idp.asked("/token").is_empty());
    nothing_is_kept(&settings, &home.store()).await;
}

/// RFC 9207: an answer of another issuer, or one that does not say whose it is where the provider does.
#[tokio::test]
async fn an_answer_of_another_issuer_is_refused_before_anything_is_sent_to_anybody() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    grants(&idp);
    for (announced, more) in
        [(false, "&iss=https%3A%2F%2Fevil"), (true, "&iss=https%3A%2F%2Fevil"), (true, "")]
    {
        idp.introduce(json!({ "authorization_response_iss_parameter_supported": announced }));
        let (done, _) = log_in(&settings, &home.store(), async |first| come_back(&first, more).await).await;
        assert_eq!(done.unwrap_err().fault, Fault::IdpAnswerWrong, "{announced} {more}");
    }
    assert!(idp.asked("/token").is_empty());
    idp.introduce(json!({ "authorization_response_iss_parameter_supported": true }));
    let iss = format!("&iss={}", idp.url());
    let (done, ()) = log_in(&settings, &home.store(), async |first| {
        let second = come_back(&first, &iss).await.location.unwrap();
        come_back(&second, &iss).await;
    })
    .await;
    done.unwrap();
}

/// An ID token that is not the answer to this login: each way in which it is not.
#[tokio::test]
async fn an_id_token_that_is_not_ours_is_refused_and_nothing_is_kept() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    let change: [(&str, Value, &str); 8] = [
        ("nonce", json!("another"), "nonce"),
        ("nonce", Value::Null, "nonce"),
        ("aud", json!("another"), "audience"),
        ("iss", json!("https://evil"), "issuer"),
        ("exp", json!(1000), "ended"),
        ("azp", json!("another"), "azp"),
        ("sub", Value::Null, "sub"),
        ("cnf", json!({ "kid": "k" }), "cnf"),
    ];
    for (claim, value, why) in change {
        let (signer, url) = (Arc::clone(&idp.signer), idp.url());
        idp.on("/token", move |asked| {
            let mut said = claims(&url, &asked.form["client_id"]);
            said["nonce"] = json!(asked.form["code"].strip_prefix("code-"));
            said[claim] = value.clone();
            granted(&sign(&signer, &said), "canary-refresh")
        });
        let (done, ()) = log_in(&settings, &home.store(), async |first| {
            if let Some(second) = come_back(&first, "").await.location {
                come_back(&second, "").await;
            }
        })
        .await;
        let report = done.unwrap_err();
        assert_eq!(report.fault, Fault::IdpAnswerWrong, "{claim}");
        assert!(report.to_string().contains(why), "{claim}: {report}");
    }
    // Rightly made, by a key that the provider does not have.
    let stranger = towline_identity::dev::DevIssuer::start(0).await.unwrap();
    let url = idp.url();
    idp.on("/token", move |asked| {
        let mut said = claims(&url, &asked.form["client_id"]);
        said["nonce"] = json!(asked.form["code"].strip_prefix("code-"));
        granted(&sign(&stranger, &said), "canary-refresh")
    });
    let (done, ()) = log_in(&settings, &home.store(), async |first| {
        if let Some(second) = come_back(&first, "").await.location {
            come_back(&second, "").await;
        }
    })
    .await;
    assert_eq!(done.unwrap_err().fault, Fault::IdpAnswerWrong);
    nothing_is_kept(&settings, &home.store()).await;
}

/// Whatever a token endpoint answers, it is told as what it is, and never repeated.
#[tokio::test]
async fn t29_a_hostile_token_endpoint_is_not_believed_not_followed_and_not_repeated() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    let token = |more: Value| {
        let mut answer =
            json!({ "access_token": "canary", "token_type": "Bearer", "id_token": "canary.canary.canary" });
        answer.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Reply::json(&answer)
    };
    let elsewhere = format!("{}/elsewhere", idp.url());
    let answers: Vec<(&str, Reply, Fault)> = vec![
        ("a redirect", Reply::new(307, "").with("location", &elsewhere), Fault::IdpAnswerWrong),
        (
            "a redirect with words",
            Reply::new(302, "canary").with("location", &elsewhere),
            Fault::IdpAnswerWrong,
        ),
        ("no JSON", Reply::new(200, "<html>canary"), Fault::IdpAnswerWrong),
        ("no token", Reply::new(200, "{\"canary\":1}"), Fault::IdpAnswerWrong),
        (
            "no ID token",
            Reply::json(&json!({ "access_token": "canary", "token_type": "Bearer" })),
            Fault::IdpAnswerWrong,
        ),
        ("no bearer", token(json!({ "token_type": "mac" })), Fault::IdpAnswerWrong),
        ("a huge ID token", token(json!({ "id_token": "x".repeat(100_000) })), Fault::IdpAnswerWrong),
        ("no JWT", token(json!({ "id_token": "canary" })), Fault::IdpAnswerWrong),
        ("endless life", token(json!({ "expires_in": u64::MAX })), Fault::IdpAnswerWrong),
        ("a huge answer", Reply::new(200, "canary".repeat(400_000)), Fault::IdpUnreachable),
        ("trouble", Reply::new(500, "canary"), Fault::IdpUnreachable),
        ("a refusal", Reply::error("invalid_client"), Fault::LoginRefused),
        ("a code that was used", Reply::error("invalid_grant"), Fault::LoginRefused),
    ];
    for (what, reply, fault) in answers {
        idp.on("/token", move |_| reply.clone());
        let (done, page) = log_in(&settings, &home.store(), async |first| come_back(&first, "").await).await;
        let report = done.unwrap_err();
        assert_eq!(report.fault, fault, "{what}: {report}");
        let said = format!("{report} {report:?} {}", page.body);
        assert!(!said.contains("canary") && said.len() < 4000, "{what}: {said}");
        assert!(page.body.contains("You are not logged in"), "{what}: {page:?}");
    }
    assert!(idp.asked("/elsewhere").is_empty());
    nothing_is_kept(&settings, &home.store()).await;
}

#[tokio::test]
async fn metadata_that_is_not_the_issuers_is_refused() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    for wrong in [
        json!({ "issuer": "https://evil" }),
        json!({ "token_endpoint": "http://127.0.0.1/token" }),
        json!({ "code_challenge_methods_supported": ["plain"] }),
        json!({ "authorization_endpoint": null }),
    ] {
        idp.introduce(wrong.clone());
        let say = |_: &Prompt| panic!("nobody is sent anywhere");
        let done = interactive(&settings, &home.store(), &say, &Clock::system()).await;
        assert_eq!(done.unwrap_err().fault, Fault::IdpAnswerWrong, "{wrong}");
    }
    // Another authority's certificate: nothing is asked.
    let stranger = Scripted::start().await;
    let settings = Home::new(&stranger.ca_pem).settings(&idp.url(), CLIENTS);
    let done = interactive(&settings, &home.store(), &|_: &Prompt| {}, &Clock::system()).await;
    assert_eq!(done.unwrap_err().fault, Fault::IdpUnreachable);
}

/// T46, before anything is kept: what one token is for, the other isn't; and both are one person's.
#[tokio::test]
async fn t46_two_tokens_of_one_audience_or_of_two_people_are_no_login() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), CLIENTS);
    for (claim, value) in [("aud", json!(["towline-relay", "towline-cluster"])), ("sub", Value::Null)] {
        let (signer, url) = (Arc::clone(&idp.signer), idp.url());
        idp.on("/token", move |asked| {
            let client = &asked.form["client_id"];
            let mut said = claims(&url, client);
            said["nonce"] = json!(asked.form["code"].strip_prefix("code-"));
            said[claim] = if value.is_null() { json!(client) } else { value.clone() };
            granted(&sign(&signer, &said), "canary-refresh")
        });
        let (done, ()) = log_in(&settings, &home.store(), async |first| {
            let second = come_back(&first, "").await.location.unwrap();
            come_back(&second, "").await;
        })
        .await;
        assert_eq!(done.unwrap_err().fault, Fault::TokensNotApart, "{claim}");
        nothing_is_kept(&settings, &home.store()).await;
    }
}

/// Codes on any device: how they are asked for, and each way in which they end.
async fn device(idp: &Scripted, home: &Home, say: &(dyn Fn(&Prompt) + Sync)) -> Result<Vec<Who>, Report> {
    let settings = home.settings(&idp.url(), &format!("flow = 'device'\n{CLIENTS}"));
    let page = format!("{}/go", idp.url());
    idp.on("/device", move |asked| {
        Reply::json(&json!({
            "device_code": "canary-device-code", "user_code": format!("CODE-{}", asked.form["client_id"].len()),
            "verification_uri": page, "verification_uri_complete": format!("{page}?c"), "expires_in": 600, "interval": 1,
        }))
    });
    soon("the login", interactive(&settings, &home.store(), say, &Clock::system())).await
}

#[tokio::test]
async fn two_codes_are_two_steps_and_a_provider_is_asked_as_slowly_as_it_says() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let (signer, url) = (Arc::clone(&idp.signer), idp.url());
    let mut answers = vec!["slow_down", "authorization_pending"];
    idp.on("/token", move |asked: &Asked| match answers.pop() {
        Some(error) => Reply::error(error),
        None => granted(&sign(&signer, &claims(&url, &asked.form["client_id"])), "canary-refresh"),
    });
    let (told, mut prompts) = Told::new();
    let begun = Instant::now();
    device(&idp, &home, &|prompt: &Prompt| told.say(prompt)).await.unwrap();
    // 1 s after `authorization_pending`, and 5 s more after `slow_down` (RFC 8628, section 3.5).
    assert!(begun.elapsed() >= Duration::from_secs(6), "{:?}", begun.elapsed());
    for (expected, client) in [(Purpose::Relay, "towline-relay"), (Purpose::Cluster, "towline-cluster")] {
        let Some(Prompt::Code { purpose, of, code, complete, .. }) = prompts.recv().await else {
            panic!("no code")
        };
        assert_eq!((purpose, of, code), (expected, 2, format!("CODE-{}", client.len())));
        assert!(complete.is_some());
    }
    let polls = idp.asked("/token");
    assert_eq!(polls.len(), 4);
    assert!(polls.iter().all(|asked| asked.form["device_code"] == "canary-device-code"));
}

#[tokio::test]
async fn a_code_that_is_refused_or_runs_out_is_told_so() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    for (error, fault) in [
        ("access_denied", Fault::LoginRefused),
        ("expired_token", Fault::LoginTimeout),
        ("invalid_client", Fault::LoginRefused),
    ] {
        idp.on("/token", move |_| Reply::error(error));
        let report = device(&idp, &home, &|_: &Prompt| {}).await.unwrap_err();
        assert_eq!(report.fault, fault, "{error}");
        assert!(!report.to_string().contains("canary"), "{report}");
    }
    // A page that is no page, or a code that would do something to a terminal.
    for (name, value) in [
        ("verification_uri", "http://evil/"),
        ("user_code", "\u{1b}[2J"),
        ("verification_uri_complete", "file:///x"),
    ] {
        let mut answer = json!({ "device_code": "d", "user_code": "C", "verification_uri": "https://idp/go", "expires_in": 600 });
        answer[name] = json!(value);
        let settings = home.settings(&idp.url(), &format!("flow = 'device'\n{CLIENTS}"));
        idp.on("/device", move |_| Reply::json(&answer));
        let say = |_: &Prompt| panic!("nobody is told");
        let report = interactive(&settings, &home.store(), &say, &Clock::system()).await.unwrap_err();
        assert_eq!(report.fault, Fault::IdpAnswerWrong, "{name}");
    }
}

#[tokio::test]
async fn what_a_page_has_for_a_terminal_is_escaped() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let settings = home.settings(&idp.url(), &format!("flow = 'device'\n{CLIENTS}"));
    idp.on("/device", |_| {
        Reply::json(&json!({
            "device_code": "d", "user_code": "C", "expires_in": 600, "interval": 1,
            "verification_uri": "https://idp/go\u{1b}[2J\u{202e}", "verification_uri_complete": "https://idp/go#\u{1b}]0;x\u{7}",
        }))
    });
    idp.on("/token", |_| Reply::error("access_denied"));
    let (told, mut prompts) = Told::new();
    let say = |prompt: &Prompt| told.say(prompt);
    let done = soon("the login", interactive(&settings, &home.store(), &say, &Clock::system())).await;
    assert_eq!(done.unwrap_err().fault, Fault::LoginRefused);
    let Some(Prompt::Code { url, complete, .. }) = prompts.recv().await else { panic!("no code") };
    assert_eq!(url, "https://idp/go%1B[2J%E2%80%AE");
    assert!(complete.as_ref().unwrap().chars().all(|c| c.is_ascii_graphic()), "{complete:?}");
}

/// Client credentials: by a secret in the header or the body, and by another issuer's token.
#[tokio::test]
async fn a_machine_proves_itself_as_its_provider_wants_it() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let secret = home.0.path().join("secret");
    std::fs::write(&secret, "s3cr t\n").unwrap();
    let file = secret.display();
    let clients = "relay.client-id = 'r'\ncluster.client-id = 'c'\ncluster.scopes = ['api']\ncluster.audience = 'https://c'";
    let (signer, url) = (Arc::clone(&idp.signer), idp.url());
    idp.on("/token", move |_| {
        let access = sign(&signer, &claims(&url, "https://c"));
        Reply::json(&json!({ "access_token": access, "token_type": "Bearer", "expires_in": 60 }))
    });
    let ask = async |proof: String| {
        let settings = home.settings(&idp.url(), &format!("flow = 'client-credentials'\n{proof}\n{clients}"));
        let token = issuer(&settings, Purpose::Cluster, &home.store())
            .unwrap()
            .issue(SystemTime::now())
            .await
            .unwrap();
        // What is told beside the token counts where it is earlier.
        assert!(token.expires().unwrap() <= SystemTime::now() + Duration::from_secs(60));
        idp.asked("/token").pop().unwrap()
    };
    let basic = ask(format!("client-secret-file = '{file}'")).await;
    // RFC 6749, section 2.3.1: both halves are form-encoded first.
    assert_eq!(basic.authorization.as_deref(), Some("Basic YzpzM2NyK3Q="));
    assert_eq!(basic.form["grant_type"], "client_credentials");
    assert_eq!((basic.form["scope"].as_str(), basic.form["audience"].as_str()), ("api", "https://c"));
    idp.introduce(json!({ "token_endpoint_auth_methods_supported": ["client_secret_post"] }));
    let post = ask(format!("client-secret-file = '{file}'")).await;
    assert_eq!((post.form["client_secret"].as_str(), post.authorization), ("s3cr t", None));
    let federated = ask(format!("federated-token-file = '{file}'")).await;
    assert_eq!(federated.form["client_assertion"], "s3cr t");
    assert_eq!(
        federated.form["client_assertion_type"],
        "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    );
    assert_eq!(federated.form["client_id"], "c");
}

#[tokio::test]
async fn t29_a_provider_that_repeats_a_clients_secret_is_not_told() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let secret = home.0.path().join("secret");
    std::fs::write(&secret, "canary t\n").unwrap();
    let more = format!("flow = 'client-credentials'\n{CLIENTS}\nclient-secret-file = '{}'", secret.display());
    let machine = issuer(&home.settings(&idp.url(), &more), Purpose::Cluster, &home.store()).unwrap();
    for words in ["no client has the secret canary t", "no client has the secret canary+t"] {
        let body = json!({ "error": "invalid_client", "error_description": words }).to_string();
        idp.on("/token", move |_| Reply::new(401, body.clone()));
        let report = machine.issue(SystemTime::now()).await.unwrap_err();
        let said = report.to_string();
        assert!(said.contains("invalid_client") && !said.contains("canary"), "{said}");
    }
}

/// A certificate's key signs an assertion for the token endpoint (RFC 7523), each time another one.
#[tokio::test]
async fn a_machine_proves_itself_by_a_certificate() {
    let idp = Scripted::start().await;
    let home = Home::new(&idp.ca_pem);
    let key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let certificate = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap().self_signed(&key).unwrap();
    let path = |name: &str| home.0.path().join(name);
    std::fs::write(path("client.crt"), certificate.pem()).unwrap();
    std::fs::write(path("client.key"), key.serialize_pem()).unwrap();
    let (signer, url) = (Arc::clone(&idp.signer), idp.url());
    idp.on("/token", move |_| {
        let access = sign(&signer, &claims(&url, "c"));
        Reply::json(&json!({ "access_token": access, "token_type": "Bearer" }))
    });
    let more = format!(
        "flow = 'client-credentials'\n{CLIENTS}\nclient-certificate-file = '{}'\nclient-key-file = '{}'",
        path("client.crt").display(),
        path("client.key").display()
    );
    let machine = issuer(&home.settings(&idp.url(), &more), Purpose::Cluster, &home.store()).unwrap();
    for _ in 0..2 {
        machine.issue(SystemTime::now()).await.unwrap();
    }
    let sent: Vec<String> =
        idp.asked("/token").iter().map(|asked| asked.form["client_assertion"].clone()).collect();
    assert_ne!(sent[0], sent[1]);
    let assertion = towline::token::Token::parse(&sent[0]).unwrap();
    let said = assertion.claims();
    assert_eq!(
        (said["aud"].as_str(), said["iss"].as_str()),
        (Some(format!("{}/token", idp.url()).as_str()), Some("towline-cluster"))
    );
    assert_eq!(said["iss"], said["sub"]);
    let (signed, signature) = sent[0].rsplit_once('.').unwrap();
    let signature = data_encoding::BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap();
    let public = aws_lc_rs::signature::UnparsedPublicKey::new(
        &aws_lc_rs::signature::RSA_PSS_2048_8192_SHA256,
        key.public_key_raw(),
    );
    public.verify(signed.as_bytes(), &signature).unwrap();
}

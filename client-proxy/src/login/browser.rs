//! Authorisation code with PKCE (RFC 7636) on loopback (RFC 8252): all audiences in one visit of the browser.
//!
//! The browser comes back to a port of 127.0.0.1 that is open for this login only. What it brings counts once, for the state that is
//! expected, and only if it was asked for this host. The answer to it sends the browser on to the next authorisation, where the
//! provider knows the person already.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use oauth2::{AuthUrl, AuthorizationCode, CsrfToken, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};
use towline_tunnel::{
    clock::Clock,
    fault::{Fault, Report},
    session::message::Secret,
};
use url::{Url, form_urlencoded};

use super::{
    Prompt,
    oauth::{self, Grant, granted, refused},
    provider::{Provider, wrong},
    settings::{Registration, Settings},
};

/// A person logs in within this.
const WITHIN: Duration = Duration::from_secs(300);
/// A browser opens a few connections; whoever opens many gets no more.
const CONNECTIONS: usize = 16;
/// One request takes no longer, the provider's answer to our question in the middle of it included.
const REQUEST: Duration = Duration::from_secs(20);
/// Room for a request's head: codes are long at some providers.
const HEAD: usize = 64 * 1024;
/// A pause after an accept that failed.
const AFTER_ERROR: Duration = Duration::from_millis(100);
const PATH: &str = "/callback";

/// What the browser brought.
struct Brought {
    parameters: Vec<(String, String)>,
    reply: oneshot::Sender<Reply>,
}

/// Where the browser goes now.
enum Reply {
    On(Url),
    Done,
    Failed,
}

/// The state of the authorisation that is under way; taken by the request that answers it.
type Expected = Arc<Mutex<Option<String>>>;

/// One authorisation that is under way.
struct Asked {
    url: Url,
    state: CsrfToken,
    nonce: Option<Secret>,
    verifier: PkceCodeVerifier,
}

/// Logs in for each registration, one after the other. `say` is told where the person must go, once.
///
/// # Errors
/// If the provider refuses, its answers are not what they must be, or nobody finishes in time.
pub(super) async fn log_in(
    provider: &Provider,
    settings: &Settings,
    registrations: &[&Registration],
    say: &(dyn Fn(&Prompt) + Sync),
    clock: &Clock,
) -> Result<Vec<(Grant, Option<Secret>)>, Report> {
    let listener = TcpListener::bind(("127.0.0.1", settings.redirect_port)).await.map_err(|error| {
        Report::caused_by(Fault::PortBusy, format!("127.0.0.1:{}", settings.redirect_port), error)
    })?;
    let port =
        listener.local_addr().map_err(|error| Report::caused_by(Fault::Internal, "loopback", error))?.port();
    let host = format!("{}:{port}", settings.redirect_host);
    let redirect = RedirectUrl::new(format!("http://{host}{PATH}"))
        .map_err(|error| Report::new(Fault::Internal, error.to_string()))?;

    let expected = Expected::default();
    let (bring, mut brought) = mpsc::channel(1);
    let mut serving = JoinSet::new();
    let (finish, finished) = oneshot::channel::<()>();
    serving.spawn(serve(listener, host, Arc::clone(&expected), bring, finished));

    let deadline = Instant::now() + WITHIN;
    let mut grants = Vec::new();
    let mut waiting: Option<oneshot::Sender<Reply>> = None;
    for of in registrations {
        let asked = ask(provider, settings, of, &redirect, clock)?;
        *expected.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked.state.secret().clone());
        match waiting.take() {
            Some(reply) => drop(reply.send(Reply::On(asked.url.clone()))),
            None => say(&Prompt::Visit { url: asked.url.to_string() }),
        }
        let answer: Brought = tokio::select! {
            Some(answer) = brought.recv() => answer,
            () = sleep_until(deadline) => return Err(Fault::LoginTimeout.into()),
        };
        let nonce = asked.nonce.clone();
        match exchange(provider, of, &redirect, asked, &answer.parameters, clock).await {
            Ok(grant) => grants.push((grant, nonce)),
            Err(report) => {
                let _gone = answer.reply.send(Reply::Failed);
                end(finish, &mut serving).await;
                return Err(report);
            }
        }
        waiting = Some(answer.reply);
    }
    if let Some(reply) = waiting {
        let _gone = reply.send(Reply::Done);
    }
    end(finish, &mut serving).await;
    Ok(grants)
}

/// Lets the last page reach the browser.
async fn end(finish: oneshot::Sender<()>, serving: &mut JoinSet<()>) {
    let _told = finish.send(());
    let _late = timeout(Duration::from_secs(2), serving.join_next()).await;
}

fn ask(
    provider: &Provider,
    settings: &Settings,
    of: &Registration,
    redirect: &RedirectUrl,
    clock: &Clock,
) -> Result<Asked, Report> {
    let (client, _) = oauth::client(provider, of, clock.now())?;
    let client = client
        .set_auth_uri(AuthUrl::from_url(provider.authorization()?.clone()))
        .set_redirect_uri(redirect.clone());
    let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
    let nonce = of.is_openid().then(|| CsrfToken::new_random_len(32));
    let mut request = client
        .authorize_url(|| CsrfToken::new_random_len(32))
        .add_scopes(oauth::scopes(&of.scopes))
        .set_pkce_challenge(challenge);
    if let Some(nonce) = &nonce {
        request = request.add_extra_param("nonce", nonce.secret().clone());
    }
    if let Some(prompt) = &settings.prompt {
        request = request.add_extra_param("prompt", prompt.clone());
    }
    for (name, value) in &of.target {
        request = request.add_extra_param(*name, value.clone());
    }
    let (url, state) = request.url();
    Ok(Asked { url, state, nonce: nonce.map(|nonce| Secret::new(nonce.secret().as_bytes())), verifier })
}

/// Looks at what the browser brought, and asks for the tokens.
async fn exchange(
    provider: &Provider,
    of: &Registration,
    redirect: &RedirectUrl,
    asked: Asked,
    brought: &[(String, String)],
    clock: &Clock,
) -> Result<Grant, Report> {
    let parameter =
        |name: &str| brought.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    // RFC 9207, section 2.4: before anything else of it is believed.
    match parameter("iss") {
        Some(issuer) if issuer != provider.issuer() => {
            return Err(wrong(format!("another issuer answered the authorisation: {issuer:.200}")));
        }
        None if provider.names_itself() => {
            return Err(wrong("the authorisation's answer does not name its issuer, as the provider's do"));
        }
        _ => {}
    }
    if let Some(error) = parameter("error") {
        return Err(refused(error, parameter("error_description")));
    }
    let code = parameter("code").ok_or_else(|| wrong("the authorisation's answer has no code"))?;
    let (client, params) = oauth::client(provider, of, clock.now())?;
    let client = client.set_redirect_uri(redirect.clone());
    let mut request =
        client.exchange_code(AuthorizationCode::new(code.to_owned())).set_pkce_verifier(asked.verifier);
    for (name, value) in params {
        request = request.add_extra_param(name, value);
    }
    granted(request.request_async(&provider.http).await, of, clock.now())
}

/// One connection. Where there is no place for another, the oldest goes that has not asked for anything yet.
struct Visit {
    asked: Arc<AtomicBool>,
    task: AbortHandle,
}

/// Answers browsers until it is told that all is done; then waits for answers that are under way.
async fn serve(
    listener: TcpListener,
    host: String,
    expected: Expected,
    bring: mpsc::Sender<Brought>,
    mut finished: oneshot::Receiver<()>,
) {
    let host: Arc<str> = host.into();
    let mut connections = JoinSet::new();
    let mut visits = Vec::with_capacity(CONNECTIONS);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut finished => break,
        };
        let Ok((tcp, _)) = accepted else {
            // Too many open files, mostly: it would fail again at once.
            sleep(AFTER_ERROR).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        visits.retain(|visit: &Visit| !visit.task.is_finished());
        if visits.len() >= CONNECTIONS {
            let silent = visits.iter().position(|visit| !visit.asked.load(Ordering::Relaxed));
            let Some(oldest) = silent else { continue };
            visits.remove(oldest).task.abort();
        }
        let asked = Arc::new(AtomicBool::new(false));
        let has_asked = Arc::clone(&asked);
        let (host, expected, bring) = (Arc::clone(&host), Arc::clone(&expected), bring.clone());
        let task = connections.spawn(async move {
            let service = service_fn(|request| {
                has_asked.store(true, Ordering::Relaxed);
                answer(request, &host, &expected, &bring)
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10))
                .max_buf_size(HEAD)
                .keep_alive(false)
                .serve_connection(TokioIo::new(tcp), service);
            // Whoever breaks off comes again, or not.
            let _ended = timeout(REQUEST, connection).await;
        });
        visits.push(Visit { asked, task });
    }
    drop(listener);
    // Connections that a browser opened in advance say nothing, and are not waited for.
    let _quiet =
        timeout(Duration::from_millis(500), async { while connections.join_next().await.is_some() {} }).await;
}

/// One request: the answer that is expected, or nothing.
async fn answer(
    request: Request<Incoming>,
    host: &str,
    expected: &Expected,
    bring: &mpsc::Sender<Brought>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    // A page of another origin whose name was made to lead here has another Host.
    let mut hosts = request.headers().get_all(header::HOST).iter();
    if hosts.next().is_none_or(|known| known.as_bytes() != host.as_bytes()) || hosts.next().is_some() {
        return Ok(page(StatusCode::MISDIRECTED_REQUEST, "This is not for this address."));
    }
    if request.uri().path() != PATH {
        return Ok(page(StatusCode::NOT_FOUND, "There is nothing here."));
    }
    if request.method() != Method::GET {
        return Ok(page(StatusCode::METHOD_NOT_ALLOWED, "There is nothing here."));
    }
    let Some(parameters) = parameters(request.uri().query().unwrap_or_default()) else {
        return Ok(page(StatusCode::BAD_REQUEST, "A parameter stands twice."));
    };
    let state = parameters.iter().find(|(name, _)| name == "state").map(|(_, value)| value.as_str());
    let taken = {
        let mut expected = expected.lock().unwrap_or_else(PoisonError::into_inner);
        // Another state is not this login's: it is refused, and the login goes on.
        if state.is_some() && expected.as_deref() == state { expected.take() } else { None }
    };
    if taken.is_none() {
        return Ok(page(StatusCode::BAD_REQUEST, "This answers no login that is under way."));
    }
    let (reply, replied) = oneshot::channel();
    let gone = bring.send(Brought { parameters, reply }).await.is_err();
    Ok(match (gone, replied.await) {
        (false, Ok(Reply::On(url))) => on(&url),
        (false, Ok(Reply::Done)) => page(
            StatusCode::OK,
            "Your part is done, and the terminal says how it ended. You can close this page.",
        ),
        _ => page(StatusCode::OK, "You are not logged in. The terminal says why; you can close this page."),
    })
}

/// The query's parameters; none where one stands twice (RFC 6749, section 3.1).
fn parameters(query: &str) -> Option<Vec<(String, String)>> {
    let mut parameters: Vec<(String, String)> = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if parameters.iter().any(|(known, _)| *known == name) {
            return None;
        }
        parameters.push((name.into_owned(), value.into_owned()));
    }
    Some(parameters)
}

fn on(url: &Url) -> Response<Full<Bytes>> {
    let mut response = page(StatusCode::SEE_OTHER, "On to the next step.");
    if let Ok(place) = url.as_str().parse() {
        response.headers_mut().insert(header::LOCATION, place);
    }
    response
}

/// A page of our own words: nothing that came with the request stands in it.
fn page(status: StatusCode, words: &'static str) -> Response<Full<Bytes>> {
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>towline</title><p>{words}</p></html>\n"
    );
    let mut response = Response::new(Full::from(html));
    *response.status_mut() = status;
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        // The address has a code in it, used or not.
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        response.headers_mut().insert(name, header::HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_stands_once() {
        assert_eq!(parameters("a=1&b=%20").unwrap(), [("a".into(), "1".into()), ("b".into(), " ".into())]);
        assert!(parameters("code=1&code=2").is_none());
    }
}

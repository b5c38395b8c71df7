//! A person with a browser: goes where they are sent, and fills in forms.

use std::collections::BTreeMap;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use towline_identity::{Direct, Fetch as _, HttpsFetch, Roots};
use url::{Url, form_urlencoded};

/// What a page said.
#[derive(Debug)]
pub struct Page {
    pub url: Url,
    pub status: u16,
    pub location: Option<Url>,
    pub body: String,
}

/// The browser, with its cookies.
pub struct Browser {
    https: HttpsFetch,
    cookies: BTreeMap<String, String>,
}

impl Browser {
    pub fn new(ca_pem: &str) -> Self {
        let https = HttpsFetch::new(&Roots::Pem(ca_pem.to_owned()), std::sync::Arc::new(Direct)).unwrap();
        Self { https, cookies: BTreeMap::new() }
    }

    /// Asks for one page; `form` is posted.
    pub async fn ask(&mut self, url: &Url, form: Option<&[(String, String)]>) -> Page {
        let body =
            form.map(|form| form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish());
        let method = if body.is_some() { "POST" } else { "GET" };
        let request = http::Request::builder().method(method).uri(url.as_str());
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        if url.scheme() == "http" {
            // Our own loopback gets no cookies.
            return plain(url, request.header("host", host(url)).body(Full::default()).unwrap()).await;
        }
        let cookies: Vec<String> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = request.header("cookie", cookies.join("; "));
        let request = request.body(Bytes::from(body.unwrap_or_default())).unwrap();
        let response = self.https.send(request).await.unwrap();
        for cookie in response.headers().get_all("set-cookie") {
            let (name, rest) = cookie.to_str().unwrap().split_once('=').unwrap();
            let value = rest.split(';').next().unwrap_or_default();
            if value.is_empty() || rest.contains("1970") {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        let (parts, body) = response.into_parts();
        page(url, &parts, String::from_utf8_lossy(&body).into_owned())
    }

    /// Follows redirects and fills in forms as `person` until a page has neither.
    pub async fn walk(&mut self, url: &str, person: &str) -> Page {
        let mut page = self.ask(&url.parse().unwrap(), None).await;
        for _ in 0..40 {
            page = if let Some(location) = page.location.clone() {
                self.ask(&location, None).await
            } else if let Some((action, fields)) = form(&page, person) {
                self.ask(&action, Some(&fields)).await
            } else {
                return page;
            };
        }
        panic!("the pages go in circles: {page:?}");
    }
}

fn host(url: &Url) -> String {
    format!("{}:{}", url.host_str().unwrap(), url.port().unwrap())
}

fn page(url: &Url, parts: &http::response::Parts, body: String) -> Page {
    let location = parts.headers.get("location").map(|place| url.join(place.to_str().unwrap()).unwrap());
    Page { url: url.clone(), status: parts.status.as_u16(), location, body }
}

/// One request without TLS, to this machine only.
pub async fn plain(url: &Url, mut request: http::Request<Full<Bytes>>) -> Page {
    assert!(["127.0.0.1", "localhost"].contains(&url.host_str().unwrap()), "{url}");
    let tcp = TcpStream::connect(("127.0.0.1", url.port().unwrap())).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.unwrap();
    let driven = tokio::spawn(connection);
    *request.uri_mut() = format!("{}?{}", url.path(), url.query().unwrap_or_default()).parse().unwrap();
    let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    driven.abort();
    page(url, &parts, String::from_utf8_lossy(&body).into_owned())
}

/// The page's first form, filled in.
fn form(page: &Page, person: &str) -> Option<(Url, Vec<(String, String)>)> {
    let form = page.body.split_once("<form")?.1;
    let (head, rest) = form.split_once('>')?;
    let inside = rest.split("</form>").next()?;
    let action = attribute(head, "action").map_or_else(|| page.url.clone(), |to| page.url.join(&to).unwrap());
    let mut fields = Vec::new();
    for input in inside.split("<input").skip(1) {
        let input = input.split('>').next().unwrap_or_default();
        let Some(name) = attribute(input, "name") else { continue };
        let value = match name.as_str() {
            "login" => person.to_owned(),
            "password" => "x".to_owned(),
            _ => attribute(input, "value").unwrap_or_default(),
        };
        fields.push((name, value));
    }
    Some((action, fields))
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let rest = tag.split_once(&format!("{name}=\""))?.1;
    rest.split('"').next().map(|value| value.replace("&amp;", "&"))
}

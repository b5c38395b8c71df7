//! ID tokens that a CI system gives its jobs: one for each audience.

use std::{env, fmt, time::SystemTime};

use http::{Request, StatusCode, header};
use serde::Deserialize;
use towline_identity::{Pending, Roots};
use towline_tunnel::{
    egress::Egress,
    fault::{Fault, Report},
    session::message::Secret,
};
use url::Url;

use super::{
    http::Http,
    provider::wrong,
    settings::{GITHUB_VARIABLES, Registration},
};
use crate::token::{Issue, Token};

fn missing(why: impl Into<String>) -> Report {
    Report::new(Fault::CiTokenMissing, why)
}

/// A GitHub Actions job, which asks for each token: `ACTIONS_ID_TOKEN_REQUEST_URL` and `_TOKEN`.
pub(super) struct Github {
    http: Http,
    audience: String,
    asked_at: Url,
    with: Secret,
}

impl fmt::Debug for Github {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Github({})", self.audience)
    }
}

#[derive(Deserialize)]
struct Answer {
    value: String,
}

impl Github {
    /// `roots` are those of GitHub Enterprise Server, where it has its own.
    pub(super) fn new(of: Registration, roots: &Roots, egress: &Egress) -> Result<Self, Report> {
        let variable = |name: &str| {
            let value = env::var(name).ok().filter(|value| !value.is_empty());
            value.ok_or_else(|| missing(format!("{name} is not set")))
        };
        let [url, with] = GITHUB_VARIABLES;
        let url = variable(url)?;
        let with = Secret::new(variable(with)?);
        Self::at(of, &url, with, Http::new(roots, egress)?)
    }

    fn at(of: Registration, url: &str, with: Secret, http: Http) -> Result<Self, Report> {
        let asked_at = Url::parse(url).ok().filter(|url| url.scheme() == "https");
        let asked_at = asked_at.ok_or_else(|| missing("ACTIONS_ID_TOKEN_REQUEST_URL is not an https URL"))?;
        let audience = of.target.into_iter().find(|(name, _)| *name == "audience").map(|(_, value)| value);
        let audience = audience.ok_or_else(|| missing("no audience is named"))?;
        Ok(Self { http, audience, asked_at, with })
    }
}

impl Issue for Github {
    fn issue(&self, _now: SystemTime) -> Pending<'_, Result<Token, Report>> {
        Box::pin(async move {
            let mut url = self.asked_at.clone();
            url.query_pairs_mut().append_pair("audience", &self.audience);
            let request = Request::get(url.as_str())
                .header(
                    header::AUTHORIZATION,
                    format!("Bearer {}", self.with.reveal_text().unwrap_or_default()),
                )
                .header(header::ACCEPT, "application/json")
                .body(Vec::new())
                .map_err(|_| missing("what the job was given to ask with is no header"))?;
            let answer = self.http.ask(request).await?;
            if answer.status() != StatusCode::OK {
                return Err(missing(format!("GitHub answered {}", answer.status())));
            }
            let read: Answer =
                serde_json::from_slice(answer.body()).map_err(|_| wrong("GitHub's answer has no token"))?;
            Token::parse(&read.value).ok_or_else(|| wrong("GitHub's answer has no token"))
        })
    }

    fn place(&self) -> String {
        "GitHub Actions".to_owned()
    }
}

/// A GitLab job, whose `id_tokens:` stand in variables. They live as long as the job may, and are not renewed.
#[derive(Debug)]
pub(super) struct Gitlab {
    variable: String,
}

impl Gitlab {
    pub(super) fn new(of: Registration) -> Self {
        Self { variable: of.token_env.unwrap_or_default() }
    }
}

impl Issue for Gitlab {
    fn issue(&self, _now: SystemTime) -> Pending<'_, Result<Token, Report>> {
        Box::pin(async move {
            let text = env::var(&self.variable).map(Secret::new);
            let text = text.map_err(|_| missing(format!("{} is not set", self.variable)))?;
            let token = text.reveal_text().and_then(Token::parse);
            token.ok_or_else(|| missing(format!("{} does not hold one token", self.variable)))
        })
    }

    fn renews(&self) -> bool {
        false
    }

    fn place(&self) -> String {
        format!("the variable {}", self.variable)
    }
}

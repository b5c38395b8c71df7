//! Who a token says that somebody is, for people and scripts. Never the token.

use std::{fmt, time::SystemTime};

use serde::Serialize;
use towline_tunnel::fault::Report;

use super::{Settings, Store, issuer, session};
use crate::token::{Purpose, Token, at};

/// What a token says, unverified: whoever it is shown to verifies it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Who {
    /// `relay` or `cluster`.
    pub purpose: &'static str,
    /// `iss`.
    pub issuer: Option<String>,
    /// `oid` where there is one (Entra), otherwise `sub`.
    pub subject: Option<String>,
    /// What people are called: `preferred_username`, `upn`, `email` or `name`. Not who they are.
    pub name: Option<String>,
    /// `aud`.
    pub audiences: Vec<String>,
    /// How many groups it names.
    pub groups: usize,
    /// Which.
    #[serde(skip)]
    pub group_names: Vec<String>,
    /// It says an `oid`, as Entra's tokens do.
    #[serde(skip)]
    pub has_object: bool,
    /// When it ends.
    pub expires: Option<String>,
    /// Whether its time is over.
    pub expired: bool,
    /// Whether it is renewed without anybody's doing.
    pub renewable: bool,
    /// Where it is kept, or comes from.
    pub kept: String,
}

impl Who {
    /// What this token says.
    pub fn of(purpose: Purpose, token: &Token, kept: String, renewable: bool) -> Self {
        let claims = token.claims();
        // A token is other people's text: it goes to a terminal.
        let text = |name: &str| {
            let text = claims[name].as_str()?;
            Some(text.chars().take(256).map(|c| if c.is_control() { ' ' } else { c }).collect::<String>())
        };
        Self {
            purpose: purpose.word(),
            issuer: text("iss"),
            subject: text("oid").or_else(|| text("sub")),
            name: ["preferred_username", "upn", "email", "name"].into_iter().find_map(text),
            audiences: token.audiences().iter().map(|audience| audience.escape_debug().to_string()).collect(),
            groups: claims["groups"].as_array().map_or(0, Vec::len),
            group_names: claims["groups"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|group| group.as_str().map(str::to_owned))
                .collect(),
            has_object: claims["oid"].is_string(),
            expires: token.expires().map(at),
            expired: token.is_over(SystemTime::now()),
            renewable,
            kept,
        }
    }

    /// The principal that relay and agents make of it. Those of Entra's tokens of both versions are of version 2's issuer, which a profile names
    /// as its `issuer`.
    pub fn principal(&self, issuer: Option<&str>) -> Option<String> {
        let issuer = issuer.filter(|_| self.has_object).or(self.issuer.as_deref())?;
        Some(format!("{issuer}#{}", self.subject.as_deref()?))
    }

    /// Who this profile is for one audience: by what is kept of a login, or by asking whoever issues tokens here.
    ///
    /// # Errors
    /// If nobody is logged in, or no token is had.
    pub async fn look(settings: &Settings, purpose: Purpose, store: &Store) -> Result<Self, Report> {
        if settings.is_interactive() {
            return session::who(settings, purpose, store).await;
        }
        let issuer = issuer(settings, purpose, store)?;
        let token = issuer.issue(SystemTime::now()).await?;
        Ok(Self::of(purpose, &token, format!("nowhere; from {}", issuer.place()), issuer.renews()))
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        writeln!(f, "for the {}", self.purpose)?;
        writeln!(f, "    issuer     {}", or_dash(&self.issuer))?;
        writeln!(f, "    subject    {}", or_dash(&self.subject))?;
        writeln!(f, "    name       {}", or_dash(&self.name))?;
        writeln!(f, "    audiences  {}", self.audiences.join(", "))?;
        writeln!(f, "    groups     {}", self.groups)?;
        let end = if self.expired { "over since" } else { "until" };
        let renewed = if self.renewable { ", renewed by itself" } else { "" };
        writeln!(f, "    lives      {end} {}{renewed}", or_dash(&self.expires))?;
        write!(f, "    kept       {}", self.kept)
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64URL_NOPAD;

    use super::*;

    #[test]
    fn t29_who_somebody_is_says_nothing_of_the_token() {
        let claims = r#"{"iss":"https://idp","sub":"s","email":"ada@example","aud":["a"],"groups":["g"],"exp":7,"jti":"canary"}"#;
        let body = BASE64URL_NOPAD.encode(claims.as_bytes());
        let token = Token::parse(&format!("e30.{body}.canary")).unwrap();
        let who = Who::of(Purpose::Relay, &token, "a file".into(), false);
        assert_eq!(who.name.as_deref(), Some("ada@example"));
        assert!(who.expired);
        for said in [who.to_string(), serde_json::to_string(&who).unwrap(), format!("{who:?}")] {
            assert!(!said.contains("canary") && !said.contains(&body), "{said}");
            assert!(said.contains("1970-01-01T00:00:07Z"), "{said}");
        }
    }
}

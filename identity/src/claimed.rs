//! What a token says of itself, unverified: to tell whose business it is to judge it. Nothing is allowed by it.

use std::time::SystemTime;

use crate::{VerifyError, claims, token};

/// What a token says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// `iss`.
    pub issuer: String,
    /// `sub`.
    pub subject: String,
    /// `iat`, if there is one.
    pub issued_at: Option<SystemTime>,
    /// `exp`, if there is one.
    pub expires_at: Option<SystemTime>,
}

impl Claimed {
    /// Reads a token as strictly as one that is to be verified.
    ///
    /// # Errors
    /// If it is not a signed token as it should be, or says neither issuer nor subject.
    pub fn read(token: &str) -> Result<Self, VerifyError> {
        let token = token::parse(token).map_err(VerifyError::Malformed)?;
        let text = |name| token.claims.text(name).map(str::to_owned);
        Ok(Self {
            issuer: text("iss").ok_or(VerifyError::Issuer)?,
            subject: text("sub").ok_or(VerifyError::Claim("sub", "is not a text"))?,
            issued_at: claims::time(&token.claims, "iat")?,
            expires_at: claims::time(&token.claims, "exp")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use data_encoding::BASE64URL_NOPAD;

    use super::*;

    #[test]
    fn a_token_is_read_without_being_believed() {
        let read = |claims: &str| {
            let part = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
            Claimed::read(&format!("{}.{}.c2ln", part(r#"{"alg":"RS256"}"#), part(claims)))
        };
        let claimed = read(r#"{"iss":"i","sub":"s","exp":7,"iat":5}"#).unwrap();
        assert_eq!(claimed.issued_at, Some(UNIX_EPOCH + Duration::from_secs(5)));
        assert_eq!((claimed.issuer.as_str(), claimed.subject.as_str()), ("i", "s"));
        assert_eq!(claimed.expires_at, Some(UNIX_EPOCH + Duration::from_secs(7)));
        assert_eq!(read(r#"{"iss":"i","sub":"s"}"#).unwrap().expires_at, None);
        for bad in [
            r#"{"sub":"s"}"#,
            r#"{"iss":"i"}"#,
            r#"{"iss":"i","sub":"s","exp":"7"}"#,
            r#"{"iss":"i","iss":"j","sub":"s"}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(Claimed::read("not-a-token").is_err());
    }
}

//! Taking secrets out of text that is to be sent to somebody.

/// What stands where a secret stood.
const GONE: &str = "[redacted]";
/// Characters of which tokens are made (RFC 6750, section 2.1), and those of JWTs and enrolment tokens.
fn is_of_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~+/=".contains(c)
}

/// The text without tokens, keys, passwords in addresses, and without `known`, which are this person's own.
pub fn redact(text: &str, known: &[&str]) -> String {
    let mut text = text.to_owned();
    for secret in known.iter().map(|secret| secret.trim()).filter(|secret| secret.len() >= 8) {
        text = text.replace(secret, GONE);
    }
    text = without_keys(&text);
    text = without_passwords(&text);
    text.split_inclusive('\n').map(without_tokens).collect()
}

/// PEM blocks of private keys; one that does not end goes to the end.
fn without_keys(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("-----BEGIN ") {
        let (before, block) = rest.split_at(at);
        let label = block["-----BEGIN ".len()..].split("-----").next().unwrap_or_default();
        let end_mark = format!("-----END {label}-----");
        let end = block.find(&end_mark).map(|end| end + end_mark.len());
        out.push_str(before);
        if label.contains("PRIVATE KEY") {
            out.push_str(GONE);
        } else {
            out.push_str(&block[..end.unwrap_or(block.len())]);
        }
        rest = &block[end.unwrap_or(block.len())..];
    }
    out + rest
}

/// `scheme://user:password@host` becomes `scheme://[redacted]@host`.
fn without_passwords(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "/?#\"'<>".contains(c)).unwrap_or(after.len());
        match after[..end].rfind('@') {
            Some(sign) => {
                out.push_str(GONE);
                rest = &after[sign..];
            }
            None => rest = after,
        }
    }
    out + rest
}

/// JWTs, enrolment tokens, and whatever follows `Bearer` or `Basic`.
fn without_tokens(line: &str) -> String {
    let mut out = String::new();
    let mut word = String::new();
    let mut before = String::new();
    let mut flush = |word: &mut String, out: &mut String| {
        let scheme = before.eq_ignore_ascii_case("bearer") || before.eq_ignore_ascii_case("basic");
        let is_secret = (scheme && word.len() > 3) || is_token(word);
        out.push_str(if is_secret { GONE } else { word.as_str() });
        if !word.is_empty() {
            before = std::mem::take(word);
        }
    };
    for c in line.chars() {
        if is_of_token(c) {
            word.push(c);
        } else {
            flush(&mut word, &mut out);
            out.push(c);
        }
    }
    flush(&mut word, &mut out);
    out
}

fn is_token(word: &str) -> bool {
    let jwt = || {
        let parts: Vec<&str> = word.split('.').collect();
        parts.len() >= 3 && parts.iter().any(|part| part.starts_with("ey") && part.len() >= 10)
    };
    word.starts_with("tle1.") || word.contains("=ey") || jwt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t29_what_is_secret_goes_and_what_helps_stays() {
        let key = "-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----";
        let certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----";
        let jwt = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJjYW5hcnkifQ.canary";
        for secret in [
            format!("token {jwt} end"),
            format!("token={jwt}&x=1"),
            format!("{{\"token\":\"{jwt}\"}}"),
            "Authorization: Bearer canary-opaque".to_owned(),
            "authorization: basic Y2FuYXJ5".replace("Y2FuYXJ5", "canary=="),
            "tle1.AAcanary".to_owned(),
            "proxy http://user:canary@proxy.example:3128/ used".to_owned(),
            format!("a {key} b"),
            "-----BEGIN EC PRIVATE KEY-----\ncanary and no end".to_owned(),
            "mine is secret-canary-8".to_owned(),
        ] {
            let shown = redact(&secret, &["secret-canary-8"]);
            assert!(!shown.contains("canary") && shown.contains(GONE), "{secret}: {shown}");
        }
        for kept in [
            "2026-01-31T12:00:00Z relay.example.com:443 TL-NET-004 after 4.2 s",
            "https://relay.example.com/v1/connect answered 404 by nginx/1.25.3",
            "cluster kx4cqd3yx3v4w7u5rs62rxvjkzjmh5ybhybpnqo6lnpzgqocqjaq is offline",
            certificate,
        ] {
            assert_eq!(redact(kept, &[]), kept);
        }
    }
}

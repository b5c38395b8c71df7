//! JSON that a terminal shows and does nothing else with: for results and logs in which words of a peer may stand.
//!
//! RFC 8259 (section 7) has only U+0000–U+001F escaped, and so has serde_json. A terminal also acts on U+007F–U+009F (U+009B begins an
//! escape sequence as ESC [ does), and on those that change the direction of text. Escaped, they stand for the same, so that scripts
//! lose nothing.

use std::{borrow::Cow, fmt::Write as _};

use serde::Serialize;

use crate::fault::is_printed;

/// As `serde_json::to_string`.
///
/// # Errors
/// As there.
pub fn to_string(value: &(impl Serialize + ?Sized)) -> serde_json::Result<String> {
    serde_json::to_string(value).map(escaped)
}

/// As `serde_json::to_string_pretty`.
///
/// # Errors
/// As there.
pub fn to_string_pretty(value: &(impl Serialize + ?Sized)) -> serde_json::Result<String> {
    serde_json::to_string_pretty(value).map(escaped)
}

fn escaped(json: String) -> String {
    match escape(&json) {
        Cow::Borrowed(_) => json,
        Cow::Owned(escaped) => escaped,
    }
}

/// Any JSON, escaped further. Between strings there are none of these characters.
pub(crate) fn escape(json: &str) -> Cow<'_, str> {
    // The lines of a document are its own: within a string they are escaped already.
    let acts = |c: char| !is_printed(c) && !matches!(c, '\n' | '\r' | '\t');
    if !json.contains(acts) {
        return Cow::Borrowed(json);
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if acts(c) {
            // All of them are below U+10000.
            let _infallible = write!(escaped, "\\u{:04x}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_escaped_and_means_the_same() {
        let hostile = "edge\u{9b}2J\u{85}\u{7f}\u{1b}[0m\u{202e}é";
        let text = to_string(&json!({ "name": hostile })).unwrap();
        assert_eq!(text, r#"{"name":"edge\u009b2J\u0085\u007f\u001b[0m\u202eé"}"#);
        let pretty = to_string_pretty(&json!({ "name": [hostile] })).unwrap();
        assert!(pretty.contains('\n') && !pretty.contains('\u{9b}'), "{pretty}");
        assert_eq!(serde_json::from_str::<Value>(&pretty).unwrap()["name"][0], hostile);
        assert!(matches!(escape(r#"{"plain":"é"}"#), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn no_text_is_changed_and_none_acts(text in any::<String>()) {
            let written = to_string(&text).unwrap();
            prop_assert!(written.chars().all(is_printed), "{written:?}");
            prop_assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
        }
    }
}

//! How a report answers an HTTP request, so that kubectl prints it.

use http::{HeaderMap, header};

use super::{Outcome, Report};

/// What goes into an HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

/// Whether kubectl reads the answer to a request without looking for a `Status` in it: discovery, OpenAPI, and the
/// version (which other programs ask for, too: they don't accept just anything).
///
/// Its library (client-go, `Request.Do().Raw()`) takes the words of such an answer only from plain text.
pub fn is_read_raw(path: &str, headers: &HeaderMap) -> bool {
    let accepts_anything = || {
        let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        accepted.flat_map(|value| value.split(',')).any(|kind| kind.trim().starts_with("*/*"))
    };
    match path.trim_end_matches('/') {
        "/api" | "/apis" | "/openapi/v2" => true,
        "/version" => accepts_anything(),
        other => other.starts_with("/openapi/v3"),
    }
}

impl Report {
    /// The answer that carries this report: a `Status` object with the fault's own code, or, where the answer
    /// [`is_read_raw`], text with one of the two codes for which client-go shows the text that came with them.
    pub fn answer(&self, read_raw: bool) -> Answer {
        if !read_raw {
            return Answer {
                status: self.http_status(),
                content_type: "application/json",
                body: self.status_json(),
            };
        }
        let status = if self.fault.outcome() == Outcome::Forbidden { 403 } else { 502 };
        Answer { status, content_type: "text/plain; charset=utf-8", body: self.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::fault::Fault;

    #[test]
    fn discovery_is_answered_in_words_and_everything_else_by_a_status() {
        let mut anything = HeaderMap::new();
        anything.insert(header::ACCEPT, HeaderValue::from_static("application/json, */*"));
        let none = HeaderMap::new();
        for path in ["/api", "/apis", "/apis/", "/openapi/v3", "/openapi/v3/apis/apps/v1"] {
            assert!(is_read_raw(path, &none), "{path}");
        }
        assert!(is_read_raw("/version", &anything) && !is_read_raw("/version", &none));
        for path in ["/api/v1", "/api/v1/pods", "/apis/apps/v1", "/", "/healthz", "/apiz"] {
            assert!(!is_read_raw(path, &anything), "{path}");
        }
        let report = Report::new(Fault::AgentOffline, "edge");
        assert_eq!((report.answer(false).status, report.answer(true).status), (503, 502));
        assert_eq!(report.answer(true).body, report.to_string());
        assert_eq!(Report::from(Fault::ClusterForbidden).answer(true).status, 403);
    }
}

//! How a report answers an HTTP request, so that kubectl prints it.

use http::{HeaderMap, HeaderValue, header};

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

/// Whether whoever asks reads the answer without looking for a `Status` in it: client-go, for discovery, OpenAPI and
/// the version. Everybody else (curl, Python, Java, other parts of client-go) is told by a `Status`.
///
/// client-go (`Request.Do().Raw()`) takes the words of such an answer only from plain text. It shows itself by what
/// it accepts there, which no other program was seen to ask for in these words.
pub fn is_read_raw(path: &str, headers: &HeaderMap) -> bool {
    let path = path.trim_end_matches('/');
    let is_read =
        matches!(path, "/api" | "/apis" | "/openapi/v2" | "/version") || path.starts_with("/openapi/v3");
    is_read && headers.get_all(header::ACCEPT).iter().any(is_of_client_go)
}

fn is_of_client_go(accept: &HeaderValue) -> bool {
    let default = "application/json, */*";
    // Aggregated discovery (KEP-3352), and OpenAPI as protobuf.
    let special = ["g=apidiscovery.k8s.io", "application/com.github.proto-openapi.spec."];
    accept.to_str().is_ok_and(|accept| accept == default || special.iter().any(|kind| accept.contains(kind)))
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
    use super::*;
    use crate::fault::Fault;

    fn accepting(accept: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))])
    }

    #[test]
    fn client_go_is_told_in_words_where_it_reads_no_status() {
        let default = accepting("application/json, */*");
        for path in ["/api", "/apis", "/apis/", "/version", "/openapi/v3", "/openapi/v3/apis/apps/v1"] {
            assert!(is_read_raw(path, &default), "{path}");
        }
        // As kubectl 1.27, 1.33 and 1.37 ask.
        for accept in [
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json",
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json",
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList;profile=nopeer,application/json",
        ] {
            assert!(is_read_raw("/api", &accepting(accept)) && is_read_raw("/apis", &accepting(accept)));
        }
        let openapi = accepting("application/com.github.proto-openapi.spec.v2@v1.0+protobuf");
        assert!(is_read_raw("/openapi/v2", &openapi));
        for path in ["/api/v1", "/api/v1/pods", "/apis/apps/v1", "/", "/healthz", "/apiz"] {
            assert!(!is_read_raw(path, &default), "{path}");
        }
    }

    #[test]
    fn everybody_else_is_told_by_a_status() {
        // curl; Python's and Java's clients; HTTPie; axios; nobody in particular.
        let others =
            ["*/*", "application/json", "application/json, */*;q=0.5", "application/json, text/plain, */*"];
        for path in ["/api", "/apis", "/openapi/v2", "/openapi/v3", "/version"] {
            assert!(!is_read_raw(path, &HeaderMap::new()), "{path}");
            for accept in others {
                assert!(!is_read_raw(path, &accepting(accept)), "{path} {accept}");
            }
        }
    }

    #[test]
    fn words_come_with_a_code_for_which_client_go_shows_them() {
        let report = Report::new(Fault::AgentOffline, "edge");
        assert_eq!((report.answer(false).status, report.answer(true).status), (503, 502));
        assert_eq!(report.answer(true).body, report.to_string());
        assert_eq!(Report::from(Fault::ClusterForbidden).answer(true).status, 403);
    }
}

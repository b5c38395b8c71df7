//! Where a watch can be ended so that its client takes it for an end: between two events.
//!
//! kube-apiserver ends watches by itself every so often, and every client watches on from the last event. So a watch is
//! the one kind of answer that a drain may end; anything else that is cut must fail.

use http::{HeaderMap, header, uri::PathAndQuery};

use crate::audit;

/// How events follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// JSON, each event with a line end behind it.
    Lines {
        /// The last byte was a line's end.
        between: bool,
    },
    /// Protobuf, each event with its length (32 bits, big endian) before it.
    Lengths {
        /// Bytes of the length that came.
        prefix: u8,
        /// The length, as far as it came.
        length: u32,
    },
}

/// Whether the request is for a watch: `?watch=true`, or the older `/api/v1/watch/…`. Whatever else has that word in it
/// is not, and neither is what a proxied program answers: their ends would be taken for whole.
pub(super) fn is_watch(target: &PathAndQuery) -> bool {
    let segments: Vec<&str> = target.path().split('/').collect();
    let below = match segments.as_slice() {
        ["", "api", _, below @ ..] | ["", "apis", _, _, below @ ..] => below,
        _ => return false,
    };
    // `proxy/…`, `nodes/NAME/proxy/…`, `namespaces/NAME/services/NAME/proxy/…`.
    if [0, 2, 4].iter().any(|at| below.get(*at) == Some(&"proxy")) {
        return false;
    }
    target.query().is_some_and(audit::is_watch) || below.first() == Some(&"watch")
}

/// How the events of an answer with this head follow each other, where that is known.
pub(super) fn framing(headers: &HeaderMap) -> Option<Framing> {
    if headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::CONTENT_ENCODING) {
        return None;
    }
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    match kind.split(';').next()?.trim() {
        "application/json" => Some(Framing::Lines { between: true }),
        "application/vnd.kubernetes.protobuf" => Some(Framing::Lengths { prefix: 0, length: 0 }),
        _ => None,
    }
}

impl Framing {
    /// Looks at what passes.
    pub(super) fn observe(&mut self, bytes: &[u8]) {
        match self {
            Self::Lines { between } => {
                if let Some(last) = bytes.last() {
                    *between = *last == b'\n';
                }
            }
            Self::Lengths { prefix, length } => {
                let mut rest = bytes;
                while let Some((first, after)) = rest.split_first() {
                    if *prefix < 4 {
                        *length = *length << 8 | u32::from(*first);
                        *prefix += 1;
                        rest = after;
                    } else {
                        let part = rest.len().min(*length as usize);
                        *length -= part as u32;
                        rest = &rest[part..];
                    }
                    if *prefix == 4 && *length == 0 {
                        *prefix = 0;
                    }
                }
            }
        }
    }

    /// Whether what passed ends with a whole event.
    pub(super) fn is_between_events(&self) -> bool {
        match self {
            Self::Lines { between } => *between,
            Self::Lengths { prefix, .. } => *prefix == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_are_told_from_other_requests() {
        for (target, watches) in [
            ("/api/v1/pods?watch=true", true),
            ("/api/v1/pods?resourceVersion=7&watch=1&x=y", true),
            ("/api/v1/watch/namespaces/a/pods", true),
            ("/api/v1/pods?watch=false", false),
            ("/api/v1/pods?xwatch=true", false),
            ("/api/v1/namespaces/a/pods/watch", false),
            ("/api/v1/namespaces/a/pods/p/log?follow=true", false),
            ("/apis/apps/v1/watch/deployments", true),
            ("/apis/apps/v1/namespaces/a/deployments?watch=true", true),
            ("/api/v1/namespaces/watch/pods", false),
            ("/apis/apps/v1/namespaces/watch/deployments/d", false),
            ("/api/v1/namespaces/a/services/s/proxy/watch/all.json", false),
            ("/api/v1/namespaces/a/services/s/proxy/export?watch=true", false),
            ("/api/v1/nodes/n/proxy/pods?watch=true", false),
            ("/metrics?watch=true", false),
        ] {
            assert_eq!(is_watch(&target.parse().unwrap()), watches, "{target}");
        }
    }

    fn head(kind: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_TYPE, kind.parse().unwrap())])
    }

    #[test]
    fn lines_are_whole_at_their_end_only() {
        let mut framing = framing(&head("application/json;stream=watch")).unwrap();
        assert!(framing.is_between_events());
        for (bytes, between) in [("{\"type\"", false), (":1}\n", true), ("", true), ("{}\n{", false)] {
            framing.observe(bytes.as_bytes());
            assert_eq!(framing.is_between_events(), between, "{bytes}");
        }
    }

    #[test]
    fn lengths_are_followed_however_the_bytes_are_cut() {
        let mut stream = Vec::new();
        for length in [3_u32, 0, 300] {
            stream.extend_from_slice(&length.to_be_bytes());
            stream.extend(std::iter::repeat_n(b'\n', length as usize));
        }
        let ends = [7, 11, 315];
        for piece in [1, 2, 3, 7, 400] {
            let mut framing = framing(&head("application/vnd.kubernetes.protobuf;stream=watch")).unwrap();
            let mut at = 0;
            for bytes in stream.chunks(piece) {
                framing.observe(bytes);
                at += bytes.len();
                assert_eq!(
                    framing.is_between_events(),
                    ends.contains(&at),
                    "after {at} in pieces of {piece}"
                );
            }
        }
    }

    #[test]
    fn what_has_a_length_or_is_of_another_kind_is_not_ended() {
        assert_eq!(framing(&head("text/plain")), None);
        let mut with_length = head("application/json");
        with_length.insert(header::CONTENT_LENGTH, 7.into());
        assert_eq!(framing(&with_length), None);
    }
}

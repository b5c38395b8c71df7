//! What a cluster last said about its APIs, for while there is no way to it.
//!
//! kubectl that remembers nothing (a new HOME, a CI job) asks for `/api` and `/apis` before what it was told to do, several times,
//! and prints a line for each refusal, in front of words of its own. So it gets the last good answer, as caches give theirs on an error
//! (RFC 5861, section 4); what it was told to do is then refused, in one line. While the cluster answers, nothing comes from here.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{
        ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, VARY,
    },
};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, SizeHint};

use super::{Arrival, BodyError, ResponseBody};

/// Both paths, as a few kinds of programs ask for them.
const MAX_KEPT: usize = 8;
/// `/apis` of a cluster with hundreds of custom resources has some hundred KiB, before compression.
const MAX_BODY: usize = 2 << 20;
/// Of all that is kept of one cluster.
const MAX_BYTES: usize = 4 << 20;
/// What is kept of an answer's headers.
const TOLD: [HeaderName; 4] = [CONTENT_TYPE, CONTENT_ENCODING, ETAG, VARY];

/// What an answer depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    path: String,
    accept: Vec<HeaderValue>,
    encodings: Vec<HeaderValue>,
}

#[derive(Debug)]
struct Kept {
    asked: Asked,
    headers: HeaderMap,
    body: Bytes,
}

/// The last good answers of one cluster; the oldest goes first.
#[derive(Debug, Default)]
pub(super) struct Discovery(Mutex<VecDeque<Kept>>);

impl Asked {
    /// Of a request for discovery; none of any other.
    pub(super) fn of(arrival: &Arrival) -> Option<Self> {
        let (method, path, headers) = (&arrival.parts.method, &arrival.path, &arrival.parts.headers);
        let is_discovery = method == Method::GET && matches!(path.path(), "/api" | "/apis");
        let all = |name: HeaderName| headers.get_all(name).iter().cloned().collect();
        is_discovery.then(|| Self {
            path: path.as_str().to_owned(),
            accept: all(ACCEPT),
            encodings: all(ACCEPT_ENCODING),
        })
    }
}

/// Whether an answer is none of the cluster's: kubectl learns nothing of APIs from it.
pub(super) fn is_refused(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

impl Discovery {
    fn kept(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever has a copy asks whether it still holds; where there is none here, the answer is to be whole.
    pub(super) fn ask_for_all(&self, asked: &Asked, headers: &mut HeaderMap) {
        if !self.kept().iter().any(|kept| kept.asked == *asked) {
            headers.remove(IF_NONE_MATCH);
            headers.remove(IF_MODIFIED_SINCE);
        }
    }

    /// The last good answer to this.
    pub(super) fn last(&self, asked: &Asked) -> Option<Response<ResponseBody>> {
        let kept = self.kept();
        let kept = kept.iter().find(|kept| kept.asked == *asked)?;
        let body = Full::new(kept.body.clone()).map_err(|never| match never {}).boxed_unsync();
        let mut response = Response::new(body);
        *response.headers_mut() = kept.headers.clone();
        Some(response)
    }

    /// Keeps an answer once it has passed, if it is whole and not too large.
    pub(super) fn keep(
        self: &Arc<Self>,
        asked: Asked,
        response: Response<ResponseBody>,
    ) -> Response<ResponseBody> {
        if response.status() != StatusCode::OK || response.body().size_hint().lower() > MAX_BODY as u64 {
            return response;
        }
        let told = TOLD.iter().filter_map(|name| Some((name.clone(), response.headers().get(name)?.clone())));
        let passing = Passing { asked, headers: told.collect(), body: BytesMut::new(), to: Arc::clone(self) };
        response.map(|body| Copied { body, passing: Some(passing) }.boxed_unsync())
    }

    fn put(&self, new: Kept) {
        let mut kept = self.kept();
        kept.retain(|old| old.asked != new.asked);
        kept.push_back(new);
        let bytes = |kept: &VecDeque<Kept>| kept.iter().map(|one| one.body.len()).sum::<usize>();
        while kept.len() > MAX_KEPT || bytes(&kept) > MAX_BYTES {
            kept.pop_front();
        }
    }
}

/// An answer of which not all has passed.
struct Passing {
    asked: Asked,
    headers: HeaderMap,
    body: BytesMut,
    to: Arc<Discovery>,
}

/// A body that is copied as it passes, for as long as that makes sense.
struct Copied {
    body: ResponseBody,
    passing: Option<Passing>,
}

impl Copied {
    fn ended(&mut self) {
        if let Some(Passing { asked, headers, body, to }) = self.passing.take() {
            to.put(Kept { asked, headers, body: body.freeze() });
        }
    }
}

impl Body for Copied {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let data = frame.data_ref().map_or(&[][..], AsRef::as_ref);
                let room = MAX_BODY - self.passing.as_ref().map_or(0, |passing| passing.body.len());
                match &mut self.passing {
                    Some(passing) if data.len() <= room => passing.body.extend_from_slice(data),
                    passing => *passing = None,
                }
                if self.body.is_end_stream() {
                    self.ended();
                }
            }
            Some(Err(_)) => self.passing = None,
            None => self.ended(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(path: &str, accept: &'static str) -> Asked {
        Asked { path: path.to_owned(), accept: vec![HeaderValue::from_static(accept)], encodings: Vec::new() }
    }

    fn answer(body: impl Into<Bytes>) -> Response<ResponseBody> {
        let mut response =
            Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert("audit-id", HeaderValue::from_static("1"));
        response
    }

    async fn pass(discovery: &Arc<Discovery>, asked: Asked, body: impl Into<Bytes>) {
        discovery.keep(asked, answer(body)).into_body().collect().await.unwrap();
    }

    async fn last(discovery: &Discovery, asked: &Asked) -> Option<Bytes> {
        Some(discovery.last(asked)?.into_body().collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn the_last_whole_answer_to_the_same_question_is_kept() {
        let discovery = Arc::new(Discovery::default());
        let question = asked("/api", "a");
        assert!(discovery.last(&question).is_none());
        pass(&discovery, question.clone(), "one").await;
        pass(&discovery, question.clone(), "two").await;
        assert_eq!(last(&discovery, &question).await.unwrap(), "two");
        for other in [asked("/apis", "a"), asked("/api", "b"), asked("/api?x", "a")] {
            assert!(discovery.last(&other).is_none(), "{other:?}");
        }
        let headers = discovery.last(&question).unwrap().headers().clone();
        assert_eq!(headers[CONTENT_TYPE], "application/json");
        assert!(!headers.contains_key("audit-id"), "that was another request's");
        // Not read to its end, or cut: what was there stays.
        drop(discovery.keep(question.clone(), answer("half")));
        let cut = futures_util::stream::iter([
            Ok(Frame::data(Bytes::from_static(b"half"))),
            Err(BodyError::from("cut by the test")),
        ]);
        let cut = Response::new(http_body_util::StreamBody::new(cut).boxed_unsync());
        assert!(discovery.keep(question.clone(), cut).into_body().collect().await.is_err());
        assert_eq!(last(&discovery, &question).await.unwrap(), "two");
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded() {
        let discovery = Arc::new(Discovery::default());
        pass(&discovery, asked("/apis", "a"), vec![b' '; MAX_BODY + 1]).await;
        assert!(discovery.kept().is_empty());
        for n in 0..3 * MAX_KEPT {
            pass(&discovery, asked(&format!("/api?{n}"), "a"), "small").await;
        }
        assert_eq!(discovery.kept().len(), MAX_KEPT);
        for n in 0..3 {
            pass(&discovery, asked(&format!("/apis?{n}"), "a"), vec![b' '; MAX_BODY]).await;
        }
        let kept: usize = discovery.kept().iter().map(|kept| kept.body.len()).sum();
        assert_eq!(kept, MAX_BYTES);
        assert!(discovery.last(&asked("/apis?2", "a")).is_some());
    }

    #[test]
    fn a_copy_elsewhere_is_asked_about_only_where_there_is_one_here() {
        let discovery = Discovery::default();
        let question = asked("/api", "a");
        let mut headers = HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::from_static("\"x\""))]);
        discovery.put(Kept { asked: question.clone(), headers: HeaderMap::new(), body: Bytes::new() });
        discovery.ask_for_all(&question, &mut headers);
        assert!(headers.contains_key(IF_NONE_MATCH));
        discovery.ask_for_all(&asked("/apis", "a"), &mut headers);
        assert!(headers.is_empty());
    }
}

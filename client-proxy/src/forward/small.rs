//! Small requests of our own to a cluster, for whoever looks at it.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use towline_tunnel::{
    fault::{Fault, Report},
    ids::ClusterId,
};

use super::{Forwarder, authorization, build, exchange, note_told, nothing, onward, told};
use crate::dial::report_of;

impl Forwarder {
    /// Asks a cluster for a path, and reads the answer whole, of at most so many bytes.
    ///
    /// # Errors
    /// If there is no answer, it is longer, or relay or agent refuse: their own faults. kube-apiserver's refusals are answers.
    pub async fn get(
        &self,
        cluster: ClusterId,
        path: &str,
        most: usize,
    ) -> Result<(StatusCode, Bytes), Report> {
        self.small(cluster, (Method::GET, path), None, most).await
    }

    /// Posts JSON to a cluster, and reads the answer as [`Forwarder::get`] does.
    ///
    /// # Errors
    /// See there.
    pub async fn post(
        &self,
        cluster: ClusterId,
        path: &str,
        body: &'static str,
        most: usize,
    ) -> Result<(StatusCode, Bytes), Report> {
        self.small(cluster, (Method::POST, path), Some(body), most).await
    }

    async fn small(
        &self,
        cluster: ClusterId,
        (method, path): (Method, &str),
        json: Option<&'static str>,
        most: usize,
    ) -> Result<(StatusCode, Bytes), Report> {
        let pool = self.pool(cluster)?;
        let token = self.token()?;
        let uri: Uri = path.parse().map_err(|error| Report::caused_by(Fault::Internal, path, error))?;
        let mut headers = onward(HeaderMap::new(), cluster, authorization(&token)?)?;
        let body = match json {
            None => nothing(),
            Some(json) => {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                Full::new(Bytes::from_static(json.as_bytes())).map_err(|never| match never {}).boxed_unsync()
            }
        };
        let request = build(method, uri, headers, body);
        let (connection, response) = exchange(pool, request).await?;
        note_told(pool, &token, &response);
        let status = response.status();
        let body = Limited::new(response.into_body(), most).collect().await;
        let body = body.map_err(|error| report_of(error.as_ref()))?.to_bytes();
        pool.put_back(connection);
        // Ours are refusals; what a cluster has may be large, and is not read here.
        match (!status.is_success()).then(|| told(&body)).flatten() {
            Some(report) => Err(report),
            None => Ok((status, body)),
        }
    }
}

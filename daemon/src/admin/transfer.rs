//! Files through the socket: `POST export` answers with one, `POST import` takes one.
//!
//! The command reads and writes the file, so that it needs no right but that of the person who typed it, and the daemon none outside its folder.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, BodyStream};
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::Office;
use super::api::{Refusal, read};
use crate::archive::{Choice, Imported};
use crate::registry::Body;

/// Says how many of the last bytes of a file come first.
pub(crate) const TAIL_HEADER: &str = "larder-tail";
/// Say what is in the file that is answered.
pub(crate) const IMAGES_HEADER: &str = "larder-images";
/// See [`IMAGES_HEADER`].
pub(crate) const BLOBS_HEADER: &str = "larder-blobs";
/// Images that may be named at a time.
const CHOICES_MAX: usize = 1_000;
/// How long the rest of a file that is refused is read.
const REST: Duration = Duration::from_secs(30);

/// `POST export`
#[derive(Deserialize)]
struct AskExport {
    images: Vec<String>,
}

impl Office {
    /// Answers with the file itself.
    pub(super) async fn export(self: &Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let asked: AskExport = read(request).await?;
        if asked.images.is_empty() || asked.images.len() > CHOICES_MAX {
            return Err(Refusal::bad(format!("{} images are named; name 1 to {CHOICES_MAX}, wildcards count as one", asked.images.len())));
        }
        let choices = asked.images.iter().map(|image| image.parse::<Choice>()).collect::<Result<Vec<_>, _>>().map_err(Refusal::bad)?;
        let export = self.operations.archive_export(choices).await?;
        let number = |number: u64| HeaderValue::from(number);
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar")),
            (header::CONTENT_LENGTH, number(export.size)),
            (header::HeaderName::from_static(IMAGES_HEADER), number(export.images as u64)),
            (header::HeaderName::from_static(BLOBS_HEADER), number(export.blobs as u64)),
        ];
        let mut response = Response::new(export.reading().boxed());
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().extend(headers);
        Ok(response)
    }

    /// Takes the file in the request's body.
    pub(super) async fn import(&self, request: Request<Incoming>) -> Result<Imported, Refusal> {
        let number = |name: &str| -> Option<u64> { request.headers().get(name)?.to_str().ok()?.parse().ok() };
        let (Some(size), Some(tail)) = (number(header::CONTENT_LENGTH.as_str()), number(TAIL_HEADER)) else {
            return Err(Refusal::bad(format!("an import says Content-Length, and in {TAIL_HEADER} how many of the last bytes come first")));
        };
        let body = Arc::new(Mutex::new(BodyStream::new(request.into_body())));
        let pieces = stream::unfold(Arc::clone(&body), |body| async move {
            let frame = body.lock().await.next().await?;
            let piece = frame.map(|frame| frame.into_data().unwrap_or_else(|_| Bytes::new())).map_err(std::io::Error::other);
            Some((piece, body))
        });
        let imported = self.operations.archive_import(size, tail, pieces.boxed()).await;
        if imported.is_err() {
            // Who still sends would find the connection broken, and not read why.
            let rest = async { while let Some(Ok(_)) = body.lock().await.next().await {} };
            let _ = tokio::time::timeout(REST, rest).await;
        }
        Ok(imported?)
    }
}

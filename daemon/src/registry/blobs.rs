//! Pulling, checking and deleting blobs. Every one of them begins at the repository's own link (I8).

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt;
use larder_protocol::digest::Digest;
use larder_protocol::name::RepositoryName;
use larder_protocol::record::Link;

use super::body::{Heal, Outflow};
use super::error::Error;
use super::range::{Wanted, wanted};
use super::{Body, Front, empty, has_already, set, set_digest, text};
use crate::store::Checked;

impl Front {
    /// Says whether a blob is there, and its size; its bytes are not touched. A client that hears so need not push it, so it
    /// is kept for a manifest to come. SPEC: end-2 (HEAD).
    pub(super) async fn check_blob(
        &self,
        repository: RepositoryName,
        digest: Digest,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, Error> {
        let name = repository.clone();
        let link = match self.store.look_up(move |store| store.known_blob(&name, &digest)).await? {
            Checked::Known(link) => link,
            Checked::Old => self.store.run(move |store| store.check_blob(&repository, &digest)).await?,
        };
        let link = link.ok_or(Error::BlobUnknown { digest })?;
        if has_already(headers, &digest) {
            return Ok(unchanged(&digest));
        }
        let mut response = empty(StatusCode::OK);
        describe(&mut response, &digest);
        response.headers_mut().insert(header::CONTENT_LENGTH, link.size.into());
        Ok(response)
    }

    /// Sends a blob or a part of it, from wherever it is. SPEC: end-2.
    pub(super) async fn pull_blob(&self, repository: RepositoryName, digest: Digest, headers: &HeaderMap) -> Result<Response<Body>, Error> {
        let link = self.link(repository, digest).await?;
        if has_already(headers, &digest) {
            return Ok(unchanged(&digest));
        }
        let opened = self.lookup.open(digest, link).await?;
        let whole = opened.size();
        let (status, range) = match wanted(text(headers, &header::RANGE).filter(|_| range_applies(headers, &digest)), whole) {
            Wanted::Whole => (StatusCode::OK, 0..whole),
            Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
            Wanted::Unsatisfiable => return Err(Error::Unsatisfiable { size: whole }),
        };
        let part = format!("bytes {}-{}/{whole}", range.start, range.end.saturating_sub(1));
        let size = range.end - range.start;
        let mut response =
            Response::new(Outflow::new(opened, digest, range, self.metrics.http_sent_bytes.clone(), self.healing(link)).boxed());
        *response.status_mut() = status;
        describe(&mut response, &digest);
        response.headers_mut().insert(header::CONTENT_LENGTH, size.into());
        if status == StatusCode::PARTIAL_CONTENT {
            set(&mut response, header::CONTENT_RANGE, part);
        }
        Ok(response)
    }

    /// Makes a blob unreadable in one repository; others keep it. SPEC: end-10.
    pub(super) async fn delete_blob(&self, repository: RepositoryName, digest: Digest) -> Result<Response<Body>, Error> {
        if !self.store.run(move |store| store.unlink(&repository, &digest)).await? {
            return Err(Error::BlobUnknown { digest });
        }
        Ok(empty(StatusCode::ACCEPTED))
    }

    /// Where a download goes on when the blob's file here turns out to be damaged.
    fn healing(&self, link: Link) -> Heal {
        let lookup = self.lookup.clone();
        Arc::new(move |file, why| {
            let lookup = lookup.clone();
            Box::pin(async move { lookup.heal(link, file, why).await.map_err(std::io::Error::other) })
        })
    }

    async fn link(&self, repository: RepositoryName, digest: Digest) -> Result<Link, Error> {
        let link = self.store.look_up(move |store| store.link(&repository, &digest)).await?;
        link.ok_or(Error::BlobUnknown { digest })
    }
}

/// Whether a `Range` counts: `If-Range` may say that it does only for other content.
fn range_applies(headers: &HeaderMap, digest: &Digest) -> bool {
    headers.get(header::IF_RANGE).is_none_or(|tag| tag.as_bytes() == format!("\"{digest}\"").as_bytes())
}

fn describe(response: &mut Response<Body>, digest: &Digest) {
    set_digest(response, digest);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
}

fn unchanged(digest: &Digest) -> Response<Body> {
    let mut response = empty(StatusCode::NOT_MODIFIED);
    set_digest(&mut response, digest);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_for_the_content_that_if_range_names() {
        let digest = Digest::sha256(b"x");
        for (value, expected) in
            [(format!("\"{digest}\""), true), ("\"other\"".into(), false), ("Sat, 29 Oct 1994 19:43:31 GMT".into(), false)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_RANGE, value.parse().unwrap());
            assert_eq!(range_applies(&headers, &digest), expected, "{value}");
        }
        assert!(range_applies(&HeaderMap::new(), &digest));
    }
}

//! Pulling, pushing and deleting manifests.
//!
//! A manifest is stored exactly as it was sent and served with the media type it was sent with; `Accept` is not asked, since a
//! manifest of another type would be another manifest. What it may name, and whether that is there, is the store's to check.
//!
//! `OCI-Subject` tells a client that what it attached will be listed by [`super::referrers`], so that it keeps no list of its own.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use larder_protocol::access::Actions;
use larder_protocol::digest::{Algorithm, Digest};
use larder_protocol::name::{Reference, RepositoryName, Tag};

use super::error::Error;
use super::{Body, Front, Pushed, body, empty, has_already, refuse_encoded, set, set_digest, text};
use crate::store::{Condition, ManifestPush, Meant, StoredManifest};

/// Longest media type. SPEC: RFC 6838, 4.2: each half has at most 127 letters.
const MEDIA_TYPE_LENGTH_MAX: usize = 255;

impl Front {
    /// Sends a manifest. SPEC: end-3.
    pub(super) async fn pull_manifest(
        &self,
        repository: RepositoryName,
        reference: Reference,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, Error> {
        let wanted = reference.clone();
        let found = self.store.look_up(move |store| {
            let digest = match &wanted {
                Reference::Digest(digest) => Some(*digest),
                Reference::Tag(tag) => store.tag(&repository, tag)?.map(|info| info.digest),
            };
            let Some(digest) = digest else { return Ok(None) };
            Ok::<_, Error>(store.manifest(&repository, &digest)?.map(|manifest| (digest, manifest)))
        });
        let Some((digest, manifest)) = found.await? else { return Err(Error::ManifestUnknown { reference: reference.to_string() }) };
        if has_already(headers, &digest) {
            let mut response = empty(StatusCode::NOT_MODIFIED);
            set_digest(&mut response, &digest);
            return Ok(response);
        }
        Ok(sent(&digest, manifest))
    }

    /// Stores a manifest. SPEC: end-7a, end-7b.
    pub(super) async fn push_manifest(
        &self,
        repository: RepositoryName,
        digest: Option<Digest>,
        tags: Vec<Tag>,
        request: Pushed<'_>,
    ) -> Result<Response<Body>, Error> {
        self.lookup.can_acknowledge()?;
        refuse_encoded(request.headers)?;
        let limit = self.manifest_size_max;
        let announced = text(request.headers, &header::CONTENT_LENGTH).and_then(super::range::number);
        if announced.is_some_and(|size| size > limit) {
            return Err(Error::ManifestTooLarge { limit });
        }
        let Some(bytes) = request.body.collect(limit).await? else { return Err(Error::ManifestTooLarge { limit }) };
        let media_type = media_type(text(request.headers, &header::CONTENT_TYPE), &bytes)?;
        let keeps_tags = !request.caller.may(Actions::OVERWRITE, repository.as_str());
        let (by_digest, condition) = (digest.is_some(), Condition { keeps_tags, ..condition(request.headers) });
        let (name, named) = (repository.clone(), tags.clone());
        let stored = self.store.run(move |store| {
            let digest = digest.unwrap_or_else(|| Digest::of(Algorithm::Sha256, &bytes));
            let push = ManifestPush { repository: name, tags: named, digest, media_type, bytes };
            let stored = store.put_manifest_if(push, &condition)?;
            Ok::<_, Error>((digest, stored))
        });
        let (digest, stored) = stored.await?;
        self.lookup.acknowledge(repository.clone(), digest, tags.clone()).await?;
        self.metrics.pushes.inc();
        let mut response = empty(StatusCode::CREATED);
        set(&mut response, header::LOCATION, self.location(format_args!("{repository}/manifests/{digest}")));
        set_digest(&mut response, &digest);
        if by_digest && !tags.is_empty() {
            let tags: Vec<_> = tags.iter().map(Tag::as_str).collect();
            set(&mut response, "oci-tag", tags.join(", "));
        }
        if let Some(subject) = stored.subject {
            set(&mut response, "oci-subject", subject);
        }
        if stored.missing > 0 {
            // SPEC: warnings.
            let warning = format_args!("299 - \"{} of the blobs and manifests that it names are not in {repository}\"", stored.missing);
            set(&mut response, header::WARNING, warning);
        }
        Ok(response)
    }

    /// Removes a tag and nothing else, or a manifest with every tag that names it. SPEC: end-9.
    pub(super) async fn delete_manifest(&self, repository: RepositoryName, reference: Reference) -> Result<Response<Body>, Error> {
        let gone = reference.clone();
        let deleted = self.store.run(move |store| match gone {
            Reference::Tag(tag) => store.delete_tag(&repository, &tag),
            Reference::Digest(digest) => store.delete_manifest(&repository, &digest),
        });
        if !deleted.await? {
            return Err(Error::ManifestUnknown { reference: reference.to_string() });
        }
        Ok(empty(StatusCode::ACCEPTED))
    }
}

/// What the client asks of what its push replaces. SPEC: RFC 9110, 13.1.
fn condition(headers: &HeaderMap) -> Condition {
    let meant = |name, weak: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        let tags: Vec<_> = values.flat_map(|value| value.split(',')).map(str::trim).collect();
        if tags.contains(&"*") {
            return Some(Meant::Any);
        }
        let digest = |tag: &&str| tag.trim_start_matches(weak).strip_prefix('"')?.strip_suffix('"')?.parse().ok();
        // What is no digest is nothing that could stand here.
        headers.contains_key(name).then(|| Meant::These(tags.iter().filter_map(digest).collect()))
    };
    Condition { is: meant(&header::IF_MATCH, ""), is_not: meant(&header::IF_NONE_MATCH, "W/"), keeps_tags: false }
}

fn sent(digest: &Digest, manifest: StoredManifest) -> Response<Body> {
    let size = manifest.bytes.len();
    let mut response = Response::new(body::whole(manifest.bytes));
    set_digest(&mut response, digest);
    response.headers_mut().insert(header::CONTENT_LENGTH, size.into());
    // What another node took as a media type may be no legal header here.
    let media_type = HeaderValue::try_from(manifest.media_type).unwrap_or(HeaderValue::from_static("application/octet-stream"));
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    response
}

/// The media type that a manifest is pushed with: the header's, without parameters; without a header, the body's own.
fn media_type(header: Option<&str>, bytes: &Bytes) -> Result<String, Error> {
    #[derive(serde::Deserialize)]
    struct Typed {
        #[serde(rename = "mediaType")]
        media_type: Option<String>,
    }
    let named = match header.map(|text| text.split(';').next().unwrap_or_default().trim()) {
        Some(text) => text.to_owned(),
        None => {
            let typed: Option<Typed> = serde_json::from_slice(bytes).ok();
            typed.and_then(|typed| typed.media_type).ok_or(Error::MediaType { why: "there is none" })?
        }
    };
    if is_media_type(&named) { Ok(named) } else { Err(Error::MediaType { why: "it is not <type>/<subtype>" }) }
}

/// SPEC: RFC 6838, 4.2.
fn is_media_type(text: &str) -> bool {
    let is_name = |name: &str| {
        name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
    };
    text.len() <= MEDIA_TYPE_LENGTH_MAX && text.split_once('/').is_some_and(|(top, sub)| is_name(top) && is_name(sub))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_media_type_is_the_headers_or_else_the_bodys() {
        let body = Bytes::from_static(br#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#);
        let none = Bytes::from_static(b"{}");
        let oci = "application/vnd.oci.image.manifest.v1+json";
        assert_eq!(media_type(Some(oci), &none).unwrap(), oci);
        assert_eq!(media_type(Some(&format!("{oci}; charset=utf-8")), &none).unwrap(), oci);
        assert_eq!(media_type(None, &body).unwrap(), "application/vnd.oci.image.index.v1+json");
        for body in [none.clone(), Bytes::from_static(b"not json"), Bytes::from_static(b"\xff"), Bytes::from("[".repeat(10_000))] {
            assert!(media_type(None, &body).is_err());
        }
    }

    #[test]
    fn conditions_are_read_from_both_headers_and_weak_tags_count_for_one() {
        let digest = Digest::sha256(b"x");
        let these = |digests: &[Digest]| Some(Meant::These(digests.to_vec()));
        for (text, is, is_not) in [
            ("*".to_owned(), Some(Meant::Any), Some(Meant::Any)),
            (format!("\"{digest}\""), these(&[digest]), these(&[digest])),
            (format!("W/\"{digest}\""), these(&[]), these(&[digest])),
            (format!("\"other\", \"{digest}\""), these(&[digest]), these(&[digest])),
            (digest.to_string(), these(&[]), these(&[])),
        ] {
            let with = |name: http::HeaderName| HeaderMap::from_iter([(name, text.parse().unwrap())]);
            assert_eq!(condition(&with(header::IF_MATCH)), Condition { is, ..Condition::default() }, "{text}");
            assert_eq!(condition(&with(header::IF_NONE_MATCH)), Condition { is_not, ..Condition::default() }, "{text}");
        }
        assert_eq!(condition(&HeaderMap::new()), Condition::default());
    }

    #[test]
    fn media_types_that_are_none_are_refused() {
        let long = format!("a/{}", "b".repeat(MEDIA_TYPE_LENGTH_MAX));
        for text in ["", "a", "/", "a/", "/b", "a/b/c", "a b/c", "a/b\r\nx: y", &long] {
            assert!(media_type(Some(text), &Bytes::new()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_media_type_that_is_no_header_is_served_as_bytes() {
        let manifest = StoredManifest { media_type: "a\nb".into(), bytes: Bytes::from_static(b"{}") };
        let response = sent(&Digest::sha256(b"{}"), manifest);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/octet-stream");
    }
}

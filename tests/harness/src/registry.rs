//! Push and pull as clients do it, against one node; whatever comes back is verified.

use crate::content::{CHUNK_SIZE, Content, sha256};
use crate::http::{self, Body, Response, Summary};
use crate::image::{Image, Kind};
use base64::Engine as _;
use bytes::Bytes;
use std::io;

/// What clients say they take.
pub const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// The registry of one node.
#[derive(Debug, Clone)]
pub struct Registry {
    url: String,
    authorization: Option<String>,
}

impl Registry {
    /// The registry at `http://host:port`.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), authorization: None }
    }

    /// The same, for somebody who shows a name and a password.
    pub fn signed_in(&self, name: &str, password: &str) -> Self {
        let shown = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
        Self { authorization: Some(format!("Basic {shown}")), ..self.clone() }
    }

    /// The same, for somebody who shows a token.
    pub fn with_token(&self, token: &str) -> Self {
        Self { authorization: Some(format!("Bearer {token}")), ..self.clone() }
    }

    /// Asks for a token; the whole answer.
    pub async fn token(&self, scope: &str) -> Response {
        self.request("GET", &format!("/token?service=larder&scope={scope}"), &[], Body::empty()).await
    }

    /// `path` with the registry's address before it; a whole address stays as it is. (A Location may be either.)
    pub fn at(&self, path: &str) -> String {
        if path.starts_with("http://") { path.to_owned() } else { format!("{}{path}", self.url) }
    }

    /// Sends any request.
    pub async fn try_request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> io::Result<Response> {
        let shown = self.authorization.iter().map(|shown| ("authorization", shown.as_str()));
        let headers: Vec<_> = headers.iter().copied().chain(shown).collect();
        http::request(method, &self.at(path), &headers, body).await
    }

    /// Sends any request to a node that is expected to be there.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
        self.try_request(method, path, headers, body).await.unwrap_or_else(|error| panic!("{method} {}{path}: {error:?}", self.url))
    }

    /// GET without a body.
    pub async fn get(&self, path: &str) -> Response {
        self.request("GET", path, &[("accept", ACCEPT)], Body::empty()).await
    }

    /// HEAD.
    pub async fn head(&self, path: &str) -> Response {
        self.request("HEAD", path, &[("accept", ACCEPT)], Body::empty()).await
    }

    /// Opens an upload session; gives its address.
    pub async fn try_open_upload(&self, repository: &str) -> io::Result<String> {
        let answer = self.try_request("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], Body::empty()).await?;
        let location = accepted(answer, 202, "open an upload")?.header("location").to_owned();
        Ok(location)
    }

    /// Opens an upload session of a node that is expected to be there.
    pub async fn open_upload(&self, repository: &str) -> String {
        self.try_open_upload(repository).await.unwrap_or_else(|error| panic!("open an upload in {repository}: {error}"))
    }

    /// Pushes a blob as docker does (POST, one streamed PATCH, PUT); Ok means the node acknowledged it with 201.
    pub async fn try_push_blob(&self, repository: &str, content: Content) -> io::Result<()> {
        let location = self.try_open_upload(repository).await?;
        let headers = [("content-type", "application/octet-stream")];
        let chunks = Body::chunked(content.chunks().map(Ok));
        let answer = self.try_request("PATCH", &location, &headers, chunks).await?;
        let location = accepted(answer, 202, "append to an upload")?.header("location").to_owned();
        self.try_finish_upload(&location, &content.digest()).await
    }

    /// Pushes a blob with one PATCH for each of the given parts, as clients with a chunk size do.
    pub async fn try_push_blob_in_parts(&self, repository: &str, bytes: &Bytes, part_size: usize) -> io::Result<()> {
        let mut location = self.try_open_upload(repository).await?;
        for begin in (0..bytes.len()).step_by(part_size) {
            let part = bytes.slice(begin..bytes.len().min(begin + part_size));
            let range = format!("{begin}-{}", begin + part.len() - 1);
            let headers = [("content-type", "application/octet-stream"), ("content-range", &range)];
            let answer = self.try_request("PATCH", &location, &headers, part).await?;
            location = accepted(answer, 202, "append a part")?.header("location").to_owned();
        }
        self.try_finish_upload(&location, &sha256(bytes)).await
    }

    /// Pushes a blob as a whole in the PUT that ends its upload (POST, PUT).
    pub async fn try_push_blob_at_once(&self, repository: &str, content: Content) -> io::Result<()> {
        let location = self.try_open_upload(repository).await?;
        let headers = [("content-type", "application/octet-stream")];
        let url = with_digest(&location, &content.digest());
        accepted(self.try_request("PUT", &url, &headers, Body::content(content)).await?, 201, "push a blob at once").map(drop)
    }

    /// Ends an upload: PUT with the digest and no more bytes.
    pub async fn try_finish_upload(&self, location: &str, digest: &str) -> io::Result<()> {
        let answer = self.try_request("PUT", &with_digest(location, digest), &[], Body::empty()).await?;
        accepted(answer, 201, "finish an upload").map(drop)
    }

    /// Pushes a blob that is at hand; gives its digest.
    pub async fn push_bytes(&self, repository: &str, bytes: &Bytes) -> String {
        self.try_push_bytes(repository, bytes).await.unwrap_or_else(|error| panic!("push a blob to {}/{repository}: {error}", self.url))
    }

    /// The same, of a node that may die.
    pub async fn try_push_bytes(&self, repository: &str, bytes: &Bytes) -> io::Result<String> {
        let location = self.try_open_upload(repository).await?;
        let digest = sha256(bytes);
        let headers = [("content-type", "application/octet-stream")];
        let answer = self.try_request("PUT", &with_digest(&location, &digest), &headers, bytes.clone()).await?;
        accepted(answer, 201, "push a blob").map(|_| digest)
    }

    /// Pushes a manifest under a tag or digest.
    pub async fn put_manifest(&self, repository: &str, reference: &str, media_type: &str, manifest: impl Into<Body>) -> Response {
        self.request("PUT", &format!("/v2/{repository}/manifests/{reference}"), &[("content-type", media_type)], manifest).await
    }

    /// Pushes the blobs of an image that are not there yet, as clients do, and then its manifest as `reference`.
    ///
    /// # Errors
    /// When the node did not acknowledge all of it.
    pub async fn try_push_image(&self, repository: &str, reference: &str, image: &Image) -> io::Result<()> {
        self.try_push_blobs(repository, image).await?;
        let path = format!("/v2/{repository}/manifests/{reference}");
        let answer = self.try_request("PUT", &path, &[("content-type", image.media_type())], image.manifest.clone()).await?;
        accepted(answer, 201, "push a manifest").map(drop)
    }

    /// Pushes the config and the layers of an image that are not there yet.
    pub async fn try_push_blobs(&self, repository: &str, image: &Image) -> io::Result<()> {
        for layer in &image.layers {
            let head = self.try_request("HEAD", &format!("/v2/{repository}/blobs/{}", layer.digest()), &[], Body::empty()).await?;
            match head.status {
                200 => {}
                _ if layer.size <= CHUNK_SIZE => self.try_push_blob_at_once(repository, *layer).await?,
                _ => self.try_push_blob(repository, *layer).await?,
            }
        }
        self.try_push_bytes(repository, &image.config).await.map(drop)
    }

    /// Pushes an image to a node that is expected to be there.
    pub async fn push_image(&self, repository: &str, reference: &str, image: &Image) {
        let pushed = self.try_push_image(repository, reference, image).await;
        pushed.unwrap_or_else(|error| panic!("push {}/{repository}:{reference}: {error}", self.url));
    }

    /// Pushes images by digest and then an index over them as `reference`; gives the index's bytes.
    pub async fn push_index(&self, repository: &str, reference: &str, kind: Kind, images: &[Image]) -> Bytes {
        for image in images {
            self.push_image(repository, &image.digest(), image).await;
        }
        let index = crate::image::index(kind, images);
        self.put_manifest(repository, reference, kind.index(), index.clone()).await.expect(201, "push an index");
        index
    }

    /// Pulls a manifest and verifies it against its Docker-Content-Digest.
    pub async fn pull_manifest(&self, repository: &str, reference: &str) -> Response {
        let answer = self.get(&format!("/v2/{repository}/manifests/{reference}")).await;
        if answer.status == 200 {
            assert_eq!(sha256(&answer.body), answer.header("docker-content-digest"), "digest of {repository}:{reference}");
        }
        answer
    }

    /// Pulls a blob without keeping it.
    pub async fn pull_blob(&self, repository: &str, digest: &str) -> io::Result<Summary> {
        let shown: Vec<_> = self.authorization.iter().map(|shown| ("authorization", shown.as_str())).collect();
        http::summary_with(&self.at(&format!("/v2/{repository}/blobs/{digest}")), &shown).await
    }

    /// Pulls an image by `reference` and verifies manifest, media type, config and each layer, byte for byte.
    ///
    /// # Panics
    /// When anything is missing or different.
    pub async fn pull_image(&self, repository: &str, reference: &str, image: &Image) {
        let here = format!("{}/{repository}:{reference}", self.url);
        let manifest = self.pull_manifest(repository, reference).await.expect(200, &format!("pull {here}"));
        assert_eq!(manifest.body, image.manifest, "manifest of {here}");
        assert_eq!(manifest.header("content-type"), image.media_type(), "media type of {here}");
        let layers = image.layers.iter().map(|layer| (layer.digest(), layer.size));
        for (digest, size) in layers.chain([(sha256(&image.config), image.config.len() as u64)]) {
            let blob = self.pull_blob(repository, &digest).await.unwrap_or_else(|error| panic!("pull {digest} of {here}: {error}"));
            assert_eq!(blob, Summary { status: 200, size, digest: digest.clone() }, "blob {digest} of {here}");
        }
    }

    /// All tags of a repository; empty when there is no such repository.
    pub async fn tags(&self, repository: &str) -> Vec<String> {
        let answer = self.get(&format!("/v2/{repository}/tags/list")).await;
        if answer.status == 404 {
            return Vec::new();
        }
        let body = answer.expect(200, "list tags").json();
        body["tags"].as_array().map_or_else(Vec::new, |tags| tags.iter().map(|tag| tag.as_str().unwrap_or("").to_owned()).collect())
    }
}

/// `location` with the digest that ends an upload.
pub fn with_digest(location: &str, digest: &str) -> String {
    let mark = if location.contains('?') { '&' } else { '?' };
    format!("{location}{mark}digest={digest}")
}

/// The answer, when it has the status that was wished for. Otherwise an error of the kind `InvalidData`, which no broken connection
/// gives: so a test knows a node that refused from one that died.
fn accepted(answer: Response, status: u16, doing: &str) -> io::Result<Response> {
    if answer.status == status {
        return Ok(answer);
    }
    let said = format!("{doing}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
    Err(io::Error::new(io::ErrorKind::InvalidData, said))
}

//! Path, query and method -> [`Route`]: the whole API in one table, with the specification's end-ids.
//!
//! Names, digests, tags and session ids are parsed here, once; behind this file nobody sees a text that could still be
//! something else (S1, S2). Repository names contain slashes, so an address is read from its end: the last word that the
//! API knows decides, and what stands before it is the name, whatever it looks like. `a/blobs/uploads` is a legal name.

use http::{Method, Uri};
use larder_protocol::digest::{Algorithm, Digest};
use larder_protocol::name::{InvalidName, Reference, RepositoryName, Tag};
use uuid::Uuid;

use super::error::Error;
use super::query::{Plus, Query, decode};
use super::range::number;

/// Most entries of one page of a listing; asking for more gives so many (S11).
pub(super) const PAGE_SIZE_MAX: usize = 1_000;
/// Most tags that one manifest push may name.
pub(super) const TAGS_PER_PUSH_MAX: usize = 100;

/// One request, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Is this a registry?
    Ping,
    /// List the repositories; not in the specification, but clients ask for it.
    ListRepositories(Page<RepositoryName>),
    /// List the tags of a repository.
    ListTags { repository: RepositoryName, page: Page<Tag> },
    /// List what is attached to a manifest.
    ListReferrers { repository: RepositoryName, subject: Digest, artifact_type: Option<String>, page: Page<Digest> },
    /// Is the blob there, and how large is it?
    CheckBlob { repository: RepositoryName, digest: Digest },
    /// Read a blob.
    PullBlob { repository: RepositoryName, digest: Digest },
    /// Make a blob unreadable in a repository.
    DeleteBlob { repository: RepositoryName, digest: Digest },
    /// Read a manifest, or only the head of the answer.
    PullManifest { repository: RepositoryName, reference: Reference },
    /// Store a manifest under its digest and `tags`.
    PushManifest { repository: RepositoryName, digest: Option<Digest>, tags: Vec<Tag> },
    /// Remove a tag, or a manifest with all its tags.
    DeleteManifest { repository: RepositoryName, reference: Reference },
    /// Begin an upload session.
    StartUpload { repository: RepositoryName, algorithm: Algorithm },
    /// Upload a blob in this one request.
    PushBlob { repository: RepositoryName, digest: Digest },
    /// Take a blob over from another repository, or begin a session.
    MountBlob { repository: RepositoryName, digest: Digest, from: Option<RepositoryName> },
    /// Where does a session stand?
    UploadStatus { repository: RepositoryName, session: Uuid },
    /// Add bytes to a session.
    AppendUpload { repository: RepositoryName, session: Uuid },
    /// Add the last bytes, if any, and make it a blob.
    FinishUpload { repository: RepositoryName, session: Uuid, digest: Digest },
    /// Forget a session.
    CancelUpload { repository: RepositoryName, session: Uuid },
}

impl Route {
    /// The repository that it is about.
    pub(super) fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Route::Ping | Route::ListRepositories(_) => None,
            Route::ListTags { repository, .. }
            | Route::ListReferrers { repository, .. }
            | Route::CheckBlob { repository, .. }
            | Route::PullBlob { repository, .. }
            | Route::PullManifest { repository, .. }
            | Route::UploadStatus { repository, .. }
            | Route::DeleteBlob { repository, .. }
            | Route::PushManifest { repository, .. }
            | Route::DeleteManifest { repository, .. }
            | Route::StartUpload { repository, .. }
            | Route::PushBlob { repository, .. }
            | Route::MountBlob { repository, .. }
            | Route::AppendUpload { repository, .. }
            | Route::FinishUpload { repository, .. }
            | Route::CancelUpload { repository, .. } => Some(repository),
        }
    }

    /// Whether it is there to change what the registry holds.
    pub(super) fn is_write(&self) -> bool {
        match self {
            Route::Ping
            | Route::ListRepositories(_)
            | Route::ListTags { .. }
            | Route::ListReferrers { .. }
            | Route::CheckBlob { .. }
            | Route::PullBlob { .. }
            | Route::PullManifest { .. }
            | Route::UploadStatus { .. } => false,
            Route::DeleteBlob { .. }
            | Route::PushManifest { .. }
            | Route::DeleteManifest { .. }
            | Route::StartUpload { .. }
            | Route::PushBlob { .. }
            | Route::MountBlob { .. }
            | Route::AppendUpload { .. }
            | Route::FinishUpload { .. }
            | Route::CancelUpload { .. } => true,
        }
    }
}

/// Which part of a listing is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page<T> {
    /// Most entries, at most [`PAGE_SIZE_MAX`].
    pub(super) limit: usize,
    /// Entries behind this one.
    pub(super) after: Option<T>,
}

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource {
    Base,
    Catalog,
    Tags,
    Blob,
    Manifest,
    Referrers,
    Uploads,
    Session,
}

/// Every endpoint. What the query decides (end-4b, 4c, 7b, 8b, 11, 12b) is told apart in [`parse`].
const ENDPOINTS: [(Resource, Method, &str); 20] = [
    (Resource::Base, Method::GET, "end-1"),
    (Resource::Base, Method::HEAD, "end-1"),
    (Resource::Blob, Method::GET, "end-2"),
    (Resource::Blob, Method::HEAD, "end-2"),
    (Resource::Manifest, Method::GET, "end-3"),
    (Resource::Manifest, Method::HEAD, "end-3"),
    (Resource::Uploads, Method::POST, "end-4a"),
    (Resource::Session, Method::PATCH, "end-5"),
    (Resource::Session, Method::PUT, "end-6"),
    (Resource::Manifest, Method::PUT, "end-7a"),
    (Resource::Tags, Method::GET, "end-8a"),
    (Resource::Tags, Method::HEAD, "end-8a"),
    (Resource::Manifest, Method::DELETE, "end-9"),
    (Resource::Blob, Method::DELETE, "end-10"),
    (Resource::Referrers, Method::GET, "end-12a"),
    (Resource::Referrers, Method::HEAD, "end-12a"),
    (Resource::Session, Method::GET, "end-13"),
    (Resource::Session, Method::DELETE, "end-14"),
    (Resource::Catalog, Method::GET, "catalog"),
    (Resource::Catalog, Method::HEAD, "catalog"),
];

/// Label of requests that name nothing in the table.
pub(super) const OTHER: &str = "other";

/// Reads a request line. The first value is the end-id, for metrics, also of a request that is refused.
pub(super) fn parse(method: &Method, uri: &Uri) -> (&'static str, Result<Route, Error>) {
    let Some((resource, name, rest)) = locate(uri.path()) else { return (OTHER, Err(Error::NoSuchPath)) };
    let Some(endpoint) = endpoint(resource, method) else { return (OTHER, Err(Error::Method { allow: allowed(resource) })) };
    let query = Query::parse(uri.query());
    let has = |parameter: &str| query.first(parameter).is_some();
    let endpoint = match endpoint {
        "end-4a" if has("mount") => "end-11",
        "end-4a" if has("digest") => "end-4b",
        "end-4a" if has("digest-algorithm") => "end-4c",
        "end-7a" if has("tag") => "end-7b",
        "end-8a" if has("n") || has("last") => "end-8b",
        "end-12a" if has("artifactType") => "end-12b",
        other => other,
    };
    (endpoint, route(method, resource, name, rest, &query))
}

fn route(method: &Method, resource: Resource, name: &str, rest: &str, query: &Query) -> Result<Route, Error> {
    match resource {
        Resource::Base => return Ok(Route::Ping),
        Resource::Catalog => return Ok(Route::ListRepositories(page(query)?)),
        Resource::Tags | Resource::Blob | Resource::Manifest | Resource::Referrers | Resource::Uploads | Resource::Session => {}
    }
    let repository: RepositoryName = name.parse()?;
    Ok(match resource {
        Resource::Base | Resource::Catalog => unreachable!("answered above"),
        Resource::Tags => Route::ListTags { repository, page: page(query)? },
        Resource::Blob => {
            let digest = digest(&decode(rest, Plus::Plus).unwrap_or_default())?;
            match *method {
                Method::GET => Route::PullBlob { repository, digest },
                Method::HEAD => Route::CheckBlob { repository, digest },
                _ => Route::DeleteBlob { repository, digest },
            }
        }
        Resource::Manifest => {
            let reference: Reference = decode(rest, Plus::Plus).unwrap_or_default().parse()?;
            match *method {
                Method::PUT => push_manifest(repository, reference, query)?,
                Method::DELETE => Route::DeleteManifest { repository, reference },
                _ => Route::PullManifest { repository, reference },
            }
        }
        Resource::Referrers => {
            let subject = digest(&decode(rest, Plus::Plus).unwrap_or_default())?;
            let artifact_type = query.first("artifactType").filter(|wanted| !wanted.is_empty()).map(str::to_owned);
            Route::ListReferrers { repository, subject, artifact_type, page: page(query)? }
        }
        Resource::Uploads => start_upload(repository, query)?,
        Resource::Session => {
            // A text that is no session id names no session: the same answer as for one that ended (S20).
            let session = Uuid::try_parse(rest).map_err(|_| Error::SessionUnknown)?;
            match *method {
                Method::PATCH => Route::AppendUpload { repository, session },
                Method::PUT => Route::FinishUpload { repository, session, digest: digest(query.first("digest").unwrap_or_default())? },
                Method::DELETE => Route::CancelUpload { repository, session },
                _ => Route::UploadStatus { repository, session },
            }
        }
    })
}

/// What a path names: the resource, the repository's name as written, and what stands behind.
fn locate(path: &str) -> Option<(Resource, &str, &str)> {
    let rest = match path.strip_prefix("/v2")? {
        "" | "/" => return Some((Resource::Base, "", "")),
        rest => rest.strip_prefix('/')?,
    };
    if rest == "_catalog" {
        return Some((Resource::Catalog, "", ""));
    }
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return Some((Resource::Tags, name, ""));
    }
    if let Some(name) = rest.strip_suffix("/blobs/uploads") {
        return Some((Resource::Uploads, name, ""));
    }
    // ORDER: of two markers at one place the longer comes last, and `max_by_key` takes the last of equals.
    let markers = [
        (Resource::Manifest, "/manifests/"),
        (Resource::Referrers, "/referrers/"),
        (Resource::Blob, "/blobs/"),
        (Resource::Session, "/blobs/uploads/"),
    ];
    let found = markers.iter().filter_map(|(resource, marker)| Some((rest.rfind(marker)?, *resource, *marker)));
    let (at, resource, marker) = found.max_by_key(|(at, _, _)| *at)?;
    match (resource, &rest[..at], &rest[at + marker.len()..]) {
        (Resource::Session, name, "") => Some((Resource::Uploads, name, "")),
        located => Some(located),
    }
}

fn endpoint(resource: Resource, method: &Method) -> Option<&'static str> {
    let found = ENDPOINTS.iter().find(|(at, with, _)| *at == resource && with == method);
    found.map(|(_, _, id)| *id)
}

fn allowed(resource: Resource) -> String {
    let methods = ENDPOINTS.iter().filter(|(at, _, _)| *at == resource).map(|(_, method, _)| method.as_str());
    methods.collect::<Vec<_>>().join(", ")
}

fn digest(text: &str) -> Result<Digest, Error> {
    text.parse().map_err(Error::Digest)
}

fn start_upload(repository: RepositoryName, query: &Query) -> Result<Route, Error> {
    if let Some(mount) = query.first("mount") {
        let from = query.first("from").filter(|from| !from.is_empty()).map(str::parse).transpose()?;
        return Ok(Route::MountBlob { repository, digest: digest(mount)?, from });
    }
    if let Some(text) = query.first("digest") {
        return Ok(Route::PushBlob { repository, digest: digest(text)? });
    }
    let algorithm = query.first("digest-algorithm").map(|text| text.parse().map_err(Error::Digest)).transpose()?;
    Ok(Route::StartUpload { repository, algorithm: algorithm.unwrap_or(Algorithm::Sha256) })
}

fn push_manifest(repository: RepositoryName, reference: Reference, query: &Query) -> Result<Route, Error> {
    match reference {
        Reference::Tag(tag) => Ok(Route::PushManifest { repository, digest: None, tags: vec![tag] }),
        Reference::Digest(digest) => {
            let mut tags = Vec::new();
            for tag in query.all("tag") {
                if tags.len() == TAGS_PER_PUSH_MAX {
                    return Err(Error::TooManyTags { limit: TAGS_PER_PUSH_MAX });
                }
                tags.push(tag.parse()?);
            }
            Ok(Route::PushManifest { repository, digest: Some(digest), tags })
        }
    }
}

fn page<T: std::str::FromStr<Err: Into<InvalidName>>>(query: &Query) -> Result<Page<T>, Error> {
    let limit = match query.first("n") {
        None => PAGE_SIZE_MAX,
        Some(text) => number(text).ok_or(Error::Page)?.min(PAGE_SIZE_MAX as u64) as usize,
    };
    let after = query.first("last").filter(|last| !last.is_empty()).map(str::parse).transpose().map_err(Into::into)?;
    Ok(Page { limit, after })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &str = "0190c2a1-7b5e-4c3d-8f00-112233445566";

    fn parsed(method: &str, address: &str) -> (&'static str, Result<Route, Error>) {
        parse(&method.parse().unwrap(), &address.parse().unwrap())
    }

    fn check(method: &str, address: &str, id: &str, expected: Route) {
        let (endpoint, route) = parsed(method, address);
        assert_eq!(endpoint, id, "{method} {address}");
        assert_eq!(route.unwrap(), expected, "{method} {address}");
    }

    fn status(method: &str, address: &str) -> (u16, &'static str) {
        let refusal = parsed(method, address).1.expect_err(address).refusal();
        (refusal.status.as_u16(), refusal.code)
    }

    #[test]
    fn every_endpoint_of_the_specification_is_found() {
        let name: RepositoryName = "library/a".parse().unwrap();
        let repository = || name.clone();
        let digest = Digest::sha256(b"x");
        let tag: Tag = "latest".parse().unwrap();
        let session: Uuid = SESSION.parse().unwrap();
        let blob = format!("/v2/library/a/blobs/{digest}");
        let uploads = "/v2/library/a/blobs/uploads/";
        let upload = format!("{uploads}{SESSION}");
        let all = |after| Page { limit: PAGE_SIZE_MAX, after };

        check("GET", "/v2/", "end-1", Route::Ping);
        check("GET", "/v2", "end-1", Route::Ping);
        check("GET", &blob, "end-2", Route::PullBlob { repository: repository(), digest });
        check("HEAD", &blob, "end-2", Route::CheckBlob { repository: repository(), digest });
        let reference = Reference::Tag(tag.clone());
        check("GET", "/v2/library/a/manifests/latest?ns=docker.io", "end-3", Route::PullManifest { repository: repository(), reference });
        let reference = Reference::Digest(digest);
        let by_digest = format!("/v2/library/a/manifests/{digest}");
        check("HEAD", &by_digest, "end-3", Route::PullManifest { repository: repository(), reference: reference.clone() });
        let start = |algorithm| Route::StartUpload { repository: repository(), algorithm };
        check("POST", uploads, "end-4a", start(Algorithm::Sha256));
        check("POST", "/v2/library/a/blobs/uploads", "end-4a", start(Algorithm::Sha256));
        check("POST", &format!("{uploads}?digest={digest}"), "end-4b", Route::PushBlob { repository: repository(), digest });
        check("POST", &format!("{uploads}?digest-algorithm=sha512"), "end-4c", start(Algorithm::Sha512));
        check("PATCH", &upload, "end-5", Route::AppendUpload { repository: repository(), session });
        let finish = Route::FinishUpload { repository: repository(), session, digest };
        check("PUT", &format!("{upload}?digest={digest}"), "end-6", finish.clone());
        check("PUT", &format!("{upload}?digest={}", digest.to_string().replace(':', "%3A")), "end-6", finish);
        let push = |digest, tags| Route::PushManifest { repository: repository(), digest, tags };
        check("PUT", "/v2/library/a/manifests/latest", "end-7a", push(None, vec![tag.clone()]));
        check("PUT", &by_digest, "end-7a", push(Some(digest), vec![]));
        check("PUT", &format!("{by_digest}?tag=latest&tag=latest"), "end-7b", push(Some(digest), vec![tag.clone(), tag.clone()]));
        let tags = "/v2/library/a/tags/list";
        check("GET", tags, "end-8a", Route::ListTags { repository: repository(), page: all(None) });
        let page = Page { limit: 2, after: Some(tag) };
        check("GET", &format!("{tags}?n=2&last=latest"), "end-8b", Route::ListTags { repository: repository(), page });
        check("DELETE", &by_digest, "end-9", Route::DeleteManifest { repository: repository(), reference });
        check("DELETE", &blob, "end-10", Route::DeleteBlob { repository: repository(), digest });
        let mount = |from| Route::MountBlob { repository: repository(), digest, from };
        check("POST", &format!("{uploads}?mount={digest}&from=b/c"), "end-11", mount(Some("b/c".parse().unwrap())));
        check("POST", &format!("{uploads}?mount={digest}"), "end-11", mount(None));
        let referrers = format!("/v2/library/a/referrers/{digest}");
        let list = |artifact_type: Option<&str>, limit, after| Route::ListReferrers {
            repository: repository(),
            subject: digest,
            artifact_type: artifact_type.map(str::to_owned),
            page: Page { limit, after },
        };
        check("GET", &referrers, "end-12a", list(None, PAGE_SIZE_MAX, None));
        check("GET", &format!("{referrers}?n=3&last={digest}"), "end-12a", list(None, 3, Some(digest)));
        check("GET", &format!("{referrers}?artifactType=a/b%2Bc"), "end-12b", list(Some("a/b+c"), PAGE_SIZE_MAX, None));
        check("GET", &format!("{referrers}?artifactType="), "end-12b", list(None, PAGE_SIZE_MAX, None));
        check("GET", &upload, "end-13", Route::UploadStatus { repository: repository(), session });
        check("DELETE", &upload, "end-14", Route::CancelUpload { repository: repository(), session });
        check("GET", "/v2/_catalog?n=5", "catalog", Route::ListRepositories(Page { limit: 5, after: None }));
    }

    #[test]
    fn names_may_look_like_parts_of_the_api() {
        for name in ["blobs", "a/manifests", "a/blobs/uploads", "tags/list", "v2/a", "manifests/a/blobs"] {
            let repository: RepositoryName = name.parse().unwrap();
            let reference = Reference::Tag("list".parse().unwrap());
            check("GET", &format!("/v2/{name}/manifests/list"), "end-3", Route::PullManifest { repository: repository.clone(), reference });
            let page = Page { limit: PAGE_SIZE_MAX, after: None };
            check("GET", &format!("/v2/{name}/tags/list"), "end-8a", Route::ListTags { repository, page });
        }
    }

    #[test]
    fn s1_names_that_break_the_grammar_are_refused_before_any_lookup() {
        let long = "a".repeat(256);
        for name in ["../../etc/x", "a//b", "%2e%2e/", "a%00b", "a%2Fb", "UPPER", "", "a/", ".", "-a", &long] {
            for (method, rest) in
                [("GET", "manifests/latest"), ("GET", "tags/list"), ("POST", "blobs/uploads/"), ("HEAD", "blobs/sha256:x")]
            {
                assert_eq!(status(method, &format!("/v2/{name}/{rest}")), (400, "NAME_INVALID"), "{method} {name:?} {rest}");
            }
        }
        let mount = format!("/v2/a/blobs/uploads/?mount={}&from=../b", Digest::sha256(b""));
        assert_eq!(status("POST", &mount), (400, "NAME_INVALID"));
    }

    #[test]
    fn s2_digests_that_break_the_grammar_are_refused_before_any_lookup() {
        let hex = "a".repeat(64);
        let bad = ["sha256:../..".into(), format!("sha256:{}", &hex[1..]), format!("sha256:{}", hex.to_uppercase()), format!("md5:{hex}")];
        for digest in bad.iter().map(String::as_str).chain(["", "sha256:", "%ff", "latest"]) {
            assert_eq!(status("GET", &format!("/v2/a/blobs/{digest}")), (400, "DIGEST_INVALID"), "{digest}");
            assert_eq!(status("GET", &format!("/v2/a/referrers/{digest}")), (400, "DIGEST_INVALID"), "{digest}");
            assert_eq!(status("PUT", &format!("/v2/a/blobs/uploads/{SESSION}?digest={digest}")), (400, "DIGEST_INVALID"), "{digest}");
            assert_eq!(status("POST", &format!("/v2/a/blobs/uploads/?mount={digest}&from=b")), (400, "DIGEST_INVALID"), "{digest}");
        }
        assert_eq!(status("PUT", &format!("/v2/a/blobs/uploads/{SESSION}")), (400, "DIGEST_INVALID"));
        assert_eq!(status("POST", "/v2/a/blobs/uploads/?digest-algorithm=md5"), (400, "DIGEST_INVALID"));
        assert_eq!(status("GET", "/v2/a/manifests/sha256:short"), (400, "DIGEST_INVALID"));
    }

    #[test]
    fn s11_page_sizes_are_capped_or_refused() {
        let limit = |n: &str| match parsed("GET", &format!("/v2/_catalog?n={n}")).1 {
            Ok(Route::ListRepositories(page)) => Some(page.limit),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        };
        for (n, expected) in
            [("0", Some(0)), ("1", Some(1)), ("1000", Some(1000)), ("2147483648", Some(1000)), ("99999999999999999999", Some(1000))]
        {
            assert_eq!(limit(n), expected, "{n}");
        }
        for n in ["-1", "abc", "", "1.5", "0x10", "%2b1"] {
            assert_eq!(status("GET", &format!("/v2/_catalog?n={n}")), (400, "PAGINATION_NUMBER_INVALID"), "{n}");
        }
        assert_eq!(status("GET", "/v2/_catalog?last=../x").0, 400);
        assert_eq!(status("GET", "/v2/a/tags/list?last=%00").0, 400);
    }

    #[test]
    fn s20_a_session_id_that_is_none_is_an_unknown_session() {
        for id in ["x", "../../blobs", "0190c2a1"] {
            assert_eq!(status("PATCH", &format!("/v2/a/blobs/uploads/{id}")).0, 404, "{id}");
        }
    }

    #[test]
    fn unknown_paths_are_404_and_wrong_methods_say_what_is_allowed() {
        for path in ["/v2/a", "/v2/a/b/c", "/v2/manifests/x", "/v3/", "/v2x", "/v2/a/referrers"] {
            assert_eq!(status("GET", path), (404, "UNSUPPORTED"), "{path}");
        }
        assert_eq!(status("POST", "/v2/a/manifests/x"), (405, "UNSUPPORTED"));
        assert_eq!(allowed(Resource::Manifest), "GET, HEAD, PUT, DELETE");
        assert_eq!(allowed(Resource::Uploads), "POST");
    }

    #[test]
    fn more_tags_than_one_push_may_name_are_refused() {
        let tags = |count: usize| format!("/v2/a/manifests/{}?{}", Digest::sha256(b""), vec!["tag=t"; count].join("&"));
        assert!(parsed("PUT", &tags(TAGS_PER_PUSH_MAX)).1.is_ok());
        assert_eq!(status("PUT", &tags(TAGS_PER_PUSH_MAX + 1)).0, 414);
    }
}

//! The front door's parsers under fire: addresses, queries, ranges. What they take prints as an address that they read in the same way.

use http::{Method, Uri};
use larder_harness::fuzz;
use larder_protocol::digest::Digest;
use larder_protocol::name::{NAME_LENGTH_MAX, TAG_LENGTH_MAX};

use super::query::{Plus, Query, decode};
use super::range::{Wanted, chunk, number, wanted};
use super::route::{PAGE_SIZE_MAX, Page, Route, TAGS_PER_PUSH_MAX, parse};
use super::token::{Form, Grant};
use crate::auth::scope::SCOPES_MAX;

const SESSION: &str = "0190c2a1-7b5e-4c3d-8f00-112233445566";
const METHODS: [Method; 7] = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// The address of a route as a client would write it; `None` for those that have no parts.
fn address(route: &Route) -> Option<(Method, String)> {
    fn page<T: std::fmt::Display>(page: &Page<T>) -> String {
        let after = page.after.as_ref().map(|after| format!("&last={after}")).unwrap_or_default();
        format!("n={}{after}", page.limit)
    }
    let at = |method: Method, path: String| Some((method, format!("/v2/{path}")));
    match route {
        Route::ListRepositories(wanted) => at(Method::GET, format!("_catalog?{}", page(wanted))),
        Route::ListTags { repository, page: wanted } => at(Method::GET, format!("{repository}/tags/list?{}", page(wanted))),
        Route::CheckBlob { repository, digest } => at(Method::HEAD, format!("{repository}/blobs/{digest}")),
        Route::PullBlob { repository, digest } => at(Method::GET, format!("{repository}/blobs/{digest}")),
        Route::DeleteBlob { repository, digest } => at(Method::DELETE, format!("{repository}/blobs/{digest}")),
        Route::PullManifest { repository, reference } => at(Method::GET, format!("{repository}/manifests/{reference}")),
        Route::DeleteManifest { repository, reference } => at(Method::DELETE, format!("{repository}/manifests/{reference}")),
        Route::PushManifest { repository, digest: Some(digest), tags } => {
            let tags: Vec<_> = tags.iter().map(|tag| format!("tag={tag}")).collect();
            at(Method::PUT, format!("{repository}/manifests/{digest}?{}", tags.join("&")))
        }
        Route::PushManifest { repository, digest: None, tags } => at(Method::PUT, format!("{repository}/manifests/{}", tags[0])),
        Route::StartUpload { repository, algorithm } => {
            at(Method::POST, format!("{repository}/blobs/uploads/?digest-algorithm={algorithm}"))
        }
        Route::PushBlob { repository, digest } => at(Method::POST, format!("{repository}/blobs/uploads/?digest={digest}")),
        Route::MountBlob { repository, digest, from } => {
            let from = from.as_ref().map(|from| format!("&from={from}")).unwrap_or_default();
            at(Method::POST, format!("{repository}/blobs/uploads/?mount={digest}{from}"))
        }
        Route::UploadStatus { repository, session } => at(Method::GET, format!("{repository}/blobs/uploads/{session}")),
        Route::AppendUpload { repository, session } => at(Method::PATCH, format!("{repository}/blobs/uploads/{session}")),
        Route::FinishUpload { repository, session, digest } => {
            at(Method::PUT, format!("{repository}/blobs/uploads/{session}?digest={digest}"))
        }
        Route::CancelUpload { repository, session } => at(Method::DELETE, format!("{repository}/blobs/uploads/{session}")),
        _ => None,
    }
}

/// What no route may have, whatever the address was.
fn check_limits(route: &Route) {
    match route {
        Route::ListRepositories(page) => assert!(page.limit <= PAGE_SIZE_MAX),
        Route::ListTags { repository, page } => {
            assert!(page.limit <= PAGE_SIZE_MAX && repository.as_str().len() <= NAME_LENGTH_MAX);
        }
        Route::PushManifest { tags, .. } => {
            assert!(tags.len() <= TAGS_PER_PUSH_MAX && tags.iter().all(|tag| tag.as_str().len() <= TAG_LENGTH_MAX));
        }
        _ => {}
    }
}

#[test]
fn s1_s2_s20_addresses_are_read_in_one_way_or_refused() {
    let digest = Digest::sha256(b"").to_string();
    let blob = format!("/v2/library/a/blobs/{digest}");
    let by_digest = format!("/v2/library/a/manifests/{digest}?tag=latest&tag=v1");
    let upload = format!("/v2/library/a/blobs/uploads/{SESSION}?digest={digest}");
    let mount = format!("/v2/library/a/blobs/uploads/?mount={digest}&from=b/c");
    let start = "/v2/library/a/blobs/uploads/?digest-algorithm=sha512";
    let corpus = ["/v2/", "/v2/library/a/tags/list?n=5&last=v1", "/v2/_catalog?n=5&last=a/b", &blob, &by_digest, &upload, &mount, start];
    let encoded = digest.replace(':', "%3A");
    let words = [
        "/",
        "//",
        "/..",
        "%2f",
        "%2e%2e",
        "%00",
        "%ff",
        "%",
        "+",
        "&",
        "=",
        "?",
        "#",
        "/blobs/",
        "/manifests/",
        "/blobs/uploads/",
        "/tags/list",
        "/referrers/",
        "n=",
        "last=",
        "tag=",
        "digest=",
        "mount=",
        "from=",
        "latest",
        "_catalog",
        SESSION,
        "{",
        "}",
        "urn:uuid:",
        &digest,
        &encoded,
    ];
    fuzz("addresses", &corpus, &words, |input| {
        let Ok(uri) = Uri::try_from(input) else { return false.into() };
        let mut taken = false;
        for method in &METHODS {
            let (endpoint, route) = parse(method, &uri);
            match route {
                Ok(route) => {
                    taken = true;
                    check_limits(&route);
                    let Some((method, address)) = address(&route) else { continue };
                    let again = parse(&method, &address.parse().expect("what a route prints is an address"));
                    assert_eq!(again.1.as_ref().ok(), Some(&route), "{endpoint}: {address} is read as {again:?}");
                }
                Err(error) => {
                    let refusal = error.refusal();
                    assert!(refusal.status.is_client_error(), "{method}: {refusal:?}");
                }
            }
        }
        taken.into()
    });
}

#[test]
fn queries_and_paths_decode_to_what_was_encoded() {
    let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
    let corpus = ["digest=sha256%3Aab&tag=a&tag=b+c&&empty=&flag", "n=5&last=%E2%82%AC", "a=%ff", "%zz=1"];
    fuzz("queries", &corpus, &["%", "%%", "%0", "&", "=", "+", "%C3%A9", "%00", "%2", "é", "tag="], |input| {
        // Each parameter is looked for among all: what is longer than this only takes longer.
        let Some(text) = std::str::from_utf8(input).ok().filter(|text| text.len() <= 500) else { return false.into() };
        for plus in [Plus::Plus, Plus::Space] {
            if let Some(decoded) = decode(text, plus) {
                assert!(decoded.len() <= text.len(), "decoding makes nothing longer");
                assert_eq!(decode(&encode(&decoded), plus).as_deref(), Some(decoded.as_str()));
            }
            assert_eq!(decode(&encode(text), plus).as_deref(), Some(text), "whatever was encoded");
        }
        let query = Query::parse(Some(text));
        let parts: Vec<_> = text.split('&').filter(|part| !part.is_empty()).collect();
        for part in &parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let (Some(name), Some(value)) = (decode(name, Plus::Space), decode(value, Plus::Space)) else { continue };
            assert!(query.first(&name).is_some(), "{name} is there");
            assert!(query.all(&name).any(|found| found == value), "{name} has {value}");
            assert!(query.all(&name).count() <= parts.len(), "nothing came from nowhere");
        }
        let asked = encode(text);
        assert_eq!(Query::parse(Some(&format!("a={asked}"))).first("a"), Some(text));
        (!parts.is_empty()).into()
    });
}

#[test]
fn s21_s22_ranges_lie_within_the_blob_and_chunks_never_wrap() {
    /// A number without the bounds of a machine's.
    fn large(text: &str) -> Option<u128> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.trim_start_matches('0')).map(|text| if text.is_empty() { 0 } else { text.parse().unwrap_or(u128::MAX) })
    }
    let corpus = ["bytes=0-9", "bytes=3-", "bytes=-3", "bytes=0-0,1-1", "5-9", "bytes 5-9/20", "0-9223372036854775808", "bytes 0-0/*"];
    fuzz("ranges", &corpus, &["bytes=", "bytes ", "-", ",", "/", "*", "+", " ", "0", "00", "18446744073709551615", "１"], |input| {
        let Ok(text) = std::str::from_utf8(input) else { return false.into() };
        for size in [0, 1, 10, 1 << 20, i64::MAX as u64, u64::MAX] {
            let spec = text.trim().strip_prefix("bytes=").map(str::trim).filter(|spec| !spec.contains(','));
            let (first, last) = spec.and_then(|spec| spec.split_once('-')).unwrap_or(("", ""));
            let end = u128::from(size);
            // Start and end, and whether the header means anything at all.
            let expected = match (large(first), large(last)) {
                (Some(first), Some(last)) if first <= last => Some((first, last.saturating_add(1).min(end))),
                (Some(first), None) if last.is_empty() => Some((first, end)),
                (None, Some(length)) if first.is_empty() => Some((end.saturating_sub(length), end)),
                _ => None,
            };
            match (wanted(Some(text), size), expected) {
                (Wanted::Part(part), Some((start, end))) => {
                    assert!(part.start < part.end && part.end <= size, "{part:?} of {size}");
                    assert_eq!((u128::from(part.start), u128::from(part.end)), (start, end), "of {size}");
                }
                (Wanted::Unsatisfiable, Some((start, end))) => assert!(start >= end, "{start}..{end} is there, of {size}"),
                (Wanted::Whole, None) => {}
                // One that runs backwards may be refused or overlooked.
                (Wanted::Unsatisfiable, None) => assert!(large(first) > large(last) && large(last).is_some(), "of {size}"),
                (found, expected) => panic!("{found:?} of {size}, it must be {expected:?}"),
            }
        }
        let Some(found) = chunk(text) else { return wanted(Some(text), 10).ne(&Wanted::Whole).into() };
        assert!(found.size > 0, "a chunk has a first and a last byte");
        let numbers: Vec<_> = text.split(|letter: char| !letter.is_ascii_digit()).filter_map(large).collect();
        let (first, last) = (numbers[0], numbers[1]);
        assert!(first <= last, "a chunk does not run backwards");
        if last < u128::from(u64::MAX) {
            assert_eq!((u128::from(found.start), u128::from(found.size)), (first, last - first + 1));
            assert_eq!(chunk(&format!("{}-{}", found.start, found.start + (found.size - 1))), Some(found));
        }
        assert_eq!(number(&found.start.to_string()), Some(found.start));
        true.into()
    });
}

/// What a form asks for is what stands in it, whatever else does; and it is bounded.
#[test]
fn s14_requests_for_tokens() {
    let corpus = [
        "grant_type=password&username=alice&password=s%20cret&access_type=offline&scope=repository:a/b:pull,push",
        "grant_type=refresh_token&refresh_token=abc&scope=repository:a:pull&scope=repository:b:pull",
        "grant_type=urn:ietf:params:oauth:grant-type:token-exchange&subject_token=a.b.c",
    ];
    let words = ["&", "=", "%", "%00", "+", "grant_type=", "username=", "scope=", "password", "repository:", "*", "\u{0}", "é"];
    fuzz("requests for tokens", &corpus, &words, |input| {
        let Ok(form) = Form::parse(input) else { return false.into() };
        assert!(form.access.len() <= SCOPES_MAX, "{} scopes", form.access.len());
        let text = std::str::from_utf8(input).expect("others are refused");
        let said = |name: &str| Query::parse(Some(text)).first(name).map(str::to_owned);
        match &form.grant {
            Grant::Password { name, password } => {
                assert_eq!((Some(name), Some(password)), (said("username").as_ref(), said("password").as_ref()));
            }
            Grant::Refresh(token) => assert!(form.with_refresh && Some(token) == said("refresh_token").as_ref()),
            Grant::Exchange(token) => assert_eq!(Some(token), said("subject_token").as_ref()),
        }
        true.into()
    });
}

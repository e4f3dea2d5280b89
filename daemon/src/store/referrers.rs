//! What is attached to a manifest: signatures, SBOMs, whatever names it as its subject.
//!
//! Two sources are walked side by side, both in the order of the attached manifests' digests, so that one digest stands for a
//! place in the listing and what both name is listed once:
//!
//! - the reverse references that are written with every manifest (`edges`);
//! - the list that clients keep themselves where a registry knows no referrers: an index under the tag that the
//!   specification derives from the subject's digest. Such lists come along when repositories are copied.
//!
//! What one call may read is bounded, however much is attached to one digest and however little of it matches (S13): a page that
//! reached the bound is short or empty and says where to go on.

use std::collections::BTreeSet;

use larder_protocol::digest::Digest;
use larder_protocol::name::{RepositoryName, Tag};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Store;
use super::edges::{self, Holder, Naming};
use super::error::Result;

/// Most rows that are looked at for one page: indexes name a digest too, and are not attached to it.
const ROWS_MAX: usize = 20_000;
/// Most manifests that are read for one page.
const MANIFESTS_MAX: usize = 2_000;
/// Most bytes of manifests that are read for one page; the one that reaches it still counts.
const MANIFEST_BYTES_MAX: usize = 16 << 20;
/// Most bytes of annotations in one page; the manifest that reaches it is still listed.
const ANNOTATION_BYTES_MAX: usize = 2 << 20;
/// How much of a digest's hex goes into the tag of the list that clients keep. SPEC: referrers tag schema.
const TAG_HEX_MAX: usize = 64;

/// Which referrers are wanted.
#[derive(Clone, Debug)]
pub struct ReferrersQuery {
    /// What they are attached to; need not be there.
    pub subject: Digest,
    /// Only those of this artifact type.
    pub artifact_type: Option<String>,
    /// Only those behind this one.
    pub after: Option<Digest>,
    /// At most so many.
    pub limit: usize,
}

/// A manifest that is attached to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Referrer {
    /// Its own digest.
    pub digest: Digest,
    /// What it was pushed as.
    pub media_type: String,
    /// Its bytes.
    pub size: u64,
    /// What it says it is; an image that does not say is what its config is.
    pub artifact_type: Option<String>,
    /// Its annotations, as it has them.
    pub annotations: Map<String, Value>,
}

/// Some of the manifests that are attached to one.
#[derive(Clone, Debug, Default)]
pub struct ReferrersPage {
    /// By digest; may be empty with more to come.
    pub referrers: Vec<Referrer>,
    /// Behind which one to go on; `None`: that was all.
    pub next: Option<Digest>,
}

/// What of a manifest stands in a listing. That it is sound was checked when it was stored.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Attached {
    artifact_type: Option<Value>,
    config: Option<Value>,
    annotations: Option<Value>,
    subject: Option<Value>,
}

impl Attached {
    fn subject(&self) -> Option<Digest> {
        self.subject.as_ref()?.get("digest")?.as_str()?.parse().ok()
    }

    /// SPEC: end-12a: without a type of its own an image is of its config's; an index is of none.
    fn artifact_type(&self) -> Option<String> {
        let own = self.artifact_type.as_ref().and_then(Value::as_str);
        let config = || self.config.as_ref()?.get("mediaType")?.as_str();
        own.filter(|own| !own.is_empty()).or_else(config).map(str::to_owned)
    }

    fn annotations(self) -> Map<String, Value> {
        match self.annotations {
            Some(Value::Object(annotations)) => annotations.into_iter().filter(|(_, value)| value.is_string()).collect(),
            _ => Map::new(),
        }
    }
}

/// What was done for a page so far.
#[derive(Default)]
struct Work {
    rows: usize,
    manifests: usize,
    manifest_bytes: usize,
    annotation_bytes: usize,
}

impl Work {
    fn is_done(&self) -> bool {
        self.rows >= ROWS_MAX
            || self.manifests >= MANIFESTS_MAX
            || self.manifest_bytes >= MANIFEST_BYTES_MAX
            || self.annotation_bytes >= ANNOTATION_BYTES_MAX
    }
}

/// The manifest that holds a digest, and as what it names it.
fn parent(holder: Result<Holder>) -> Option<Result<(Digest, Naming)>> {
    match holder {
        Ok(Holder::Manifest(digest, naming)) => Some(Ok((digest, naming))),
        Ok(Holder::Link | Holder::Tag(_)) => None,
        Err(error) => Some(Err(error)),
    }
}

impl Store {
    /// The manifests of a repository that are attached to one, by digest; see [`ReferrersPage`]. The subject itself may be missing.
    pub fn referrers(&self, repository: &RepositoryName, query: &ReferrersQuery) -> Result<ReferrersPage> {
        let mut page = ReferrersPage::default();
        if query.limit == 0 {
            return Ok(page);
        }
        let mut work = Work::default();
        let mut listed = self.listed(repository, query)?.into_iter().peekable();
        let holders = edges::holders(&self.inner.index, &query.subject, repository, query.after.as_ref());
        // Tags come last, and there may be many.
        let mut parents = holders.take_while(|holder| !matches!(holder, Ok(Holder::Tag(_)))).filter_map(parent).peekable();
        loop {
            let parent = match parents.peek() {
                Some(Ok((parent, _))) => Some(*parent),
                Some(Err(_)) => return Err(parents.next().and_then(Result::err).expect("it was just seen")),
                None => None,
            };
            // The smaller of the two; of equals both are taken.
            let Some(digest) = parent.into_iter().chain(listed.peek().copied()).min() else { break };
            if page.referrers.len() == query.limit || work.is_done() {
                return Ok(page);
            }
            page.next = Some(digest);
            work.rows += 1;
            let row = parents.next_if(|row| matches!(row, Ok((parent, _)) if *parent == digest)).transpose()?;
            let is_listed = listed.next_if_eq(&digest).is_some();
            if !is_listed && !row.is_some_and(|(_, naming)| naming.is(Naming::SUBJECT)) {
                continue;
            }
            work.manifests += 1;
            let Some(manifest) = self.manifest(repository, &digest)? else { continue };
            work.manifest_bytes += manifest.bytes.len();
            let Ok(attached) = serde_json::from_slice::<Attached>(&manifest.bytes) else { continue };
            match attached.subject() {
                Some(subject) if subject == query.subject => {}
                // Its client listed it, and it names nothing else.
                None if is_listed => {}
                Some(_) | None => continue,
            }
            let artifact_type = attached.artifact_type();
            if query.artifact_type.is_some() && query.artifact_type != artifact_type {
                continue;
            }
            let annotations = attached.annotations();
            work.annotation_bytes += annotations.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum::<usize>();
            let size = manifest.bytes.len() as u64;
            page.referrers.push(Referrer { digest, media_type: manifest.media_type, size, artifact_type, annotations });
        }
        page.next = None;
        Ok(page)
    }

    /// What the list names that clients keep under the subject's own tag, behind `query.after`; nothing when there is no list.
    fn listed(&self, repository: &RepositoryName, query: &ReferrersQuery) -> Result<BTreeSet<Digest>> {
        let Some(tag) = self.tag(repository, &referrers_tag(&query.subject))? else { return Ok(BTreeSet::new()) };
        let Some(list) = self.manifest(repository, &tag.digest)? else { return Ok(BTreeSet::new()) };
        let list: Value = serde_json::from_slice(&list.bytes).unwrap_or_default();
        let named = list.get("manifests").and_then(Value::as_array).into_iter().flatten();
        let digests = named.filter_map(|descriptor| descriptor.get("digest")?.as_str()?.parse().ok());
        Ok(digests.filter(|digest| query.after.is_none_or(|after| *digest > after)).collect())
    }
}

/// SPEC: referrers tag schema: the algorithm, a dash, and the first hex digits.
fn referrers_tag(subject: &Digest) -> Tag {
    let mut hex = subject.hex();
    hex.truncate(TAG_HEX_MAX);
    format!("{}-{hex}", subject.algorithm()).parse().expect("letters, digits and a dash make a tag")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use larder_protocol::record::{Key, Manifest, Value as Recorded};
    use serde_json::json;

    use super::super::Commit;
    use super::super::tests::{IMAGE, IMAGE_INDEX, Place, image, push, put, repository};
    use super::*;

    fn query(subject: Digest, limit: usize) -> ReferrersQuery {
        ReferrersQuery { subject, artifact_type: None, after: None, limit }
    }

    /// Every page, from the first to the last.
    fn pages(store: &Store, name: &str, mut query: ReferrersQuery) -> Vec<Vec<Digest>> {
        let mut pages = Vec::new();
        loop {
            let page = store.referrers(&repository(name), &query).expect("a page");
            pages.push(page.referrers.iter().map(|referrer| referrer.digest).collect());
            assert!(page.next.is_none() || page.next > query.after, "a page must lead on");
            match page.next {
                Some(next) => query.after = Some(next),
                None => return pages,
            }
        }
    }

    fn attached(config: Digest, subject: Digest, kind: &str, number: usize) -> Vec<u8> {
        let manifest = json!({
            "schemaVersion": 2, "mediaType": IMAGE, "artifactType": kind, "layers": [], "annotations": {"number": number.to_string()},
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
            "subject": {"mediaType": IMAGE, "digest": subject, "size": 1},
        });
        manifest.to_string().into_bytes()
    }

    #[test]
    fn a_subject_is_not_a_child_and_a_tag_is_no_referrer() {
        let place = Place::new(1);
        let store = place.open();
        let config = push(&store, "a", b"{}");
        let subject = put(&store, "a", &["v1", "v2"], IMAGE, &image(&[(config, 2)])).expect("subject");
        let index = json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [{"digest": subject, "size": 1}]}).to_string();
        put(&store, "a", &["index"], IMAGE_INDEX, index.as_bytes()).expect("index");
        let signature = put(&store, "a", &[], IMAGE, &attached(config, subject, "a/sig", 1)).expect("signature");
        assert_eq!(pages(&store, "a", query(subject, 10)), [vec![signature]]);
        assert_eq!(pages(&store, "b", query(subject, 10)), [vec![]], "another repository");
        assert!(store.delete_manifest(&repository("a"), &signature).expect("deleted"));
        assert_eq!(pages(&store, "a", query(subject, 10)), [vec![]]);
    }

    #[test]
    fn what_only_the_clients_own_list_names_is_found_unless_it_is_attached_elsewhere() {
        let place = Place::new(1);
        let store = place.open();
        let config = push(&store, "a", b"{}");
        let subject = put(&store, "a", &[], IMAGE, &image(&[(config, 2)])).expect("subject");
        let both = put(&store, "a", &[], IMAGE, &attached(config, subject, "a/sig", 1)).expect("attached and listed");
        let plain = json!({
            "schemaVersion": 2, "mediaType": IMAGE, "layers": [], "config": {"mediaType": "a/sbom", "digest": config, "size": 2},
        });
        let plain = put(&store, "a", &[], IMAGE, plain.to_string().as_bytes()).expect("listed only");
        let other = put(&store, "a", &[], IMAGE, &attached(config, both, "a/sig", 2)).expect("attached to another");
        let list = [both, plain, other].map(|digest| json!({"mediaType": IMAGE, "digest": digest, "size": 1}));
        let list = json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": list}).to_string();
        put(&store, "a", &[referrers_tag(&subject).as_str()], IMAGE_INDEX, list.as_bytes()).expect("the list");
        let mut expected = vec![both, plain];
        expected.sort();
        assert_eq!(pages(&store, "a", query(subject, 10)), [expected.clone()]);
        assert_eq!(pages(&store, "a", query(subject, 1)).concat(), expected);
        let sboms = ReferrersQuery { artifact_type: Some("a/sbom".to_owned()), ..query(subject, 10) };
        assert_eq!(pages(&store, "a", sboms).concat(), [plain], "an image without a type is of its config's");
    }

    #[test]
    fn the_tag_of_the_clients_list_is_the_specifications() {
        assert_eq!(referrers_tag(&Digest::Sha256([0xaa; 32])).as_str(), format!("sha256-{}", "a".repeat(64)));
        assert_eq!(referrers_tag(&Digest::Sha512([0xaa; 64])).as_str(), format!("sha512-{}", "a".repeat(64)));
    }

    #[test]
    fn s13_pages_stay_small_however_much_is_attached_and_however_little_matches() {
        let place = Place::new(1);
        let store = place.open();
        let (config, subject, name) = (Digest::sha256(b"{}"), Digest::sha256(b"nobody has it"), repository("a"));
        // More than one page may read; straight into the journal, which is how they come from peers.
        let count = 2 * MANIFESTS_MAX + 500;
        let record = |number: usize| {
            let bytes = attached(config, subject, if number == 77 { "a/rare" } else { "a/sig" }, number);
            let key = Key::Manifest(name.clone(), Digest::sha256(&bytes));
            (key, Some(Recorded::Manifest(Manifest { media_type: IMAGE.to_owned(), bytes })))
        };
        store.commit(Commit { records: (0..count).map(record).collect(), ..Commit::default() }).expect("stored");
        let all = pages(&store, "a", query(subject, 1000));
        assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [1000, 1000, 1000, 1000, 500]);
        assert!(all.concat().is_sorted());
        let rare = pages(&store, "a", ReferrersQuery { artifact_type: Some("a/rare".to_owned()), ..query(subject, 1000) });
        assert_eq!((rare.len(), rare.concat().len()), (3, 1), "a page ends when it has read enough");
        assert_eq!(pages(&store, "a", query(subject, 0)), [vec![]]);
        let started = Instant::now();
        store.referrers(&name, &query(subject, 1000)).expect("a page");
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    }
}

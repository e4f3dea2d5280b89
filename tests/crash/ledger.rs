//! What clients were told: the truth that a restarted node is held against.

use larder_harness::registry::with_digest;
use larder_harness::{Body, Content, Image, Registry, sha256};
use std::collections::BTreeMap;

/// How a node went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// The system goes on, and writes what it was given.
    Kill,
    /// What was not synced is gone.
    PowerCut,
}

/// What the clients know of a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The push was sent and nothing came back: there, or not.
    Pushing,
    /// 201: there, whatever happens.
    Pushed,
    /// The delete was sent and nothing came back: there, or not.
    Deleting,
    /// 202: gone, and it never comes back.
    Deleted,
}

/// A session with an acknowledged beginning.
#[derive(Debug, Clone)]
pub struct Session {
    /// Its address.
    pub location: String,
    /// Its repository.
    pub repository: String,
    /// What is being uploaded.
    pub content: Content,
    /// How many bytes were acknowledged with 202.
    pub acknowledged: u64,
    /// Where a PATCH that was sent and not answered would have ended.
    pub sent: u64,
}

/// Everything that the clients of one node did.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Repository and content -> acknowledged with 201 or only sent.
    pub blobs: BTreeMap<(String, u64, u64), bool>,
    /// Repository and tag -> image and state; each tag is pushed once.
    pub tags: BTreeMap<(String, String), (Image, State)>,
    /// Uploads that were never finished.
    pub sessions: Vec<Session>,
}

impl Ledger {
    /// How many blobs, tags and deletions were acknowledged.
    pub fn acknowledged(&self) -> (usize, usize, usize) {
        let tags = |wanted: State| self.tags.values().filter(|(_, state)| *state == wanted).count();
        (self.blobs.values().filter(|acknowledged| **acknowledged).count(), tags(State::Pushed), tags(State::Deleted))
    }

    /// Moves everything of `other` into this one.
    pub fn take(&mut self, other: &mut Ledger) {
        self.blobs.append(&mut other.blobs);
        self.tags.append(&mut other.tags);
        self.sessions.append(&mut other.sessions);
    }

    /// Holds the node against everything here: I1, I2, I3, I4.
    ///
    /// # Panics
    /// When something acknowledged is missing, something half done is visible, or a byte is wrong.
    pub async fn verify(&self, registry: &Registry) {
        for ((repository, seed, size), acknowledged) in &self.blobs {
            let digest = Content::new(*seed, *size).digest();
            let found = registry.pull_blob(repository, &digest).await.expect("pull a blob from a node that runs");
            let here = format!("{repository}, seed {seed}, {size} bytes, {digest}");
            match found.status {
                200 => assert_eq!((found.size, &found.digest), (*size, &digest), "wrong bytes: {here}"),
                404 => assert!(!acknowledged, "an acknowledged blob is lost: {here}"),
                status => panic!("{status} for {here}"),
            }
        }
        let mut listed: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for ((repository, tag), (image, state)) in &self.tags {
            if !listed.contains_key(repository.as_str()) {
                listed.insert(repository, registry.tags(repository).await);
            }
            let is_listed = listed[repository.as_str()].contains(tag);
            let by_tag = registry.pull_manifest(repository, tag).await.status;
            let here = format!("{repository}:{tag} ({state:?}) is answered {by_tag}, listed: {is_listed}");
            assert_eq!(is_listed, by_tag == 200, "the listing and the tag disagree: {here}");
            match (state, by_tag) {
                // I3: whatever is served is complete, acknowledged or not.
                (State::Pushed | State::Pushing | State::Deleting, 200) => registry.pull_image(repository, tag, image).await,
                (State::Pushing | State::Deleting | State::Deleted, 404) => {}
                _ => panic!("{here}"),
            }
            // F4: a tag and its manifest come together, in one commit.
            let by_digest = registry.pull_manifest(repository, &image.digest()).await.status;
            let half = *state == State::Pushing && by_tag != by_digest;
            assert!(!half, "the manifest is answered {by_digest}, and {here}");
        }
    }

    /// Goes on with every open session from where the node says it stands, and finishes it: F1.
    ///
    /// Sessions are not synced: a power cut may take the last bytes of one, or all that was known of it, or leave other bytes in its last
    /// page. That shows at the end, by the digest; the client begins anew, as it would have to after any refusal.
    pub async fn resume(&mut self, registry: &Registry, death: Death) {
        for session in self.sessions.drain(..) {
            let status = registry.get(&session.location).await;
            if death == Death::PowerCut && status.status == 404 {
                continue;
            }
            let status = status.expect(204, "ask a session after a crash");
            let last: u64 = status.header("range").trim_start_matches("0-").parse().expect("a session's range");
            let offset = if last == 0 { 0 } else { last + 1 };
            let least = if death == Death::Kill { session.acknowledged } else { 0 };
            let allowed = least..=session.sent;
            assert!(allowed.contains(&offset), "a session stands at {offset} and not in {allowed:?}");
            let bytes = session.content.bytes();
            registry.get(&format!("/v2/{}/blobs/{}", session.repository, sha256(&bytes))).await.expect(404, "half a blob");
            let location = with_digest(&session.location, &sha256(&bytes));
            let range = format!("{offset}-{}", bytes.len() - 1);
            let rest = Body::from(bytes.slice(offset as usize..));
            let finished = registry.request("PUT", &location, &[("content-range", &range)], rest).await;
            if death == Death::PowerCut && finished.status == 400 {
                finished.expect_error(400, "DIGEST_INVALID", "finish what the power cut has changed");
                let again = registry.try_push_blob(&session.repository, session.content).await;
                again.unwrap_or_else(|error| panic!("push what the power cut has changed anew: {error}"));
            } else {
                finished.expect(201, "finish after a crash");
            }
            self.blobs.insert((session.repository, session.content.seed, session.content.size), true);
        }
    }
}

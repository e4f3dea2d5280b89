//! What is known of frozen packs without asking, and how seldom they are asked for their bytes.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use larder_protocol::record::Archived;

use crate::config::StorageClass;

use super::super::thaw::Seen;
use super::super::{keys, writer};
use super::ThawProgress;

/// Of a frozen class one pack is asked for its bytes so often, to see whether it can be read after all: a bucket may have been copied to another class, or
/// somebody has thawed by other means.
const TRIED_EVERY: Duration = Duration::from_secs(3600);
/// Packs of which is remembered what was found; of more, it is forgotten and found anew.
const KNOWN_MAX: usize = 100_000;

/// What is known of frozen packs, by bucket and key.
#[derive(Debug, Default)]
pub(in crate::archive) struct Thaws {
    known: Mutex<HashMap<(String, String), Known>>,
    /// When a pack of a class was last asked for its bytes, by bucket and class.
    tried: Mutex<HashMap<(String, StorageClass), Option<Instant>>>,
    pub(super) progress: Mutex<Option<ThawProgress>>,
    /// Held while the job is changed.
    pub(super) job: tokio::sync::Mutex<()>,
    pub(super) changed: tokio::sync::Notify,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Known {
    /// It could not be read then.
    Frozen(Instant),
    /// It was asked for, and will have thawed by then: milliseconds since 1970.
    Thawing(u64),
    /// It has thawed.
    Readable,
}

impl Thaws {
    /// Whether the bucket need not be asked for a pack's bytes, and when it will have thawed where it was asked to.
    pub fn refuses(&self, archived: &Archived) -> Option<Option<Duration>> {
        let known = self.known.lock().expect("never held across a panic");
        match known.get(&(archived.bucket.clone(), archived.object_key.clone())) {
            Some(Known::Readable) => return None,
            Some(Known::Thawing(ready_ms)) => return Some(Some(Duration::from_millis(ready_ms.saturating_sub(writer::now_ms())))),
            Some(Known::Frozen(tried)) if tried.elapsed() < TRIED_EVERY => return Some(None),
            Some(Known::Frozen(_)) | None => {}
        }
        drop(known);
        let class = keys::class_of(&archived.object_key);
        if !class.is_frozen() {
            return None;
        }
        let mut tried = self.tried.lock().expect("never held across a panic");
        // ORDER: before the answer is there: many may ask at once.
        let last = tried.entry((archived.bucket.clone(), class)).or_default();
        if last.is_some_and(|last| last.elapsed() < TRIED_EVERY) {
            return Some(None);
        }
        *last = Some(Instant::now());
        None
    }

    /// Whether a pack can be read now, as far as is known without asking.
    pub fn is_frozen(&self, archived: &Archived) -> bool {
        let known = self.known.lock().expect("never held across a panic");
        match known.get(&(archived.bucket.clone(), archived.object_key.clone())) {
            Some(Known::Readable) => false,
            Some(Known::Frozen(_) | Known::Thawing(_)) => true,
            None => keys::class_of(&archived.object_key).is_frozen(),
        }
    }

    /// Whether a pack is frozen, or was until it thawed.
    pub(super) fn was_frozen(&self, archived: &Archived) -> bool {
        let known = self.known.lock().expect("never held across a panic");
        known.contains_key(&(archived.bucket.clone(), archived.object_key.clone())) || keys::class_of(&archived.object_key).is_frozen()
    }

    /// A pack's bytes were asked for and came.
    pub fn found_readable(&self, archived: &Archived) {
        if self.is_frozen(archived) {
            self.learn(&archived.bucket, &archived.object_key, Known::Readable);
            let class = keys::class_of(&archived.object_key);
            self.tried.lock().expect("never held across a panic").remove(&(archived.bucket.clone(), class));
        }
    }

    /// A pack's bytes were asked for and could not be had.
    pub fn found_frozen(&self, archived: &Archived) {
        self.learn(&archived.bucket, &archived.object_key, Known::Frozen(Instant::now()));
    }

    pub(super) fn learn(&self, bucket: &str, key: &str, now: Known) {
        let mut known = self.known.lock().expect("never held across a panic");
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert((bucket.to_owned(), key.to_owned()), now);
    }

    /// How the job stands, if there is one.
    pub fn progress(&self) -> Option<ThawProgress> {
        self.progress.lock().expect("never held across a panic").clone()
    }
}

/// What a listing or a HEAD says of an object: its class as it is now, and whether it thaws.
pub(in crate::archive) fn seen(key: &str, class: Option<&str>, is_thawing: Option<bool>) -> Seen {
    let was = keys::class_of(key);
    // Of another vendor's class its name in the key says what it is; rules may have moved an object to another one.
    let is_frozen = match class.map(|class| (class == was.name(), class.parse::<StorageClass>())) {
        None | Some((true, _)) => was.is_frozen(),
        Some((false, is)) => is.is_ok_and(|is| is.is_frozen()),
    };
    match is_thawing {
        Some(true) => Seen::Thawing,
        None if is_frozen => Seen::Frozen,
        Some(false) | None => Seen::Readable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archived(key: &str) -> Archived {
        Archived { bucket: "b".to_owned(), object_key: key.to_owned(), size: 1, created_ms: 0, records: 0, contents: Vec::new() }
    }

    #[test]
    fn f36_of_a_frozen_class_one_pack_is_tried_and_the_others_when_it_could_be_read() {
        let (one, other, warm) = (archived("p/1.GLACIER.tar"), archived("p/2.GLACIER.tar"), archived("p/3.tar"));
        let thaws = Thaws::default();
        assert!(thaws.is_frozen(&one) && !thaws.is_frozen(&warm) && thaws.refuses(&warm).is_none());
        assert_eq!(thaws.refuses(&one), None, "it may have been copied to where it can be read");
        assert_eq!((thaws.refuses(&one), thaws.refuses(&other)), (Some(None), Some(None)), "the answer is awaited");
        thaws.found_frozen(&one);
        assert_eq!((thaws.refuses(&one), thaws.refuses(&other)), (Some(None), Some(None)));
        thaws.found_readable(&one);
        assert_eq!((thaws.refuses(&one), thaws.refuses(&other)), (None, None));
        // Asked for: it is known when.
        thaws.learn("b", "p/2.GLACIER.tar", Known::Thawing(writer::now_ms() + 7_200_000));
        assert!(thaws.refuses(&other).flatten().is_some_and(|left| left > Duration::from_secs(7_000)));
        thaws.learn("b", "p/2.GLACIER.tar", Known::Thawing(0));
        assert_eq!(thaws.refuses(&other), Some(Some(Duration::ZERO)));
        // A rule of the bucket has moved it.
        thaws.found_frozen(&warm);
        assert!(thaws.is_frozen(&warm) && thaws.was_frozen(&warm) && thaws.refuses(&warm) == Some(None));
    }

    #[test]
    fn f36_a_bucket_says_of_an_object_whether_it_can_be_read() {
        let (warm, cold, vendor) = ("p/1.tar", "p/1.GLACIER.tar", "p/1.frozen-Cold.tar");
        for (key, class, thaws, expected) in [
            (warm, None, None, Seen::Readable),
            (warm, Some("STANDARD"), None, Seen::Readable),
            (warm, Some("DEEP_ARCHIVE"), None, Seen::Frozen),
            (cold, None, None, Seen::Frozen),
            (cold, Some("STANDARD"), None, Seen::Readable),
            (cold, Some("GLACIER"), Some(true), Seen::Thawing),
            (cold, Some("GLACIER"), Some(false), Seen::Readable),
            (vendor, Some("Cold"), None, Seen::Frozen),
            (vendor, Some("Standard"), None, Seen::Readable),
        ] {
            assert_eq!(seen(key, class, thaws), expected, "{key} as {class:?}, {thaws:?}");
        }
    }
}

//! Storage classes: what an object was put as, and whether it can be read now.
//!
//! An object of a frozen class answers a GET with `InvalidObjectState` until it was asked for and the time that thawing takes is over. Tests set
//! that time, so that hours pass in moments.

use s3s::dto::{ObjectStorageClass, RestoreStatus, StorageClass, Timestamp};
use s3s::{S3Result, s3_error};
use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

/// What an object is when nothing was said.
pub const STANDARD: &str = "STANDARD";
/// The last is another vendor's.
const CLASSES: [&str; 7] = [STANDARD, "STANDARD_IA", "ONEZONE_IA", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE", "Cold"];
const FROZEN: [&str; 3] = ["GLACIER", "DEEP_ARCHIVE", "Cold"];
const DAY: Duration = Duration::from_secs(86_400);

/// The classes of all objects that are not standard ones, and what was asked for.
#[derive(Debug)]
pub(super) struct Classes {
    objects: HashMap<String, Stored>,
    /// From the request until it can be read.
    pub thaw_time: Duration,
}

impl Default for Classes {
    fn default() -> Self {
        Self { objects: HashMap::new(), thaw_time: Duration::from_secs(3600) }
    }
}

#[derive(Debug)]
struct Stored {
    class: String,
    thaw: Option<Thaw>,
}

#[derive(Debug)]
struct Thaw {
    ready: Instant,
    expires: SystemTime,
}

impl Classes {
    /// Takes note of the class of an object that was put.
    pub fn put(&mut self, key: &str, class: Option<&StorageClass>) -> S3Result<()> {
        let class = class.map_or(STANDARD, |class| class.as_str());
        if !CLASSES.contains(&class) {
            return Err(s3_error!(InvalidStorageClass));
        }
        self.objects.remove(key);
        if class != STANDARD {
            self.objects.insert(key.to_owned(), Stored { class: class.to_owned(), thaw: None });
        }
        Ok(())
    }

    pub fn deleted(&mut self, key: &str) {
        self.objects.remove(key);
    }

    pub fn class(&self, key: &str) -> &str {
        self.objects.get(key).map_or(STANDARD, |stored| &stored.class)
    }

    /// Whether the object's bytes can be had now.
    pub fn check_readable(&self, key: &str) -> S3Result<()> {
        match self.objects.get(key) {
            Some(stored) if stored.is_frozen() && !stored.thaw.as_ref().is_some_and(Thaw::is_over) => {
                Err(s3_error!(InvalidObjectState, "The operation is not valid for the object's storage class"))
            }
            _ => Ok(()),
        }
    }

    /// Begins to thaw an object; `true` when it was thawed already and only stays longer.
    pub fn thaw(&mut self, key: &str, days: u64) -> S3Result<bool> {
        let time = self.thaw_time;
        let Some(stored) = self.objects.get_mut(key).filter(|stored| stored.is_frozen()) else {
            return Err(s3_error!(InvalidObjectState, "Restore is not allowed for the object's current storage class"));
        };
        let expires = SystemTime::now() + DAY * u32::try_from(days).unwrap_or(u32::MAX);
        match &mut stored.thaw {
            Some(thaw) if !thaw.is_over() => Err(s3_error!(RestoreAlreadyInProgress)),
            Some(thaw) => {
                thaw.expires = expires;
                Ok(true)
            }
            None => {
                stored.thaw = Some(Thaw { ready: Instant::now() + time, expires });
                Ok(false)
            }
        }
    }

    /// Everything that was asked for can be read now.
    pub fn finish_thaws(&mut self) {
        for thaw in self.objects.values_mut().filter_map(|stored| stored.thaw.as_mut()) {
            thaw.ready = Instant::now();
        }
    }

    /// The copies that were thawed are gone.
    pub fn freeze_all(&mut self) {
        self.objects.values_mut().for_each(|stored| stored.thaw = None);
    }

    /// As a listing has it when it was asked for.
    pub fn restore_status(&self, key: &str) -> Option<RestoreStatus> {
        let thaw = self.objects.get(key)?.thaw.as_ref()?;
        let over = thaw.is_over();
        let restore_expiry_date = over.then(|| Timestamp::from(thaw.expires));
        Some(RestoreStatus { is_restore_in_progress: Some(!over), restore_expiry_date })
    }

    /// `x-amz-restore` of a HEAD.
    pub fn restore_header(&self, key: &str) -> Option<String> {
        let thaw = self.objects.get(key)?.thaw.as_ref()?;
        Some(if thaw.is_over() {
            "ongoing-request=\"false\", expiry-date=\"Fri, 21 Dec 2040 00:00:00 GMT\"".to_owned()
        } else {
            "ongoing-request=\"true\"".to_owned()
        })
    }

    pub fn listed(&self, key: &str) -> ObjectStorageClass {
        ObjectStorageClass::from(self.class(key).to_owned())
    }

    /// As an answer about one object has it: nothing for a standard one.
    pub fn header(&self, key: &str) -> Option<StorageClass> {
        self.objects.get(key).map(|stored| StorageClass::from(stored.class.clone()))
    }
}

impl Stored {
    fn is_frozen(&self) -> bool {
        FROZEN.contains(&self.class.as_str())
    }
}

impl Thaw {
    fn is_over(&self) -> bool {
        Instant::now() >= self.ready
    }
}

//! Who did what, to which repository, from where, and what came of it.
//!
//! Each event is a structured line of the log (target `larder::audit`), and a line of JSON in a file of this node, in which `larder audit` looks.
//! Files are bounded in size, number and age; what comes faster than it can be written is counted and lost, and never waited for.
//!
//! ```text
//! <data folder>/audit/<milliseconds since 1970, 13 digits>.jsonl      the events since then; 0600
//! ```
//!
//! CRASH: the last lines may be missing, and the last one may be cut; a reader passes over what is none. A start begins a new file.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::now_ms;
use crate::config::AuditLevel;
use crate::glob::Glob;

/// Longest file, and most of them.
const FILE_SIZE_MAX: u64 = 16 << 20;
const FILES_MAX: usize = 16;
/// A file is for no longer than this, so that old events can go.
const FILE_SPAN: Duration = Duration::from_secs(6 * 3600);
/// Events that wait to be written.
const WAITING_MAX: usize = 4096;
/// Events that are written at a time.
const BATCH_MAX: usize = 256;
/// Longest text of an event.
const TEXT_LENGTH_MAX: usize = 300;
/// Most events of one answer.
pub const LISTED_MAX: usize = 10_000;

/// Something that was done, or refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Who: `user:alice`; or who somebody said that they are.
    pub who: String,
    /// From where.
    pub from: Option<IpAddr>,
    /// What: `push`, `delete`, `mount`, `pull`, `token`, `sign-in`, or a command.
    pub action: String,
    /// In which repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Which tag, digest or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// What came of it: `done`, `refused` or `failed`.
    pub result: String,
    /// The answer's status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Which events are wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Not before, milliseconds since 1970.
    pub since_ms: u64,
    /// Whose: `user:alice`, or `alice`.
    pub who: Option<String>,
    /// In which repositories.
    pub repository: Option<Glob>,
    /// Those only that were refused.
    pub refused: bool,
    /// The last so many.
    pub limit: usize,
}

/// Takes events.
pub struct Audit {
    level: AuditLevel,
    kept: Duration,
    folder: PathBuf,
    events: mpsc::Sender<Event>,
    lost: AtomicU64,
}

/// Where events come out to be written.
pub struct Events(mpsc::Receiver<Event>);

impl Event {
    /// Something that happens now.
    pub fn now(who: String, action: &str) -> Self {
        let (action, result) = (action.to_owned(), "done".to_owned());
        Self { at_ms: now_ms(), who, from: None, action, repository: None, reference: None, result, status: None, why: None }
    }

    /// With what was answered.
    #[must_use]
    pub fn answered(mut self, status: u16, why: Option<String>) -> Self {
        let result = match status {
            ..400 => "done",
            401 | 403 => "refused",
            400.. => "failed",
        };
        (self.result, self.status, self.why) = (result.to_owned(), Some(status), why);
        self
    }

    fn bounded(mut self) -> Self {
        let texts = [Some(&mut self.who), Some(&mut self.action), self.repository.as_mut(), self.reference.as_mut(), self.why.as_mut()];
        for text in texts.into_iter().flatten() {
            if text.len() > TEXT_LENGTH_MAX {
                text.truncate(text.floor_char_boundary(TEXT_LENGTH_MAX));
            }
        }
        self
    }
}

impl Wanted {
    fn is(&self, event: &Event) -> bool {
        let is_who = |who: &String| event.who == *who || event.who.split_once(':').is_some_and(|(_, name)| name == who);
        event.at_ms >= self.since_ms
            && self.who.as_ref().is_none_or(is_who)
            && self.repository.as_ref().is_none_or(|glob| event.repository.as_ref().is_some_and(|name| glob.matches(name)))
            && (!self.refused || event.result == "refused")
    }
}

impl Audit {
    /// Of this folder; nothing is written before [`Audit::keep`] runs.
    pub fn new(level: AuditLevel, kept: Duration, data: &Path) -> (Self, Events) {
        let (events, receiver) = mpsc::channel(WAITING_MAX);
        (Self { level, kept, folder: data.join("audit"), events, lost: AtomicU64::new(0) }, Events(receiver))
    }

    /// Whether pulls are written down too.
    pub fn has_pulls(&self) -> bool {
        self.level == AuditLevel::Everything
    }

    /// Takes note of an event. Does not block, and waits for nobody.
    pub fn note(&self, event: Event) {
        if self.level == AuditLevel::Off {
            return;
        }
        let event = event.bounded();
        let Event { who, action, result, .. } = &event;
        let (repository, reference) = (event.repository.as_deref(), event.reference.as_deref());
        let (from, why) = (event.from.map(tracing::field::display), event.why.as_deref());
        tracing::info!(target: "larder::audit", who, from, action, repository, reference, result, status = event.status, why, "audit");
        if self.events.try_send(event).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes events until it is told to stop, and then those that wait.
    pub async fn keep(self: std::sync::Arc<Self>, mut events: Events, stopping: CancellationToken) {
        let mut place = None;
        let mut is_well = true;
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                biased;
                count = events.0.recv_many(&mut batch, BATCH_MAX) => if count == 0 { return },
                () = stopping.cancelled() => return,
            }
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                let event = Event { result: "failed".to_owned(), ..Event::now("larder".to_owned(), "lost events") };
                batch.push(Event { reference: Some(lost.to_string()), ..event });
            }
            let (audit, standing) = (self.clone(), place.take());
            let written = tokio::task::spawn_blocking(move || audit.write(standing, &batch)).await.expect("writing does not panic");
            match written {
                Ok(standing) => (place, is_well) = (Some(standing), true),
                Err(error) if is_well => {
                    is_well = false;
                    tracing::warn!(%error, folder = %self.folder.display(), "events can't be written down; those of now are in this log only");
                }
                Err(_) => {}
            }
        }
    }

    fn write(&self, standing: Option<Place>, batch: &[Event]) -> io::Result<Place> {
        let fits = |place: &Place| place.size < FILE_SIZE_MAX && now_ms().saturating_sub(place.begun_ms) < FILE_SPAN.as_millis() as u64;
        let mut place = match standing.filter(fits) {
            Some(place) => place,
            None => {
                let place = self.begin()?;
                self.tidy()?;
                place
            }
        };
        let mut lines = Vec::new();
        for event in batch {
            serde_json::to_writer(&mut lines, event)?;
            lines.push(b'\n');
        }
        place.file.write_all(&lines)?;
        place.size += lines.len() as u64;
        Ok(place)
    }

    fn begin(&self) -> io::Result<Place> {
        match fs::DirBuilder::new().mode(0o700).create(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // A clock that stood still, or ran back, may have a file of that name.
        for begun_ms in now_ms().. {
            let path = self.folder.join(format!("{begun_ms:013}.jsonl"));
            match OpenOptions::new().create_new(true).append(true).mode(0o600).open(path) {
                Ok(file) => return Ok(Place { file, size: 0, begun_ms }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Removes files that are too old, or too many. A file's events end where the next one's begin.
    fn tidy(&self) -> io::Result<()> {
        let files = self.files()?;
        let before = now_ms().saturating_sub(self.kept.as_millis() as u64);
        for (index, (_, path)) in files.iter().enumerate() {
            let ends = files.get(index + 1).map(|(begun, _)| *begun);
            if files.len() - index > FILES_MAX || ends.is_some_and(|ends| ends < before) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// The files, the oldest first.
    fn files(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let begun = |path: &Path| path.file_name()?.to_str()?.strip_suffix(".jsonl")?.parse().ok();
        let mut files = Vec::new();
        for entry in entries {
            let path = entry?.path();
            files.extend(begun(&path).map(|begun| (begun, path)));
        }
        files.sort();
        Ok(files)
    }

    /// The last events that are wanted, the oldest first. Blocks.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn list(&self, wanted: &Wanted) -> io::Result<Vec<Event>> {
        let (files, limit) = (self.files()?, wanted.limit.min(LISTED_MAX));
        let mut found = VecDeque::new();
        let before = now_ms().saturating_sub(self.kept.as_millis() as u64).max(wanted.since_ms);
        for (index, (_, path)) in files.iter().enumerate() {
            if files.get(index + 1).is_some_and(|(ends, _)| *ends < before) {
                continue;
            }
            for line in BufReader::new(File::open(path)?).split(b'\n') {
                let Ok(event) = serde_json::from_slice::<Event>(&line?) else { continue };
                if event.at_ms >= before && wanted.is(&event) {
                    found.push_back(event);
                    if found.len() > limit {
                        found.pop_front();
                    }
                }
            }
        }
        Ok(found.into())
    }
}

/// The file that is being written.
struct Place {
    file: File,
    size: u64,
    begun_ms: u64,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn event(who: &str, repository: &str, status: u16) -> Event {
        Event { repository: Some(repository.to_owned()), ..Event::now(who.to_owned(), "push") }.answered(status, None)
    }

    fn wanted() -> Wanted {
        Wanted { limit: 100, ..Wanted::default() }
    }

    #[tokio::test]
    async fn events_are_written_and_found_again() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (audit, events) = Audit::new(AuditLevel::Changes, Duration::from_secs(3600), folder.path());
        let audit = Arc::new(audit);
        // S46: what a client sends stays one line, whatever it is.
        audit.note(event("user:alice\n{\"who\":\"x\"}", "team/a", 201));
        audit.note(event("user:bob", "team/b", 403));
        audit.note(event("user:alice", "other", 404));
        let writing = tokio::spawn(audit.clone().keep(events, CancellationToken::new()));
        while audit.list(&wanted()).expect("read").len() < 3 {
            tokio::task::yield_now().await;
        }
        writing.abort();
        let of = |wanted: Wanted| audit.list(&wanted).expect("read").iter().map(|event| event.result.clone()).collect::<Vec<_>>();
        assert_eq!(of(wanted()), ["done", "refused", "failed"]);
        assert_eq!(of(Wanted { who: Some("bob".to_owned()), ..wanted() }), ["refused"]);
        assert_eq!(of(Wanted { repository: Some("team/*".parse().unwrap()), ..wanted() }), ["done", "refused"]);
        assert_eq!(of(Wanted { refused: true, ..wanted() }), ["refused"]);
        assert_eq!(of(Wanted { limit: 1, ..wanted() }), ["failed"], "the last one");
        assert_eq!(of(Wanted { since_ms: u64::MAX, ..wanted() }), Vec::<String>::new());
        // A line that was cut is passed over.
        let (_, path) = audit.files().expect("files").remove(0);
        OpenOptions::new().append(true).open(&path).expect("open").write_all(b"{\"at_ms\":1,").expect("write");
        assert_eq!(of(wanted()).len(), 3);
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&fs::metadata(path).expect("there")) & 0o777, 0o600);
    }

    #[test]
    fn files_are_bounded_in_size_number_and_age() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (audit, _events) = Audit::new(AuditLevel::Changes, Duration::from_secs(3600), folder.path());
        let full = |audit: &Audit| {
            let mut place = audit.write(None, &[event("a", "b", 201)]).expect("written");
            place.size = FILE_SIZE_MAX;
            audit.write(Some(place), &[event("a", "b", 201)]).expect("written")
        };
        for _ in 0..FILES_MAX {
            full(&audit);
        }
        assert_eq!(audit.files().expect("files").len(), FILES_MAX);
        // An old one goes when its successor is old too.
        for begun in [1, 2] {
            fs::write(audit.folder.join(format!("{begun:013}.jsonl")), "").expect("write");
        }
        for (_, path) in audit.files().expect("files").iter().skip(4) {
            fs::remove_file(path).expect("remove");
        }
        audit.tidy().expect("tidied");
        let left: Vec<_> = audit.files().expect("files").iter().map(|(begun, _)| *begun).collect();
        assert!(!left.contains(&1) && left.contains(&2), "{left:?}");
    }

    #[test]
    fn a_flood_is_counted_and_not_waited_for() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (audit, _events) = Audit::new(AuditLevel::Changes, Duration::from_secs(3600), folder.path());
        for _ in 0..WAITING_MAX + 7 {
            audit.note(event(&"x".repeat(10_000), "b", 201));
        }
        assert_eq!(audit.lost.load(Ordering::Relaxed), 7);
        assert_eq!(event(&"ü".repeat(10_000), "b", 201).bounded().who.len(), TEXT_LENGTH_MAX);
    }

    #[test]
    fn switched_off_it_takes_nothing() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (audit, mut events) = Audit::new(AuditLevel::Off, Duration::from_secs(3600), folder.path());
        audit.note(event("a", "b", 201));
        assert!(events.0.try_recv().is_err());
    }
}

//! Repositories that are asked for while a restore still reads its checkpoint: their pages are read before their turn.
//!
//! A checkpoint of a large fleet takes longer to take in than a client waits. It says which repositories each of its pages is about; so whoever asks for one
//! waits for those pages only, each by one ranged GET more. What is merged twice is merged once.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use larder_protocol::name::RepositoryName;
use tokio::sync::{Mutex, watch};

use super::bucket::{self, Bucket};
use super::restore::{RestoreOptions, is_wanted};
use super::{Error, Inner, checkpoint};

/// A checkpoint that is being read.
pub(super) struct Waking {
    bucket: Arc<dyn Bucket>,
    opened: Arc<checkpoint::Opened>,
    options: RestoreOptions,
    /// Pages read so far.
    read: watch::Sender<usize>,
    /// By repository: its pages.
    pages: HashMap<RepositoryName, Vec<usize>>,
    /// Pages of packs and members, which everything needs.
    needed_by_all: usize,
    /// Pages that were read before their turn. One at a time: two clients may ask for one repository.
    early: Mutex<Vec<usize>>,
}

impl fmt::Debug for Waking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Waking({} repositories)", self.pages.len())
    }
}

/// Ends the waking when the checkpoint is read, or could not be.
pub(super) struct Guard<'a> {
    inner: &'a Inner,
    waking: Arc<Waking>,
}

impl Guard<'_> {
    /// So many pages are merged.
    pub(super) fn read(&self, pages: usize) {
        self.waking.read.send_replace(pages);
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.waking.read.send_replace(usize::MAX);
        *self.inner.waking.lock().expect("never held across a panic") = None;
    }
}

impl Inner {
    /// From now on repositories can be had before their turn.
    pub(super) fn begin_waking(&self, bucket: &Arc<dyn Bucket>, opened: &Arc<checkpoint::Opened>, options: &RestoreOptions) -> Guard<'_> {
        let mut pages = HashMap::<RepositoryName, Vec<usize>>::new();
        for (index, page) in opened.directory.pages.iter().enumerate() {
            page.repositories.iter().for_each(|repository| pages.entry(repository.clone()).or_default().push(index));
        }
        let needed_by_all = opened.directory.pages.iter().take_while(|page| page.repositories.is_empty()).count();
        let (bucket, opened, options) = (bucket.clone(), opened.clone(), options.clone());
        let waking =
            Arc::new(Waking { bucket, opened, options, read: watch::Sender::new(0), pages, needed_by_all, early: Mutex::default() });
        *self.waking.lock().expect("never held across a panic") = Some(waking.clone());
        Guard { inner: self, waking }
    }

    /// Returns when what the bucket knows of a repository is here; at once, unless a checkpoint is being read.
    pub(super) async fn awaken(&self, repository: &RepositoryName) {
        let waking = self.waking.lock().expect("never held across a panic").clone();
        let Some(waking) = waking else { return };
        if let Err(error) = self.read_early(&waking, repository).await {
            // It comes in its turn.
            tracing::info!(%repository, %error, "could not read a repository before its turn");
        }
    }

    async fn read_early(&self, waking: &Waking, repository: &RepositoryName) -> Result<(), Error> {
        let mut read = waking.read.subscribe();
        if read.wait_for(|read| *read >= waking.needed_by_all).await.is_err() {
            return Ok(());
        }
        for index in waking.pages.get(repository).map(Vec::as_slice).unwrap_or_default() {
            let mut early = waking.early.lock().await;
            if *waking.read.borrow() > *index || early.contains(index) {
                continue;
            }
            let (page, key) = (waking.opened.directory.pages[*index].clone(), &waking.opened.listed.key);
            let range = page.section.offset..page.section.offset + page.section.length;
            let bytes = bucket::get_whole(&*waking.bucket, key, range).await?;
            let records = tokio::task::spawn_blocking(move || page.parse(&bytes)).await.expect("reading a page does not panic");
            let records = records.map_err(|source| Error::Checkpoint { key: key.clone(), source: Box::new(source) })?;
            self.merge(records.into_iter().filter(|numbered| is_wanted(&waking.options, &numbered.record.key)).collect()).await?;
            early.push(*index);
        }
        Ok(())
    }
}

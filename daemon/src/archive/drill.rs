//! A restore to try out: some images, chosen at random, from nothing but the bucket into a temporary folder that is removed again.
//!
//! It says what it took, and what could not be had: the proof that the bucket is enough, without losing anything first.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use larder_protocol::digest::Digest;
use rand::seq::SliceRandom;
use serde::Serialize;
use uuid::Uuid;

use crate::age::Identity;
use crate::config::Durability;
use crate::store::{DataFolder, Options, Store};

use super::ledger::{Ledger, Requests};
use super::restore::RestoreOptions;
use super::{Error, Inner, Skipped, bucket, refill};

/// Most images of one drill.
pub const IMAGES_MAX: usize = 10_000;

/// What a drill has shown.
#[derive(Clone, Debug, Serialize)]
pub struct Drilled {
    /// The bucket.
    pub url: String,
    /// Images that came whole, each blob checked.
    pub images: usize,
    /// Images that would come whole once their packs have thawed, which a drill does not ask for.
    pub frozen: usize,
    /// Their blobs, each once.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The state that was found is of then.
    pub as_of: String,
    /// Requests by kind.
    pub requests: Requests,
    /// Bytes that came from the bucket, metadata included.
    pub bytes_in: u64,
    /// What the requests and the reading cost, in dollars.
    pub dollars: f64,
    /// From the first request until pulls would have been served.
    pub metadata_seconds: f64,
    /// Until all images were there.
    pub seconds: f64,
    /// What of the bucket could not be used, and the images that did not come whole.
    pub failed: Vec<Skipped>,
}

/// Removes the folder when it is done with.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "the folder of a drill is left; remove it");
        }
    }
}

impl Inner {
    /// See [`super::Archive::drill`].
    pub(super) async fn drill(
        self: &Arc<Self>,
        url: Option<String>,
        images: usize,
        identities: Vec<Arc<Identity>>,
    ) -> Result<Drilled, Error> {
        let url = match (url, &self.settings.url) {
            (Some(url), _) => url,
            (None, Some(own)) => bucket::display_url(own),
            (None, None) => return Err(Error::Off),
        };
        let began = Instant::now();
        let folder = self.settings.scratch.join(format!("drill-{}", Uuid::new_v4()));
        let options = Options { durability: Durability::Relaxed, ..self.store.options().clone() };
        let scratch = Scratch(folder.clone());
        let opened = tokio::task::spawn_blocking(move || Store::open(DataFolder::open(&folder)?, options));
        let store = opened.await.expect("opening a store does not panic")?;
        let ledger = Ledger::new(None, Arc::default());
        let mut settings = self.settings.clone();
        settings.s3.keyring = Arc::new(settings.s3.keyring.with(identities));
        let other = Arc::new(Inner::new(settings, store.clone(), self.signer.clone(), Arc::default(), ledger, None, None));
        let options = RestoreOptions { metadata_only: true, allow_gaps: true, leave_strangers: true, ..RestoreOptions::default() };
        let drilled = other.drill_here(&url, images, &options, began).await;
        store.run(Store::close).await;
        drop((other, store));
        tokio::task::spawn_blocking(move || drop(scratch)).await.expect("removing a folder does not panic");
        drilled
    }

    async fn drill_here(self: &Arc<Self>, url: &str, images: usize, options: &RestoreOptions, began: Instant) -> Result<Drilled, Error> {
        let restored = self.restore(url, options).await?;
        let metadata_seconds = began.elapsed().as_secs_f64();
        let mut tags = self.store.run(refill::newest_tags).await?;
        tags.shuffle(&mut rand::rng());
        tags.truncate(images.min(IMAGES_MAX));
        let (mut failed, mut whole, mut frozen, mut blobs, mut bytes) = (restored.skipped, 0, 0, 0, 0);
        for (_, repository, tag) in tags {
            let name = format!("{repository}:{tag}");
            let closure = self.store.run(move |store| match store.tag(&repository, &tag)? {
                Some(info) => store.closure(&repository, &info.digest),
                None => Ok(Vec::new()),
            });
            let (mut missing, mut must_thaw): (Vec<Digest>, _) = (Vec::new(), false);
            for (digest, link) in closure.await? {
                let staging = self
                    .store
                    .run(move |store| if store.blob(&digest)?.is_some() { Ok(None) } else { store.stage(digest, link).map(Some) });
                let Some(mut staging) = staging.await? else { continue };
                let had = match self.fill(&mut staging).await {
                    Ok(true) => staging.finish().await.is_ok(),
                    Err(Error::Frozen { .. }) => {
                        must_thaw = true;
                        continue;
                    }
                    Ok(false) | Err(_) => false,
                };
                if had {
                    blobs += 1;
                    bytes += link.size;
                } else {
                    missing.push(digest);
                }
            }
            if missing.is_empty() && must_thaw {
                frozen += 1;
            } else if missing.is_empty() {
                whole += 1;
            } else {
                let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
                failed.push(Skipped { key: name, why: format!("could not be had: {}", missing.join(", ")) });
            }
        }
        let tally = self.ledger.tally();
        let source = self.source.lock().expect("never held across a panic").clone();
        Ok(Drilled {
            url: url.to_owned(),
            images: whole,
            frozen,
            blobs,
            bytes,
            as_of: restored.as_of,
            requests: tally.requests,
            bytes_in: tally.bytes_in,
            dollars: source.map_or(0.0, |bucket| tally.requests_price(bucket.prices()) + tally.reading_price(bucket.prices())),
            metadata_seconds,
            seconds: began.elapsed().as_secs_f64(),
            failed,
        })
    }
}

//! Builds the rooms from the floor up, starts their tasks, stops them in reverse.
//!
//! Open in this order: data folder (locked), key, store, users, archive, peers, lookup, registry. The front door opens last, so
//! that whoever can connect is served. Stopping turns it round: the listener closes, requests under way get their grace,
//! background loops end at a safe point, peers hear goodbye, the store is flushed and closed.
//!
//! A core task that ends by itself stops the node, and [`serve`] then returns an error.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::BoxFuture;
use larder_protocol::message::Class;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::admin;
use crate::archive::Archive;
use crate::auth::Auth;
use crate::config::{AcmeChallenge, Config};
use crate::lookup::Lookup;
use crate::peers::{Identity, Moment, Peers};
use crate::registry;
use crate::store::{self, DataFolder, Store};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::tls::acme::Acme;
use crate::tls::{self, Tls};
use crate::upkeep::{Evictor, Gc, Scrub};

mod operations;

use operations::{Neighbours, NodeOperations, Places};

/// What background loops get beyond the grace of requests.
const LOOPS_GRACE: Duration = Duration::from_secs(5);

/// Runs a node until it is told to stop by SIGTERM or SIGINT.
///
/// # Errors
/// It could not start, or a part of it that it can't do without ended.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let node = Node::start(config).await?;
    let stopping = node.tasks.stopping();
    let asked = tokio::select! {
        _ = terminate.recv() => true,
        _ = interrupt.recv() => true,
        _ = stopping.cancelled() => false,
    };
    node.stop().await;
    anyhow::ensure!(asked, "a part of the node ended by itself; the log above says which");
    Ok(())
}

/// A running node.
struct Node {
    store: Store,
    peers: Peers,
    tasks: Tasks,
    ready: Arc<AtomicBool>,
    grace: Duration,
}

impl Node {
    async fn start(config: Config) -> anyhow::Result<Self> {
        let (tasks, metrics) = (Tasks::default(), Arc::new(Metrics::default()));
        let (identity, store) = open_store(&config).await?;

        let signing = Arc::clone(&identity);
        let signer: crate::auth::Signer = Arc::new(move || {
            let used = signing.used();
            (used.key(), Arc::new(move |bytes: &[u8]| used.sign(bytes)))
        });
        let (settings, keeping, signing, node) = (config.clone(), store.clone(), Arc::clone(&signer), identity.node());
        let auth = tokio::task::spawn_blocking(move || Auth::open(&settings, keeping, node, signing));
        let auth = auth.await.context("opening the users was cut short")?.context("read who may do what")?;
        auth.start(&tasks);
        let archive = Archive::open(&config, store.clone(), signer, Arc::clone(&metrics)).await.context("open the archive")?;
        let peers = Peers::start(&config, archive.bucket(), Arc::clone(&identity), store.clone(), &tasks, Arc::clone(&metrics));
        let peers = peers.await.with_context(|| format!("open the peers' port {}/udp", config.peers.listen))?;
        let archived = archive.clone();
        peers.forget_after(Arc::new(move || archived.archived_upto()));
        let telling = archive.clone();
        peers.tell_bucket_by(Arc::new(move |moment| {
            let archive = telling.clone();
            Box::pin(async move {
                let told = match moment {
                    _ if archive.bucket().is_none() => return true,
                    Moment::Before => archive.flush().await.map(drop),
                    Moment::After => archive.checkpoint().await.map(drop),
                };
                told.inspect_err(|error| tracing::warn!(%error, "tell the bucket of this node's new key")).is_ok()
            })
        }));
        // ORDER: before anything here writes by itself, and before clients do.
        peers.settle().await;
        let lookup = Lookup::new(&config, store.clone(), peers.clone(), archive.clone(), tasks.clone(), Arc::clone(&metrics));
        let bringing = lookup.clone();
        let (fleet, takeover) = (peers.clone(), config.peers.takeover);
        archive.take_over_from(Arc::new(move |node| fleet.is_away(node, takeover)));
        let fleet = peers.clone();
        archive.heard_by(Arc::new(move || fleet.seen_by_all()));
        archive.start(
            Arc::new(move |digest, link| {
                let lookup = bringing.clone();
                Box::pin(async move { lookup.ensure(digest, link).await.is_ok() })
            }),
            &tasks,
        );
        // A client waits for the answer to its push.
        let keeping = lookup.clone();
        peers.start_keeping(Arc::new(move |digest, link| {
            let lookup = keeping.clone();
            Box::pin(async move { lookup.ensure_for(digest, link, Class::Client).await.is_ok() })
        }));
        lookup.start().await.context("read which copies this node owes")?;
        let neighbours = Arc::new(Neighbours(peers.clone()));
        let gc = Gc::open(&config, store.clone(), neighbours, Arc::clone(&metrics)).context("open the garbage collector")?;
        tasks.core("upkeep", gc.clone().run(tasks.stopping()));
        let places = Arc::new(Places { peers: peers.clone(), archive: archive.clone(), with_frozen: config.archive.evict_frozen });
        let evictor = Evictor::new(store.clone(), config.store.pins.clone(), places, Arc::clone(&metrics));
        let healing = lookup.clone();
        let heal = Arc::new(move |digest, link| -> BoxFuture<'static, bool> {
            let lookup = healing.clone();
            Box::pin(async move { lookup.ensure(digest, link).await.is_ok() })
        });
        let scrub = Scrub::new(&config, store.clone(), heal, Arc::clone(&metrics));
        tasks.core("scrub", scrub.clone().run(tasks.stopping()));
        tasks.core("eviction", evictor.run(tasks.stopping()));

        let listen = config.http.listen;
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("listen on {listen}; stop the program that has the port, or choose another with --listen"))?;
        let tls = open_tls(&config, &tasks, &metrics).await?;
        let ready = Arc::new(AtomicBool::new(true));
        let operations = Arc::new(NodeOperations::new(peers.clone(), archive, (gc, scrub), Arc::clone(&metrics), Arc::clone(&ready)));
        let about = admin::About { node: identity.node(), name: config.node.name.clone(), zone: config.node.zone.clone() };
        let socket = config.data_dir.join("larder.sock");
        admin::start(&socket, about, (store.clone(), auth.clone()), operations.clone(), &tasks)
            .with_context(|| format!("open the command socket {}", socket.display()))?;
        let elsewhere = admin::public(operations, Arc::clone(&metrics));
        let scheme = if tls.is_some() { "https" } else { "http" };
        registry::start((listener, tls), &config, store.clone(), (lookup, auth), elsewhere, &tasks, metrics);

        tracing::info!(node = %identity.node(), data = %config.data_dir.display(), peers = %config.peers.listen, "listening on {scheme}://{listen}");
        notify(&[sd_notify::NotifyState::Ready]);
        Ok(Self { store, peers, tasks, ready, grace: config.http.shutdown_grace })
    }

    async fn stop(self) {
        tracing::info!(grace = ?self.grace, "stopping: no new requests, those under way may finish");
        notify(&[sd_notify::NotifyState::Stopping]);
        self.ready.store(false, Ordering::Relaxed);
        if !self.tasks.stop(self.grace + LOOPS_GRACE).await {
            tracing::info!("some work did not end in time and was dropped; clients and peers resume it");
        }
        self.peers.close().await;
        self.store.run(Store::close).await;
    }
}

/// Reads the certificate of the front door, or sees to it that there will be one; `None`: plain HTTP.
async fn open_tls(config: &Config, tasks: &Tasks, metrics: &Arc<Metrics>) -> anyhow::Result<Option<Tls>> {
    let tls = if !config.acme.domains.is_empty() {
        let tls = Tls::open_acme(&config.tls, tls::acme::certificate_file(&config.data_dir), Arc::clone(metrics))?;
        if config.acme.challenge == AcmeChallenge::Http01 {
            let listen = config.acme.http_listen;
            let listener = TcpListener::bind(listen).await.with_context(|| {
                format!(
                    "listen on {listen} for the authority; stop the program that has the port, or set acme.http_listen or acme.challenge"
                )
            })?;
            tasks.core("challenges", registry::serve_challenges(listener, tls.challenges().clone(), tasks.stopping()));
        }
        let acme = Acme::open(&config.acme, &config.data_dir, tls.challenges().clone())?;
        tasks.core("acme", acme.run(tasks.stopping()));
        tls
    } else if config.tls.certificate.is_some() {
        Tls::open(&config.tls, Arc::clone(metrics))?
    } else {
        return Ok(None);
    };
    tasks.core("tls-reload", tls.clone().watch(tasks.stopping()));
    Ok(Some(tls))
}

/// Opens what is on the disk, from the lock upwards.
async fn open_store(config: &Config) -> anyhow::Result<(Arc<Identity>, Store)> {
    let (path, durability, max_clock_drift) = (config.data_dir.clone(), config.store.durability, config.peers.max_clock_drift);
    let (registry, renew_after) = (config.registry.clone(), config.gc.renew_after());
    let it = &config.store;
    let space = store::SpaceLimits { reserve: it.reserve, size_max: it.size_max, high_water: it.high_water, low_water: it.low_water };
    let opened = tokio::task::spawn_blocking(move || {
        let folder = DataFolder::open(&path)?;
        let identity = Identity::load(folder.path()).context("load this node's key")?;
        let options = store::Options {
            node: identity.node(),
            durability,
            max_clock_drift,
            uploads_max: registry.uploads_max,
            uploads_per_client_max: registry.uploads_per_client_max,
            blob_size_max: registry.blob_size_max,
            sparse_manifests: registry.sparse_manifests,
            renew_after,
            immutable_tags: registry.immutable_tags,
            space,
        };
        let store = Store::open(folder, options).context("open the store")?;
        anyhow::Ok((Arc::new(identity), store))
    });
    opened.await.context("opening the store was cut short")?
}

/// Tells systemd, where it listens. Elsewhere nothing happens.
fn notify(states: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::info!(%error, "the service manager could not be told");
    }
}

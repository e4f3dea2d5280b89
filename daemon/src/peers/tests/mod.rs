//! The room through its door: nodes in temporary folders on loopback, and peers that lie, stall or babble.

use std::net::UdpSocket;

use bytes::Bytes;
use larder_protocol::digest::Algorithm;
use larder_protocol::keys::Counting;
use larder_protocol::message::{Answer, Class, Request, Update};
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::record::{Link as BlobLink, Value};
use tempfile::TempDir;

use super::endpoint::{Connection, Stream};
use super::*;
use crate::store::{DataFolder, ManifestPush, Options};

mod addresses;
mod admission;
mod away;
mod blobs;
mod bounds;
mod costs;
mod distance;
mod fleet;
mod future;
mod hostile;
mod keep;
mod keys;
mod lives;
mod memory;
mod records;
mod roles;
mod states;
mod telling;
mod versions;

/// Longer than anything here may take.
const DEADLINE: Duration = Duration::from_secs(20);
const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

tokio::task_local! {
    /// The newest protocol version of the nodes that are started in here.
    pub(super) static NEWEST: u16;
}

/// A node without the rooms above.
struct Site {
    peers: Peers,
    store: Store,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    place: Place,
}

/// What is left of a node that is not running.
struct Place {
    config: Config,
    _folder: TempDir,
}

impl Site {
    async fn start(name: &str, zone: &str) -> Self {
        Self::start_with(name, zone, |_| ()).await
    }

    async fn start_with(name: &str, zone: &str, change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut config = Config { data_dir: folder.path().join("data"), ..Config::default() };
        config.peers.listen = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
        config.peers.advertise = vec![config.peers.listen.to_string()];
        config.node.name = name.to_owned();
        config.node.zone = zone.to_owned();
        change(&mut config);
        Place { config, _folder: folder }.start().await
    }

    async fn stop(self) -> Place {
        self.tasks.stop(DEADLINE).await;
        self.peers.close().await;
        // The folder is locked until the last user of the store has let it go.
        drop(self.peers);
        self.store.run(Store::close).await;
        self.place
    }

    fn node(&self) -> NodeId {
        self.peers.inner.identity.node()
    }

    /// Lets another node in, and waits until both are connected.
    async fn let_in(&self, other: &Site) {
        let token = self.peers.token(Duration::from_secs(60), RoleChange::WRITER).await.expect("token");
        other.peers.join(&token).await.expect("join");
        until("the two are connected", || self.sees(other, "connected") && other.sees(self, "connected")).await;
    }

    /// Whether another node is listed here in a state.
    fn sees(&self, other: &Site, state: &str) -> bool {
        let id = other.node().to_string();
        self.peers.list().iter().any(|status| status.node == id && status.state == state)
    }

    async fn push_blob(&self, blob: &[u8]) -> (Digest, BlobLink) {
        let (blob, digest) = (blob.to_vec(), Digest::sha256(blob));
        let link = self.store.run(move |store| {
            let mut upload = store.create_upload(&repository(), Algorithm::Sha256, "").expect("session");
            upload.append(&blob).expect("append");
            upload.finish(digest).expect("finish")
        });
        (digest, link.await)
    }

    /// Pushes an image of one small blob.
    async fn push_image(&self, tag: &str) -> Digest {
        let blob = format!("content of {tag} by {:?}", self.node());
        let (config, _) = self.push_blob(blob.as_bytes()).await;
        let descriptor = serde_json::json!({"mediaType": "application/octet-stream", "digest": config, "size": blob.len()});
        let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": IMAGE, "config": descriptor, "layers": []}).to_string();
        let digest = Digest::sha256(manifest.as_bytes());
        let tags = vec![tag.parse().expect("tag")];
        let push = ManifestPush { repository: repository(), tags, digest, media_type: IMAGE.to_owned(), bytes: manifest.into() };
        self.store.run(move |store| store.put_manifest(push)).await.expect("manifest");
        digest
    }

    /// What a tag means here; then its manifest must be here too.
    fn tag(&self, tag: &str) -> Option<Digest> {
        let tag: Tag = tag.parse().expect("tag");
        let digest = self.store.tag(&repository(), &tag).expect("tag")?.digest;
        assert!(self.store.manifest(&repository(), &digest).expect("manifest").is_some(), "a tag came without its manifest");
        Some(digest)
    }

    /// Fetches a blob into a staged file and keeps it; `false` when no peer had it.
    async fn fetch(&self, digest: Digest, link: BlobLink) -> Result<bool> {
        let mut staging = self.store.run(move |store| store.stage(digest, link)).await?;
        let filled = self.peers.fill(&mut staging, &Urgency::new(Class::Client)).await?;
        if filled {
            staging.finish().await.expect("the bytes are the blob's");
        }
        Ok(filled)
    }
}

impl Place {
    async fn start(self) -> Site {
        let config = self.config.clone();
        let options = |node| Options {
            node,
            durability: config.store.durability,
            max_clock_drift: config.peers.max_clock_drift,
            uploads_max: 8,
            uploads_per_client_max: 8,
            sparse_manifests: false,
            blob_size_max: 64 << 20,
            renew_after: Duration::from_secs(3600),
            immutable_tags: Vec::new(),
            space: Default::default(),
        };
        let mut folder = DataFolder::open(&config.data_dir);
        let deadline = Instant::now() + DEADLINE;
        while folder.is_err() && Instant::now() < deadline {
            // A task of the last life may still hold the store.
            tokio::time::sleep(Duration::from_millis(10)).await;
            folder = DataFolder::open(&config.data_dir);
        }
        let identity = Arc::new(self.identity());
        let store = Store::open(folder.expect("folder"), options(identity.node())).expect("store");
        let (tasks, metrics) = (Tasks::default(), Arc::new(Metrics::default()));
        let peers = loop {
            match Peers::start(&config, None, Arc::clone(&identity), store.clone(), &tasks, Arc::clone(&metrics)).await {
                Ok(peers) => break peers,
                // A call of the last life may still be under way, and hold the port.
                Err(Error::Listen { .. }) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("peers: {error}"),
            }
        };
        Site { peers, store, tasks, metrics, place: self }
    }

    fn identity(&self) -> Identity {
        Identity::load(&self.config.data_dir).expect("key")
    }
}

/// A member's key in other hands.
struct Impostor {
    /// Kept open for as long as the connection is used.
    _endpoint: Endpoint,
    connection: Connection,
}

/// What an impostor does with a request.
enum Reply {
    Answer(Answer),
    Bytes(Answer, Bytes),
    /// Some bytes, and then nothing for ever.
    Stall(Answer, Bytes),
    Updates(Vec<Update>),
    Answers(Vec<Answer>),
    Silence,
}

impl Impostor {
    /// Becomes a member of the victim's cluster, and says hello.
    async fn of(victim: &Site) -> Self {
        Self::speaking(victim, larder_protocol::version::NEWEST).await
    }

    /// The same, of a program that speaks no later version.
    async fn speaking(victim: &Site, newest: u16) -> Self {
        let place = Site::start("impostor", "default").await;
        victim.let_in(&place).await;
        let place = place.stop().await;
        let impostor = Self::with_key_of(&place, victim).await;
        let hello = Hello { life: 1, newest, ..victim.peers.inner.hello() };
        let (answer, _) = impostor.connection.ask(&Request::Hello(hello)).await.expect("hello");
        assert!(matches!(answer, Answer::Hello(_)));
        until("the victim takes it for a peer", || victim.peers.inner.links.get(&place.identity().node()).is_some()).await;
        impostor
    }

    /// Gets through the client's half of a handshake.
    async fn with_key_of(place: &Place, victim: &Site) -> Self {
        let endpoint = Endpoint::open("127.0.0.1:0".parse().expect("address"), &place.identity(), Arc::new(|_| None)).expect("port");
        let keys = Counting::first(victim.peers.inner.identity.used().key());
        let connection = endpoint.dial(victim.node(), &keys, victim.peers.inner.endpoint.address()).await.expect("dial");
        Self { _endpoint: endpoint, connection }
    }

    /// Answers as told until the connection ends.
    fn answer(&self, script: impl Fn(Request) -> Reply + Send + 'static) {
        let connection = self.connection.clone();
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok(stream) = connection.accept().await {
                let Stream { mut send, mut receive } = stream;
                let Ok(Some(request)) = receive.message::<Request>().await else { continue };
                let sent = match script(request) {
                    Reply::Silence => Ok(()),
                    Reply::Answer(answer) => send.message(&answer).await.map(|()| send.finish()),
                    Reply::Bytes(answer, bytes) => match send.message(&answer).await {
                        Ok(()) => send.raw(bytes).await.map(|()| send.finish()),
                        Err(error) => Err(error),
                    },
                    Reply::Stall(answer, bytes) => match send.message(&answer).await {
                        Ok(()) => send.raw(bytes).await,
                        Err(error) => Err(error),
                    },
                    Reply::Answers(answers) => {
                        for answer in &answers {
                            let _ = send.message(answer).await;
                        }
                        Ok(())
                    }
                    Reply::Updates(updates) => {
                        for update in &updates {
                            let _ = send.message(update).await;
                        }
                        Ok(())
                    }
                };
                // A victim that has seen enough hangs up.
                drop(sent);
                kept.push((send, receive));
            }
        });
    }
}

fn repository() -> RepositoryName {
    "team/app".parse().expect("name")
}

fn bytes(seed: u64, size: u64) -> Vec<u8> {
    (0..size).map(|i| (i.wrapping_mul(31) ^ seed.wrapping_mul(i / 509 + 7)) as u8).collect()
}

/// Waits for a condition.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

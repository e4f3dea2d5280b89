//! Kills at random moments of concurrent pushes.

use crate::ledger::{Death, Ledger, Session, State};
use larder_harness::{Content, Image, Node, Random, Registry};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often the node is killed.
const KILL_COUNT: u64 = 60;
/// How many clients push at once.
const CLIENT_COUNT: u64 = 4;
/// A kill comes at most so long after the clients have begun.
const LIFE_MAX: Duration = Duration::from_millis(250);

/// A client that pushes, appends and deletes, writing down what it was told, until the node is gone.
pub struct Client {
    registry: Registry,
    repository: String,
    random: Random,
    ledger: Arc<Mutex<Ledger>>,
}

impl Client {
    /// A client with a repository of its own.
    pub fn new(registry: Registry, repository: String, random: Random, ledger: Arc<Mutex<Ledger>>) -> Self {
        Self { registry, repository, random, ledger }
    }

    /// Goes on until the node is gone.
    pub async fn run(mut self) {
        let mut number = 0;
        let error = loop {
            number += 1;
            let done = match self.random.below(10) {
                0..=5 => self.push_image(number).await,
                6..=7 => self.append().await,
                _ => self.delete().await,
            };
            if let Err(error) = done {
                break error;
            }
        };
        // A node that is killed says nothing; one that refuses has a mistake.
        assert_ne!(error.kind(), io::ErrorKind::InvalidData, "{}: {error}", self.repository);
    }

    /// Content of a size on either side of what the index keeps itself.
    fn content(&mut self) -> Content {
        let size_max = [200, 70_000, 400_000][self.random.below(3) as usize];
        Content::new(self.random.number(), self.random.below(size_max))
    }

    async fn push_image(&mut self, number: u64) -> io::Result<()> {
        let layers: Vec<Content> = (0..1 + self.random.below(3)).map(|_| self.content()).collect();
        for layer in &layers {
            let key = (self.repository.clone(), layer.seed, layer.size);
            self.note(|ledger| ledger.blobs.insert(key.clone(), false));
            match self.random.below(3) {
                0 => self.registry.try_push_blob(&self.repository, *layer).await?,
                1 => self.registry.try_push_blob_at_once(&self.repository, *layer).await?,
                _ => self.registry.try_push_blob_in_parts(&self.repository, &layer.bytes(), 50_000).await?,
            }
            self.note(|ledger| ledger.blobs.insert(key, true));
        }
        let image = Image::of_layers(larder_harness::Kind::Oci, self.random.number(), layers);
        let key = (self.repository.clone(), format!("{number}-{:x}", self.random.number()));
        self.note(|ledger| ledger.tags.insert(key.clone(), (image.clone(), State::Pushing)));
        self.registry.try_push_image(&self.repository, &key.1, &image).await?;
        self.note(|ledger| ledger.tags.insert(key, (image, State::Pushed)));
        Ok(())
    }

    /// Begins an upload and leaves it open.
    async fn append(&mut self) -> io::Result<()> {
        let content = Content::new(self.random.number(), 300_000 + self.random.below(100_000));
        let bytes = content.bytes();
        let location = self.registry.try_open_upload(&self.repository).await?;
        let repository = self.repository.clone();
        self.note(|ledger| ledger.sessions.push(Session { location: location.clone(), repository, content, acknowledged: 0, sent: 0 }));
        let mut begin = 0;
        for size in [1000, 100_000, 150_000] {
            let end = begin + size;
            self.session(&location, |session| session.sent = end);
            let range = format!("{begin}-{}", end - 1);
            let part = bytes.slice(begin as usize..end as usize);
            let answer = self.registry.try_request("PATCH", &location, &[("content-range", &range)], part).await?;
            assert_eq!(answer.status, 202, "append: {answer:?}");
            self.session(&location, |session| session.acknowledged = end);
            begin = end;
        }
        Ok(())
    }

    /// Deletes one of its own tags.
    async fn delete(&mut self) -> io::Result<()> {
        let pick = self.random.number() as usize;
        let key = self.note(|ledger| {
            let own = |((repository, _), (_, state)): &(&(String, String), &(Image, State))| {
                *repository == self.repository && *state == State::Pushed
            };
            let keys: Vec<_> = ledger.tags.iter().filter(own).map(|(key, _)| key.clone()).collect();
            keys.get(pick % keys.len().max(1)).cloned()
        });
        let Some(key) = key else { return Ok(()) };
        self.state(&key, State::Deleting);
        let path = format!("/v2/{}/manifests/{}", key.0, key.1);
        let answer = self.registry.try_request("DELETE", &path, &[], "").await?;
        assert_eq!(answer.status, 202, "delete: {answer:?}");
        self.state(&key, State::Deleted);
        Ok(())
    }

    fn state(&self, key: &(String, String), state: State) {
        self.note(|ledger| ledger.tags.get_mut(key).expect("it was noted before").1 = state);
    }

    fn session(&self, location: &str, change: impl FnOnce(&mut Session)) {
        self.note(|ledger| change(ledger.sessions.iter_mut().find(|session| session.location == location).expect("it was noted before")));
    }

    fn note<T>(&self, write: impl FnOnce(&mut Ledger) -> T) -> T {
        write(&mut self.ledger.lock().expect("clients do not panic while they write"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i1_i2_f1_to_f4_everything_acknowledged_survives_sixty_kills_during_concurrent_pushes() {
    let mut random = Random::printed("sixty_kills");
    let program = env!("CARGO_BIN_EXE_larder");
    // The archive writes as often as it may, so that kills hit it as well.
    let mut node = Node::builder(program).env("LARDER_ARCHIVE__MAX_DELAY", "1s").start().await;
    let registry = Registry::new(node.url());
    let mut all = Ledger::default();
    for kill in 0..KILL_COUNT {
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let clients: Vec<_> = (0..CLIENT_COUNT)
            .map(|client| {
                let random = Random::new(random.number());
                tokio::spawn(Client::new(registry.clone(), format!("team/app-{client}"), random, ledger.clone()).run())
            })
            .collect();
        // The one pause that waits for nothing: the moment of the kill is what the seed decides.
        tokio::time::sleep(LIFE_MAX.mul_f64(random.below(1000) as f64 / 1000.0)).await;
        node.kill();
        for client in clients {
            client.await.expect("a client met only silence");
        }
        node.start().await;
        let mut round = std::mem::take(&mut *ledger.lock().expect("all clients are done"));
        round.verify(&registry).await;
        round.resume(&registry, Death::Kill).await;
        all.take(&mut round);
        println!("kill {kill}: {:?} blobs, tags and deletions acknowledged so far", all.acknowledged());
    }
    let (blobs, tags, deletions) = all.acknowledged();
    assert!(blobs > 100 && tags > 50 && deletions > 5, "too little was acknowledged to mean anything: {:?}", all.acknowledged());
    all.verify(&registry).await;
    node.restart().await;
    all.verify(&registry).await;
}

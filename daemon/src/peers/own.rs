//! What this node says of itself to the others, its `Member` record and its keys; and how it changes its key while it runs.
//!
//! A change of keys stops nothing. The next key is announced by a record, signed by the one in use; when every member has heard, the node shows it in
//! handshakes and signs with it, and says so; then the others close what connections the old one has proven, and take new ones by the new key only. What
//! the old one has signed for clients counts as long as such things live, or not at all, if it is not to be trusted any more.
//!
//! A member that is away is waited for, over restarts too: it knows the old key only, and could not tell the node from a stranger. Who can't wait goes on
//! without it; if it has not heard of the new key from a third node when it is back, it has to join anew.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use larder_protocol::keys::KEYS_MAX;
use larder_protocol::record::{Key, Member, Value};
use larder_protocol::stamp::NodeId;

use super::error::{Error, Result};
use super::identity::Identity;
use super::members::now_ms;
use super::standing::Condition;
use super::{Inner, Peers};
use crate::store::{Commit, Store};

/// The version from which nodes understand it.
const SINCE: u16 = 2;
/// The setting that is there when what the key before has signed shall not count any more.
const REVOKES: &str = "peers/revokes";
/// How long the command waits for the others to hear; then it goes on by itself.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether they have.
const LOOK: Duration = Duration::from_millis(100);
const FOLLOW: Duration = Duration::from_secs(1);
/// How often this node's keys are told anew when somebody else has changed what is said of them.
const MEND_PAUSE: Duration = Duration::from_secs(60);

/// How a key is changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyChange {
    /// Without waiting for members that are away.
    pub now: bool,
    /// What the key before has signed shall not count any more: it may be in other hands.
    pub revoke: bool,
}

/// What came of it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct KeyChanged {
    /// The node's id, which stays.
    pub node: String,
    /// The new key, in the same letters.
    pub key: String,
    /// Who has not heard yet: members, or the bucket; when there is nobody, the key is in use.
    pub waiting_for: Vec<String>,
}

/// When a key is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The old one is in use for the last time.
    Before,
    /// The new one is in use.
    After,
}

/// Has the bucket told of a change of keys; `false`: it can't be now.
pub type TellBucket = Arc<dyn Fn(Moment) -> BoxFuture<'static, bool> + Send + Sync>;

/// What is needed to change keys.
pub(super) struct Rotation {
    /// How long what a key has signed for clients lives.
    life: Duration,
    bucket: OnceLock<TellBucket>,
    /// Held while one step is taken.
    turn: tokio::sync::Mutex<()>,
}

impl Rotation {
    pub(super) fn new(config: &crate::config::Auth) -> Self {
        Self { life: config.token_life.max(config.refresh_life), bucket: OnceLock::new(), turn: tokio::sync::Mutex::default() }
    }

    /// What is written to a bucket is believed when somebody who is believed has named its writer: so before a new key writes there, a pack of the old
    /// one names it; and afterwards the new one tells of all that the old one has written, which by itself may count no more.
    pub(super) fn tell_bucket_by(&self, tell: TellBucket) {
        let _ = self.bucket.set(tell);
    }

    async fn tell_bucket(&self, moment: Moment) -> bool {
        match self.bucket.get() {
            Some(tell) => tell(moment).await,
            None => true,
        }
    }

    fn until(&self) -> u64 {
        now_ms().saturating_add(u64::try_from(self.life.as_millis()).unwrap_or(u64::MAX >> 1))
    }
}

/// What a start has to say, when it is not said already. Blocks.
pub(super) fn introduce(store: &Store, identity: &Identity, member: Member, rotation: &Rotation) -> Result<()> {
    let (key, value) = (Key::Member(identity.node()), Some(Value::Member(member)));
    match store.record(&key)? {
        // S29: an expelled node that wrote itself anew could come back through a member that has not heard yet.
        Some(record) if record.value.is_none() => tracing::warn!(
            "this node was removed from its cluster: nobody will talk to it; join again with a token, or start with an empty data folder"
        ),
        Some(record) if record.value == value => {}
        _ => drop(store.commit(Commit { records: vec![(key, value)], ..Commit::default() })?),
    }
    if identity.is_changing() && identity.is_next_used() {
        // CRASH: it was put in place, and the others were not told.
        note_used(store, identity, rotation)?;
    }
    tell_keys(store, identity)?;
    Ok(())
}

/// Writes this node's own `Member` record anew when somebody else has changed it: others would call it where it is not.
pub(super) fn mend(inner: &Inner) -> Result<bool> {
    let (key, own) = (Key::Member(inner.identity.node()), Value::Member(inner.own.clone()));
    match inner.store.record(&key)? {
        Some(record) if record.value.is_some() && record.value.as_ref() != Some(&own) => {
            inner.store.commit(Commit { records: vec![(key, Some(own))], ..Commit::default() })?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Tells the others of this node's keys, unless that is what they have been told, or it has had one only.
fn tell_keys(store: &Store, identity: &Identity) -> Result<bool> {
    let (key, keys) = (Key::Keys(identity.node()), identity.keys());
    let told = store.record(&key)?.and_then(|record| record.value);
    if told.is_none() && keys.later.is_empty() || told.as_ref() == Some(&Value::Keys(keys.clone())) {
        return Ok(false);
    }
    store.commit(Commit { records: vec![(key, Some(Value::Keys(keys)))], ..Commit::default() })?;
    Ok(true)
}

fn note_used(store: &Store, identity: &Identity, rotation: &Rotation) -> Result<()> {
    let until = if store.setting(REVOKES)?.is_some() { now_ms() } else { rotation.until() };
    identity.note_used(until)?;
    tell_keys(store, identity)?;
    store.commit(Commit { settings: vec![(REVOKES.to_owned(), None)], ..Commit::default() })?;
    Ok(())
}

/// Changes this node's key, as far as that can be done now.
pub(super) async fn change(inner: &Arc<Inner>, how: KeyChange) -> Result<KeyChanged> {
    let _turn = inner.rotation.turn.lock().await;
    let beginning = Arc::clone(inner);
    inner.store.run(move |store| begin(store, &beginning.identity, how)).await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let waiting = waiting_for(inner)?;
        // Those that are alive hear it at once, or as soon as they are connected again.
        let is_alive = |node: &NodeId| inner.standings.of(node).is_some_and(|standing| standing.condition != Condition::Down);
        let is_nobody_near = !waiting.iter().any(|(node, _)| is_alive(node));
        let late = Instant::now() >= deadline;
        if waiting.is_empty() || how.now && (is_nobody_near || late) {
            if !inner.rotation.tell_bucket(Moment::Before).await && !how.now {
                return Ok(changed(inner, vec!["the bucket".to_owned()]));
            }
            finish(inner).await?;
            return Ok(changed(inner, Vec::new()));
        }
        if late || !how.now && is_nobody_near {
            return Ok(changed(inner, waiting.into_iter().map(|(_, name)| name).collect()));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn begin(store: &Store, identity: &Identity, how: KeyChange) -> Result<()> {
    if how.revoke {
        store.commit(Commit { settings: vec![(REVOKES.to_owned(), Some(vec![1]))], ..Commit::default() })?;
    }
    if !identity.is_changing() {
        if identity.keys().later.len() >= KEYS_MAX {
            return Err(Error::TooManyKeys { max: KEYS_MAX });
        }
        identity.announce()?;
    }
    tell_keys(store, identity)?;
    Ok(())
}

fn changed(inner: &Inner, waiting_for: Vec<String>) -> KeyChanged {
    let keys = inner.identity.keys();
    let key = keys.later.last().map_or(inner.identity.node(), |later| later.key);
    KeyChanged { node: inner.identity.node().to_string(), key: key.to_string(), waiting_for }
}

/// The members that are not known to have heard of the key that is announced, or would not understand it.
fn waiting_for(inner: &Inner) -> Result<Vec<(NodeId, String)>> {
    let Some((origin, sequence)) = inner.store.place_of(&Key::Keys(inner.identity.node()))? else { return Ok(Vec::new()) };
    let acknowledged: std::collections::HashMap<_, _> = inner.acks.all().into_iter().collect();
    let has_heard = |node: &NodeId| {
        let link = inner.links.get(node);
        let said = link.as_ref().filter(|link| link.is_checked(&origin)).map(|link| link.known().get(&origin));
        let kept = acknowledged.get(node).map(|said| said.vector.get(&origin));
        said.max(kept).is_some_and(|upto| upto >= sequence) && link.is_none_or(|link| link.version() >= SINCE)
    };
    let others = inner.members.others().into_iter().filter(|(node, _)| !has_heard(node));
    Ok(others.map(|(node, member)| (node, format!("{} ({node:?})", member.name))).collect())
}

/// Uses the key that is announced.
async fn finish(inner: &Arc<Inner>) -> Result<()> {
    let this = Arc::clone(inner);
    // ORDER: on the disk, then shown, then told: until they are told, the others take both.
    inner
        .store
        .run(move |store| -> Result<()> {
            this.identity.use_next()?;
            this.endpoint.show(&this.identity.used());
            note_used(store, &this.identity, &this.rotation)
        })
        .await?;
    tracing::info!(node = %inner.identity.node(), key = %inner.identity.used().key(), "this node's key was changed; the one before proves nothing any more");
    if !inner.rotation.tell_bucket(Moment::After).await {
        tracing::warn!("no checkpoint could be written with this node's new key; the next one tells of what the old one has archived");
    }
    Ok(())
}

/// Goes on with a change that had to wait, and tells this node's keys anew when somebody else has changed what is said of them.
pub(super) async fn follow(peers: Peers) {
    let inner = &peers.inner;
    let stopping = inner.tasks.stopping();
    let mut may_mend = Instant::now();
    while stopping.run_until_cancelled(tokio::time::sleep(FOLLOW)).await.is_some() {
        let Ok(_turn) = inner.rotation.turn.try_lock() else { continue };
        if let Err(error) = go_on(inner, &mut may_mend).await {
            tracing::warn!(%error, "go on with the change of this node's key; trying again");
        }
    }
}

async fn go_on(inner: &Arc<Inner>, may_mend: &mut Instant) -> Result<()> {
    if Instant::now() >= *may_mend && inner.members.is_member(&inner.identity.node()) {
        let this = Arc::clone(inner);
        if inner.store.run(move |store| tell_keys(store, &this.identity)).await? {
            *may_mend = Instant::now() + MEND_PAUSE;
            tracing::warn!("what is said of this node's keys was changed by another node; it is told anew");
        }
    }
    let is_due = inner.identity.is_changing() && waiting_for(inner)?.is_empty() && inner.rotation.tell_bucket(Moment::Before).await;
    if is_due { finish(inner).await } else { Ok(()) }
}

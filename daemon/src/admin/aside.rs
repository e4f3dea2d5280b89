//! The records that are not believed, for `larder status`: those from the future, and those of nodes that wrote twice under one number.

use larder_protocol::record::Key;
use larder_protocol::stamp::Stamp;
use larder_protocol::vector::Origin;
use serde_json::{Value, json};

use crate::store::{Error, Store};

/// Records of each kind that are listed; all are counted.
const LISTED_MAX: usize = 100;

/// What is put aside, as fields of the status.
pub(super) fn list(store: &Store) -> Result<(Value, Value), Error> {
    let waiting = store.quarantined(LISTED_MAX)?;
    let waiting = waiting.iter().map(|it| described(&it.key, &it.stamp, &it.origin, it.sequence)).collect::<Vec<_>>();
    let forks = store.forks()?;
    let forks = forks.iter().take(LISTED_MAX).map(|fork| {
        let records = fork.records.iter().map(|(key, stamp)| described(key, stamp, &fork.origin, fork.sequence));
        json!({ "node": fork.origin.node.to_string(), "sequence": fork.sequence, "records": records.collect::<Vec<_>>() })
    });
    let quarantined = json!({ "count": store.quarantined_count(), "records": waiting });
    Ok((quarantined, json!({ "origins": store.forked_origins(), "places": forks.collect::<Vec<_>>() })))
}

fn described(key: &Key, stamp: &Stamp, origin: &Origin, sequence: u64) -> Value {
    let (kind, about) = match key {
        Key::Manifest(repository, digest) => ("manifest", format!("{repository}@{digest}")),
        Key::Tag(repository, tag) => ("tag", format!("{repository}:{tag}")),
        Key::Link(repository, digest) => ("link", format!("{repository}@{digest}")),
        Key::Archived(pack) => ("archived", pack.to_string()),
        Key::Member(node) => ("member", node.to_string()),
        Key::Role(node) => ("role", node.to_string()),
        Key::Site(node) => ("site", node.to_string()),
        Key::Keys(node) => ("keys", node.to_string()),
        Key::Starts(origin) => ("starts", origin.node.to_string()),
        Key::User(name) => ("user", name.clone()),
        Key::Robot(name) => ("robot", name.clone()),
        Key::Rule(subject, repositories) => ("rule", format!("{subject} in {repositories}")),
        Key::Unknown { kind, .. } => ("unknown", kind.to_string()),
    };
    json!({
        "kind": kind,
        "about": about,
        "written_by": stamp.node.to_string(),
        "written_at": super::api::moment(stamp.time.ms()),
        "node": origin.node.to_string(),
        "sequence": sequence,
    })
}

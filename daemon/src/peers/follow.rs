//! Telling a peer what is here of a blob that it fetches: now, and as it comes.

use std::collections::BTreeSet;
use std::time::Duration;

use larder_protocol::chunks::ChunkSet;
use larder_protocol::digest::Digest;
use larder_protocol::message::{Answer, Standing};

use super::Inner;
use super::endpoint::Sender;
use super::error::Result;
use crate::store::{self, Ended, Partial};

/// What changes within this time is told together.
const TOGETHER: Duration = Duration::from_millis(25);

/// Says what is here until it is whole or will not come.
pub(super) async fn tell(inner: &Inner, send: &mut Sender, digest: Digest) -> Result<()> {
    let last = match standing(inner, digest).await {
        Ok((true, _)) => Standing::Whole,
        Ok((false, Some(partial))) => match tell_changes(send, &partial).await? {
            Ended::Whole => Standing::Whole,
            Ended::Abandoned => Standing::Nothing,
        },
        Ok((false, None)) | Err(_) => Standing::Nothing,
    };
    send.message(&Answer::Standing(last)).await?;
    send.finish();
    Ok(())
}

async fn standing(inner: &Inner, digest: Digest) -> store::Result<(bool, Option<Partial>)> {
    // ORDER: what is coming first. It becomes a blob before it stops to come.
    let partial = inner.store.partial(&digest);
    let is_whole = inner.store.run(move |store| store.blob(&digest)).await?.is_some();
    Ok((is_whole, partial))
}

async fn tell_changes(send: &mut Sender, partial: &Partial) -> Result<Ended> {
    let mut changes = partial.changes();
    let (mut had, mut came) = partial.chunks();
    send.message(&Answer::Standing(Standing::Part { have: had.to_bits(), coming: came.to_bits() })).await?;
    loop {
        tokio::select! {
            ended = partial.ended() => return Ok(ended),
            changed = changes.changed() => if changed.is_err() { return Ok(Ended::Abandoned) },
        }
        tokio::time::sleep(TOGETHER).await;
        changes.mark_unchanged();
        let (have, coming) = partial.chunks();
        if let Some(change) = change((&had, &came), (&have, &coming)) {
            send.message(&Answer::Standing(change)).await?;
        }
        (had, came) = (have, coming);
    }
}

/// What has changed between two moments, if anything has.
fn change((had, came): (&ChunkSet, &ChunkSet), (have, coming): (&ChunkSet, &ChunkSet)) -> Option<Standing> {
    let (landed, new) = (have.without(had), coming.without(came));
    let here: BTreeSet<_> = landed.iter().copied().collect();
    let dropped: Vec<_> = came.without(coming).into_iter().filter(|index| !here.contains(index)).collect();
    let is_change = !(landed.is_empty() && new.is_empty() && dropped.is_empty());
    is_change.then_some(Standing::Change { landed, coming: new, dropped })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(chunks: &[u32]) -> ChunkSet {
        let mut set = ChunkSet::new(10);
        chunks.iter().for_each(|index| _ = set.insert(*index));
        set
    }

    #[test]
    fn only_what_changed_is_told() {
        assert_eq!(change((&set(&[1]), &set(&[2])), (&set(&[1]), &set(&[2]))), None);
        let told = change((&set(&[1]), &set(&[2, 3])), (&set(&[1, 2]), &set(&[4])));
        assert_eq!(told, Some(Standing::Change { landed: vec![2], coming: vec![4], dropped: vec![3] }));
    }
}

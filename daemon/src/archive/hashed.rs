//! Bytes of a pack, hashed as they come, on a thread of their own: is each blob what its digest says?

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::StreamExt;
use larder_protocol::digest::Digest;
use larder_protocol::record::Located;
use tokio::sync::mpsc;

use super::Error;
use super::bucket::Bucket;
use super::unpack::Hasher;

/// Pieces that wait to be hashed.
pub(super) const PIECES_AHEAD: usize = 4;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// Bytes that came.
    pub bytes: u64,
    /// Blobs that are not what their digests say, or lie over others.
    pub damaged: Vec<Digest>,
}

/// Reads an object from the first of these places to the end of the last, by one request, and checks all of them.
///
/// # Errors
/// The bucket's refusal; an answer that ends too early.
pub(super) async fn check(bucket: &Arc<dyn Bucket>, key: &str, mut places: Vec<Located>) -> Result<Checked, Error> {
    places.sort_by_key(|place| (place.offset, place.length));
    let (Some(start), Some(end)) = (places.first().map(|place| place.offset), places.iter().map(|place| place.offset + place.length).max())
    else {
        return Ok(Checked::default());
    };
    let (pieces, taken) = mpsc::channel::<Bytes>(PIECES_AHEAD);
    let hashing = tokio::task::spawn_blocking(move || hash(taken, start, places));
    let mut bytes = 0;
    if end > start {
        let mut chunks = bucket.get_range(key, start..end).await?;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            bytes += chunk.len() as u64;
            // It takes no more when it has seen all.
            if pieces.send(chunk).await.is_err() {
                break;
            }
        }
    }
    drop(pieces);
    let damaged = hashing.await.expect("hashing does not panic");
    if bytes < end - start {
        let detail = format!("the answer ended {} bytes too early", end - start - bytes);
        return Err(Error::Bucket { doing: "get", key: key.to_owned(), bucket: bucket.id().to_owned(), detail });
    }
    Ok(Checked { bytes, damaged })
}

fn hash(mut pieces: mpsc::Receiver<Bytes>, start: u64, places: Vec<Located>) -> Vec<Digest> {
    let (mut at, mut piece, mut damaged) = (start, Bytes::new(), Vec::new());
    for place in places {
        if place.offset < at {
            damaged.push(place.digest);
            continue;
        }
        let mut hasher = Hasher::new(&place.digest);
        let end = place.offset + place.length;
        while at < end {
            if piece.is_empty() {
                match pieces.blocking_recv() {
                    Some(next) => piece = next,
                    // Whoever sends tells of it.
                    None => return damaged,
                }
                continue;
            }
            let upto = if at < place.offset { place.offset } else { end };
            let part = piece.split_to(piece.len().min(usize::try_from(upto - at).unwrap_or(usize::MAX)));
            if at >= place.offset {
                hasher.update(&part);
            }
            at += part.len() as u64;
        }
        if !hasher.is(&place.digest) {
            damaged.push(place.digest);
        }
    }
    damaged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_checked_whatever_the_pieces() {
        let bytes: Vec<u8> = (0..4000u32).map(|number| (number % 251) as u8).collect();
        let place = |offset: usize, length: usize| Located {
            digest: Digest::sha256(&bytes[offset..offset + length]),
            offset: offset as u64,
            length: length as u64,
        };
        let right = vec![place(100, 500), place(600, 0), place(700, 1), place(1000, 2000)];
        let wrong = Located { digest: Digest::sha256(b"other"), offset: 3000, length: 10 };
        let over = Located { digest: Digest::sha256(b"over"), offset: 3005, length: 10 };
        let places: Vec<Located> = right.into_iter().chain([wrong, over]).collect();
        for step in [1, 7, 512, 4000] {
            let (pieces, taken) = mpsc::channel(4000);
            bytes[100..].chunks(step).for_each(|piece| pieces.try_send(Bytes::copy_from_slice(piece)).expect("there is room"));
            drop(pieces);
            assert_eq!(hash(taken, 100, places.clone()), [wrong.digest, over.digest], "{step}");
        }
    }
}

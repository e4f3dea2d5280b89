//! What the same pushes would have taken on a registry that keeps its state in S3: CNCF Distribution 3.1.1 on its s3 driver.
//!
//! Counted against an S3 server with layers of 1 to 500 MiB, alone and ten at a time; the formula fits each of those counts within one request a layer.
//! Its blob cache is warm and its health check off, which is in its favour; so is that a layer which is pushed again counts nothing here.
//!
//! ```text
//!                            PUT class                                              LIST   GET, HEAD   DELETE
//! config and manifest        14                                                     9      9           2
//! a layer of L bytes         10 + (L/10 MiB - 1) + (1 + L/32 MiB above 32 MiB)      8      8           2         divisions rounded up
//! ```

use super::ledger::Requests;

const MIB: u64 = 1 << 20;
/// The chunk in which it writes an upload.
const CHUNK: u64 = 10 * MIB;
/// Above this it copies in parts when an upload ends, each of this size.
const COPIED_PART: u64 = 32 * MIB;

/// Requests of a push of so many manifests, each with a config, over layers of these sizes.
pub(super) fn requests(manifests: u64, layers: impl IntoIterator<Item = u64>) -> Requests {
    let mut requests =
        Requests { put: 14 * manifests, list: 9 * manifests, get: 9 * manifests, delete: 2 * manifests, ..Requests::default() };
    for size in layers {
        let copied = if size > COPIED_PART { 1 + size.div_ceil(COPIED_PART) } else { 0 };
        requests.put += 10 + size.div_ceil(CHUNK).max(1) - 1 + copied;
        requests.list += 8;
        requests.get += 8;
        requests.delete += 2;
    }
    requests
}

/// The same of the blobs that a pack holds: of those, the smallest are taken for the configs, one for each manifest.
pub(super) fn requests_of_pack(manifests: u64, mut sizes: Vec<u64>) -> Requests {
    sizes.sort_unstable();
    requests(manifests, sizes.into_iter().skip(usize::try_from(manifests).unwrap_or(usize::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formula_is_what_was_counted() {
        // Manifest, config and layers as they were pushed; all requests that were counted.
        for (count, size, counted) in [(1, MIB, 62), (1, 30 * MIB, 65), (1, 100 * MIB, 77), (1, 500 * MIB, 129), (10, 30 * MIB, 344)] {
            let computed = requests(1, vec![size; count as usize]).total();
            assert!(computed.abs_diff(counted) <= count, "{count} layers of {size}: {computed}, counted {counted}");
        }
        // Seven layers, config and manifest of 40 MB: 228 on version 2.8.2.
        assert!(requests_of_pack(1, [vec![6_000_000; 7], vec![2_000]].concat()).total().abs_diff(228) <= 7);
    }
}

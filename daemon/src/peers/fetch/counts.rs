//! How many of the peers of this zone that fetch a blob too have a chunk, and to how many it comes.

use std::collections::HashMap;
use std::time::Duration;

use super::sources::{Holding, Source};

pub(super) fn come(coming: &mut HashMap<u32, (u16, Duration)>, index: u32, now: Duration) {
    let entry = coming.entry(index).or_insert((0, now));
    *entry = (entry.0 + 1, now);
}

pub(super) fn renew(coming: &mut HashMap<u32, (u16, Duration)>, index: u32, now: Duration) {
    if let Some(entry) = coming.get_mut(&index) {
        entry.1 = now;
    }
}

pub(super) fn uncome(coming: &mut HashMap<u32, (u16, Duration)>, index: u32) {
    if let Some(entry) = coming.get_mut(&index) {
        entry.0 -= 1;
        if entry.0 == 0 {
            coming.remove(&index);
        }
    }
}

/// Takes what a source has out of the counts.
pub(super) fn forget(held: &mut [u16], coming: &mut HashMap<u32, (u16, Duration)>, source: &Source) {
    match &source.holding {
        Holding::Part { have, coming: underway } if source.peer.near => {
            have.iter().for_each(|index| held[index as usize] -= 1);
            underway.iter().for_each(|index| uncome(coming, index));
        }
        Holding::Whole if source.peer.near && source.is_relay => held.iter_mut().for_each(|held| *held -= 1),
        _ => {}
    }
}

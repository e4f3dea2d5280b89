//! Which packs go, and which are written anew: decided here, without touching disk or bucket.
//!
//! A blob that somebody links counts in one pack, the newest that holds it: its keeper. Everything else in a pack is dead: what nobody links, what a newer
//! pack holds too, and the records, which checkpoints have. A pack of which nothing counts is dropped. Packs that are mostly dead, and small ones that lie
//! side by side in time, are gathered into groups; what counts of a group goes into new packs, and then the old ones are dropped.
//!
//! Packs that must thaw before they can be read go by the same rules, with those of their class alone, and after the least days that it is paid for. Of a blob that lies in one of them
//! and in one that can be read at once, the latter is the keeper, and nothing of that counts as kept because it is frozen as well. Nothing is ever thawed for it: what counts of them
//! comes from this disk or another node's, or they stay.
//!
//! Both are priced: `payback = (reading + puts + early deletion) / (what is saved a month)`, in months. What takes longer than
//! [`Rules::payback_max`] is left as it is. The newest pack of each writer always stays: by it a restore knows whom that writer knew (see `trust`).

use std::collections::BTreeMap;

use crate::config::StorageClass;
use larder_protocol::record::PackId;
use larder_protocol::stamp::NodeId;

/// Of the size of a full pack, the part below which a pack is small.
const SMALL_PARTS: u64 = 4;
/// Small packs of which nothing is dead that are worth putting together.
const MERGE_MIN: usize = 4;
/// Packs that are written anew together.
const GROUP_MAX: usize = 1_000;
/// Bytes that a blob takes in a pack beside its own: headers, padding, its line in the index.
const BLOB_OVERHEAD: u64 = 1_300;
/// And what every pack takes: its layout, tables and footer.
const PACK_OVERHEAD: u64 = 6_000;
/// Bytes of an old pack's end, which is read before it goes.
const END_SIZE: u64 = 64 << 10;
const DAY_MS: u64 = 86_400_000;
const MONTH_DAYS: f64 = 30.0;

/// What a class of objects costs, in dollars.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    /// One PUT.
    pub put: f64,
    /// One GET.
    pub get: f64,
    /// A page of a listing.
    pub list: f64,
    /// A GB (10^9 bytes) stored for a month.
    pub storage_gb_month: f64,
    /// A GB that is read: retrieval, and its way here.
    pub reading_gb: f64,
    /// What goes sooner is paid for so many days.
    pub days_min: u64,
}

/// A pack that is in the bucket.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pack {
    pub id: PackId,
    pub key: String,
    /// As what it was put.
    pub class: StorageClass,
    /// What that costs.
    pub rates: Rates,
    /// Bytes.
    pub size: u64,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Blobs whose keeper it is.
    pub live_blobs: usize,
    /// Their bytes.
    pub live_bytes: u64,
    /// Of those, the ones that are not on this disk.
    pub away_blobs: usize,
    /// Their bytes.
    pub away_bytes: u64,
    /// Whether it is this node's to compact.
    pub is_ours: bool,
}

/// By what is decided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Milliseconds since 1970.
    pub now_ms: u64,
    /// Younger packs stay: what was pushed lately is often deleted soon. Old ones stay for as long when all of them stands elsewhere.
    pub wait_ms: u64,
    /// Most months until what is spent has come in again.
    pub payback_max: f64,
    /// Most bytes that are written anew in one run.
    pub bytes_max: u64,
    /// Bytes of blobs in a full pack.
    pub pack_size: u64,
    /// Blobs in a full pack.
    pub blobs_max: usize,
    /// How often the bucket is listed in a month.
    pub looks_month: f64,
    /// What a run costs whatever it does: listings, two checkpoints, and reading them.
    pub run_cost: f64,
    /// What new packs cost.
    pub rates: Rates,
    /// What those cost into which goes what counts of frozen ones.
    pub frozen_rates: Rates,
}

/// What something costs once, in dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Spent {
    /// Reading what is not on this disk, and the ends of the old packs.
    pub reading: f64,
    /// Writing the new packs.
    pub puts: f64,
    /// What is paid twice, until the old packs may go: the waiting time, and the least days of their class.
    pub early_deletion: f64,
}

impl Spent {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.reading + self.puts + self.early_deletion
    }
}

/// Packs that go, and what that brings.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    /// In order of their age.
    pub packs: Vec<Pack>,
    /// Bytes that are written anew; of packs that are dropped, none.
    pub moved: u64,
    /// Bytes that the bucket holds less afterwards.
    pub freed: u64,
    /// Once.
    pub spent: Spent,
    /// Dollars a month.
    pub saved_month: f64,
}

impl Group {
    /// Months until what is spent has come in again; `None`: it never does.
    pub(super) fn payback(&self) -> Option<f64> {
        payback(self.spent.total(), self.saved_month)
    }
}

/// Months until something is paid back; what costs nothing is paid back at once.
pub(super) fn payback(spent: f64, saved_month: f64) -> Option<f64> {
    if spent <= 0.0 { Some(0.0) } else { (saved_month > 0.0).then(|| spent / saved_month) }
}

/// Why a pack of which something is dead stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Stays {
    /// Another node compacts it.
    Others,
    /// It is younger than the waiting time, or than the least days of its class.
    Young,
    /// It is its writer's newest.
    Newest,
    /// More of it counts than not.
    Useful,
    /// It costs more than it saves in time.
    Dear,
    /// The next run takes it.
    Later,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Nothing of these counts.
    pub drops: Vec<Group>,
    /// What counts of each of these goes into new packs.
    pub rewrites: Vec<Group>,
    /// Others of which something is dead: how many, and how many bytes are dead.
    pub stays: BTreeMap<Stays, (u64, u64)>,
    /// What the run costs beside its groups, in dollars.
    pub run_cost: f64,
}

impl Plan {
    /// All groups.
    pub(super) fn groups(&self) -> impl Iterator<Item = &Group> {
        self.drops.iter().chain(&self.rewrites)
    }

    fn stay(&mut self, why: Stays, packs: &[Pack]) {
        for pack in packs {
            let (count, dead) = self.stays.entry(why).or_default();
            *count += 1;
            *dead += dead_bytes(pack);
        }
    }
}

/// How much it counts that a pack holds a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::archive) struct Rank {
    /// It can be read at once: the more.
    pub is_readable: bool,
    /// Milliseconds since 1970: the later, the more.
    pub created_ms: u64,
}

/// Which of the packs that hold a blob counts as holding it: the newest of those that can be read at once; else the newest. All who know the same packs say the same.
pub(super) fn keeper(holders: impl IntoIterator<Item = (Rank, PackId)>) -> Option<PackId> {
    holders.into_iter().max().map(|(_, id)| id)
}

/// Decides. The same packs by the same rules give the same plan.
pub(super) fn plan(mut packs: Vec<Pack>, rules: &Rules) -> Plan {
    packs.sort_by_key(|pack| (pack.created_ms, pack.id));
    let mut newest = BTreeMap::<NodeId, PackId>::new();
    for pack in packs.iter().filter(|pack| !pack.class.is_frozen()) {
        let last = newest.entry(pack.id.origin.node).or_insert(pack.id);
        *last = pack.id.max(*last);
    }
    let mut plan = Plan { run_cost: rules.run_cost, ..Plan::default() };
    let (mut drops, mut candidates) = (Vec::new(), BTreeMap::<StorageClass, Vec<_>>::new());
    for pack in packs {
        let is_small = pack.size < rules.pack_size / SMALL_PARTS;
        let is_dead = pack.live_blobs == 0;
        let is_mostly_dead = is_dead || dead_bytes(&pack) > pack.size / 2;
        let why = if !pack.is_ours {
            Some(Stays::Others)
        } else if pack.created_ms.saturating_add(rules.wait_ms.max(pack.rates.days_min * DAY_MS)) > rules.now_ms {
            Some(Stays::Young)
        } else if newest.get(&pack.id.origin.node) == Some(&pack.id) {
            Some(Stays::Newest)
        } else if !is_mostly_dead && !is_small {
            Some(Stays::Useful)
        } else if pack.live_bytes > rules.bytes_max {
            Some(Stays::Later)
        } else {
            None
        };
        match why {
            Some(why) if dead_bytes(&pack) > 0 => plan.stay(why, &[pack]),
            Some(_) => {}
            None if is_dead => drops.push(group(vec![pack], rules)),
            None => candidates.entry(pack.class.clone()).or_default().push((pack, is_mostly_dead)),
        }
    }
    let mut groups: Vec<Group> = candidates.into_values().flat_map(|of_class| gather(of_class, rules, &mut plan)).collect();
    let is_worth = |group: &Group| group.spent.total() <= group.saved_month * rules.payback_max;
    let (drops, dear): (Vec<_>, Vec<_>) = drops.into_iter().partition(is_worth);
    dear.iter().for_each(|group| plan.stay(Stays::Dear, &group.packs));
    // What pays back soonest goes first.
    let months = |group: &Group| group.payback().unwrap_or(f64::INFINITY);
    groups.sort_by(|a, b| months(a).total_cmp(&months(b)).then_with(|| a.packs[0].id.cmp(&b.packs[0].id)));
    let (mut moved, mut rewrites) = (0u64, Vec::new());
    for group in groups {
        if !is_worth(&group) {
            plan.stay(Stays::Dear, &group.packs);
        } else if moved.saturating_add(group.moved) > rules.bytes_max {
            plan.stay(Stays::Later, &group.packs);
        } else {
            moved += group.moved;
            rewrites.push(group);
        }
    }
    // What every group leaves over in time must carry what the run itself costs.
    let left: f64 = drops.iter().chain(&rewrites).map(|group| group.saved_month * rules.payback_max - group.spent.total()).sum();
    if left < rules.run_cost {
        drops.iter().chain(&rewrites).for_each(|group| plan.stay(Stays::Dear, &group.packs));
        return plan;
    }
    Plan { drops, rewrites, ..plan }
}

/// Puts candidates that are near in age together, until what counts of them fills a pack.
fn gather(candidates: Vec<(Pack, bool)>, rules: &Rules, plan: &mut Plan) -> Vec<Group> {
    let (mut groups, mut open, mut bytes, mut blobs, mut any_dead) = (Vec::new(), Vec::new(), 0u64, 0usize, false);
    let full = rules.pack_size.min(rules.bytes_max);
    let mut close = |open: &mut Vec<Pack>, any_dead: bool| {
        let packs = std::mem::take(open);
        if any_dead || packs.len() >= MERGE_MIN {
            groups.push(group(packs, rules));
        } else {
            plan.stay(Stays::Useful, &packs);
        }
    };
    for (pack, is_mostly_dead) in candidates {
        let fits = bytes + pack.live_bytes <= full && blobs + pack.live_blobs <= rules.blobs_max && open.len() < GROUP_MAX;
        if !fits && !open.is_empty() {
            close(&mut open, any_dead);
            (bytes, blobs, any_dead) = (0, 0, false);
        }
        bytes += pack.live_bytes;
        blobs += pack.live_blobs;
        any_dead |= is_mostly_dead;
        open.push(pack);
    }
    if !open.is_empty() {
        close(&mut open, any_dead);
    }
    groups
}

/// Prices a group: packs of one class.
pub(super) fn group(packs: Vec<Pack>, rules: &Rules) -> Group {
    let (Rates { get, list, storage_gb_month, reading_gb, days_min, .. }, is_frozen) = (packs[0].rates, packs[0].class.is_frozen());
    let new = if is_frozen { rules.frozen_rates } else { rules.rates };
    let sum = |of: fn(&Pack) -> u64| packs.iter().map(of).sum::<u64>();
    let (size, moved, away) = (sum(|pack| pack.size), sum(|pack| pack.live_bytes), sum(|pack| pack.away_bytes));
    let (blobs, away_blobs) = (sum(|pack| pack.live_blobs as u64), sum(|pack| pack.away_blobs as u64));
    let new_packs = if blobs == 0 { 0 } else { moved.div_ceil(rules.pack_size).max(1) };
    let written = if blobs == 0 { 0 } else { moved + blobs * BLOB_OVERHEAD + new_packs * PACK_OVERHEAD };
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let ends = sum(|pack| pack.size.min(END_SIZE));
    // Nothing is read of what is frozen: neither its end, nor what counts of it.
    let (gets, read) = if is_frozen { (0, 0) } else { (packs.len() as u64 + away_blobs, away + ends) };
    let until_ms = |pack: &Pack| rules.wait_ms.max((pack.created_ms.saturating_add(days_min * DAY_MS)).saturating_sub(rules.now_ms));
    let twice_days = packs.iter().map(until_ms).max().unwrap_or(0) as f64 / DAY_MS as f64;
    let fewer = packs.len() as f64 - new_packs as f64;
    Group {
        moved,
        freed: size.saturating_sub(written),
        spent: Spent {
            reading: gets as f64 * get + gb(read) * reading_gb,
            puts: new_packs as f64 * new.put,
            early_deletion: gb(written) * new.storage_gb_month * twice_days / MONTH_DAYS,
        },
        saved_month: gb(size) * storage_gb_month - gb(written) * new.storage_gb_month + fewer * rules.looks_month * list / 1000.0,
        packs,
    }
}

/// Bytes of a pack that don't count, beside what every pack has.
fn dead_bytes(pack: &Pack) -> u64 {
    pack.size.saturating_sub(pack.live_bytes + pack.live_blobs as u64 * BLOB_OVERHEAD + PACK_OVERHEAD)
}

#[cfg(test)]
mod tests;

//! Plans for random catalogues, and what must hold of each.

use std::collections::{BTreeMap, BTreeSet};

use larder_harness::{Random, for_seeds};
use larder_protocol::vector::Origin;

use super::*;

const S3: Rates = Rates { put: 5e-6, get: 4e-7, list: 5e-6, storage_gb_month: 0.023, reading_gb: 0.09, days_min: 0 };
const FREE: Rates = Rates { put: 0.0, get: 0.0, list: 0.0, storage_gb_month: 0.0, reading_gb: 0.0, days_min: 0 };
const MIB: u64 = 1 << 20;

fn rules(rates: Rates) -> Rules {
    Rules {
        now_ms: 100 * DAY_MS,
        wait_ms: 7 * DAY_MS,
        payback_max: 3.0,
        bytes_max: 8 << 30,
        pack_size: 512 * MIB,
        blobs_max: 5_000,
        looks_month: 30.0,
        run_cost: if rates == FREE { 0.0 } else { 3e-5 },
        rates,
    }
}

fn id(writer: u8, sequence: u64) -> PackId {
    PackId { origin: Origin { node: NodeId([writer; 32]), incarnation: 1 }, sequence }
}

/// A pack of so many MiB, of which so many count, in one blob for each.
fn pack(sequence: u64, size: u64, live: u64) -> Pack {
    Pack {
        id: id(1, sequence),
        key: format!("{sequence}"),
        size: size * MIB + 100_000,
        created_ms: sequence * DAY_MS,
        live_blobs: live as usize,
        live_bytes: live * MIB,
        away_blobs: 0,
        away_bytes: 0,
        is_ours: true,
    }
}

fn keys(groups: &[Group]) -> Vec<&str> {
    groups.iter().flat_map(|group| group.packs.iter().map(|pack| pack.key.as_str())).collect()
}

#[test]
fn what_is_dead_goes_and_what_is_mostly_dead_is_written_anew() {
    let packs = vec![pack(1, 500, 0), pack(2, 500, 100), pack(3, 500, 400), pack(4, 500, 90), pack(5, 500, 0)];
    let plan = plan(packs, &rules(S3));
    assert_eq!((keys(&plan.drops), keys(&plan.rewrites)), (vec!["1"], vec!["2", "4"]), "the newest stays: {plan:?}");
    assert_eq!(plan.rewrites[0].moved, 190 * MIB);
    assert_eq!(plan.stays.keys().copied().collect::<Vec<_>>(), [Stays::Newest, Stays::Useful]);
    let group = &plan.rewrites[0];
    // 1 GB less is 2.3 cents a month; what is paid twice is a week of 190 MiB.
    assert!((group.saved_month - 0.0195).abs() < 5e-4, "{group:?}");
    assert!((group.spent.early_deletion - 0.2 * 0.023 * 7.0 / 30.0).abs() < 5e-5, "{group:?}");
}

#[test]
fn what_must_be_read_back_at_a_price_stays_where_it_is() {
    let mut away = pack(1, 500, 200);
    (away.away_blobs, away.away_bytes) = (away.live_blobs, away.live_bytes);
    let packs = vec![away.clone(), pack(9, 1, 1)];
    // 200 MiB on their way here cost 1.9 cents, and 300 MiB less save 0.7 a month.
    assert_eq!(keys(&plan(packs.clone(), &rules(S3)).rewrites), ["1"]);
    let dear = Rates { reading_gb: 0.12, ..S3 };
    let planned = plan(packs.clone(), &rules(dear));
    assert!(planned.rewrites.is_empty() && planned.stays.contains_key(&Stays::Dear), "{planned:?}");
    assert_eq!(keys(&plan(packs, &Rules { payback_max: 12.0, ..rules(dear) }).rewrites), ["1"]);
}

#[test]
fn a_class_with_least_days_is_waited_for() {
    let rates = Rates { days_min: 90, ..S3 };
    let packs = vec![pack(9, 500, 0), pack(11, 500, 0), pack(95, 500, 0), pack(99, 1, 1)];
    let plan = plan(packs, &rules(rates));
    assert_eq!(keys(&plan.drops), ["9"]);
    assert_eq!(plan.stays.get(&Stays::Young).map(|(count, _)| *count), Some(3));
}

#[test]
fn small_packs_are_put_together_where_that_costs_nothing() {
    let packs: Vec<Pack> = (1..=9).map(|sequence| pack(sequence, 10, 10)).collect();
    assert_eq!(keys(&plan(packs.clone(), &rules(FREE)).rewrites).len(), 8, "the newest stays");
    // Reading their ends costs more than shorter listings save.
    assert!(plan(packs, &rules(S3)).rewrites.is_empty());
    let few: Vec<Pack> = (1..=4).map(|sequence| pack(sequence, 10, 10)).collect();
    assert!(plan(few, &rules(FREE)).rewrites.is_empty());
}

#[test]
fn a_run_is_not_begun_for_less_than_its_own_requests() {
    let tiny = Pack { size: 9_000, live_blobs: 0, live_bytes: 0, ..pack(1, 0, 0) };
    let rules = Rules { payback_max: 60.0, ..rules(S3) };
    let planned = plan(vec![tiny.clone(), pack(9, 1, 1)], &rules);
    assert!(planned.drops.is_empty() && planned.stays.contains_key(&Stays::Dear), "{planned:?}");
    let many: Vec<Pack> = (1..=100).map(|sequence| Pack { id: id(1, sequence), ..tiny.clone() }).collect();
    assert_eq!(plan(many, &rules).drops.len(), 99, "together they pay for it");
}

#[test]
fn f39_plans_keep_to_their_rules() {
    for_seeds(|seed| {
        let mut random = Random::new(seed);
        let rates = if random.below(4) == 0 {
            FREE
        } else {
            Rates { days_min: [0, 30, 90][random.below(3) as usize], reading_gb: random.below(20) as f64 / 100.0, ..S3 }
        };
        let rules = Rules {
            payback_max: random.below(24) as f64,
            bytes_max: (1 + random.below(64)) * 64 * MIB,
            pack_size: (1 + random.below(8)) * 64 * MIB,
            looks_month: random.below(31) as f64,
            ..rules(rates)
        };
        let packs: Vec<Pack> = (0..random.below(60))
            .map(|number| {
                let size = 1 + random.below(rules.pack_size / MIB);
                let live = [0, random.below(size), size][random.below(3) as usize];
                let away = random.below(live + 1) * random.below(2);
                let writer = 1 + random.below(3) as u8;
                Pack {
                    id: id(writer, number + 1),
                    created_ms: random.below(100) * DAY_MS,
                    away_blobs: away as usize,
                    away_bytes: away * MIB,
                    is_ours: random.below(5) > 0,
                    ..pack(number, size, live)
                }
            })
            .collect();
        let planned = plan(packs.clone(), &rules);
        let mut shuffled = packs.clone();
        shuffled.reverse();
        assert_eq!(planned, plan(shuffled, &rules), "the same whatever the order");

        let going: Vec<&Pack> = planned.groups().flat_map(|group| &group.packs).collect();
        let ids: BTreeSet<PackId> = going.iter().map(|pack| pack.id).collect();
        assert_eq!(ids.len(), going.len(), "each once");
        for pack in &going {
            assert!(pack.is_ours && pack.created_ms + (7.max(rates.days_min)) * DAY_MS <= rules.now_ms);
            let is_newest = packs.iter().all(|other| other.id.origin != pack.id.origin || other.id <= pack.id);
            assert!(!is_newest, "the newest of a writer stays");
        }
        assert!(planned.drops.iter().all(|group| group.packs.iter().all(|pack| pack.live_blobs == 0) && group.moved == 0));
        for group in planned.groups() {
            assert!(group.spent.total() <= group.saved_month * rules.payback_max, "{group:?}");
        }
        for group in &planned.rewrites {
            assert_eq!(group.moved, group.packs.iter().map(|pack| pack.live_bytes).sum::<u64>());
            assert!(group.packs.iter().all(|pack| pack.live_blobs > 0));
            assert!(group.moved <= rules.pack_size.max(group.packs[0].live_bytes));
        }
        assert!(planned.rewrites.iter().map(|group| group.moved).sum::<u64>() <= rules.bytes_max);
        let (spent, saved) =
            planned.groups().fold((0.0, 0.0), |(spent, saved), group| (spent + group.spent.total(), saved + group.saved_month));
        assert!(ids.is_empty() || spent + rules.run_cost <= saved * rules.payback_max + 1e-12);
        if rules.payback_max == 0.0 && rates != FREE {
            assert!(ids.is_empty(), "nothing is free here");
        }
    });
}

#[test]
fn f39_a_blob_counts_once_whoever_looks() {
    for_seeds(|seed| {
        let mut random = Random::new(seed);
        let mut holders: Vec<(u64, PackId)> =
            (0..1 + random.below(6)).map(|number| (random.below(4), id(random.below(3) as u8, number))).collect();
        let kept = keeper(holders.clone());
        holders.reverse();
        assert_eq!(keeper(holders.clone()), kept);
        assert!(holders.iter().all(|(created, id)| Some(*id) == kept || holders.iter().any(|(later, _)| later >= created)));
        // Whoever does not know the keeper chooses one that those who do know let go, but never one that is not there.
        holders.retain(|(_, id)| Some(*id) != kept);
        assert!(keeper(holders.clone()).is_none_or(|other| holders.iter().any(|(_, id)| *id == other)));
    });
    assert_eq!(keeper(BTreeMap::<u64, PackId>::new()), None);
}

//! Plans for random catalogues, and what must hold of each.

use std::collections::{BTreeMap, BTreeSet};

use larder_harness::{Random, for_seeds};
use larder_protocol::vector::Origin;

use super::*;

const S3: Rates = Rates { put: 5e-6, get: 4e-7, list: 5e-6, storage_gb_month: 0.023, reading_gb: 0.09, days_min: 0 };
const FREE: Rates = Rates { put: 0.0, get: 0.0, list: 0.0, storage_gb_month: 0.0, reading_gb: 0.0, days_min: 0 };
/// What must thaw.
const COLD: Rates = Rates { put: 5e-5, storage_gb_month: 0.001, reading_gb: 0.11, days_min: 60, ..S3 };
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
        frozen_rates: if rates == FREE { FREE } else { COLD },
    }
}

/// Of packs that cost what new ones of their kind do.
fn plan(mut packs: Vec<Pack>, rules: &Rules) -> Plan {
    packs.iter_mut().for_each(|pack| pack.rates = if pack.class.is_frozen() { rules.frozen_rates } else { rules.rates });
    super::plan(packs, rules)
}

/// The same pack in a class that must thaw.
fn frozen(pack: Pack) -> Pack {
    Pack { class: "DEEP_ARCHIVE".parse().expect("a class"), ..pack }
}

fn id(writer: u8, sequence: u64) -> PackId {
    PackId { origin: Origin { node: NodeId([writer; 32]), incarnation: 1 }, sequence }
}

/// A pack of so many MiB, of which so many count, in one blob for each.
fn pack(sequence: u64, size: u64, live: u64) -> Pack {
    Pack {
        id: id(1, sequence),
        key: format!("{sequence}"),
        class: StorageClass::STANDARD,
        rates: FREE,
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
fn f39_what_is_frozen_goes_after_its_least_days_and_nothing_of_it_is_read() {
    let mut away = frozen(pack(6, 500, 100));
    (away.away_blobs, away.away_bytes) = (100, 100 * MIB);
    let packs = vec![frozen(pack(5, 500, 0)), away, frozen(pack(50, 500, 0)), pack(8, 500, 100), pack(9, 10, 10), frozen(pack(99, 500, 0))];
    let rules = Rules { payback_max: 24.0, ..rules(S3) };
    let planned = plan(packs.clone(), &rules);
    // A group for each class; the newest that can be read stays, frozen ones are nobody's newest.
    assert_eq!((keys(&planned.drops), keys(&planned.rewrites)), (vec!["5"], vec!["8", "6"]), "{planned:?}");
    assert_eq!(planned.stays.get(&Stays::Young).map(|(count, _)| *count), Some(2), "50 and 99 are paid for still: {planned:?}");
    let group = &planned.rewrites[1];
    assert_eq!(group.spent.reading, 0.0, "what is away comes from another node's disk: {group:?}");
    // 400 MiB less are 0.04 cents a month, and what is written anew is paid twice for a week.
    assert!((group.saved_month - 0.42 * COLD.storage_gb_month).abs() < 2e-5, "{group:?}");
    assert!((group.spent.early_deletion - 0.105 * COLD.storage_gb_month * 7.0 / 30.0).abs() < 1e-6, "{group:?}");
    // Where new layers don't freeze any more, what is left of them would cost more than all of it does.
    let warm = Rules { frozen_rates: S3, ..rules };
    let planned = super::plan(packs.into_iter().map(|pack| Pack { rates: COLD, ..pack }).collect(), &warm);
    assert!(!keys(&planned.rewrites).contains(&"6") && keys(&planned.drops).contains(&"5"), "{planned:?}");
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
                    ..if random.below(3) == 0 { frozen(pack(number, size, live)) } else { pack(number, size, live) }
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
            let days_min = if pack.class.is_frozen() { rules.frozen_rates.days_min } else { rates.days_min };
            assert!(pack.is_ours && pack.created_ms + (7.max(days_min)) * DAY_MS <= rules.now_ms);
            let mut readable = packs.iter().filter(|other| !other.class.is_frozen());
            let is_newest = readable.all(|other| other.id.origin != pack.id.origin || other.id <= pack.id);
            assert!(pack.class.is_frozen() || !is_newest, "the newest of a writer stays");
        }
        assert!(planned.drops.iter().all(|group| group.packs.iter().all(|pack| pack.live_blobs == 0) && group.moved == 0));
        for group in planned.groups() {
            assert!(group.packs.iter().all(|pack| pack.class == group.packs[0].class), "one class: {group:?}");
            assert!(!group.packs[0].class.is_frozen() || group.spent.reading == 0.0, "{group:?}");
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
        let rank = |random: &mut Random| Rank { is_readable: random.below(2) == 0, created_ms: random.below(4) };
        let mut holders: Vec<(Rank, PackId)> =
            (0..1 + random.below(6)).map(|number| (rank(&mut random), id(random.below(3) as u8, number))).collect();
        let kept = keeper(holders.clone());
        holders.reverse();
        assert_eq!(keeper(holders.clone()), kept);
        let rank_of = |kept| holders.iter().find(|(_, id)| Some(*id) == kept).map(|(rank, _)| *rank);
        let kept_rank = rank_of(kept).expect("it is one of them");
        assert!(holders.iter().all(|(rank, _)| *rank <= kept_rank));
        assert!(kept_rank.is_readable || holders.iter().all(|(rank, _)| !rank.is_readable), "what can be read counts more");
        // Whoever does not know the keeper chooses one that those who do know let go, but never one that is not there.
        holders.retain(|(_, id)| Some(*id) != kept);
        assert!(keeper(holders.clone()).is_none_or(|other| holders.iter().any(|(_, id)| *id == other)));
    });
    assert_eq!(keeper(BTreeMap::<Rank, PackId>::new()), None);
}

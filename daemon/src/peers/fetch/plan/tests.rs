//! Single decisions, step by step; crowds are in the simulation.

use larder_protocol::chunks::ChunkBits;

use super::*;

const HOLDER: NodeId = NodeId([1; 32]);
const OTHER: NodeId = NodeId([2; 32]);

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A plan of one chunk whose holders in this zone have said that they have it whole.
fn plan(holders: &[NodeId]) -> Plan {
    let mut plan = Plan::new(Digest::sha256(b"blob"), NodeId([9; 32]), ChunkSet::new(1));
    for holder in holders {
        let peer = Peer { near: true, rtt: at(1), strikes: 0, took: None };
        plan.event(at(0), Event::Asked(*holder, peer), &mut Vec::new());
        plan.event(at(0), Event::Says(*holder, Standing::Whole), &mut Vec::new());
    }
    plan
}

/// Whom it asks at a time, with the number of the ask.
fn asks(plan: &mut Plan, now: Duration) -> Vec<(AskId, NodeId)> {
    let mut actions = Vec::new();
    plan.step(now, &mut actions);
    let asks = actions.into_iter().filter_map(|action| match action {
        Action::Ask { ask, peer, .. } => Some((ask, peer)),
        _ => None,
    });
    asks.collect()
}

#[test]
fn who_is_named_and_has_the_blob_whole_is_asked_at_once() {
    let mut plan = plan(&[HOLDER, OTHER]);
    let (ask, first) = asks(&mut plan, at(0))[0];
    let named = if first == HOLDER { OTHER } else { HOLDER };
    plan.event(at(1), Event::Elsewhere(ask, vec![named]), &mut Vec::new());
    assert_eq!(asks(&mut plan, at(2)).iter().map(|(_, peer)| *peer).collect::<Vec<_>>(), [named]);
    // What it says later is counted once.
    plan.event(at(3), Event::Says(named, Standing::Nothing), &mut Vec::new());
    assert_eq!(plan.held, [0]);
}

#[test]
fn who_is_named_before_it_has_said_what_it_has_is_asked_when_it_says_so() {
    let mut plan = plan(&[HOLDER]);
    plan.event(at(0), Event::Asked(OTHER, Peer { near: true, rtt: at(1), strikes: 0, took: None }), &mut Vec::new());
    let (ask, _) = asks(&mut plan, at(0))[0];
    plan.event(at(1), Event::Elsewhere(ask, vec![OTHER]), &mut Vec::new());
    assert_eq!(asks(&mut plan, at(2)), []);
    plan.event(at(30), Event::Says(OTHER, Standing::Whole), &mut Vec::new());
    assert_eq!(asks(&mut plan, at(30)).iter().map(|(_, peer)| *peer).collect::<Vec<_>>(), [OTHER]);
}

#[test]
fn who_has_begun_to_fetch_the_blob_is_asked_again_when_it_says_what_was_true_before() {
    let mut plan = plan(&[HOLDER]);
    let tell = |plan: &mut Plan, event: Event| {
        let mut actions = Vec::new();
        plan.event(at(0), event, &mut actions);
        actions
    };
    let asked = Event::Asked(OTHER, Peer { near: true, rtt: at(1), strikes: 0, took: None });
    let part = Standing::Part { have: ChunkBits(vec![0]), coming: ChunkBits(vec![0]) };
    assert_eq!(tell(&mut plan, asked.clone()), []);
    // The two messages cross.
    assert_eq!(tell(&mut plan, Event::TakesPart(OTHER)), []);
    assert_eq!(tell(&mut plan, Event::Says(OTHER, Standing::Nothing)), [Action::Follow(OTHER)]);
    assert_eq!(tell(&mut plan, asked.clone()), []);
    assert_eq!(tell(&mut plan, Event::Says(OTHER, Standing::Nothing)), [], "nothing new is known");
    // They come one after the other.
    assert_eq!(tell(&mut plan, Event::TakesPart(OTHER)), [Action::Follow(OTHER)]);
    assert_eq!(tell(&mut plan, asked.clone()), []);
    assert_eq!(tell(&mut plan, Event::Says(OTHER, part)), []);
    assert!(plan.sources[&OTHER].1.is_part());
    // It gives up and begins anew.
    assert_eq!(tell(&mut plan, Event::TakesPart(OTHER)), []);
    assert_eq!(tell(&mut plan, Event::Says(OTHER, Standing::Nothing)), [Action::Follow(OTHER)]);
    // Of no use any more, whatever it is about to do.
    assert_eq!(tell(&mut plan, Event::TakesPart(OTHER)), [Action::Follow(OTHER)]);
    assert_eq!(tell(&mut plan, asked), []);
    assert_eq!(tell(&mut plan, Event::TakesPart(OTHER)), []);
    assert_eq!(tell(&mut plan, Event::Dropped(OTHER)), []);
    assert_eq!(tell(&mut plan, Event::Says(OTHER, Standing::Nothing)), []);
    assert_eq!(tell(&mut plan, Event::TakesPart(OTHER)), []);
}

#[test]
fn f25_the_only_holder_is_asked_again_after_a_silence_and_given_up_in_the_end() {
    let mut plan = plan(&[HOLDER]);
    let (mut asked, mut now) = (0, at(0));
    while plan.state() == State::Going && now < Duration::from_secs(120) {
        asked += asks(&mut plan, now).len();
        now += TICK;
    }
    assert_eq!(asked as u32, 1 + late::STALLS_MAX);
    assert!(plan.state() == State::Failed && now < Duration::from_secs(60), "{:?} after {now:?}", plan.state());
}

#[test]
fn f20_what_waits_on_a_thin_line_behind_other_blobs_is_not_asked_for_again() {
    let mut plan = Plan::new(Digest::sha256(b"blob"), NodeId([9; 32]), ChunkSet::new(1));
    for holder in [HOLDER, OTHER] {
        plan.event(at(0), Event::Asked(holder, Peer { near: false, rtt: at(40), strikes: 0, took: None }), &mut Vec::new());
        plan.event(at(0), Event::Says(holder, Standing::Whole), &mut Vec::new());
    }
    let (_, first) = asks(&mut plan, at(0))[0];
    let mut now = at(0);
    while now < at(90_000) {
        now += TICK;
        plan.event(now, Event::Heard(first, 2000), &mut Vec::new());
        assert_eq!(asks(&mut plan, now), [], "after {now:?}");
    }
    // Then nothing comes any more.
    let silent_since = now;
    let second = std::iter::repeat_with(|| {
        now += TICK;
        (now, asks(&mut plan, now))
    });
    let (when, second) = second.take(1000).find(|(_, asks)| !asks.is_empty()).expect("it is asked for in the end");
    assert_ne!(second[0].1, first);
    assert!(when - silent_since <= at(20_000), "{when:?}");
}
